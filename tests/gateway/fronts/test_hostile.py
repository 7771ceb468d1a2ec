"""Input that nobody sends by accident: each is answered with its 4xx or closed, and the process does not notice."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import psutil
import pytest

from tests.gateway.gateway_stack import GatewayStack, wait_for
from tests.gateway.raw_http import chat, post, read_all, read_until

LIMIT_BYTES = 200_000


@pytest.fixture(scope="module")
def stack() -> Iterator[GatewayStack]:
    with GatewayStack(overrides={"gateway.max_body_bytes": LIMIT_BYTES, "gateway.max_json_depth": 64}) as made:
        made.deploy("m", step_ms=5)
        yield made


@pytest.fixture(autouse=True)
def unharmed(stack: GatewayStack) -> Iterator[None]:
    """After every test: the same worker process, serving, with nothing left open."""
    before = {child.pid for child in psutil.Process(stack.gateway.pid).children()}
    yield
    answer = stack.client.post("/v1/chat/completions", content=chat("m", max_tokens=1))
    assert answer.status_code == 200
    assert {child.pid for child in psutil.Process(stack.gateway.pid).children()} == before
    wait_for(lambda: stack.metric("xinf_requests_in_flight") == 0, what="nothing in flight")
    assert "Traceback" not in stack.log()


DEEP = b'{"model": "m", "x": ' + b"[" * 65 + b"]" * 65 + b"}"


@pytest.mark.parametrize(
    ("body", "offset"),
    [
        (b"", 0),
        (b"{", 1),
        (b'{"model": "m",}', 14),
        (b'{"model": nul}', 13),
        (b'{"model": "m"} x', 15),
        (b'{"model": "\xff"}', 11),
        (b'{"model": "\\ud800"}', None),
        (b'{"n": 01}', None),
        (b"\xef\xbb\xbf{}", 0),
        (b"\x00" * 100, 0),
        (DEEP, None),
        (b"[" * 100_000, None),
        (b'{"a":' * 30_000, None),
    ],
)
def test_malformed_json_is_400_with_the_offset(stack: GatewayStack, body: bytes, offset: int | None) -> None:
    answer = stack.client.post("/v1/chat/completions", content=body)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["code"] == "malformed_json"
    assert isinstance(error["offset"], int)
    if offset is not None:
        assert error["offset"] == offset


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 3}, "model"),
        ({"model": ["m"]}, "model"),
        ({"model": "m", "stream": "yes"}, "stream"),
        ({"model": "m", "max_tokens": "many"}, "max_tokens"),
        ({"model": "m", "n": 1.5}, "n"),
        ({"model": "m", "messages": {"role": "user"}}, "messages"),
    ],
)
def test_wrong_types_name_the_field(stack: GatewayStack, fields: dict[str, object], param: str) -> None:
    answer = stack.client.post("/v1/chat/completions", content=json.dumps(fields))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"
    assert answer.json()["error"]["param"] == param


def test_top_level_must_be_an_object(stack: GatewayStack) -> None:
    for body in (b"[]", b"3", b'"x"', b"null"):
        assert stack.client.post("/v1/chat/completions", content=body).status_code == 400


def test_huge_body_is_refused_before_it_is_sent(stack: GatewayStack) -> None:
    raw = stack.connect()
    raw.sendall(post("/v1/chat/completions", b"", length=64 << 20))
    answer = read_all(raw)
    raw.close()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"body_too_large"' in answer


def test_huge_chunked_body_is_refused_at_the_limit(stack: GatewayStack) -> None:
    raw = stack.connect()
    raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(LIMIT_BYTES // 1000 + 1):
        raw.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
    answer = read_all(raw)
    raw.close()
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_chunked_body_is_read(stack: GatewayStack) -> None:
    body = chat("m", max_tokens=1)
    raw = stack.connect()
    raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    for byte in body:
        raw.sendall(b"1\r\n" + bytes([byte]) + b"\r\n")
    raw.sendall(b"0\r\n\r\n")
    assert read_until(raw, b"}}").startswith(b"HTTP/1.1 200 ")
    raw.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 500 + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 300_000 + b"\r\n\r\n",
    ],
)
def test_bad_http_is_refused_or_closed(stack: GatewayStack, request_bytes: bytes) -> None:
    raw = stack.connect()
    try:
        raw.sendall(request_bytes)
        answer = read_all(raw)
    except (ConnectionResetError, BrokenPipeError):
        answer = b""
    finally:
        raw.close()
    assert answer == b"" or answer.split(b" ")[1][:1] == b"4"


@pytest.mark.parametrize(
    "header",
    [
        "authorization: Bearer \xff\xfe",
        "x-request-id: \xff",
        "x-xinf-model: \xff\xfe",
        "traceparent: \xff",
        "x-request-timeout: 1e999",
        "accept: \xff",
        "x-request-id: " + "a" * 10_000,
    ],
)
def test_odd_header_values_are_harmless(stack: GatewayStack, header: str) -> None:
    raw = stack.connect()
    raw.sendall(post("/v1/chat/completions", chat("m", max_tokens=1), header))
    assert read_until(raw, b"}").split(b" ")[1] in (b"200", b"400")
    raw.close()


def test_pipelined_requests_are_answered_in_order(stack: GatewayStack) -> None:
    raw = stack.connect()
    one = post("/v1/chat/completions", chat("m", max_tokens=1), "x-request-id: first")
    two = post("/v1/chat/completions", chat("m", max_tokens=1), "x-request-id: second", "connection: close")
    raw.sendall(one + two)
    answer = read_all(raw)
    raw.close()
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert answer.index(b"x-request-id: first") < answer.index(b"x-request-id: second")


def test_clients_that_vanish_at_every_point_leave_nothing(stack: GatewayStack) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    request = post("/v1/chat/completions", chat("m", max_tokens=200, stream=True))
    for _ in range(60):
        raw = stack.connect()
        raw.sendall(request[: chance.randrange(len(request) + 1)])
        if chance.random() < 0.3:
            raw.settimeout(chance.uniform(0.001, 0.05))
            try:
                raw.recv(chance.randrange(1, 4000))
            except TimeoutError:
                pass
        if chance.random() < 0.5:  # with a reset instead of an end
            raw.setsockopt(1, 13, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        raw.close()
    wait_for(lambda: stack.metric("xinf_replica_in_flight") == 0, what="nothing at the engine")
