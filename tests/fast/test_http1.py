"""HTTP/1 bytes against the obvious way to write them."""

from __future__ import annotations

import random
import re

import pytest

from xinf._fast import http1

LINE = b"HTTP/1.1 200 OK\r\ndate: x\r\n"


def naive_front(line: bytes, headers: list[tuple[bytes, bytes]], framing: bytes) -> bytes:
    return line + b"".join(name + b": " + value + b"\r\n" for name, value in headers) + framing + b"\r\n"


def naive_digits(data: bytes, before: bytes, after: bytes) -> bytes | None:
    match = re.match(re.escape(before) + rb"([0-9]{1,18})" + re.escape(after), data)
    return match[1] if match else None


def test_answer_and_front_write_what_the_obvious_way_writes() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(300):
        headers = [
            (chance.randbytes(5).hex().encode(), chance.randbytes(chance.randrange(40)).hex().encode())
            for _ in range(chance.randrange(8))
        ]
        body = chance.randbytes(chance.choice((0, 1, 9, 10, 99, 100, 1000, 65536)))
        framing = b"content-length: %d\r\n" % len(body)
        assert http1.answer(LINE, headers, body) == naive_front(LINE, headers, framing) + body
        assert http1.front(LINE, headers, framing) == naive_front(LINE, headers, framing)


@pytest.mark.parametrize(
    "header",
    [(b"a\n", b"b"), (b"a", b"b\r\nevil: 1"), (b"a", b"\n"), (b"\r", b"b"), (b"connection", b"close")],
)
def test_header_that_needs_a_look_is_not_written(header: tuple[bytes, bytes]) -> None:
    for headers in ([header], [(b"a", b"b"), header, (b"c", b"d")]):
        assert http1.answer(LINE, headers, b"x") is None
        assert http1.front(LINE, headers, b"") is None


@pytest.mark.parametrize(
    "headers", [[("a", b"b")], [(b"a", None)], [[b"a", b"b"]], [(b"a",)], [(b"a", b"b", b"c")], [3]]
)
def test_what_is_no_header_is_a_type_error(headers: object) -> None:
    with pytest.raises(TypeError):
        http1.answer(LINE, headers, b"")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        http1.front(LINE, headers, b"")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        http1.front(None, [], b"")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "digits"),
    [
        (b"a: 5\r\n\r\nbody", b"5"),
        (b"a: 123456789012345678\r\n\r\n", b"123456789012345678"),
        (b"a: 1234567890123456789\r\n\r\n", None),
        (b"a: \r\n\r\n", None),
        (b"a: 5\r\n\r", None),
        (b"a: 5", None),
        (b"a: ", None),
        (b"", None),
        (b"b: 5\r\n\r\n", None),
        (b"a: 5 \r\n\r\n", None),
        (b"a: +5\r\n\r\n", None),
        (b"a: \xb2\r\n\r\n", None),
        (b"a: 5\r\n\rx", None),
    ],
)
def test_digits_are_found_or_not(data: bytes, digits: bytes | None) -> None:
    assert http1.digits_of(data, 0, b"a: ", b"\r\n\r\n") == digits
    assert naive_digits(data, b"a: ", b"\r\n\r\n") == digits


def test_digits_agree_with_the_naive_search() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(5000):
        before, after = bytes(chance.choices(b"a1", k=2)), bytes(chance.choices(b"1\r", k=chance.randrange(3)))
        data = bytes(chance.choices(b"a123\r", k=chance.randrange(12)))
        if after[:1].isdigit():
            continue  # digits are taken greedily; after a header's value stands a line end
        at = chance.randrange(len(data) + 1)
        assert http1.digits_of(data, at, before, after) == naive_digits(data[at:], before, after)


@pytest.mark.parametrize("at", [-1, 4, 2**40])
def test_place_outside_is_an_index_error(at: int) -> None:
    with pytest.raises(IndexError):
        http1.digits_of(b"abc", at, b"", b"")
