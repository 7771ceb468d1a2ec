"""AsgiClient over a fake server: messages in order, backpressure, the disconnect."""

from __future__ import annotations

import asyncio

import pytest

from xinf.gateway.asgi import Message
from xinf.gateway.asgi_client import AsgiClient


class Server:
    """Takes messages at once, unless `gate` is a future that holds them back."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.gate: asyncio.Future[None] | None = None
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.n_receives = 0

    async def send(self, message: Message) -> None:
        self.messages.append(message)
        if self.gate is not None:
            await self.gate

    async def receive(self) -> Message:
        self.n_receives += 1
        return await self.inbox.get()


class Exchange:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_gone(self) -> None:
        self.heard.append("gone")

    def on_writable(self) -> None:
        self.heard.append("writable")


class Scene:
    def __init__(self) -> None:
        self.server = Server()
        self.exchange = Exchange()
        self.client = AsgiClient(self.server.send, self.server.receive)
        self.client.exchange = self.exchange

    def block(self) -> None:
        self.server.gate = asyncio.get_running_loop().create_future()

    async def unblock(self) -> None:
        gate, self.server.gate = self.server.gate, None
        assert gate is not None
        gate.set_result(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_answer_is_two_messages_with_a_length_and_ends_the_wait() -> None:
    scene = Scene()
    assert scene.client.answer(200, [(b"content-type", b"text/plain")], b"hello")
    await scene.client.wait()
    start, body = scene.server.messages
    assert start["headers"] == [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    assert body == {"type": "http.response.body", "body": b"hello"}


async def test_stream_ends_with_its_last_bytes() -> None:
    scene = Scene()
    scene.client.start(200, [])
    assert scene.client.write(b"1")
    assert scene.client.finish(b"2")
    await scene.client.wait()
    assert [m.get("more_body") for m in scene.server.messages[1:]] == [True, None]


async def test_what_is_not_taken_is_kept_in_order_and_told_when_it_is() -> None:
    scene = Scene()
    scene.block()
    assert not scene.client.answer(200, [], b"late")
    waiting = asyncio.ensure_future(scene.client.wait())
    await asyncio.sleep(0)
    assert [m["type"] for m in scene.server.messages] == ["http.response.start"]
    await scene.unblock()
    assert [m["type"] for m in scene.server.messages] == ["http.response.start", "http.response.body"]
    assert scene.exchange.heard == ["writable"]
    await waiting


async def test_drop_ends_without_a_last_message() -> None:
    scene = Scene()
    scene.client.start(200, [])
    scene.client.write(b"half")
    scene.client.drop()
    await scene.client.wait()
    assert scene.server.messages[-1]["more_body"] is True


async def test_disconnect_is_seen_behind_the_rest_of_a_body() -> None:
    scene = Scene()
    scene.server.inbox.put_nowait({"type": "http.request", "body": b"", "more_body": False})
    scene.server.inbox.put_nowait({"type": "http.disconnect"})
    scene.client.watch()
    await scene.client.wait()
    assert scene.exchange.heard == ["gone"]
    assert scene.server.n_receives == 2
    assert scene.client.write(b"late")  # nobody is there: taken, and lost
    assert scene.server.messages == []


async def test_nobody_is_asked_for_a_disconnect_without_watch() -> None:
    scene = Scene()
    scene.client.answer(200, [], b"")
    await scene.client.wait()
    assert scene.server.n_receives == 0


async def test_send_that_raises_means_that_the_client_is_gone() -> None:
    scene = Scene()
    scene.block()
    scene.client.start(200, [])
    assert not scene.client.write(b"1")
    assert scene.server.gate is not None
    scene.server.gate.set_exception(OSError("closed"))
    await scene.client.wait()
    assert scene.exchange.heard == ["gone"]


async def test_cancelled_wait_tells_the_core() -> None:
    scene = Scene()
    waiting = asyncio.ensure_future(scene.client.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert scene.exchange.heard == ["gone"]
