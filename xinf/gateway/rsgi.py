"""The gateway behind Granian's RSGI: fewer messages and copies per request than ASGI, and one thing to make up for.

RSGI takes whatever it is given for a client and never says that the client does not read. `SendQueues` asks the kernel
instead, once per `stream_buffer_bytes`: while its queue for this client is not nearly empty, nothing more is given.

Pages go to the ASGI application, as in every front. An answer that is no event stream is given whole: RSGI has no way
to break one off that the client could tell from its end.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from granian._granian import RSGIProtocolClosed as ProtocolClosed

from xinf.core.errors import InvalidRequest, XinfError
from xinf.gateway.app import Application, make_core
from xinf.gateway.asgi import Message, Receive
from xinf.gateway.asgi_call import AsgiCall
from xinf.gateway.body import BodyReader, ClientGone
from xinf.gateway.client import Exchange, Head, RawHeaders
from xinf.gateway.sendqueue import SendQueues

logger = logging.getLogger("xinf.gateway")

# A send queue below this is as good as empty: what a slow client leaves fills the kernel's buffers (megabytes) first.
NEARLY_EMPTY_BYTES = 64 << 10
LOOK_AGAIN_S = 0.05
# Whole answers beyond this are refused rather than held: no route but audio comes near it.
WHOLE_BYTES = 256 << 20


class RsgiProtocol(Protocol):
    """Granian's RSGI protocol object, as far as it is used."""

    def __call__(self) -> Any: ...

    def __aiter__(self) -> Any: ...

    async def client_disconnect(self) -> None: ...

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None: ...

    def response_stream(self, status: int, headers: list[tuple[str, str]]) -> Any: ...


class RsgiClient:
    """Implements Client. Set `exchange` to what `Core.serve` gave, then `wait`."""

    __slots__ = (
        "_buffer_bytes",
        "_ends",
        "_held",
        "_is_over",
        "_is_sent",
        "_is_stream",
        "_over",
        "_poll",
        "_proto",
        "_queues",
        "_start",
        "_transport",
        "_unconfirmed_bytes",
        "_watch",
        "exchange",
    )

    def __init__(self, proto: RsgiProtocol, queues: SendQueues, *, ends: tuple[str, str], buffer_bytes: int) -> None:
        """`ends`: of the connection, ours and the client's, as "address:port"."""
        self.exchange: Exchange | None = None
        self._proto = proto
        self._queues = queues
        self._ends = ends
        self._buffer_bytes = buffer_bytes
        self._start: tuple[int, list[tuple[str, str]]] = (0, [])
        self._is_stream = False
        self._held: list[bytes] = []
        self._transport: Any = None
        self._unconfirmed_bytes = 0  # given since the kernel's queue was last seen nearly empty
        self._poll: asyncio.TimerHandle | None = None
        self._is_sent = False
        self._is_over = False
        self._over: asyncio.Future[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def wait(self) -> None:
        """Wait for the end of the answer; returning ends the request for the server."""
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
            self._is_over = True
            if self._watch is not None:
                self._watch.cancel()
            if self._poll is not None:
                self._poll.cancel()

    # ---- the core's calls --------------------------------------------------------------------------------------

    def answer(self, status: int, headers: RawHeaders, body: bytes) -> bool:
        headers.append((b"content-length", b"%d" % len(body)))
        if not self._is_over:
            self._proto.response_bytes(status, _text(headers), body)
        self._end()
        return True

    def start(self, status: int, headers: RawHeaders) -> None:
        self._is_stream = any(
            name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers
        )
        self._start = (status, _text(headers))
        if self._is_stream and not self._is_over:
            self._transport = self._proto.response_stream(*self._start)

    def write(self, data: bytes) -> bool:
        if self._is_over:
            return True
        self._unconfirmed_bytes += len(data)
        if not self._is_stream:
            return self._hold(data)
        self._transport.send_bytes(data)
        return self._unconfirmed_bytes <= self._buffer_bytes or self._is_taken()

    def finish(self, data: bytes) -> bool:
        if self._is_over:
            return True
        if not self._is_stream:
            self._proto.response_bytes(self._start[0], self._start[1], b"".join([*self._held, data]))
            self._end()
            return True
        self._is_sent = True
        if data and not self.write(data):
            return False
        self._end()
        return True

    def drop(self) -> None:
        self._end()

    def watch(self) -> None:
        if self._watch is None and not self._is_over:
            self._watch = asyncio.get_running_loop().create_task(self._watch_for_end())

    # ---- ends --------------------------------------------------------------------------------------------------

    def _hold(self, data: bytes) -> bool:
        if self._unconfirmed_bytes > WHOLE_BYTES:
            logger.error("an answer that is no stream is too long for this front", extra={"kv": {"bytes": WHOLE_BYTES}})
            self._client_gone()
        else:
            self._held.append(data)
        return True

    def _is_taken(self) -> bool:
        """Whether the client is through with nearly all; else look again later and tell the core then."""
        try:
            unsent = self._queues.unsent_bytes(*self._ends)
        except (OSError, ValueError):
            unsent = None
        if unsent is None or unsent <= NEARLY_EMPTY_BYTES:
            self._unconfirmed_bytes = 0
            return True
        self._poll = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_again)
        return False

    def _look_again(self) -> None:
        self._poll = None
        if self._is_over or not self._is_taken():
            return
        if self._is_sent:
            self._end()
        if self.exchange is not None:
            self.exchange.on_writable()

    async def _watch_for_end(self) -> None:
        await self._proto.client_disconnect()
        self._client_gone()

    def _client_gone(self) -> None:
        if self._is_over:
            return
        self._end()
        if self.exchange is not None:
            self.exchange.on_gone()

    def _end(self) -> None:
        self._is_over = True
        self._transport = None
        if self._over is not None and not self._over.done():
            self._over.set_result(None)


class RsgiApplication:
    """What Granian calls. Pages are answered by `application`."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._core = application.core
        self._buffer_bytes = self._core.config.gateway.stream_buffer_bytes
        self._bodies = BodyReader(self._core.config.gateway.request_read_timeout)
        self._queues = SendQueues()

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_until_complete(self._core.open())

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_until_complete(self._core.close())
        self._queues.close()

    async def __rsgi__(self, scope: Any, proto: RsgiProtocol) -> None:
        core = self._core
        head = Head(
            scope.method,
            scope.path,
            scope.query_string.encode("latin-1"),
            {name.encode("latin-1"): value.encode("utf-8") for name, value in scope.headers.items()},
            scope.client.rpartition(":")[0].strip("[]"),
        )
        client = RsgiClient(proto, self._queues, ends=(scope.server, scope.client), buffer_bytes=self._buffer_bytes)
        try:
            admission = core.admit(head)
            if admission is None:
                host, _, port = scope.server.rpartition(":")
                address = (host.strip("[]"), int(port))
                client.exchange = AsgiCall.begin(
                    self._application, head, b"", client, scheme=scope.scheme, address=address
                )
                await client.wait()
                return
            body = await self._bodies.read(
                _receiver(proto, admission.length), admission.length, admission.max_body_bytes
            )
        except XinfError as error:
            refusal = core.refuse(head, error)
            client.answer(refusal.status, list(refusal.headers), refusal.body)
            return
        except ClientGone:
            # Also what is said of chunks that are malformed; nobody hears it when the client has really gone.
            refusal = core.refuse(head, InvalidRequest("the body ended early, or its chunks are malformed"))
            client.answer(refusal.status, list(refusal.headers), refusal.body)
            return
        client.exchange = core.serve(admission, body, client)
        await client.wait()


def _receiver(proto: RsgiProtocol, length: int | None) -> Receive:
    """ASGI's receive() over RSGI's ways to read a body: whole when its length is known and bounded, or in pieces."""
    if length is not None:

        async def whole() -> Message:
            try:
                return {"type": "http.request", "body": await proto(), "more_body": False}
            except ProtocolClosed:
                return {"type": "http.disconnect"}

        return whole
    pieces = proto.__aiter__()

    async def piece() -> Message:
        try:
            return {"type": "http.request", "body": await anext(pieces), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}
        except ProtocolClosed:
            return {"type": "http.disconnect"}

    return piece


def _text(headers: RawHeaders) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def create() -> RsgiApplication:
    """Build the application of this worker; Granian's factory. Raises: ConfigError, OSError."""
    return RsgiApplication(Application(make_core()))
