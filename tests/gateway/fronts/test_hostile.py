"""Input that nobody sends by accident: each is answered with its 4xx or closed, and the process does not notice."""

from __future__ import annotations

import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.gateway.fronts.scripted_replica import ScriptedReplica
from tests.gateway.gateway_stack import GatewayStack
from tests.gateway.raw_http import AnswerReader, chat, post, read_all, read_until

pytestmark = pytest.mark.usefixtures("unharmed")

HIDDEN = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
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
    for _ in range(stack.config.gateway.max_body_bytes // 10_000 + 1):
        raw.sendall(b"2710\r\n" + b" " * 10_000 + b"\r\n")
    answer = read_all(raw)
    raw.close()
    assert answer.startswith(b"HTTP/1.1 413 ")


BAD_HTTP = [
    b"\x00\x01\x02\x03\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
    CHUNKED + b"zz\r\n",
    CHUNKED + b"-1\r\n",
    CHUNKED + b"fffffffffffffffff\r\n",
    CHUNKED + b"2\r\n{}x\r\n0\r\n\r\n",
    CHUNKED + b"2;" + b"a" * 300_000,
    CHUNKED.replace(b"chunked", b"gzip") + b"2\r\n{}\r\n0\r\n\r\n",
    CHUNKED.replace(b"chunked", b"chunked, gzip") + b"2\r\n{}\r\n0\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
    b'POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\n{"a":',
    b"GET / HTTP/1.1\r\nhost: x\r\na: b\x00c\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\na : b\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 300,  # a TLS hello
]


@pytest.mark.parametrize("request_bytes", BAD_HTTP, ids=range(len(BAD_HTTP)))
def test_bad_http_is_refused_or_closed(stack: GatewayStack, request_bytes: bytes) -> None:
    raw = stack.connect()
    try:
        raw.sendall(request_bytes)
        answer = read_all(raw)
    except (ConnectionResetError, BrokenPipeError):
        answer = b""
    finally:
        raw.close()
    assert answer == b"" or answer.split(b" ")[1][:1] == b"4" or answer.split(b" ")[1] in (b"501", b"505")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 500 + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\na: " + b"b" * 300_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\na: " + b"b" * 300_000,  # and no end
    ],
    ids=["many", "long", "endless"],
)
def test_huge_headers_are_431(stack: GatewayStack, request_bytes: bytes) -> None:
    raw = stack.connect()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(raw.sendall, request_bytes)
        assert AnswerReader(raw).answer().status == 431
    raw.close()


def test_endless_request_line_is_refused(stack: GatewayStack) -> None:
    raw = stack.connect()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(raw.sendall, b"GET /" + b"a" * 300_000)
        assert AnswerReader(raw).answer().status in (414, 431)
    raw.close()


def test_length_and_chunks_together_smuggle_nothing(stack: GatewayStack) -> None:
    # A proxy that goes by the length sees one request with a body; whoever goes by the chunks sees a second request.
    raw = stack.connect()
    raw.sendall(post("/v1/chat/completions", b"0\r\n\r\n" + HIDDEN, "transfer-encoding: chunked"))
    raw.sendall(b"GET /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answer = read_all(raw)
    raw.close()
    assert b'"status":"ok"' not in answer
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("n_sent", [0, 1 << 20])
def test_client_that_sends_a_huge_body_anyway_is_told_and_stopped(stack: GatewayStack, n_sent: int) -> None:
    raw = stack.connect()
    raw.sendall(post("/v1/chat/completions", b" " * n_sent, length=1 << 50))
    assert AnswerReader(raw).answer().status == 413
    before = stack.worker_bytes()
    # A server may read on for a while, so that the answer is not lost in a reset; but not for ever.
    until_s = time.monotonic() + 10.0
    is_stopped = False
    while not is_stopped and time.monotonic() < until_s:
        try:
            raw.sendall(b" " * (1 << 18))
        except (ConnectionResetError, BrokenPipeError):
            is_stopped = True
    raw.close()
    assert is_stopped
    assert stack.worker_bytes() < before + (8 << 20)


def test_last_of_duplicate_keys_wins(stack: GatewayStack, scripted: ScriptedReplica) -> None:
    body = b'{"model": "unknown", "model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1'
    assert stack.client.post("/v1/chat/completions", content=body + b"}").status_code == 200
    assert stack.client.post("/v1/chat/completions", content=body + b', "model": "unknown"}').status_code == 404


def test_garbage_is_survived(stack: GatewayStack) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    good = post("/v1/chat/completions", chat("m", max_tokens=2, stream=True))
    for _ in range(300):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        raw = stack.connect()
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        assert read_all(raw)[:9] in (b"", b"HTTP/1.1 ", b"HTTP/1.0 ")
        raw.close()


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
