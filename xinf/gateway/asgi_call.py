"""The ASGI application answering one request of a front that is no ASGI server: the pages, and whatever is no engine's.

    front ── AsgiCall.begin(application, head, body, client) ──▶ a task: application(scope, receive, send)
      └── on_gone, on_writable (it is the front's Exchange) ──▶ http.disconnect, a send() that goes on

An answer that comes as one message goes out as one, with its length; others as a stream. A body must be complete and
bounded before this begins.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from xinf.core.errors import XinfError
from xinf.gateway.answers import error_answer
from xinf.gateway.asgi import Message, Receive, Scope, Send
from xinf.gateway.client import Client, Head, RawHeaders

logger = logging.getLogger("xinf.gateway")

# The front frames the answer itself.
_FRAMING = (b"content-length", b"transfer-encoding")


class AsgiApp(Protocol):
    """An ASGI 3 application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class AsgiCall:
    """One request at an ASGI application. Implements Exchange."""

    # The loop keeps only weak references to tasks; a front keeps its Exchange until the end, and that keeps the task.
    __slots__ = (
        "_body",
        "_client",
        "_gone",
        "_head",
        "_is_begun",
        "_is_gone",
        "_is_over",
        "_start",
        "_task",
        "_writable",
    )

    def __init__(self, head: Head, body: bytes, client: Client) -> None:
        self._head = head
        self._body: bytes | None = body
        self._client = client
        self._start: tuple[int, RawHeaders] | None = None
        self._is_begun = False  # something went to the client
        self._is_over = False
        self._is_gone = False
        self._gone: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def begin(
        cls, application: AsgiApp, head: Head, body: bytes, client: Client, *, scheme: str, address: tuple[str, int]
    ) -> AsgiCall:
        """Start the application for one request; it answers through `client`."""
        call = cls(head, body, client)
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": head.method,
            "scheme": scheme,
            "path": head.path,
            "query_string": head.query,
            "root_path": "",
            "headers": list(head.headers.items()),
            "client": (head.peer, 0) if head.peer is not None else None,
            "server": address,
        }
        call._task = asyncio.get_running_loop().create_task(call._run(application, scope))
        return call

    # ---- the front's calls -------------------------------------------------------------------------------------

    def on_gone(self) -> None:
        self._is_gone = True
        for future in (self._gone, self._writable):
            if future is not None and not future.done():
                future.set_result(None)

    def on_writable(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    # ---- the application's calls -------------------------------------------------------------------------------

    async def _receive(self) -> Message:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        if not self._is_gone and not self._is_over:
            self._gone = asyncio.get_running_loop().create_future()
            await self._gone
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._is_gone or self._is_over:
            return
        if message["type"] == "http.response.start":
            headers = [pair for pair in message.get("headers", ()) if pair[0] not in _FRAMING]
            self._start = (message["status"], headers)
            return
        data, has_more = message.get("body", b""), message.get("more_body", False)
        if not has_more:
            self._end(data)
            return
        self._begin_stream()
        if not self._client.write(data):
            self._writable = asyncio.get_running_loop().create_future()
            await self._writable

    def _end(self, data: bytes) -> None:
        if self._is_begun:
            self._is_over = True
            self._client.finish(data)
        else:
            status, headers = self._take_start()
            self._is_over = True
            self._client.answer(status, headers, data)

    def _begin_stream(self) -> None:
        if not self._is_begun:
            status, headers = self._take_start()
            self._is_begun = True
            self._client.start(status, headers)

    def _take_start(self) -> tuple[int, RawHeaders]:
        if self._start is None:
            raise RuntimeError("the application sent a body before http.response.start")
        return self._start

    async def _run(self, application: AsgiApp, scope: Scope) -> None:
        try:
            await application(scope, self._receive, self._send)
        except Exception:
            # The edge of the process: one request may fail, the gateway goes on.
            logger.exception("request failed", extra={"kv": {"path": self._head.path[:200]}})
        if self._is_over or self._is_gone:
            return
        self._is_over = True
        if self._is_begun:
            self._client.drop()
        else:
            answer = error_answer(XinfError("the gateway failed to handle the request"))
            self._client.answer(answer.status, answer.headers, answer.body)
