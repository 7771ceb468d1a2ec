"""Heads: what is read, what is refused with which status, and that the cache changes nothing."""

from __future__ import annotations

import random

import pytest

from xinf.gateway.direct_head import CACHED_HEADS, MAX_HEADERS, BadHead, Found, HeadReader

POST = b"POST /p HTTP/1.1\r\nHost: x\r\n"


def read(block: bytes) -> Found:
    return HeadReader().read(block)


def status_of(block: bytes) -> int:
    with pytest.raises(BadHead) as caught:
        read(block)
    return caught.value.status


def test_head_is_read() -> None:
    found = read(b"POST /a%20b?q=%20 HTTP/1.1\r\nHost: x\r\nX-One: 1\r\nx-one:\t 2 \t\r\nContent-Length: 5\r\n\r\n")
    shape = found.shape
    assert (shape.method, shape.path, shape.query, found.length) == ("POST", "/a b", b"q=%20", 5)
    assert found.headers() == {b"host": b"x", b"x-one": b"2", b"content-length": b"5"}
    assert (shape.is_keep_alive, shape.is_http10, shape.expects_continue) == (True, False, False)


@pytest.mark.parametrize(
    ("lines", "length"),
    [
        (b"", 0),
        (b"content-length: 7\r\n", 7),
        (b"CONTENT-LENGTH: 7\r\n", 7),
        (b"Content-Length:7\r\n", 7),
        (b"Content-Length:   7  \r\n", 7),
        (b"Content-Length: 007\r\n", 7),
        (b"x-content-length: 9\r\ncontent-length: 7\r\n", 7),
        (b"content-length: 7\r\nx-content-length: 9\r\n", 7),
        (b"content-length: 7\r\nx-length: 9\r\n", 7),
        (b"a: Content-Length: 9\r\ncontent-length: 7\r\n", 7),
        (b"content-length: 7\r\na: Content-Length: 9\r\n", 7),
        (b"transfer-encoding: chunked\r\n", None),
        (b"Transfer-Encoding: Chunked \r\n", None),
    ],
)
def test_length_is_found_however_it_is_written(lines: bytes, length: int | None) -> None:
    assert read(POST + lines + b"\r\n").length == length


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (POST + b"content-length: 5\r\ncontent-length: 5\r\n\r\n", 400),
        (POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\n", 400),
        (POST + b"content-length: 5\r\nContent-Length:6\r\n\r\n", 400),
        (POST + b"content-length: 5, 5\r\n\r\n", 400),
        (POST + b"content-length: +5\r\n\r\n", 400),
        (POST + b"content-length: -5\r\n\r\n", 400),
        (POST + b"content-length: 0x5\r\n\r\n", 400),
        (POST + b"content-length: 5 5\r\n\r\n", 400),
        (POST + b"content-length: \xb2\r\n\r\n", 400),
        (POST + b"content-length: 99999999999999999999\r\n\r\n", 400),
        (POST + b"content-length: \r\n\r\n", 400),
        (POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n", 400),
        (POST + b"transfer-encoding: chunked\r\ncontent-length:5\r\n\r\n", 400),
        (POST + b"transfer-encoding: gzip\r\n\r\n", 400),
        (POST + b"transfer-encoding: gzip, chunked\r\n\r\n", 501),
        (POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (POST + b"transfer-encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (POST + b"transfer-encoding: xchunked\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (POST + b"a: b\r\n c\r\n\r\n", 400),
        (POST + b" a: b\r\n\r\n", 400),
        (POST + b"a: b\nc: d\r\n\r\n", 400),
        (POST + b"a: b\rc: d\r\n\r\n", 400),
        (b"POST / HTTP/1.1\nhost: x\r\n\r\n", 400),
        (POST + b"a : b\r\n\r\n", 400),
        (POST + b"a b: c\r\n\r\n", 400),
        (POST + b": b\r\n\r\n", 400),
        (POST + b"a\x00: b\r\n\r\n", 400),
        (POST + b"a: b\x00c\r\n\r\n", 400),
        (POST + b"a\r\n\r\n", 400),
        (POST + b"host: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET /  HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET ftp://x/ HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nhost: x\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", 505),
        (b"GET / RTSP/1.0\r\nhost: x\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 400),
        (b"BREW / HTTP/1.1\r\nhost: x\r\n\r\n", 501),
        (b"get / HTTP/1.1\r\nhost: x\r\n\r\n", 501),
        (b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * MAX_HEADERS + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 131_072 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
    ],
)
def test_bad_head_is_refused(block: bytes, status: int) -> None:
    assert status_of(block) == status


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", "/", b""),
        (b"/?", "/", b""),
        (b"/a?b?c", "/a", b"b?c"),
        (b"http://host:1/a?b", "/a", b"b"),
        (b"HTTPS://host", "/", b""),
        (b"http://host?b", "/", b"b"),
        (b"/%C3%A9", "/é", b""),
        (b"/%FF", "/\ufffd", b""),
        (b"//a", "//a", b""),
    ],
)
def test_target_is_split(target: bytes, path: str, query: bytes) -> None:
    shape = read(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % target).shape
    assert (shape.path, shape.query) == (path, query)
    assert read(b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n").shape.path == "*"


@pytest.mark.parametrize(
    ("block", "stays"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nhost: x\r\nconnection: Close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
    ],
)
def test_keep_alive_follows_version_and_header(block: bytes, stays: bool) -> None:
    assert read(block).shape.is_keep_alive is stays


def test_upgrade_is_ignored() -> None:
    for offer in (b"websocket", b"h2c"):
        found = read(POST + b"upgrade: %b\r\nconnection: upgrade\r\ncontent-length: 5\r\n\r\n" % offer)
        assert (found.length, found.shape.is_keep_alive) == (5, True)


def test_cached_head_equals_a_fresh_one_and_is_not_shared() -> None:
    reader = HeadReader()
    for length in (b"1", b"22", b"1"):
        block = POST + b"authorization: Bearer k\r\nContent-Length: %b\r\nexpect: 100-continue\r\n\r\n" % length
        found = reader.read(block)
        headers = found.headers()
        assert headers == read(block).headers()
        assert headers[b"content-length"] == length
        assert (found.length, found.shape.expects_continue) == (int(length), True)
        headers[b"authorization"] = b"spoilt"


def test_length_without_digits_is_not_taken_for_a_known_head() -> None:
    reader = HeadReader()
    reader.read(POST + b"content-length: 5\r\n\r\n")
    for digits in (b"", b"#", b"5 5", b"+5", b"5" * 30):
        with pytest.raises(BadHead):
            reader.read(POST + b"content-length: %b\r\n\r\n" % digits)


def test_bad_head_leaves_nothing_behind() -> None:
    reader = HeadReader()
    for bad in (b"evil: 1\r\na b: c\r\n\r\n", b"evil: 1\r\n\x00", b"evil: 1\r\nhost: y\r\n\r\n"):
        with pytest.raises(BadHead):
            reader.read(POST + bad)
        reader.check(POST + b"evil: 1\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")
        assert reader.read(POST + b"\r\n").headers() == {b"host": b"x"}


def test_cache_is_bounded() -> None:
    reader = HeadReader()
    for line in (b"", b"content-length: 3\r\n"):
        for number in range(CACHED_HEADS + 10):
            reader.read(POST + b"x-request-id: %d\r\n%b\r\n" % (number, line))
        reader.read(POST + b"a: %b\r\n%b\r\n" % (b"b" * 4000, line))
    assert len(reader._whole) == len(reader._cut) == CACHED_HEADS
    assert max(map(len, reader._whole)) < 100


def test_partial_head_is_judged_early() -> None:
    reader = HeadReader()
    block = POST + b"a: b\r\ncontent-length: 5\r\n\r\n"
    for end in range(len(block)):
        reader.check(block[:end])
    for part, status in (
        (b"\x16\x03\x01\x02\x00", 400),
        (b"GET / HTTP/1.1\nhost: x\n", 400),
        (b"GET /" + b"a" * 9000, 414),
        (b"GET / HTTP/1.1\r\na: " + b"b" * 140_000, 431),
    ):
        with pytest.raises(BadHead) as caught:
            reader.check(part)
        assert caught.value.status == status


def test_random_bytes_are_read_or_refused() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    reader = HeadReader()
    good = POST + b"a: b\r\nconnection: keep-alive, upgrade\r\nupgrade: h2c\r\ncontent-length: 5\r\n\r\n"
    n_read = 0
    for _ in range(3000):
        block = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            block[chance.randrange(len(block) - 4)] = chance.choice((chance.randrange(256), 13, 10, 32, 58, 0))
        block = block[: block.find(b"\r\n\r\n") + 4].lstrip(b"\r\n")
        if not block:
            continue
        try:
            headers = reader.read(bytes(block)).headers()
        except BadHead:
            continue
        n_read += 1
        assert all(name == name.lower() for name in headers)
        assert not any(set(value) & {0, 10, 13} for value in headers.values())
    assert 0 < n_read < 3000
