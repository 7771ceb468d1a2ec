"""The limits of the contract, checked once for every backend before anything is queued."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from xinf.core.errors import InvalidRequest
from xinf.core.units import format_bytes
from xinf.meta.contract import (
    MAX_KEY_BYTES,
    MAX_LISTING_BYTES,
    MAX_TXN_BYTES,
    MAX_TXN_OPS,
    MAX_VALUE_BYTES,
    Compare,
    Op,
    Put,
)

MIN_TTL_S = 0.05
MAX_TTL_S = 30 * 86400.0

_KEY = re.compile(rf"[!-~]{{1,{MAX_KEY_BYTES}}}")
_PREFIX = re.compile(rf"[!-~]{{0,{MAX_KEY_BYTES}}}")


def check_key(key: str) -> None:
    """Raises: InvalidRequest when `key` is no key."""
    if not _KEY.fullmatch(key):
        raise InvalidRequest(
            f"key {_shortened(key)} has {len(key)} characters; a key is 1 to {MAX_KEY_BYTES} printable ASCII"
            " characters without spaces",
            param="key",
        )


def check_prefix(prefix: str) -> None:
    """Raises: InvalidRequest when no key can start with `prefix`."""
    if not _PREFIX.fullmatch(prefix):
        raise InvalidRequest(f"prefix {_shortened(prefix)} is not the start of any valid key", param="prefix")


def check_ttl(ttl_s: float) -> None:
    """Raises: InvalidRequest when a lease cannot live that long."""
    if not math.isfinite(ttl_s) or not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
        raise InvalidRequest(f"lease ttl {ttl_s} s is not between {MIN_TTL_S} s and {MAX_TTL_S:.0f} s", param="ttl_s")


def check_txn(compares: Sequence[Compare], ops: Sequence[Op]) -> None:
    """Raises: InvalidRequest naming the key or the limit."""
    if len(ops) > MAX_TXN_OPS or len(compares) > MAX_TXN_OPS:
        raise InvalidRequest(
            f"transaction has {len(compares)} comparisons and {len(ops)} operations; the limit is {MAX_TXN_OPS} of each"
        )
    for compare in compares:
        check_key(compare.key)
        if compare.mod_revision is not None and compare.mod_revision < 1:
            raise InvalidRequest(
                f"comparison of {compare.key} with revision {compare.mod_revision}: revisions start at 1,"
                " None means absent",
                param="mod_revision",
            )
    seen: set[str] = set()
    n_bytes = 0
    for op in ops:
        check_key(op.key)
        if op.key in seen:
            raise InvalidRequest(f"key {op.key} appears twice among the operations of one transaction", param="key")
        seen.add(op.key)
        n_bytes += len(op.key)
        if isinstance(op, Put):
            if len(op.value) > MAX_VALUE_BYTES:
                raise InvalidRequest(
                    f"value of {op.key} has {format_bytes(len(op.value))}; the limit is"
                    f" {format_bytes(MAX_VALUE_BYTES)}",
                    param="value",
                )
            n_bytes += len(op.value)
    if n_bytes > MAX_TXN_BYTES:
        raise InvalidRequest(
            f"transaction has {format_bytes(n_bytes)} of keys and values; the limit is {format_bytes(MAX_TXN_BYTES)}"
        )


def check_listing(prefix: str, n_bytes: int) -> None:
    """Raises: InvalidRequest when a listing has grown too large."""
    if n_bytes > MAX_LISTING_BYTES:
        raise InvalidRequest(
            f"keys below {prefix!r} have more than {format_bytes(MAX_LISTING_BYTES)}",
            remedy="list a longer prefix",
            param="prefix",
        )


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
