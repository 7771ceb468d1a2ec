"""A client's end of one gRPC stream on a connection of its own, on an asyncio transport without gRPC's threads.

    wake() ─▶ listener.take() ─▶ DATA ──▶ engine          one message at a time, paced: what waits meanwhile
                                                          goes into the next one
    listener.on_message() ◀── messages, from the reader   no task, no queue
    listener.on_lost() ◀── trailers, RST_STREAM, GOAWAY, end of the connection, bytes that are no HTTP/2

Pacing: after a message the next one waits until the engine has sent something and there is enough to send, as its owner
sees it, or for PACE_S. A busy engine therefore gets fewer and larger messages: each costs a gRPC server some 100 us,
whatever is in it. An idle Link never waits.

The request says `xinf-dedicated: 1`: nothing else will come on this connection. A shim serves it on its own event loop
then (`server`); any other gRPC server takes it for metadata that means nothing to it.

Invariant: on_lost comes once, unless `close` came first; nothing comes after either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

import hpack

from xinf.link import grpcstatus
from xinf.link import h2frames as h2
from xinf.link.h2stream import CLOSE_S, MAX_MESSAGE_BYTES, OUR_SETTINGS, STREAM, H2Stream, StreamListener, StreamLost

DEDICATED = "xinf-dedicated"
# libuv's timers count whole milliseconds: what is due in 1 ms comes after 0 to 1 ms.
PACE_S = 0.001


class ClientListener(StreamListener, Protocol):
    """The owner of a client's stream."""

    def is_worthwhile(self) -> bool:
        """Whether what waits is worth a message of its own while the engine is busy with those before it."""


async def open_stream(
    target: str, path: str, listener: ClientListener, *, max_message_bytes: int = MAX_MESSAGE_BYTES
) -> ClientStream:
    """Connect to `unix:PATH` or `HOST:PORT` and begin a stream of `path` ("/package.Service/Method").

    Whether the engine takes the stream shows later, by a message or `on_lost`.
    Raises: OSError when there is no connection, ValueError for another kind of target.
    """
    loop = asyncio.get_running_loop()

    def make(authority: str) -> Callable[[], asyncio.Protocol]:
        return lambda: cast(asyncio.Protocol, ClientStream(path, authority, listener, max_message_bytes))

    if target.startswith("unix:"):
        where = target.removeprefix("unix:")
        return cast(ClientStream, (await loop.create_unix_connection(make("localhost"), where))[1])
    host, colon, port = target.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"the target is {target!r}, must be unix:PATH or HOST:PORT")
    return cast(ClientStream, (await loop.create_connection(make(target), host.strip("[]"), int(port)))[1])


class ClientStream(H2Stream):
    """A client's end of one stream; made by `open_stream`."""

    PEER = "the engine"
    _least_last_stream = STREAM
    _listener: ClientListener

    def __init__(self, path: str, authority: str, listener: ClientListener, max_message_bytes: int) -> None:
        super().__init__(listener, max_message_bytes)
        self._path = path
        self._authority = authority
        self._timer: asyncio.TimerHandle | None = None  # looks whether a take is due
        self._has_heard = True  # from the engine, since the last message; see pacing
        self._gate_opens_s = 0.0  # at the latest

    def wake(self) -> None:
        """Have the listener's next message sent as soon as it may be; until then more can join it."""
        if self._is_over:
            return
        # Called again while something waits: perhaps there is enough now.
        if not self._is_woken or (self._has_heard and self._turn is None):
            self._is_woken = True
            self._schedule()

    def close(self) -> None:
        """Cancel the stream and disconnect; the listener hears nothing more."""
        if not self._is_over:
            self._end(h2.NO_ERROR)

    # ---- out ---------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Plan the next take: with the next turn of the loop, so that what this turn brings goes along, or when due."""
        if not self._is_woken or self._is_over or self._turn is not None or self._unsent is not None or self._is_paused:
            return
        if (self._has_heard and self._listener.is_worthwhile()) or self._loop.time() >= self._gate_opens_s:
            # A timer is left to run out: making and cancelling one per message costs more than a turn in vain.
            self._turn = self._loop.call_soon(self._take)
        elif self._timer is None:
            self._timer = self._loop.call_at(self._gate_opens_s, self._look)

    def _look(self) -> None:
        self._timer = None
        self._schedule()

    def _take(self) -> None:
        self._turn = None
        if self._is_over or self._unsent is not None or self._is_paused:
            return
        self._is_woken = False
        self._has_heard = False
        self._gate_opens_s = self._loop.time() + PACE_S
        message = self._listener.take()
        if message and not self._is_over:
            self._send(message)
        elif not message:
            self._has_heard = True

    # ---- the connection ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        block = hpack.Encoder().encode(
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", self._path),
                (":authority", self._authority),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                ("user-agent", "xinf-gateway"),
                (DEDICATED, "1"),
            ]
        )
        # In one write, so that a shim sees at once what kind of connection it is.
        self._transport.write(
            h2.PREFACE + OUR_SETTINGS + h2.header(len(block), h2.HEADERS, h2.END_HEADERS, STREAM) + block
        )

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._is_over:
            self._lose(self._reason_of_loss(exc), h2.NO_ERROR)

    def _on_fault(self, fault: h2.H2Fault) -> None:
        self._lose(f"internal: the engine broke HTTP/2: {fault}", fault.code)

    def _on_stream_lost(self, lost: StreamLost) -> None:
        self._lose(str(lost), h2.NO_ERROR)

    def _lose(self, reason: str, code: int) -> None:
        """End it and say so. `code`: for the engine."""
        if not self._is_over:
            self._end(code)
            self._listener.on_lost(reason)

    def _end(self, code: int) -> None:
        self._stop()
        if self._timer is not None:
            self._timer.cancel()
        if not self._transport.is_closing():
            self._transport.write(h2.rst_stream(STREAM, h2.CANCEL) + h2.goaway(code))
            self._transport.close()
            # An engine that reads nothing must not keep the connection half open.
            self._loop.call_later(CLOSE_S, self._transport.abort)

    # ---- in ------------------------------------------------------------------------------------------------------

    def on_data(self, data: bytes, at: int, end: int) -> None:
        H2Stream.on_data(self, data, at, end)  # compiled, a method that is called directly has no super()
        # Behind the messages: what they ended counts for whether a next one is worthwhile.
        self._has_heard = True
        self._schedule()

    def on_data_end(self) -> None:
        raise StreamLost(grpcstatus.NO_STATUS)

    def _on_reset(self, code: int) -> None:
        raise StreamLost(grpcstatus.reason_of_reset(code))

    def _on_header_list(self, headers: dict[str, str]) -> None:
        if headers.get(":status", "").startswith("1"):
            return
        is_first, self._has_headers = not self._has_headers, True
        reason = grpcstatus.reason_of_headers(headers, is_first=is_first, is_last=self._is_last_block)
        if reason is not None:
            raise StreamLost(reason)
