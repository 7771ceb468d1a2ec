"""The client's side of a request under an ASGI server: what the core says becomes messages.

`send` is called from wherever the core speaks, without a task: `Pending` drives what an ASGI server does not take at
once. The request's own coroutine only waits for the end.
"""

from __future__ import annotations

import asyncio
from typing import Any

from xinf.gateway.answers import Answer
from xinf.gateway.asgi import Message, Pending, Receive, Send
from xinf.gateway.client import Exchange, RawHeaders


class AsgiClient:
    """Implements Client. Set `exchange` to what `Core.serve` gave, then `wait`."""

    def __init__(self, send: Send, receive: Receive) -> None:
        self.exchange: Exchange | None = None
        self._send = send
        self._receive = receive
        self._waiting: list[Message] = []
        self._blocked: Pending | None = None
        self._watch: Pending | None = None
        self._is_sent = False  # the last message was given
        self._is_over = False
        self._over: asyncio.Future[None] | None = None
        # A server that answers "no more body" again and again instead of waiting must not make us spin.
        self._is_body_over = False

    async def wait(self) -> None:
        """Wait for the end of the answer. Returning ends the request for the server: a cut one without its end."""
        if self._is_over:
            return
        self._over = asyncio.get_running_loop().create_future()
        try:
            await self._over
        except asyncio.CancelledError:
            if self.exchange is not None:
                self.exchange.on_gone()
            raise
        finally:
            self._let_go()

    # ---- the core's calls --------------------------------------------------------------------------------------

    def answer(self, status: int, headers: RawHeaders, body: bytes) -> bool:
        headers.append((b"content-length", b"%d" % len(body)))
        self._put({"type": "http.response.start", "status": status, "headers": headers})
        self._is_sent = True
        return self._put({"type": "http.response.body", "body": body})

    def start(self, status: int, headers: RawHeaders) -> None:
        self._put({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, data: bytes) -> bool:
        return self._put({"type": "http.response.body", "body": data, "more_body": True})

    def finish(self, data: bytes) -> bool:
        self._is_sent = True
        return self._put({"type": "http.response.body", "body": data})

    def drop(self) -> None:
        self._end()

    def watch(self) -> None:
        while not self._is_over:
            message, self._watch = Pending.begin(self._receive(), self._on_received)
            if self._watch is not None:
                return
            if message["type"] == "http.disconnect":
                self._client_gone()
                return
            if not message.get("more_body") and self._is_body_over:
                return
            self._is_body_over = not message.get("more_body")

    # ---- sending -----------------------------------------------------------------------------------------------

    def _put(self, message: Message) -> bool:
        """Send, or keep it for when the server has taken what came before. False: not everything is taken."""
        if self._is_over:
            return True
        if self._blocked is not None:
            self._waiting.append(message)
            return False
        try:
            _, self._blocked = Pending.begin(self._send(message), self._on_sent)
        except Exception:
            self._client_gone()  # the request ends, whoever hears of the error
            raise
        if self._blocked is not None:
            return False
        if self._is_sent and message["type"] == "http.response.body":
            self._end()
        return True

    def _on_sent(self, _: Any, error: BaseException | None) -> None:
        self._blocked = None
        if error is not None:  # other servers than Granian raise when the client is gone
            self._client_gone()
            return
        while self._waiting:
            message = self._waiting.pop(0)
            _, self._blocked = Pending.begin(self._send(message), self._on_sent)
            if self._blocked is not None:
                return
        if self._is_sent:
            self._end()
        if self.exchange is not None:
            self.exchange.on_writable()

    def _end(self) -> None:
        self._is_over = True
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    # ---- the client's disconnect -------------------------------------------------------------------------------

    def _on_received(self, message: Any, error: BaseException | None) -> None:
        self._watch = None
        if error is not None or message["type"] == "http.disconnect":
            self._client_gone()
        else:
            # The rest of a body whose bytes were already complete; the disconnect comes after it.
            self.watch()

    def _client_gone(self) -> None:
        if self._is_over:
            return
        self._end()
        if self._blocked is not None:
            self._blocked.close()
            self._blocked = None
        if self.exchange is not None:
            self.exchange.on_gone()

    def _let_go(self) -> None:
        """The server may use its callables for nothing more."""
        self._is_over = True
        for pending in (self._watch, self._blocked):
            if pending is not None:
                pending.close()
        self._watch = self._blocked = None


async def send_answer(send: Send, answer: Answer, extra: RawHeaders) -> None:
    """Send a complete answer."""
    headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode()), *extra]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
