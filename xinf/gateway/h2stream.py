"""One bidirectional gRPC stream on a connection of its own: HTTP/2 on an asyncio transport, without gRPC's threads.

    wake() ─▶ listener.take() ─▶ DATA ──▶ engine          one message at a time, paced: what waits meanwhile
                                                          goes into the next one
    listener.on_message() ◀── messages, from the reader   no task, no queue
    listener.on_lost() ◀── trailers, RST_STREAM, GOAWAY, end of the connection, bytes that are no HTTP/2

Pacing: after a message the next one waits until the engine has sent something and there is enough to send, as its owner
sees it, or for PACE_S. A busy engine therefore gets fewer and larger messages: each costs its gRPC server some 100 us,
whatever is in it. An idle Link never waits.

Flow control: our windows are renewed as bytes arrive, because the Link hands them on at once; when the engine's windows
are full, or the socket is, the message stops half-way and no further one is taken. Header blocks occur twice per stream
and are left to `hpack`.

Invariants:
- on_lost comes once, unless `close` came first; nothing comes after either
- memory: a message on the way out, one on the way in (at most `max_message_bytes`), MAX_CONTROL_BYTES of other frames

Source: RFC 9113; grpc/doc/PROTOCOL-HTTP2.md for the headers and the prefix of messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

import hpack

from xinf.gateway import grpcstatus
from xinf.gateway import h2frames as h2

MAX_MESSAGE_BYTES = 40 << 20
# Announced to the engine. Half of it is read before it is renewed, so the renewals are few and never late.
WINDOW_BYTES = 16 << 20
MAX_FRAME_BYTES = 1 << 20
# libuv's timers count whole milliseconds: what is due in 1 ms comes after 0 to 1 ms.
PACE_S = 0.001
# A message up to here is joined with its frame header; above it costs less to hand the pieces over.
_JOINED_BYTES = 64 << 10
_PREFIX_BYTES = 5
_CLOSE_S = 1.0
_STREAM = 1
_CONNECTION = 0


class StreamListener(Protocol):
    """The owner of a stream. Called on the event loop; must neither block nor raise.

    One that raises while it is given messages loses the stream, as asyncio closes the connection then.
    """

    def take(self) -> bytes:
        """Give the next message, b"" when nothing waits. When more waits than it holds, call `wake` in here."""

    def is_worthwhile(self) -> bool:
        """Whether what waits is worth a message of its own while the engine is busy with those before it."""

    def on_message(self, data: bytes) -> None: ...

    def on_lost(self, reason: str) -> None:
        """The stream is over. `reason` reads like gRPC's: "unavailable: the connection was closed"."""


class StreamLost(Exception):
    """The stream cannot go on; the text is the reason for the listener."""


async def open_stream(
    target: str, path: str, listener: StreamListener, *, max_message_bytes: int = MAX_MESSAGE_BYTES
) -> H2Stream:
    """Connect to `unix:PATH` or `HOST:PORT` and begin a stream of `path` ("/package.Service/Method").

    Whether the engine takes the stream shows later, by a message or `on_lost`.
    Raises: OSError when there is no connection, ValueError for another kind of target.
    """
    loop = asyncio.get_running_loop()

    def make(authority: str) -> Callable[[], H2Stream]:
        return lambda: H2Stream(path, authority, listener, max_message_bytes)

    if target.startswith("unix:"):
        where = target.removeprefix("unix:")
        return (await loop.create_unix_connection(make("localhost"), where))[1]
    host, colon, port = target.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"the target is {target!r}, must be unix:PATH or HOST:PORT")
    return (await loop.create_connection(make(target), host.strip("[]"), int(port)))[1]


class H2Stream(asyncio.Protocol):
    """A client's end of one stream; made by `open_stream`."""

    def __init__(self, path: str, authority: str, listener: StreamListener, max_message_bytes: int) -> None:
        self._path = path
        self._authority = authority
        self._listener = listener
        self._max_message_bytes = max_message_bytes
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._is_over = False
        # Out.
        self._is_woken = False  # something waits at the listener
        self._turn: asyncio.Handle | None = None  # the next take
        self._timer: asyncio.TimerHandle | None = None  # looks whether a take is due
        self._has_heard = True  # from the engine, since the last message; see pacing
        self._gate_opens_s = 0.0  # at the latest
        self._unsent: memoryview | None = None  # of the message on its way
        self._stream_window = h2.INITIAL_WINDOW_BYTES
        self._connection_window = h2.INITIAL_WINDOW_BYTES
        self._initial_window = h2.INITIAL_WINDOW_BYTES  # the engine's, of a new stream
        self._max_frame_bytes = h2.MIN_MAX_FRAME_BYTES
        self._is_paused = False  # by the transport
        # In.
        self._reader = h2.FrameReader(self)
        self._unrenewed = 0  # bytes that came since our windows were renewed
        self._begun = bytearray()  # a message that has not arrived completely, with its prefix
        self._wanted_bytes = 0  # of that message and its prefix, or of the prefix
        self._header_block: list[bytes] | None = None
        self._is_last_block = False
        self._has_headers = False
        self._decoder = hpack.Decoder(max_header_list_size=h2.MAX_CONTROL_BYTES)
        self._goaway = ""

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

    def _send(self, message: bytes) -> None:
        n_bytes = len(message) + _PREFIX_BYTES
        prefix = b"\0" + len(message).to_bytes(4, "big")
        if n_bytes > min(self._stream_window, self._connection_window, self._max_frame_bytes):
            self._unsent = memoryview(prefix + message)
            self._send_more()
            return
        self._stream_window -= n_bytes
        self._connection_window -= n_bytes
        pieces = (h2.header(n_bytes, h2.DATA, 0, _STREAM), prefix, message)
        if n_bytes <= _JOINED_BYTES:
            self._transport.write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)

    def _send_more(self) -> None:
        """Send what the windows and the transport let through of the message on its way."""
        while self._unsent is not None and not self._is_paused:
            unsent = self._unsent
            n_bytes = min(len(unsent), self._stream_window, self._connection_window, self._max_frame_bytes)
            if n_bytes <= 0:
                return
            self._stream_window -= n_bytes
            self._connection_window -= n_bytes
            self._unsent = unsent[n_bytes:] if n_bytes < len(unsent) else None
            self._transport.writelines((h2.header(n_bytes, h2.DATA, 0, _STREAM), unsent[:n_bytes]))

    def _go_on(self) -> None:
        """Something that held up the writing is gone."""
        self._send_more()
        self._schedule()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if not self._is_over:
            self._go_on()

    # ---- the connection ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        block = hpack.Encoder().encode(
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", self._path),
                (":authority", self._authority),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                ("user-agent", "xinf-gateway"),
            ]
        )
        ours = {
            h2.SETTING_ENABLE_PUSH: 0,
            h2.SETTING_INITIAL_WINDOW_SIZE: WINDOW_BYTES,
            h2.SETTING_MAX_FRAME_SIZE: MAX_FRAME_BYTES,
            h2.SETTING_MAX_HEADER_LIST_SIZE: h2.MAX_CONTROL_BYTES,
        }
        self._transport.write(
            h2.PREFACE
            + h2.settings(ours)
            + h2.window_update(_CONNECTION, WINDOW_BYTES - h2.INITIAL_WINDOW_BYTES)
            + h2.header(len(block), h2.HEADERS, h2.END_HEADERS, _STREAM)
            + block
        )

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except h2.H2Fault as fault:
            self._lose(f"internal: the engine broke HTTP/2: {fault}", fault.code)
        except StreamLost as lost:
            self._lose(str(lost), h2.NO_ERROR)
        if self._unrenewed >= WINDOW_BYTES // 2 and not self._is_over:
            renewals = [h2.window_update(stream_id, self._unrenewed) for stream_id in (_CONNECTION, _STREAM)]
            self._transport.write(b"".join(renewals))
            self._unrenewed = 0

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_over:
            return
        if exc is not None:
            text = f"the connection broke: {exc}"
        elif self._reader.is_inside or self._begun:
            text = "the connection was closed in the middle of a frame"
        else:
            text = "the connection was closed"
        self._lose(f"unavailable: {text}{self._goaway}", h2.NO_ERROR)

    def _lose(self, reason: str, code: int) -> None:
        """End it and say so. `code`: for the engine."""
        if not self._is_over:
            self._end(code)
            self._listener.on_lost(reason)

    def _end(self, code: int) -> None:
        self._is_over = True
        self._reader.stop()
        self._unsent = None
        self._begun = bytearray()
        for handle in (self._turn, self._timer):
            if handle is not None:
                handle.cancel()
        if not self._transport.is_closing():
            self._transport.write(h2.rst_stream(_STREAM, h2.CANCEL) + h2.goaway(code))
            self._transport.close()
            # An engine that reads nothing must not keep the connection half open.
            self._loop.call_later(_CLOSE_S, self._transport.abort)

    # ---- messages in ---------------------------------------------------------------------------------------------

    def on_data_begin(self, stream_id: int, n_bytes: int) -> None:
        if stream_id != _STREAM or not self._has_headers or self._header_block is not None:
            raise h2.H2Fault(h2.PROTOCOL_ERROR, f"DATA on stream {stream_id} is out of place")
        if n_bytes > MAX_FRAME_BYTES:
            raise h2.H2Fault(h2.FRAME_SIZE_ERROR, f"a DATA frame has {n_bytes} bytes, at most {MAX_FRAME_BYTES}")
        self._unrenewed += n_bytes
        if self._unrenewed > WINDOW_BYTES:
            raise h2.H2Fault(h2.FLOW_CONTROL_ERROR, f"more than {WINDOW_BYTES} bytes came before they were allowed")

    def on_data(self, data: bytes, at: int, end: int) -> None:
        while self._begun and at < end:
            at = self._continue(data, at, end)
        while end - at >= _PREFIX_BYTES and not self._is_over:
            after = at + self._message_bytes(data, at)
            if after > end:
                break
            self._listener.on_message(data[at + _PREFIX_BYTES : after])
            at = after
        if at < end and not self._is_over:
            self._wanted_bytes = self._message_bytes(data, at) if end - at >= _PREFIX_BYTES else _PREFIX_BYTES
            self._begun += memoryview(data)[at:end]
        # Behind the messages: what they ended counts for whether a next one is worthwhile.
        self._has_heard = True
        self._schedule()

    def _continue(self, data: bytes, at: int, end: int) -> int:
        """Add to the message that has begun. Returns where what does not belong to it begins."""
        after = min(end, at + self._wanted_bytes - len(self._begun))
        self._begun += memoryview(data)[at:after]
        if len(self._begun) == _PREFIX_BYTES:
            self._wanted_bytes = self._message_bytes(self._begun, 0)
        if len(self._begun) == self._wanted_bytes:
            begun, self._begun = self._begun, bytearray()
            self._listener.on_message(bytes(memoryview(begun)[_PREFIX_BYTES:]))
        return after

    def _message_bytes(self, data: bytes | bytearray, at: int) -> int:
        """The length of the message whose prefix stands at `at`, prefix included."""
        n_bytes = int.from_bytes(data[at + 1 : at + _PREFIX_BYTES], "big")
        if data[at]:
            raise StreamLost("unimplemented: the engine compressed a message")
        if n_bytes > self._max_message_bytes:
            text = f"a message of {n_bytes} bytes came, at most {self._max_message_bytes} are taken"
            raise StreamLost(f"resource_exhausted: {text}")
        return n_bytes + _PREFIX_BYTES

    def on_data_end(self) -> None:
        raise StreamLost(grpcstatus.NO_STATUS)

    # ---- other frames in -----------------------------------------------------------------------------------------

    def on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._header_block is not None and kind != h2.CONTINUATION:
            raise h2.H2Fault(h2.PROTOCOL_ERROR, f"a frame of type {kind} stands inside a header block")
        if stream_id not in _STREAMS.get(kind, (stream_id,)):
            raise h2.H2Fault(h2.PROTOCOL_ERROR, f"a frame of type {kind} is on stream {stream_id}")
        if kind == h2.WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == h2.PING:
            h2.exactly(8, payload, "PING")
            if not flags & h2.ACK:
                self._transport.write(h2.ping_ack(payload))
        elif kind == h2.SETTINGS:
            self._on_settings(flags, payload)
        elif kind == h2.HEADERS:
            self._on_headers(flags, payload)
        elif kind == h2.CONTINUATION:
            self._on_continuation(flags, payload)
        elif kind == h2.RST_STREAM:
            raise StreamLost(grpcstatus.reason_of_reset(int.from_bytes(h2.exactly(4, payload, "RST_STREAM"), "big")))
        elif kind == h2.GOAWAY:
            self._on_goaway(payload)
        elif kind == h2.DATA:
            self._on_padded_data(flags, stream_id, payload)
        elif kind == h2.PUSH_PROMISE:
            raise h2.H2Fault(h2.PROTOCOL_ERROR, "a PUSH_PROMISE came, which we do not allow")
        # Frames of types that we do not know mean nothing to us.

    def _on_padded_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        self.on_data_begin(stream_id, len(payload))
        data = h2.unpadded(flags, payload)
        self.on_data(data, 0, len(data))
        if flags & h2.END_STREAM:
            self.on_data_end()

    def _on_headers(self, flags: int, payload: bytes) -> None:
        payload = h2.unpadded(flags, payload)
        self._header_block = []
        self._is_last_block = bool(flags & h2.END_STREAM)
        self._on_continuation(flags, payload[5:] if flags & h2.HAS_PRIORITY else payload)

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        block = self._header_block
        if block is None:
            raise h2.H2Fault(h2.PROTOCOL_ERROR, "a CONTINUATION continues nothing")
        block.append(payload)
        # Each counts with a cost of its own, so that a flood of empty ones ends as well.
        if sum(map(len, block)) + 64 * len(block) > h2.MAX_CONTROL_BYTES:
            raise h2.H2Fault(h2.PROTOCOL_ERROR, f"a header block is longer than {h2.MAX_CONTROL_BYTES} bytes")
        if not flags & h2.END_HEADERS:
            return
        self._header_block = None
        try:
            headers = {str(name): str(value) for name, value in self._decoder.decode(b"".join(block))}
        except (hpack.HPACKError, UnicodeDecodeError) as error:
            raise h2.H2Fault(h2.COMPRESSION_ERROR, f"a header block cannot be read: {error}") from error
        if headers.get(":status", "").startswith("1"):
            return
        is_first, self._has_headers = not self._has_headers, True
        reason = grpcstatus.reason_of_headers(headers, is_first=is_first, is_last=self._is_last_block)
        if reason is not None:
            raise StreamLost(reason)

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & h2.ACK:
            return
        for name, value in h2.read_settings(payload):
            if name == h2.SETTING_INITIAL_WINDOW_SIZE:
                if value > h2.MAX_WINDOW_BYTES:
                    raise h2.H2Fault(h2.FLOW_CONTROL_ERROR, f"the initial window is {value}")
                self._stream_window += value - self._initial_window  # may fall below 0
                self._initial_window = value
            elif name == h2.SETTING_MAX_FRAME_SIZE:
                if not h2.MIN_MAX_FRAME_BYTES <= value <= h2.MAX_MAX_FRAME_BYTES:
                    raise h2.H2Fault(h2.PROTOCOL_ERROR, f"the largest frame is {value}")
                self._max_frame_bytes = value
        self._transport.write(h2.header(0, h2.SETTINGS, h2.ACK, _CONNECTION))
        self._go_on()

    def _on_goaway(self, payload: bytes) -> None:
        if len(payload) < 8:
            raise h2.H2Fault(h2.FRAME_SIZE_ERROR, f"a GOAWAY has {len(payload)} bytes")
        last_stream = int.from_bytes(payload[:4], "big") & 0x7FFF_FFFF
        code = int.from_bytes(payload[4:8], "big")
        said = payload[8:208].decode(errors="replace")
        self._goaway = f" after GOAWAY ({h2.error_name(code)}{': ' if said else ''}{said})"
        if code != h2.NO_ERROR or last_stream < _STREAM:
            raise StreamLost(f"unavailable: the connection ends{self._goaway}")
        # Else the stream may go on to its end.

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        n_bytes = int.from_bytes(h2.exactly(4, payload, "WINDOW_UPDATE"), "big") & 0x7FFF_FFFF
        if stream_id == _CONNECTION:
            self._connection_window += n_bytes
        else:
            self._stream_window += n_bytes
        if n_bytes == 0 or max(self._connection_window, self._stream_window) > h2.MAX_WINDOW_BYTES:
            raise h2.H2Fault(h2.FLOW_CONTROL_ERROR, f"a window was enlarged by {n_bytes}")
        self._go_on()


# Where frames may stand; DATA has a check of its own.
_STREAMS = {
    h2.HEADERS: (_STREAM,),
    h2.RST_STREAM: (_STREAM,),
    h2.SETTINGS: (_CONNECTION,),
    h2.PING: (_CONNECTION,),
    h2.GOAWAY: (_CONNECTION,),
    h2.WINDOW_UPDATE: (_CONNECTION, _STREAM),
    h2.CONTINUATION: (_STREAM,),
}
