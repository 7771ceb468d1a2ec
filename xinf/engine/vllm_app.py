"""Drives vLLM's own ASGI application inside the process: no socket, no HTTP parser.

    Request ──scope, receive──▶ app ──send──▶ Reply

The start of an answer is held back until there is a byte of it, or its end: vLLM sends the headers of a stream before
the engine has done anything, and a request whose engine dies until then can still move to another replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import unquote

from xinf.engine.adapter import RawHeader, Reply, Request
from xinf.engine.vllm_usage import RequestRecord

Message = MutableMapping[str, Any]
AsgiApp = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

# Of the request: what belongs to the connection it came by, or would be checked a second time here.
_DROPPED = {b"host", b"content-length", b"transfer-encoding", b"connection", b"authorization", b"expect", b"upgrade"}
# Of the answer: lengths are the gateway's business, it may send the answer in other pieces.
_DROPPED_OF_ANSWER = {b"content-length", b"transfer-encoding", b"connection"}


class Exchange:
    """One request and its answer, as the application sees them."""

    def __init__(self, request: Request, reply: Reply, record: RequestRecord) -> None:
        self._request = request
        self._reply = reply
        self._record = record
        self._is_body_taken = False
        self._gone = asyncio.Event()
        self._start: tuple[int, Sequence[RawHeader]] | None = None  # held back
        self.has_answered = False

    def scope(self, app: object, *, has_priorities: bool) -> Message:
        """What ASGI tells an application of a request."""
        path, _, query = self._request.path.partition("?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self._request.method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": self._headers(has_priorities=has_priorities),
            "client": ("127.0.0.1", 0),
            "server": ("127.0.0.1", 0),
            "state": {},
            "app": app,
        }

    def _headers(self, *, has_priorities: bool) -> list[RawHeader]:
        request = self._request
        headers = [(name.lower(), value) for name, value in request.headers if name.lower() not in _DROPPED]
        names = {name for name, _ in headers}
        headers += [(b"host", b"engine"), (b"content-length", b"%d" % len(request.body))]
        if request.body and b"content-type" not in names:
            headers.append((b"content-type", b"application/json"))
        if request.request_id and b"x-request-id" not in names:
            headers.append((b"x-request-id", request.request_id.encode()))
        if request.trace and b"traceparent" not in names:
            headers.append((b"traceparent", request.trace.encode()))
        # An engine that schedules first come, first served refuses every other priority than 0.
        if request.priority and has_priorities and b"x-vllm-priority" not in names:
            headers.append((b"x-vllm-priority", b"%d" % request.priority))
        return headers

    async def receive(self) -> Message:
        if not self._is_body_taken:
            self._is_body_taken = True
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        # What vLLM says of an engine's death is dropped: the shim says it, once.
        if self._record.death is not None or self._gone.is_set():
            return
        if message["type"] == "http.response.start":
            headers = [(name, value) for name, value in message["headers"] if name not in _DROPPED_OF_ANSWER]
            self._start = (message["status"], headers)
        elif message["type"] == "http.response.body":
            data = message.get("body", b"")
            if self._start is not None and (data or not message.get("more_body", False)):
                self._reply.start(*self._start)
                self._start = None
                self.has_answered = True
            if data:
                self._reply.chunk(bytes(data))

    def leave(self) -> None:
        """The client is gone: the application is told when it next looks, and is heard no more."""
        self._gone.set()


class CollectedReply:
    """A Reply that keeps the answer, for requests of our own."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Sequence[RawHeader] = ()
        self.chunks: list[bytes] = []

    def start(self, status: int, headers: Sequence[RawHeader]) -> None:
        self.status = status
        self.headers = headers

    def chunk(self, data: bytes) -> None:
        self.chunks.append(data)

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)
