"""Connections of the front `direct`, over raw sockets: framing, order, errors, slow readers, clients that vanish."""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.gateway.direct_stack import MAX_BODY_BYTES, TEXT, DirectStack, read_answer
from tests.gateway.raw_http import post, read_all, read_until
from xinf.gateway.direct import PIPELINE_BYTES

CHUNKED = b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
CLOSE = "connection: close"


@pytest.fixture(scope="module")
def shared() -> Iterator[DirectStack]:
    with DirectStack() as made:
        yield made


@pytest.fixture
def stack(shared: DirectStack) -> Iterator[DirectStack]:
    """The shared server; after every test it serves and has forgotten the test's connections."""
    shared.core.calls.clear()
    yield shared
    for raw in shared._sockets:
        raw.close()
    shared._sockets.clear()
    shared.wait_until(lambda: shared.server.n_connections == 0)
    assert b"4:ping" in shared.talk(post("/sync", b"ping", CLOSE))
    shared.core.held.clear()


# ---- framing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/sync", "/later"])
def test_answer_and_keep_alive(stack: DirectStack, path: str) -> None:
    raw = stack.connect()
    for body in (b"", b"hello", b"x" * 300_000):
        raw.sendall(post(path, body))
        head, text, rest = read_answer(raw)
        assert head.startswith(b"HTTP/1.1 200 OK\r\ndate: ")
        assert b"connection" not in head
        assert text == b"%d:%b" % (len(body), body[:100])
        assert rest == b""


def test_split_at_every_byte_gives_the_same(stack: DirectStack) -> None:
    request = post("/sync", b"hello", "x-a: b") + CHUNKED % b"/sync" + b"3\r\nabc\r\n0\r\nt: 1\r\n\r\n"
    raw = stack.connect()
    for at in range(1, len(request)):
        raw.sendall(request[:at])
        stack.call(lambda: None)  # the first part is looked at, so that the second comes in a read of its own
        raw.sendall(request[at:])
        _, first, rest = read_answer(raw)
        _, second, rest = read_answer(raw, rest)
        assert (first, second, rest) == (b"5:hello", b"3:abc", b""), at


def test_byte_by_byte(stack: DirectStack) -> None:
    raw = stack.connect()
    for byte in post("/sync", b"hello"):
        raw.sendall(bytes([byte]))
        stack.call(lambda: None)
    assert read_answer(raw)[1] == b"5:hello"
    body = bytes(range(256)) * 40
    raw.sendall(post("/hold", b"", length=len(body)))
    for at in range(0, len(body), 100):
        raw.sendall(body[at : at + 100])
        stack.call(lambda: None)
    held = stack.hold()
    assert held.body == body
    stack.call(lambda: stack.core.echo(held))


def test_empty_lines_before_a_request_are_skipped(stack: DirectStack) -> None:
    raw = stack.connect()
    for lines in (b"\r\n", b"\r\n\r\n\r\n\r\n", b"\n"):
        raw.sendall(lines + post("/sync", b"a"))
        assert read_answer(raw)[1] == b"1:a"
    raw.sendall(b"\r\n")
    stack.call(lambda: None)
    raw.sendall(post("/sync", b"a"))
    assert read_answer(raw)[1] == b"1:a"


def test_http10(stack: DirectStack) -> None:
    old = b"POST /sync HTTP/1.0\r\ncontent-length: 1\r\n%b\r\na"
    answer = stack.talk(old % b"")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close\r\n" in answer
    raw = stack.connect()
    for _ in range(2):
        raw.sendall(old % b"connection: keep-alive\r\n")
        assert b"connection: keep-alive" in read_answer(raw)[0]


def test_connection_close_is_honoured(stack: DirectStack) -> None:
    answer = stack.talk(post("/sync", b"a", CLOSE) + post("/sync", b"b"))
    assert answer.count(b"HTTP/1.1") == 1
    assert b"connection: close\r\n" in answer


def test_expect_continue_comes_after_admit_only(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(post("/sync", b"", "expect: 100-continue", length=3))
    assert raw.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    raw.sendall(b"abc")
    assert read_answer(raw)[1] == b"3:abc"
    raw.sendall(post("/sync", b"abc", "expect: 100-continue"))  # it did not wait
    assert read_answer(raw)[0].startswith(b"HTTP/1.1 200")
    answer = stack.talk(post("/deny", b"", "expect: 100-continue", length=3))
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"connection: close" in answer


def test_nagle_is_off(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(post("/hold", b""))
    held = stack.hold()
    inner = stack.call(lambda: held.client._transport.get_extra_info("socket"))  # type: ignore[attr-defined]
    assert inner.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    stack.call(lambda: stack.core.echo(held))


def test_header_injection_is_left_out(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(post("/hold", b""))
    held = stack.hold()
    headers = [(b"a", b"1\r\nevil: 2"), (b"b\nevil", b"3"), (b"connection", b"upgrade"), (b"c", b"4")]
    stack.call(lambda: held.client.answer(299, headers, b""))
    head, _, _ = read_answer(raw)
    assert b"evil" not in head
    assert b"connection" not in head
    assert b"\r\nc: 4" in head
    assert head.startswith(b"HTTP/1.1 299 ")


# ---- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x00\x01\x02\x03\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"BREW /pot HTTP/1.1\r\n", 501),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04", 400),
        (b"GET / HTTP/1.1\nhost: x\n\n", 400),
        (b"GET /" + b"a" * 100_000, 414),
        (b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 300_000, 431),
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 500 + b"\r\n", 431),
        (CHUNKED % b"/sync" + b"x\r\n", 400),
        (CHUNKED % b"/sync" + b"1\r\nabc", 400),
        (CHUNKED % b"/sync" + b"ffffffff\r\n", 413),
        (b"CONNECT x:443 HTTP/1.1\r\nhost: x:443\r\n\r\n", 405),
        (post("/sync", b"hello", "transfer-encoding: chunked"), 400),
        (post("/deny", b"", length=100_000), 403),
        (post("/boom", b""), 500),
        (b"GET /page HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n", 413),
    ],
)
def test_refused_requests_get_an_answer_and_the_connection_ends(
    stack: DirectStack, request_bytes: bytes, status: int
) -> None:
    answer = stack.talk(request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert head.count(b"connection: close") == 1
    assert b"x-request-id: r" in head
    assert json.loads(body)["error"]["message"]
    assert answer.count(b"HTTP/1.1 %d " % status) == 1  # one answer, whatever else was sent


def test_refused_request_with_its_body_here_keeps_the_connection(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(post("/deny", b"POST /evil HTTP/1.1\r\n\r\n") + post("/sync", b"a"))
    head, _, rest = read_answer(raw)
    assert head.startswith(b"HTTP/1.1 403")
    assert read_answer(raw, rest)[1] == b"1:a"
    assert [call.head.path for call in stack.core.calls] == ["/sync"]


def test_refusal_reaches_a_client_that_goes_on_sending(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(post("/deny", b"", length=30 << 20))
    for _ in range(40):
        raw.sendall(b"x" * 100_000)
    assert read_all(raw).startswith(b"HTTP/1.1 403 ")


def test_client_that_never_stops_sending_after_its_refusal_is_cut(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(post("/deny", b"", length=100 << 20))
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        raw.sendall(b"x" * (100 << 20))


def test_chunked_body_over_its_limit_is_413(stack: DirectStack) -> None:
    answer = stack.talk(CHUNKED % b"/sync", b"%x\r\n" % MAX_BODY_BYTES, b"x" * MAX_BODY_BYTES, b"\r\n1\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert stack.core.calls == []


def test_random_bytes_are_answered_or_closed(stack: DirectStack) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    good = post("/sync", b"hello", "x-a: b", CLOSE) + CHUNKED % b"/sync" + b"3\r\nabc\r\n0\r\n\r\n"
    for number in range(150):
        data = bytearray(chance.randbytes(200) if number % 3 == 0 else good)
        for _ in range(chance.randrange(3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        raw = stack.connect()
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        answer = read_all(raw)
        raw.close()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 "), (data, answer)


# ---- order -----------------------------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(b"".join(post(("/sync", "/later")[n % 2], b"%d" % n) for n in range(200)))
    rest = b""
    for n in range(200):
        _, body, rest = read_answer(raw, rest)
        assert body.partition(b":")[2] == b"%d" % n
    assert rest == b""


def test_pipelined_request_waits_for_the_one_before(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(post("/hold", b"one") + post("/sync", b"two"))
    held = stack.hold()
    assert len(stack.core.calls) == 1
    stack.call(lambda: held.client.start(200, TEXT))
    stack.call(lambda: held.client.write(b"a"))
    assert len(stack.core.calls) == 1
    stack.call(lambda: held.client.finish(b"b"))
    data = read_until(raw, b"3:two")
    assert b"\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\nHTTP/1.1 200 OK" in data


def test_pipeline_with_one_that_fails_in_the_middle(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(post("/later", b"one") + b"GET / HTTP/1.1\r\nbad header\r\n\r\n" + post("/later", b"three"))
    data = read_all(raw)
    assert data.count(b"HTTP/1.1 ") == 2
    assert b"3:oneHTTP/1.1 400 " in data
    assert len(stack.core.calls) == 1


def test_reading_stops_while_much_is_pipelined(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(post("/hold", b""))
    held = stack.hold()
    raw.setblocking(False)
    n_sent = 0
    request = post("/sync", b"x" * 1000)
    try:
        while n_sent < 200 << 20:
            n_sent += raw.send(request[n_sent % len(request) :])
            stack.call(lambda: None)
    except BlockingIOError:
        pass
    waiting = stack.call(lambda: len(held.client._rest))  # type: ignore[attr-defined]
    assert PIPELINE_BYTES < waiting < PIPELINE_BYTES + (300 << 10)
    raw.setblocking(True)
    raw.settimeout(20)
    stack.call(lambda: stack.core.echo(held))
    _, body, rest = read_answer(raw)
    assert body == b"0:"
    for _ in range(n_sent // len(request)):
        _, body, rest = read_answer(raw, rest)
        assert body.startswith(b"1000:")


# ---- streams ---------------------------------------------------------------------------------------------------


def test_stream_goes_out_in_chunks(stack: DirectStack) -> None:
    raw = stack.connect()
    for last in (b"end", b""):
        raw.sendall(post("/hold", b""))
        held = stack.hold()
        client = held.client
        stack.call(lambda client=client: client.start(200, TEXT))
        stack.call(lambda client=client: (client.write(b""), client.write(b"a" * 16), client.write(b"b" * 40_000)))
        stack.call(lambda client=client, last=last: client.finish(last))
        data = read_until(raw, b"0\r\n\r\n")
        head, _, body = data.partition(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        end = b"3\r\nend\r\n" if last else b""
        assert body == b"10\r\n" + b"a" * 16 + b"\r\n9c40\r\n" + b"b" * 40_000 + b"\r\n" + end + b"0\r\n\r\n"
        assert held.n_gone == 0


def test_head_of_a_stream_waits_for_its_first_bytes(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(post("/hold", b""))
    held = stack.hold()
    stack.call(lambda: held.client.start(200, TEXT))
    raw.setblocking(False)
    with pytest.raises(BlockingIOError):
        raw.recv(1)
    raw.setblocking(True)
    stack.call(lambda: held.client.write(b"x"))
    assert raw.recv(1000).endswith(b"\r\n\r\n1\r\nx\r\n")
    stack.call(lambda: held.client.finish(b""))


def test_stream_to_http10_ends_with_the_connection(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(b"POST /hold HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    held = stack.hold()
    stack.call(lambda: held.client.start(200, TEXT))
    stack.call(lambda: held.client.write(b"one"))
    stack.call(lambda: held.client.finish(b"two"))
    data = read_all(raw)
    assert b"chunked" not in data
    assert b"connection: close" in data
    assert data.endswith(b"\r\n\r\nonetwo")


def test_dropped_stream_has_no_end(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(post("/hold", b""))
    held = stack.hold()
    stack.call(lambda: held.client.start(200, TEXT))
    stack.call(lambda: held.client.write(b"one"))
    stack.call(held.client.drop)
    assert read_all(raw).endswith(b"3\r\none\r\n")
    assert held.n_gone == 0


def test_dropped_stream_to_http10_is_a_reset(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(b"POST /hold HTTP/1.0\r\n\r\n")
    held = stack.hold()
    stack.call(lambda: held.client.start(200, TEXT))
    stack.call(lambda: held.client.write(b"one"))
    assert read_until(raw, b"one").endswith(b"one")
    stack.call(held.client.drop)
    with pytest.raises(ConnectionResetError):
        raw.recv(100)


# ---- slow readers ----------------------------------------------------------------------------------------------


def test_slow_reader_is_told_to_the_core(stack: DirectStack) -> None:
    raw = stack.connect(receive_bytes=4096)
    raw.sendall(post("/hold", b""))
    held = stack.hold()
    stack.call(lambda: held.client.start(200, TEXT))
    n_written = 0
    while stack.call(lambda: held.client.write(b"x" * 50_000)):
        n_written += 1
        assert n_written < 1000
    size = stack.call(lambda: held.client._transport.get_write_buffer_size())  # type: ignore[attr-defined]
    assert 0 < size < 200_000
    assert held.n_writable == 0
    got = 0
    while held.n_writable == 0:
        got += len(raw.recv(65536))
        stack.call(lambda: None)
    assert stack.call(lambda: held.client.write(b"y")) is True
    stack.call(lambda: held.client.finish(b""))
    assert read_until(raw, b"0\r\n\r\n").endswith(b"1\r\ny\r\n0\r\n\r\n")
    assert held.n_writable == 1


def test_next_request_waits_until_the_answer_is_taken(stack: DirectStack) -> None:
    raw = stack.connect(receive_bytes=262144)
    raw.sendall(post("/hold", b"") + post("/sync", b"next"))
    held = stack.hold()
    assert stack.call(lambda: held.client.answer(200, TEXT, b"x" * (8 << 20))) is False
    stack.call(lambda: None)
    assert len(stack.core.calls) == 1
    assert held.n_writable == 0
    data = read_until(raw, b"4:next")
    assert data.count(b"HTTP/1.1 200 OK") == 2
    assert held.n_writable == 1
    assert held.n_gone == 0


# ---- clients that vanish ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_reset", [False, True])
def test_vanished_client_is_told_once(stack: DirectStack, is_reset: bool) -> None:
    for step in range(3):
        raw = stack.connect()
        raw.sendall(post("/hold", b""))
        held = stack.hold()
        if step > 0:
            stack.call(lambda held=held: held.client.start(200, TEXT))
        if step > 1:
            stack.call(lambda held=held: held.client.write(b"one"))
        if is_reset:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()
        assert held.gone.wait(20)
        # Calls that cross the news are harmless.
        stack.call(lambda held=held: (held.client.start(200, []), held.client.write(b"x"), held.client.finish(b"y")))
        stack.call(lambda held=held: (held.client.answer(200, [], b""), held.client.drop(), held.client.watch()))
        assert held.n_gone == 1
        assert held.n_writable == 0


def test_half_closed_client_is_gone(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(post("/hold", b""))
    held = stack.hold()
    raw.shutdown(socket.SHUT_WR)
    assert held.gone.wait(20)
    assert read_all(raw) == b""


def test_answer_given_before_the_half_close_is_seen_arrives(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(post("/sync", b"a"))
    raw.shutdown(socket.SHUT_WR)
    assert read_all(raw).endswith(b"1:a")


def test_vanishing_at_every_point_leaves_nothing(stack: DirectStack) -> None:
    request = post("/hold", b"hello") + CHUNKED % b"/hold" + b"3\r\nabc\r\n0\r\n\r\n"
    for at in range(0, len(request) + 1, 3):
        raw = stack.connect()
        raw.sendall(request[:at])
        raw.close()
    stack.wait_until(lambda: stack.server.n_connections == 0)
    assert all(call.n_gone == 1 for call in stack.core.calls)


# ---- pages -----------------------------------------------------------------------------------------------------


def test_pages_come_from_the_application(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(b"GET /p%20q?a=b HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc")
    head, body, _ = read_answer(raw)
    assert body == b"/p q|a=b|abc"
    assert head.count(b"content-length") == 1
    raw.sendall(b"HEAD /p HTTP/1.1\r\nhost: x\r\n\r\nGET /pieces HTTP/1.1\r\nhost: x\r\n\r\n")
    data = read_until(raw, b"0\r\n\r\n")
    assert b"content-length: 4\r\n\r\nHTTP/1.1 200" in data
    assert data.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
    raw.sendall(b"HEAD /pieces HTTP/1.1\r\nhost: x\r\n\r\n")
    assert read_until(raw, b"\r\n\r\n").endswith(b"\r\n\r\n")
    raw.sendall(b"GET /boom HTTP/1.1\r\nhost: x\r\n\r\n")
    assert read_answer(raw)[0].startswith(b"HTTP/1.1 500 ")
    raw.sendall(b"GET /half HTTP/1.1\r\nhost: x\r\n\r\n")
    assert read_all(raw).endswith(b"3\r\none\r\n")


def test_page_hears_of_a_vanished_client(stack: DirectStack) -> None:
    raw = stack.connect()
    raw.sendall(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
    stack.wait_until(lambda: stack.server.n_connections == 1)
    raw.close()
    stack.wait_until(lambda: stack.server.n_connections == 0)
