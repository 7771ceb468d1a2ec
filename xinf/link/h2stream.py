"""One end of one gRPC stream on a connection of its own: what `client` and `server` have in common.

    listener.take() ─▶ _send ─▶ DATA, cut by windows and largest frame    one message at a time
    listener.on_message() ◀── messages put together from DATA             no task, no queue

Flow control: our windows are renewed as bytes arrive, because the Link hands them on at once; when the peer's windows
are full, or the socket is, the message stops half-way and no further one is taken. Header blocks occur twice per stream
and are left to `hpack`.

Invariants:
- memory: a message on the way out, one on the way in (at most `max_message_bytes`), MAX_CONTROL_BYTES of other frames,
  MAX_REPLIES small frames that a peer asked for and does not read
- MAX_IDLE_FRAMES without a byte of a message in either direction are a flood; so are a header block's continuations

Source: RFC 9113; grpc/doc/PROTOCOL-HTTP2.md for the headers and the prefix of messages.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import hpack

from xinf.link import h2frames as h2

MAX_MESSAGE_BYTES = 40 << 20
# Announced to the peer. Half of it is read before it is renewed, so the renewals are few and never late.
WINDOW_BYTES = 16 << 20
# Taken, and sent at most, so that what one write adds to a full socket is bounded.
MAX_FRAME_BYTES = 1 << 20
# Ten thousand a second, as load is told every second. A gRPC peer sends about two frames for each of DATA.
MAX_IDLE_FRAMES = 10_000
MAX_REPLIES = 1_000
CLOSE_S = 1.0
STREAM = 1
CONNECTION = 0
# A message up to here is joined with its frame header; above it costs less to hand the pieces over.
_JOINED_BYTES = 64 << 10
_PREFIX_BYTES = 5

OUR_SETTINGS = h2.settings(
    {
        h2.SETTING_ENABLE_PUSH: 0,
        h2.SETTING_INITIAL_WINDOW_SIZE: WINDOW_BYTES,
        h2.SETTING_MAX_FRAME_SIZE: MAX_FRAME_BYTES,
        h2.SETTING_MAX_HEADER_LIST_SIZE: h2.MAX_CONTROL_BYTES,
    }
) + h2.window_update(CONNECTION, WINDOW_BYTES - h2.INITIAL_WINDOW_BYTES)


class StreamListener(Protocol):
    """The owner of a stream. Called on the event loop; must neither block nor raise.

    One that raises while it is given messages loses the stream, as asyncio closes the connection then.
    """

    def take(self) -> bytes:
        """Give the next message, b"" when nothing waits. When more waits than it holds, call `wake` in here."""

    def on_message(self, data: bytes) -> None: ...

    def on_lost(self, reason: str) -> None:
        """The stream is over. `reason` reads like gRPC's: "unavailable: the connection was closed"."""


class StreamLost(Exception):
    """The stream cannot go on; the text is the reason for the listener, "status: words"."""


class H2Stream:
    """An end of one stream; an asyncio.Protocol, as which it is cast: a compiled class can have no Python base."""

    PEER = "the peer"  # in reasons

    def __init__(self, listener: StreamListener | None, max_message_bytes: int) -> None:
        self._listener = cast(StreamListener, listener)
        self._max_message_bytes = max_message_bytes
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._is_over = False
        self._is_deaf = False  # messages that come are passed over
        # Out.
        self._is_woken = False  # something waits at the listener
        self._turn: asyncio.Handle | None = None  # the next take
        self._unsent: memoryview | None = None  # of the message on its way
        self._stream_window = h2.INITIAL_WINDOW_BYTES
        self._connection_window = h2.INITIAL_WINDOW_BYTES
        self._initial_window = h2.INITIAL_WINDOW_BYTES  # the peer's, of a new stream
        self._max_frame_bytes = h2.MIN_MAX_FRAME_BYTES
        self._is_paused = False  # by the transport
        self._n_replies = 0  # written while the transport was paused
        # In.
        self._reader = h2.FrameReader(self)
        self._n_idle = 0  # frames since a byte of a message went in or out
        self._unrenewed = 0  # bytes that came since our windows were renewed
        self._begun = bytearray()  # a message that has not arrived completely, with its prefix
        self._wanted_bytes = 0  # of that message and its prefix, or of the prefix
        self._header_block: list[bytes] | None = None
        self._header_stream = STREAM  # that the block belongs to
        self._is_last_block = False
        self._has_headers = False
        self._last_refused = 0  # stream that the peer began besides ours; its DATA is passed over
        self._is_discarding = False
        self._decoder = hpack.Decoder(max_header_list_size=h2.MAX_CONTROL_BYTES)
        self._goaway = ""

    # ---- what the ends do differently ----------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Plan the next take, if one may be."""
        raise NotImplementedError

    def _on_header_list(self, headers: dict[str, str]) -> None:
        """A header block of `_header_stream` is complete. Raises: StreamLost, H2Fault."""
        raise NotImplementedError

    def _on_reset(self, code: int) -> None:
        raise NotImplementedError

    def _on_fault(self, fault: h2.H2Fault) -> None:
        """The peer broke HTTP/2: end it."""
        raise NotImplementedError

    def _on_stream_lost(self, lost: StreamLost) -> None:
        raise NotImplementedError

    def on_data_end(self) -> None:
        raise NotImplementedError

    # ---- out ---------------------------------------------------------------------------------------------------

    def _send(self, message: bytes) -> None:
        self._n_idle = 0
        n_bytes = len(message) + _PREFIX_BYTES
        prefix = b"\0" + len(message).to_bytes(4, "big")
        if n_bytes > min(self._stream_window, self._connection_window, self._max_frame_bytes):
            self._unsent = memoryview(prefix + message)
            self._send_more()
            return
        self._stream_window -= n_bytes
        self._connection_window -= n_bytes
        pieces = (h2.header(n_bytes, h2.DATA, 0, STREAM), prefix, message)
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
            self._n_idle = 0
            self._stream_window -= n_bytes
            self._connection_window -= n_bytes
            self._unsent = unsent[n_bytes:] if n_bytes < len(unsent) else None
            self._transport.writelines((h2.header(n_bytes, h2.DATA, 0, STREAM), unsent[:n_bytes]))

    def _go_on(self) -> None:
        """Something that held up the writing is gone."""
        self._send_more()
        self._schedule()

    def _reply(self, frames: bytes) -> None:
        """Send frames that a frame of the peer calls for. Raises: H2Fault when it asks and asks and does not read."""
        if self._is_paused:
            self._n_replies += 1
            if self._n_replies > MAX_REPLIES:
                raise h2.H2Fault(h2.ENHANCE_YOUR_CALM, f"{MAX_REPLIES} replies wait to be read")
        self._transport.write(frames)

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._n_replies = 0
        if not self._is_over:
            self._go_on()

    # ---- the connection ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            if self._unrenewed >= WINDOW_BYTES // 2 and not self._is_over:
                n_bytes, self._unrenewed = self._unrenewed, 0
                self._reply(b"".join(h2.window_update(stream_id, n_bytes) for stream_id in (CONNECTION, STREAM)))
        except h2.H2Fault as fault:
            self._on_fault(fault)
        except StreamLost as lost:
            self._on_stream_lost(lost)

    def eof_received(self) -> None:
        """The peer closed its side: the connection ends."""

    def _reason_of_loss(self, exc: Exception | None) -> str:
        """For a connection that is gone."""
        if exc is not None:
            text = f"the connection broke: {exc}"
        elif self._reader.is_inside or self._begun:
            text = "the connection was closed in the middle of a frame"
        else:
            text = "the connection was closed"
        return f"unavailable: {text}{self._goaway}"

    def _stop(self) -> None:
        """Nothing goes in or out any more."""
        self._is_over = self._is_deaf = True
        self._reader.stop()
        self._unsent = None
        self._begun = bytearray()
        if self._turn is not None:
            self._turn.cancel()

    # ---- messages in ---------------------------------------------------------------------------------------------

    def on_data_begin(self, stream_id: int, n_bytes: int) -> None:
        self._is_discarding = STREAM < stream_id <= self._last_refused
        is_ours = stream_id == STREAM and self._has_headers
        if self._header_block is not None or not (is_ours or self._is_discarding):
            raise h2.H2Fault(h2.PROTOCOL_ERROR, f"DATA on stream {stream_id} is out of place")
        if n_bytes > MAX_FRAME_BYTES:
            raise h2.H2Fault(h2.FRAME_SIZE_ERROR, f"a DATA frame has {n_bytes} bytes, at most {MAX_FRAME_BYTES}")
        self._unrenewed += n_bytes
        if self._unrenewed > WINDOW_BYTES:
            raise h2.H2Fault(h2.FLOW_CONTROL_ERROR, f"more than {WINDOW_BYTES} bytes came before they were allowed")
        if not n_bytes or self._is_discarding:
            self._count_idle()

    def on_data(self, data: bytes, at: int, end: int) -> None:
        if self._is_discarding or self._is_deaf:
            return
        self._n_idle = 0
        while self._begun and at < end:
            at = self._continue(data, at, end)
        while end - at >= _PREFIX_BYTES and not self._is_deaf:
            after = at + self._message_bytes(data, at)
            if after > end:
                break
            self._listener.on_message(data[at + _PREFIX_BYTES : after])
            at = after
        if at < end and not self._is_deaf:
            self._wanted_bytes = self._message_bytes(data, at) if end - at >= _PREFIX_BYTES else _PREFIX_BYTES
            self._begun += memoryview(data)[at:end]

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
            raise StreamLost(f"unimplemented: {self.PEER} compressed a message")
        if n_bytes > self._max_message_bytes:
            text = f"a message of {n_bytes} bytes came, at most {self._max_message_bytes} are taken"
            raise StreamLost(f"resource_exhausted: {text}")
        return n_bytes + _PREFIX_BYTES

    # ---- other frames in -----------------------------------------------------------------------------------------

    def _count_idle(self) -> None:
        self._n_idle += 1
        if self._n_idle > MAX_IDLE_FRAMES:
            raise h2.H2Fault(h2.ENHANCE_YOUR_CALM, f"{MAX_IDLE_FRAMES} frames came without a byte of a message")

    def on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._header_block is not None and kind != h2.CONTINUATION:
            raise h2.H2Fault(h2.PROTOCOL_ERROR, f"a frame of type {kind} stands inside a header block")
        if not self._may_stand(kind, stream_id):
            raise h2.H2Fault(h2.PROTOCOL_ERROR, f"a frame of type {kind} is on stream {stream_id}")
        self._count_idle()
        if kind == h2.WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == h2.PING:
            h2.exactly(8, payload, "PING")
            if not flags & h2.ACK:
                self._reply(h2.ping_ack(payload))
        elif kind == h2.SETTINGS:
            self._on_settings(flags, payload)
        elif kind == h2.HEADERS:
            self._on_headers(flags, stream_id, payload)
        elif kind == h2.CONTINUATION:
            self._on_continuation(flags, stream_id, payload)
        elif kind == h2.RST_STREAM:
            code = int.from_bytes(h2.exactly(4, payload, "RST_STREAM"), "big")
            if stream_id == STREAM:
                self._on_reset(code)
        elif kind == h2.GOAWAY:
            self._on_goaway(payload)
        elif kind == h2.DATA:
            self._on_padded_data(flags, stream_id, payload)
        elif kind == h2.PUSH_PROMISE:
            raise h2.H2Fault(h2.PROTOCOL_ERROR, "a PUSH_PROMISE came, which we do not allow")
        # Frames of types that we do not know mean nothing to us.

    def _may_stand(self, kind: int, stream_id: int) -> bool:
        """Whether a frame of that type has a place on that stream; DATA has a check of its own."""
        return stream_id in _STREAMS.get(kind, (stream_id,))

    def _on_padded_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        self.on_data_begin(stream_id, len(payload))
        data = h2.unpadded(flags, payload)
        self.on_data(data, 0, len(data))
        if flags & h2.END_STREAM:
            self.on_data_end()

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        payload = h2.unpadded(flags, payload)
        self._header_block = []
        self._header_stream = stream_id
        self._is_last_block = bool(flags & h2.END_STREAM)
        self._on_continuation(flags, stream_id, payload[5:] if flags & h2.HAS_PRIORITY else payload)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._header_block
        if block is None or stream_id != self._header_stream:
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
        self._on_header_list(headers)

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & h2.ACK:
            return
        for name, value in h2.read_settings(payload):
            if name == h2.SETTING_INITIAL_WINDOW_SIZE:
                if value > h2.MAX_WINDOW_BYTES:
                    raise h2.H2Fault(h2.FLOW_CONTROL_ERROR, f"the initial window is {value}")
                self._stream_window += value - self._initial_window  # may fall below 0
                self._initial_window = value
                if self._stream_window > h2.MAX_WINDOW_BYTES:
                    raise h2.H2Fault(h2.FLOW_CONTROL_ERROR, f"the initial window is {value}, with what was added")
            elif name == h2.SETTING_MAX_FRAME_SIZE:
                if not h2.MIN_MAX_FRAME_BYTES <= value <= h2.MAX_MAX_FRAME_BYTES:
                    raise h2.H2Fault(h2.PROTOCOL_ERROR, f"the largest frame is {value}")
                self._max_frame_bytes = min(value, MAX_FRAME_BYTES)
            elif name == h2.SETTING_HEADER_TABLE_SIZE:
                self._on_header_table_bytes(value)
        self._reply(h2.header(0, h2.SETTINGS, h2.ACK, CONNECTION))
        self._go_on()

    def _on_header_table_bytes(self, n_bytes: int) -> None:
        """The peer says how large a table it keeps for our header blocks."""

    def _on_goaway(self, payload: bytes) -> None:
        if len(payload) < 8:
            raise h2.H2Fault(h2.FRAME_SIZE_ERROR, f"a GOAWAY has {len(payload)} bytes")
        last_stream = int.from_bytes(payload[:4], "big") & 0x7FFF_FFFF
        code = int.from_bytes(payload[4:8], "big")
        said = payload[8:208].decode(errors="replace")
        self._goaway = f" after GOAWAY ({h2.error_name(code)}{': ' if said else ''}{said})"
        if code != h2.NO_ERROR or last_stream < self._least_last_stream:
            raise StreamLost(f"unavailable: the connection ends{self._goaway}")
        # Else the stream may go on to its end.

    _least_last_stream = 0  # in a GOAWAY with which our stream may go on

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        n_bytes = int.from_bytes(h2.exactly(4, payload, "WINDOW_UPDATE"), "big") & 0x7FFF_FFFF
        if stream_id == CONNECTION:
            self._connection_window += n_bytes
        elif stream_id == STREAM:
            self._stream_window += n_bytes
        if n_bytes == 0 or max(self._connection_window, self._stream_window) > h2.MAX_WINDOW_BYTES:
            raise h2.H2Fault(h2.FLOW_CONTROL_ERROR, f"a window was enlarged by {n_bytes}")
        self._go_on()


_STREAMS = {
    h2.HEADERS: (STREAM,),
    h2.RST_STREAM: (STREAM,),
    h2.SETTINGS: (CONNECTION,),
    h2.PING: (CONNECTION,),
    h2.GOAWAY: (CONNECTION,),
    h2.WINDOW_UPDATE: (CONNECTION, STREAM),
    h2.CONTINUATION: (STREAM,),
}
