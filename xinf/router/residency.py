"""What an engine says of its cache."""

from __future__ import annotations

import msgspec


class ResidencyUpdate(msgspec.Struct, frozen=True, gc=False):
    """One Residency message of a Link, in its order, without its sequence number.

    `added`, `removed`: (n,) little-endian uint64, hashes of chunks. `tokens`: uint32 beside `added`, the tokens of the
    prompt up to each chunk's end. `state`: "exact", "approx", "off", or "" as before. `is_partial`: more of this
    snapshot follows.
    """

    cleared: bool = False
    added: bytes = b""
    tokens: bytes = b""
    removed: bytes = b""
    state: str = ""
    is_partial: bool = False
