"""The ASGI application as it answers one request of a front that is no ASGI server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from xinf.gateway.asgi import Receive, Scope, Send
from xinf.gateway.asgi_call import AsgiApp, AsgiCall
from xinf.gateway.client import Head, RawHeaders

TEXT: RawHeaders = [(b"content-type", b"text/plain")]


class RecordingClient:
    """A Client that notes its calls; `is_full` makes it take nothing at once."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.is_full = False
        self.over = asyncio.Event()

    def answer(self, status: int, headers: RawHeaders, body: bytes) -> bool:
        self.calls.append(("answer", status, headers, body))
        self.over.set()
        return not self.is_full

    def start(self, status: int, headers: RawHeaders) -> None:
        self.calls.append(("start", status, headers))

    def write(self, data: bytes) -> bool:
        self.calls.append(("write", data))
        return not self.is_full

    def finish(self, data: bytes) -> bool:
        self.calls.append(("finish", data))
        self.over.set()
        return not self.is_full

    def drop(self) -> None:
        self.calls.append(("drop",))
        self.over.set()

    def watch(self) -> None:
        raise AssertionError("the front watches by itself")


def begin(application: AsgiApp, client: RecordingClient, body: bytes = b"") -> AsgiCall:
    head = Head("GET", "/a b", b"q=1", {b"host": b"x", b"a": b"b"}, "192.0.2.7")
    return AsgiCall.begin(application, head, body, client, scheme="https", address=("127.0.0.1", 8080))


async def run(application: AsgiApp, body: bytes = b"") -> list[tuple[Any, ...]]:
    client = RecordingClient()
    begin(application, client, body)
    await asyncio.wait_for(client.over.wait(), 10)
    return client.calls


async def test_scope_and_body() -> None:
    seen: dict[str, Any] = {}

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update(scope)
        seen["messages"] = [await receive()]
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})
        seen["messages"].append(await receive())

    assert await run(application, b"hello") == [("answer", 204, [], b"")]
    assert seen["messages"] == [
        {"type": "http.request", "body": b"hello", "more_body": False},
        {"type": "http.disconnect"},
    ]
    assert (seen["method"], seen["path"], seen["query_string"]) == ("GET", "/a b", b"q=1")
    assert (seen["scheme"], seen["client"], seen["server"]) == ("https", ("192.0.2.7", 0), ("127.0.0.1", 8080))
    assert seen["headers"] == [(b"host", b"x"), (b"a", b"b")]


async def test_one_message_is_an_answer_and_the_front_frames_it() -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*TEXT, (b"content-length", b"99"), (b"transfer-encoding", b"chunked")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"all"})
        await send({"type": "http.response.body", "body": b"too late"})

    assert await run(application) == [("answer", 200, TEXT, b"all")]


async def test_several_messages_are_a_stream_that_waits_for_its_reader() -> None:
    steps: list[str] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": TEXT})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        steps.append("one is out")
        await send({"type": "http.response.body", "body": b"two"})

    client = RecordingClient()
    client.is_full = True
    call = begin(application, client)
    for _ in range(5):
        await asyncio.sleep(0)
    assert (client.calls, steps) == ([("start", 200, TEXT), ("write", b"one")], [])
    call.on_writable()
    await asyncio.wait_for(client.over.wait(), 10)
    call.on_writable()  # of the end; nobody waits for it
    assert client.calls[2:] == [("finish", b"two")]


@pytest.mark.parametrize("is_waiting_to_write", [False, True])
async def test_vanished_client_is_a_disconnect(is_waiting_to_write: bool) -> None:
    over = asyncio.Event()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": TEXT})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.body", "body": b"two"})
        over.set()

    client = RecordingClient()
    client.is_full = is_waiting_to_write
    call = begin(application, client)
    for _ in range(5):
        await asyncio.sleep(0)
    call.on_gone()
    await asyncio.wait_for(over.wait(), 10)
    assert client.calls == [("start", 200, TEXT), ("write", b"one")]


async def test_failure_before_the_answer_is_500_and_in_the_middle_a_cut(caplog: pytest.LogCaptureFixture) -> None:
    async def early(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": TEXT})
        raise RuntimeError("a bug")

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": TEXT})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        raise RuntimeError("a bug")

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        return

    async def unstarted(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.body", "body": b"one"})

    assert [call[:2] for call in await run(early)] == [("answer", 500)]
    assert (await run(late))[-1] == ("drop",)
    assert [call[:2] for call in await run(silent)] == [("answer", 500)]
    assert [call[:2] for call in await run(unstarted)] == [("answer", 500)]
    assert caplog.text.count("request failed") == 3
