"""Makes API keys. The key is shown once; the store gets its digest (docs/adr/0006)."""

from __future__ import annotations

import hashlib

from xinf.core.ids import KeyId, random_suffix
from xinf.core.records import KeyRecord

PREFIX = "sk-xinf-"
_SECRET_CHARACTERS = 32  # of 5 bits each
_ID_CHARACTERS = 8


def make_key(
    *,
    now_s: float,
    label: str = "",
    models: tuple[str, ...] = (),
    lifetime_s: float | None = None,
) -> tuple[KeyRecord, str]:
    """Make a key: its record for the store, and the key itself for its user."""
    secret = PREFIX + random_suffix(_SECRET_CHARACTERS)
    record = KeyRecord(
        id=KeyId(random_suffix(_ID_CHARACTERS)),
        sha256=hashlib.sha256(secret.encode()).hexdigest(),
        label=label,
        models=models,
        created_s=now_s,
        expires_s=None if lifetime_s is None else now_s + lifetime_s,
    )
    return record, secret
