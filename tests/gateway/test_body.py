"""Reading bodies of every shape from a scripted receive()."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from xinf.core.errors import BodyTooLarge, InvalidRequest, RequestTimeout
from xinf.gateway.body import BodyReader, ClientGone, declared_length, read_body


class Messages:
    def __init__(self, *messages: dict[str, Any]) -> None:
        self.left = list(messages)

    async def receive(self) -> dict[str, Any]:
        return self.left.pop(0)


def part(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_declared_length_refuses_before_anything_is_read() -> None:
    with pytest.raises(BodyTooLarge, match="limit is 10"):
        declared_length({b"content-length": b"11"}, 10)


@pytest.mark.parametrize("text", [b"-1", b"x", b"1e3", b"9" * 30, b"\xb2"])
def test_declared_length_refuses_what_is_no_length(text: bytes) -> None:
    with pytest.raises(InvalidRequest):
        declared_length({b"content-length": text}, 10)


def test_declared_length_tells_chunked_from_empty() -> None:
    assert declared_length({}, 10) == 0
    assert declared_length({b"transfer-encoding": b"chunked"}, 10) is None


async def test_read_body_does_not_ask_again_when_the_length_is_there() -> None:
    messages = Messages(part(b"ab", more=True), part(b"c", more=True), part(b"", more=False))
    assert await read_body(messages.receive, 3, 10) == b"abc"
    assert len(messages.left) == 1


async def test_read_body_reads_a_chunked_body_to_its_end() -> None:
    messages = Messages(part(b"ab", more=True), part(b"", more=True), part(b"c", more=False))
    assert await read_body(messages.receive, None, 10) == b"abc"


async def test_read_body_stops_a_chunked_body_at_the_limit() -> None:
    messages = Messages(part(b"a" * 8, more=True), part(b"b" * 8, more=True), part(b"never read", more=False))
    with pytest.raises(BodyTooLarge):
        await read_body(messages.receive, None, 10)
    assert len(messages.left) == 1


async def test_read_body_notices_that_the_client_left() -> None:
    with pytest.raises(ClientGone):
        await read_body(Messages(part(b"ab", more=True), {"type": "http.disconnect"}).receive, 5, 10)


async def never() -> dict[str, Any]:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def test_body_reader_gives_up_on_a_body_that_does_not_come() -> None:
    with pytest.raises(RequestTimeout, match=r"0\.05 s"):
        await BodyReader(0.05).read(never, 5, 10)


async def test_body_reader_leaves_a_cancellation_that_is_not_its_own_alone() -> None:
    reader = BodyReader(30.0)
    reading = asyncio.ensure_future(reader.read(never, 5, 10))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
