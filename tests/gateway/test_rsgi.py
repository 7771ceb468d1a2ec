"""RsgiClient over a fake of Granian's protocol object; what Granian does with it is tested in the conformance suite."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from xinf.gateway import rsgi as rsgi_module
from xinf.gateway.rsgi import RsgiClient
from xinf.gateway.sendqueue import SendQueues

SSE = [(b"content-type", b"text/event-stream")]


class Server:
    """Writes down what it gets, as RSGI's protocol and its stream."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.sent: list[bytes] = []
        self.is_stream = False
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status, self.headers = status, headers
        self.sent.append(body)

    def response_stream(self, status: int, headers: list[tuple[str, str]]) -> Server:
        self.status, self.headers = status, headers
        self.is_stream = True
        return self

    def send_bytes(self, data: bytes) -> None:
        self.sent.append(data)

    async def client_disconnect(self) -> None:
        await self.gone


class Queues:
    """The kernel's answer."""

    unsent: int | None = 0
    n_asked = 0

    def unsent_bytes(self, local: str, peer: str) -> int | None:
        self.n_asked += 1
        return self.unsent


class Exchange:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_gone(self) -> None:
        self.heard.append("gone")

    def on_writable(self) -> None:
        self.heard.append("writable")


class Scene:
    def __init__(self, *, buffer_bytes: int = 100) -> None:
        self.server = Server()
        self.queues = Queues()
        self.exchange = Exchange()
        self.client = RsgiClient(
            cast(Any, self.server), cast(SendQueues, self.queues), ends=("a:1", "b:2"), buffer_bytes=buffer_bytes
        )
        self.client.exchange = self.exchange


async def test_whole_answer_is_one_call() -> None:
    scene = Scene()
    assert scene.client.answer(200, [(b"content-type", b"application/json")], b"{}")
    await scene.client.wait()
    assert scene.server.headers == [("content-type", "application/json"), ("content-length", "2")]
    assert scene.server.sent == [b"{}"]


async def test_stream_goes_out_as_it_comes() -> None:
    scene = Scene()
    scene.client.start(200, list(SSE))
    assert scene.client.write(b"1")
    assert scene.client.finish(b"2")
    await scene.client.wait()
    assert scene.server.is_stream
    assert scene.server.sent == [b"1", b"2"]
    assert scene.queues.n_asked == 0


async def test_answer_that_is_no_stream_is_given_whole() -> None:
    scene = Scene()
    scene.client.start(200, [(b"content-type", b"audio/wav")])
    assert scene.client.write(b"1" * 500)
    assert scene.server.sent == []
    assert scene.client.finish(b"2")
    assert scene.server.sent == [b"1" * 500 + b"2"]
    assert not scene.server.is_stream


async def test_answer_that_is_cut_before_its_end_sends_nothing() -> None:
    scene = Scene()
    scene.client.start(200, [(b"content-type", b"audio/wav")])
    scene.client.write(b"1")
    scene.client.drop()
    await scene.client.wait()
    assert scene.server.sent == []


async def test_client_that_reads_is_asked_about_once_per_buffer() -> None:
    scene = Scene(buffer_bytes=100)
    scene.client.start(200, list(SSE))
    assert all(scene.client.write(b"x" * 30) for _ in range(8))
    assert scene.queues.n_asked == 2


async def test_client_that_does_not_read_blocks_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsgi_module, "LOOK_AGAIN_S", 0.001)
    scene = Scene(buffer_bytes=100)
    scene.queues.unsent = rsgi_module.NEARLY_EMPTY_BYTES + 1
    scene.client.start(200, list(SSE))
    assert not scene.client.finish(b"x" * 101)
    async with asyncio.timeout(30):
        while scene.queues.n_asked < 3:
            await asyncio.sleep(0.001)
    assert scene.exchange.heard == []
    scene.queues.unsent = 0
    await asyncio.wait_for(scene.client.wait(), 10)
    assert scene.exchange.heard == ["writable"]


async def test_connection_that_is_gone_blocks_nobody() -> None:
    scene = Scene(buffer_bytes=1)
    scene.queues.unsent = None
    scene.client.start(200, list(SSE))
    assert scene.client.write(b"xxx")


async def test_disconnect_is_told_once_it_is_watched_for() -> None:
    scene = Scene()
    scene.client.start(200, list(SSE))
    scene.client.watch()
    scene.server.gone.set_result(None)
    await asyncio.wait_for(scene.client.wait(), 10)
    assert scene.exchange.heard == ["gone"]
    assert scene.client.write(b"late")
    assert scene.server.sent == []
