"""One HTTP/1.1 connection to a simulated engine: requests parsed, answered in their order, cancelled with the client.

    bytes ──httptools──▶ pending requests ──one at a time──▶ adapter.begin ──▶ Exchange ──▶ bytes

Behind a gateway that is measured, every microsecond here is one that the gateway does not get: no task, no future and
no header is made per request, and what a step of the engine says in one turn of the loop leaves in one write (uvloop
collects the writes of a turn).
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections import deque
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import NamedTuple, cast

import httptools
import msgspec

from xinf.core.errors import BodyTooLarge, EngineDied, EngineError, InvalidRequest, XinfError, openai_body
from xinf.engine.adapter import CallbackAdapter, RawHeader, Request, Usage, Work
from xinf.engine.sim_answer import JSON_HEADERS, SSE_HEADERS

_log = logging.getLogger(__name__)

HEAD_BYTES = 64 << 10  # counted from the second read of a head on; a read is 256 KiB at most
BODY_BYTES = 32 << 20
# Requests read ahead behind the one that is being answered, until the client must wait.
PIPELINED_REQUESTS = 64
PIPELINED_BYTES = 1 << 20
# A client that does not read loses its connection when this much waits for it, as a gateway loses its Link.
UNSENT_BYTES = 64 << 20
LINGER_S = 2.0  # a refused client may go on sending so long before it is cut off

_METHODS = {b"GET": "GET", b"POST": "POST", b"HEAD": "HEAD"}
_EXPECTS = re.compile(rb"\r\nexpect: *100-continue", re.IGNORECASE)
_JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    + b"".join(b"%b: %b\r\n" % header for header in SSE_HEADERS)
    + b"transfer-encoding: chunked\r\n\r\n"
)

# What is answered here and not by the engine: a path to what makes its answer. None: no content.
Probe = Callable[[], tuple[int, bytes | None]]


class Incoming(NamedTuple):
    """A request that is there as a whole."""

    method: bytes
    target: bytes
    body: bytes
    is_http_10: bool
    is_last: bool  # the connection is to be closed after its answer


class Face:
    """What all connections share."""

    def __init__(self, adapter: CallbackAdapter, probes: dict[bytes, Probe], on_death: Callable[[], None]) -> None:
        self.adapter = adapter
        self.probes = probes
        self.on_death = on_death
        self.connections: set[Connection] = set()

    def close(self) -> None:
        """Cut every connection; what was being answered is cancelled."""
        for connection in list(self.connections):
            connection.cut()


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, face: Face) -> None:
        self._face = face
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._current: Exchange | None = None
        self._pending: deque[Incoming] = deque()
        self._pending_bytes = 0
        self._is_advancing = False
        self._is_paused = False
        self._is_closing = False  # nothing further is read
        self._refusal: tuple[int, XinfError] | None = None  # answered after all that came before it
        # The message that is being read.
        self._n_messages = 0
        self._is_in_head = False
        self._is_in_body = False
        self._n_head_bytes = 0
        self._target = b""
        self._body: list[bytes] = []
        self._n_body_bytes = 0

    # ---- the transport --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self._transport = transport
        transport.set_write_buffer_limits(high=UNSENT_BYTES)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._face.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._face.connections.discard(self)
        self._is_closing = True
        self._pending.clear()
        current, self._current = self._current, None
        if current is not None and current.work is not None:
            current.work.cancel()

    def pause_writing(self) -> None:
        _log.warning("connection cut: the client does not read, more than %d MiB wait for it", UNSENT_BYTES >> 20)
        self.cut()

    def cut(self) -> None:
        """End the connection at once."""
        self._is_closing = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        was_in_head, was_in_body, number = self._is_in_head, self._is_in_body, self._n_messages
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._is_closing = True  # an upgrade is declined by answering; what follows is of no known protocol
        except httptools.HttpParserError as error:
            self._refuse(400, InvalidRequest(f"this is not HTTP: {error}"))
        if self._is_in_head:
            if was_in_head and number == self._n_messages:
                self._n_head_bytes += len(data)
                if self._n_head_bytes > HEAD_BYTES:
                    self._refuse(431, InvalidRequest(f"the headers are longer than {HEAD_BYTES} bytes"))
        elif self._is_in_body and not was_in_body and _EXPECTS.search(data, 0, HEAD_BYTES):
            # Clients that wait for this send one request at a time, and its headers in one piece.
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._advance()

    # ---- the parser -----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._n_messages += 1
        self._is_in_head = True
        self._n_head_bytes = 0
        self._target = b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._is_in_body = True

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._n_body_bytes += len(body)
        if self._n_body_bytes > BODY_BYTES:
            self._body.clear()
            self._refuse(413, BodyTooLarge(f"the body is longer than {BODY_BYTES} bytes"))

    def on_message_complete(self) -> None:
        self._is_in_body = False
        if self._refusal is not None:
            return
        parts = self._body
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if parts:
            self._body = []
        self._n_body_bytes = 0
        parser = self._parser
        is_http_10 = parser.get_http_version() == "1.0"
        is_last = is_http_10 or not parser.should_keep_alive() or parser.should_upgrade()
        self._pending.append(Incoming(parser.get_method(), self._target, body, is_http_10, is_last))
        self._pending_bytes += len(body)

    def _refuse(self, status: int, error: XinfError) -> None:
        """Read nothing further; say why once everything before it is answered."""
        self._is_closing = True
        self._is_in_head = self._is_in_body = False
        if self._refusal is None:
            self._refusal = (status, error)

    # ---- one after another ----------------------------------------------------------------------------------------

    def on_over(self, *, is_last: bool) -> None:
        """The current exchange is complete: go on with the next."""
        self._current = None
        if is_last:
            self._pending.clear()
            self._is_closing = True
            if self._refusal is None:
                self._transport.close()
            else:
                # Closed with the rest of the request unread, the connection would be reset and the answer lost.
                self._refusal = None
                self._transport.write_eof()
                asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)
        elif not self._is_advancing:
            self._advance()

    def _advance(self) -> None:
        """Begin what waits, as long as it is answered at once."""
        self._is_advancing = True
        pending = self._pending
        while pending and self._current is None:
            incoming = pending.popleft()
            self._pending_bytes -= len(incoming.body)
            self._begin(incoming)
        self._is_advancing = False
        if self._current is None and self._refusal is not None:
            status, error = self._refusal
            Exchange(self, self._transport, is_last=True).answer(status, msgspec.json.encode(openai_body(error)))
        if pending or self._is_paused:
            self._hold_back()

    def _hold_back(self) -> None:
        """Read on only while not too much waits."""
        must_wait = len(self._pending) > PIPELINED_REQUESTS or self._pending_bytes > PIPELINED_BYTES
        if must_wait != self._is_paused and not self._is_closing:
            self._is_paused = must_wait
            if must_wait:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _begin(self, incoming: Incoming) -> None:
        exchange = Exchange(self, self._transport, is_last=incoming.is_last)
        self._current = exchange
        method = _METHODS.get(incoming.method) or incoming.method.decode("latin-1")
        if method != "POST":
            exchange.has_body = method != "HEAD"
            probe = self._face.probes.get(incoming.target)
            if probe is not None and method in ("GET", "HEAD"):
                exchange.answer(*probe())
                return
        exchange.is_chunked = not incoming.is_http_10
        request = Request(method=method, path=incoming.target.decode("latin-1"), body=incoming.body)
        try:
            work = self._face.adapter.begin(request, exchange)
        except Exception as error:
            _log.exception("request failed")
            exchange.failed(EngineError(f"the engine failed on this request: {type(error).__name__}"))
        else:
            exchange.work = work

    def on_death(self) -> None:
        self._face.on_death()


class Exchange:
    """One request and its answer. Implements the adapter's FinalReply.

    A stream is written as it comes, anything else is kept and sent with its length.
    """

    __slots__ = ("_connection", "_data", "_headers", "_is_last", "_status", "_write", "has_body", "is_chunked", "work")

    def __init__(self, connection: Connection, transport: asyncio.Transport, *, is_last: bool) -> None:
        self.work: Work | None = None
        self.has_body = True  # false for HEAD
        self.is_chunked = True  # false for HTTP/1.0, where a stream ends with the connection
        self._connection = connection
        self._write = transport.write
        self._is_last = is_last
        self._status = 0
        self._headers: Sequence[RawHeader] = ()
        self._data = b""

    def start(self, status: int, headers: Sequence[RawHeader]) -> None:
        self._status = status
        self._headers = headers
        if headers is SSE_HEADERS:
            self._is_last = self._is_last or not self.is_chunked
            if self._is_last:
                framing: tuple[RawHeader, ...] = ((b"transfer-encoding", b"chunked"),) if self.is_chunked else ()
                self._write(_head(status, (*headers, *framing, (b"connection", b"close"))))
            else:
                self._write(_STREAM_HEAD)

    def chunk(self, data: bytes) -> None:
        if self._headers is not SSE_HEADERS:
            self._data = self._data + data if self._data else data
        elif not data:
            return  # it would end the stream
        elif self.is_chunked:
            self._write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._write(data)

    def done(self, usage: Usage) -> None:  # noqa: ARG002
        if self._headers is JSON_HEADERS and self._status == 200 and self.has_body and not self._is_last:
            self._write(_JSON_HEAD % (len(self._data), self._data))
        elif self._headers is SSE_HEADERS:
            if self.is_chunked:
                self._write(b"0\r\n\r\n")
        else:
            self._send_whole(self._status, self._data)
        self._over()

    def failed(self, error: XinfError) -> None:
        if self._headers is SSE_HEADERS:
            self._connection.cut()
        else:
            self._send_whole(error.http_status, msgspec.json.encode(openai_body(error)))
            self._over()
        if isinstance(error, EngineDied):
            self._connection.on_death()

    def answer(self, status: int, body: bytes | None) -> None:
        """Answer without the engine."""
        self._send_whole(status, body)
        self._over()

    def _send_whole(self, status: int, body: bytes | None) -> None:
        headers: list[RawHeader] = list(JSON_HEADERS) if body else []
        headers.append((b"content-length", b"%d" % len(body or b"")))
        if self._is_last:
            headers.append((b"connection", b"close"))
        self._write(_head(status, headers) + (body if body and self.has_body else b""))

    def _over(self) -> None:
        self.work = None
        self._connection.on_over(is_last=self._is_last)


def _head(status: int, headers: Sequence[RawHeader]) -> bytes:
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, HTTPStatus(status).phrase.encode(), lines)
