"""A server's end of one gRPC stream on a connection of its own, on an asyncio transport without gRPC's threads.

    listener.on_message() ◀── messages, from the reader           no task, no queue
    listener.on_closed()  ◀── the client closed its side
    wake() ─▶ two turns ─▶ listener.take() ─▶ DATA ──▶ client     while neither its windows nor the socket are full
    finish() ─▶ what is half-way out, trailers, RST_STREAM (NO_ERROR), GOAWAY, half-close, after CLOSE_S abort
    listener.on_lost()    ◀── all of that, RST_STREAM, end of the connection, bytes that are no HTTP/2

Two turns: what one step of an engine says reaches its requests in one turn, and the end of an answer that a coroutine
makes follows its last bytes in the next.

The connection is half-closed first: closing a TCP socket with unread bytes in it resets the connection, and the client
would not see the trailers.

Other streams of the client are refused, MAX_REFUSED of them. Nothing here looks for a client that is gone without a
word: on TCP the kernel does (`address`), a Unix socket's peer cannot go without one.

Invariant: on_lost comes once and last, also after `finish`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import hpack

from xinf.link import grpcstatus
from xinf.link import h2frames as h2
from xinf.link.h2stream import CLOSE_S, MAX_MESSAGE_BYTES, OUR_SETTINGS, STREAM, H2Stream, StreamListener, StreamLost

# A message half-way out when the stream ends; it cannot get out when the client does not read.
LAST_WRITE_S = 0.5
MAX_REFUSED = 100

_log = logging.getLogger(__name__)


class ServerListener(StreamListener, Protocol):
    """The owner of a server's stream."""

    def on_closed(self) -> None:
        """The client closed its side; it still takes messages."""


class ServerStream(H2Stream):
    """A server's end of one stream. Is told what came behind the preface of the connection, as any asyncio protocol."""

    PEER = "the client"
    _listener: ServerListener

    def __init__(
        self,
        make_listener: Callable[[ServerStream], ServerListener],
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        on_gone: Callable[[], None] = lambda: None,
    ) -> None:
        """`make_listener` is called when the request has come, `on_gone` when the connection is closed."""
        super().__init__(None, max_message_bytes)
        self._make_listener = make_listener
        self._on_gone = on_gone
        self._table_bytes = h2.INITIAL_TABLE_BYTES  # of the client
        self._n_refused = 0
        self._has_ended = False  # the client's side
        self._ending: tuple[str, str] | None = None  # status and message
        self._timer: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """Have the listener's next message sent as soon as it can be; until then more can join it."""
        if not self._is_woken:
            self._is_woken = True
            self._schedule()

    def finish(self, status: str, message: str) -> None:
        """End the stream with a status ("ok", "invalid_argument", ...). Nothing is taken or handed over any more."""
        if self._is_over or self._ending is not None:
            return
        self._ending = status, message
        self._is_deaf = True
        if self._unsent is None:
            self._conclude()
        else:
            self._timer = self._loop.call_later(LAST_WRITE_S, self._conclude)

    # ---- out ---------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._is_woken and self._turn is None and self._may_take():
            self._turn = self._loop.call_soon(self._wait_a_turn)

    def _may_take(self) -> bool:
        return not self._is_over and self._ending is None and self._unsent is None and not self._is_paused

    def _wait_a_turn(self) -> None:
        self._turn = self._loop.call_soon(self._take)

    def _take(self) -> None:
        self._turn = None
        if self._may_take():
            self._is_woken = False
            if message := self._listener.take():
                self._send(message)

    def _go_on(self) -> None:
        H2Stream._go_on(self)  # compiled, a method that is called directly has no super()
        if self._ending is not None and self._unsent is None and not self._is_over:
            self._conclude()

    def _headers(self, fields: list[tuple[str, str]], flags: int) -> bytes:
        """A header block that leaves the client's table as it is."""
        encoder = hpack.Encoder()
        encoder.header_table_size = self._table_bytes
        block = encoder.encode([hpack.NeverIndexedHeaderTuple(name, value) for name, value in fields])
        return h2.header(len(block), h2.HEADERS, h2.END_HEADERS | flags, STREAM) + block

    # ---- the connection ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._transport.write(OUR_SETTINGS)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._is_over:
            reason = self._reason_of_loss(exc)
            self._stop()
            self._tell(reason)
        self._on_gone()

    def _conclude(self) -> None:
        """Send the status, whatever is left of the message before it."""
        assert self._ending is not None
        if self._is_over:
            return
        frames = self._headers(grpcstatus.trailers(*self._ending), h2.END_STREAM)
        if not self._has_ended:
            frames += h2.rst_stream(STREAM, h2.NO_ERROR)
        self._end(frames, h2.NO_ERROR, grpcstatus.ENDED)

    def _on_fault(self, fault: h2.H2Fault) -> None:
        _log.warning("a client broke HTTP/2: %s", fault)
        self._end(b"", fault.code, f"internal: the client broke HTTP/2: {fault}")

    def _on_stream_lost(self, lost: StreamLost) -> None:
        # At once: what came behind has not been read, nothing further can be.
        status, _, text = str(lost).partition(": ")
        self._ending = status, text
        self._conclude()

    def _on_reset(self, code: int) -> None:
        self._end(b"", h2.NO_ERROR, grpcstatus.reason_of_reset(code))

    def _end(self, frames: bytes, code: int, reason: str) -> None:
        if self._is_over:
            return
        self._stop()
        transport = self._transport
        if not transport.is_closing():
            transport.write(frames + h2.goaway(code, max(STREAM, self._last_refused)))
            try:
                transport.write_eof()
                self._loop.call_later(CLOSE_S, transport.abort)
            except OSError:  # asyncio's: the connection has been reset, which has not been read yet
                transport.abort()
        self._tell(reason)

    def _tell(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._has_headers:
            self._listener.on_lost(reason)

    # ---- in ------------------------------------------------------------------------------------------------------

    def on_data_end(self) -> None:
        if self._is_discarding or self._has_ended:
            return
        self._has_ended = True
        if not self._is_deaf:
            self._listener.on_closed()

    def _on_header_list(self, headers: dict[str, str]) -> None:  # noqa: ARG002  # looked at before it came here
        if self._header_stream != STREAM:
            self._refuse(self._header_stream)
        elif not self._has_headers:
            self._reply(self._headers([(":status", "200"), ("content-type", "application/grpc")], 0))
            self._listener = self._make_listener(self)
            self._has_headers = True
            self.wake()
            if self._is_last_block:
                self.on_data_end()
        elif self._is_last_block:
            self._is_discarding = False
            self.on_data_end()
        else:
            raise h2.H2Fault(h2.PROTOCOL_ERROR, "trailers do not end the stream")

    def _refuse(self, stream_id: int) -> None:
        self._last_refused = stream_id
        self._n_refused += 1
        if self._n_refused > MAX_REFUSED:
            raise h2.H2Fault(h2.ENHANCE_YOUR_CALM, f"{MAX_REFUSED} streams came on a connection of one")
        self._reply(h2.rst_stream(stream_id, h2.REFUSED_STREAM))

    def _may_stand(self, kind: int, stream_id: int) -> bool:
        if kind == h2.HEADERS:
            return stream_id == STREAM or (self._has_headers and stream_id > self._last_refused and stream_id % 2 == 1)
        if kind == h2.CONTINUATION:
            return True  # the block that it belongs to is compared
        if kind in (h2.RST_STREAM, h2.WINDOW_UPDATE) and STREAM < stream_id <= self._last_refused:
            return True
        return super()._may_stand(kind, stream_id)

    def _on_header_table_bytes(self, n_bytes: int) -> None:
        self._table_bytes = min(n_bytes, h2.INITIAL_TABLE_BYTES)
