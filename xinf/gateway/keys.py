"""API keys: who may ask, and for which models. Checked before a byte of the body is read.

Keys are looked up by the SHA-256 of the whole key (docs/adr/0006); the store never held the key itself. A key is needed
as soon as one exists, and always on an address that others can reach, unless the operator said `insecure`.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping

from xinf.core.config import GatewayConfig
from xinf.core.errors import ConfigError, PermissionDenied, Unauthenticated
from xinf.core.records import KeyRecord


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(config: GatewayConfig, *, has_keys: bool) -> None:
    """Refuse to serve without keys where others can reach it.

    Raises: ConfigError saying what to do.
    """
    if has_keys or config.insecure or is_loopback(config.host):
        return
    raise ConfigError(
        f"gateway.host = {config.host!r} can be reached by others and no API key exists",
        remedy="make one with `xinf key create`, listen on 127.0.0.1, or say --insecure",
        key="gateway.host",
    )


class KeyRing:
    """The keys of the store, by digest. `replace` on every change; `check` per request: one hash and a lookup."""

    def __init__(self, config: GatewayConfig) -> None:
        self._is_open = config.insecure or is_loopback(config.host)
        self._by_digest: dict[str, KeyRecord] = {}

    @property
    def has_keys(self) -> bool:
        return bool(self._by_digest)

    @property
    def is_required(self) -> bool:
        return bool(self._by_digest) or not self._is_open

    def replace(self, records: Iterable[KeyRecord]) -> None:
        """Hold exactly these keys."""
        self._by_digest = {record.sha256: record for record in records}

    def check(self, headers: Mapping[bytes, bytes], now_s: float) -> KeyRecord | None:
        """Return the key of a request, None where none is needed.

        Raises: Unauthenticated.
        """
        if not self.is_required:
            return None
        key = _presented(headers)
        if key is None:
            remedy = "send `Authorization: Bearer <key>`"
            if not self._by_digest:
                remedy = "no key exists yet: make one with `xinf key create`"
            raise Unauthenticated("this gateway needs an API key", remedy=remedy)
        record = self._by_digest.get(hashlib.sha256(key).hexdigest())
        if record is None:
            raise Unauthenticated("the API key is not known")
        if record.expires_s is not None and record.expires_s <= now_s:
            raise Unauthenticated("the API key has expired", remedy="make a new one with `xinf key create`")
        return record


def check_model(key: KeyRecord | None, names: Iterable[str]) -> None:
    """Check that a key may use a model that is known under `names`. Raises: PermissionDenied."""
    if key is None or not key.models or not set(key.models).isdisjoint(names):
        return
    raise PermissionDenied(
        f"key {key.id} may not use model {next(iter(names))!r}, only {', '.join(sorted(key.models))}", param="model"
    )


def _presented(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The key of the request: OpenAI's way, or the Anthropic clients' `x-api-key`."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and key.strip():
        return key.strip()
    return headers.get(b"x-api-key") or None
