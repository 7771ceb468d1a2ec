"""Chunked bodies, whole and in pieces; what could be read in two ways is refused."""

from __future__ import annotations

import random

import pytest

from xinf.gateway.direct_chunks import ChunkedBody, ChunkedTooLarge
from xinf.gateway.direct_head import BadHead


def decode(data: bytes, limit_bytes: int = 1000) -> tuple[bytes, int]:
    body = ChunkedBody(limit_bytes)
    taken = body.feed(data)
    assert body.is_complete
    return body.take(), taken


def test_body_is_decoded_and_what_follows_is_left() -> None:
    wire = b'5\r\nhello\r\n00a;x="y"\r\n, wonderfu\r\n0\r\nx-sum: 1\r\n\r\n'
    assert decode(wire + b"POST /next") == (b"hello, wonderfu", len(wire))
    assert decode(b"0\r\n\r\n") == (b"", 5)
    assert decode(b"1 \t; a\r\n\n\r\n0\r\n\r\n")[0] == b"\n"


def test_every_split_gives_the_same() -> None:
    wire = b"5\r\nhe\r\no\r\n1;a=b\r\n\r\r\n0\r\nx: 1\r\ny: 2\r\n\r\n"
    for first in range(len(wire) + 1):
        body = ChunkedBody(100)
        assert body.feed(wire[:first]) == first
        body.feed(wire[first:] + b"rest")
        assert body.is_complete
        assert body.take() == b"he\r\no\r"
    body = ChunkedBody(100)
    for at in range(len(wire)):
        assert not body.is_complete
        assert body.feed(wire[at : at + 1]) == 1
    assert body.is_complete


@pytest.mark.parametrize(
    "wire",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b" 1\r\n",
        b"1 \r\n",
        b"1\n",
        b"1;a\x00\r\n",
        b"1;a\rb\r\n",
        b"1_0\r\n",
        b"1\r\nab",
        b"1\r\na\rb",
        b"1\r\na\n",
        b"1\r\na1\r\n",
        b"0\r\n\n",
        b"0\r\na b: c\r\n",
        b"0\r\n: c\r\n",
        b"0\r\nabc\r\n",
        b"0\r\na: \x00\r\n",
        b"1000000000000000\r\n",
        b"1;" + b"a" * 2000,
        b"0\r\n" + b"a: b\r\n" * 4000,
        b"0\r\na: " + b"b" * 20_000,
    ],
)
def test_doubtful_framing_is_refused(wire: bytes) -> None:
    with pytest.raises(BadHead):
        ChunkedBody(1000).feed(wire)


def test_size_is_held_against_the_limit_before_its_bytes_come() -> None:
    body = ChunkedBody(10)
    body.feed(b"5\r\nhello\r\n")
    with pytest.raises(ChunkedTooLarge) as caught:
        body.feed(b"6\r\n")
    assert caught.value.n_bytes == 11
    with pytest.raises(ChunkedTooLarge):
        ChunkedBody(10).feed(b"fffffffffffffff\r\n")


def test_random_bodies_come_out_as_they_went_in() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(200):
        chunks = [chance.randbytes(chance.randrange(1, 40)) for _ in range(chance.randrange(6))]
        wire = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        body = ChunkedBody(10_000)
        at = 0
        while at < len(wire):
            part = wire[at : at + chance.randrange(1, 30)]
            assert body.feed(part) == len(part)
            at += len(part)
        assert body.is_complete
        assert body.take() == b"".join(chunks)
