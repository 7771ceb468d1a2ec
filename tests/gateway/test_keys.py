"""API keys: when they are needed, which are taken, for which models."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from xinf.core.config import GatewayConfig, load
from xinf.core.errors import ConfigError, PermissionDenied, Unauthenticated
from xinf.core.ids import KeyId
from xinf.core.records import KeyRecord
from xinf.gateway.keys import KeyRing, check_exposure, check_model, is_loopback

NOW_S = 1000.0


def settings(**changes: object) -> GatewayConfig:
    return msgspec.structs.replace(load(environ={}).gateway, **changes)


def key(text: bytes = b"sk-xinf-1", **changes: object) -> KeyRecord:
    record = KeyRecord(id=KeyId("k1"), sha256=hashlib.sha256(text).hexdigest())
    return msgspec.structs.replace(record, **changes)


def bearer(text: bytes) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + text}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("box.example", False),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_no_key_is_needed_on_loopback_while_none_exists() -> None:
    assert KeyRing(settings()).check({}, NOW_S) is None


def test_a_key_is_needed_as_soon_as_one_exists() -> None:
    ring = KeyRing(settings(insecure=True))
    ring.replace([key()])
    with pytest.raises(Unauthenticated, match="needs an API key"):
        ring.check({}, NOW_S)


def test_a_key_is_needed_where_others_can_reach_even_if_none_exists() -> None:
    with pytest.raises(Unauthenticated, match="xinf key create"):
        KeyRing(settings(host="0.0.0.0")).check(bearer(b"x"[:0]), NOW_S)


def test_insecure_opens_an_address_without_keys() -> None:
    assert KeyRing(settings(host="0.0.0.0", insecure=True)).check({}, NOW_S) is None


@pytest.mark.parametrize(
    "headers", [bearer(b"sk-xinf-1"), {b"authorization": b"bearer  sk-xinf-1"}, {b"x-api-key": b"sk-xinf-1"}]
)
def test_known_key_is_taken(headers: dict[bytes, bytes]) -> None:
    ring = KeyRing(settings())
    ring.replace([key()])
    assert ring.check(headers, NOW_S) == key()


@pytest.mark.parametrize(
    "headers",
    [
        bearer(b"sk-xinf-2"),
        {b"authorization": b"Basic sk-xinf-1"},
        {b"authorization": b"\xff\xfe"},
        {b"authorization": b"Bearer"},
    ],
)
def test_other_keys_are_not(headers: dict[bytes, bytes]) -> None:
    ring = KeyRing(settings())
    ring.replace([key()])
    with pytest.raises(Unauthenticated):
        ring.check(headers, NOW_S)


def test_expired_key_is_refused() -> None:
    ring = KeyRing(settings())
    ring.replace([key(expires_s=NOW_S)])
    with pytest.raises(Unauthenticated, match="expired"):
        ring.check(bearer(b"sk-xinf-1"), NOW_S)


def test_removed_key_is_refused() -> None:
    ring = KeyRing(settings())
    ring.replace([key(), key(b"sk-xinf-2")])
    ring.replace([key(b"sk-xinf-2")])
    with pytest.raises(Unauthenticated):
        ring.check(bearer(b"sk-xinf-1"), NOW_S)


def test_key_opens_its_models_under_any_of_their_names() -> None:
    check_model(key(models=("b",)), ("a", "b"))
    check_model(key(), ("a",))
    check_model(None, ("a",))
    with pytest.raises(PermissionDenied, match="may not use model 'a', only b, c"):
        check_model(key(models=("c", "b")), ("a",))


def test_exposure_without_keys_is_refused() -> None:
    with pytest.raises(ConfigError, match="no API key exists"):
        check_exposure(settings(host="0.0.0.0"), has_keys=False)
    check_exposure(settings(host="0.0.0.0"), has_keys=True)
    check_exposure(settings(host="0.0.0.0", insecure=True), has_keys=False)
    check_exposure(settings(), has_keys=False)
