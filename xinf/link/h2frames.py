"""HTTP/2 frames: their bytes for writing, and a reader that cuts what arrives into frames and DATA.

    length 24 bits | type 8 | flags 8 | 0 and stream id 31 | payload

Source: RFC 9113, sections 4 to 7.
"""

from __future__ import annotations

import struct
from typing import Protocol

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES = 9
MIN_MAX_FRAME_BYTES = 16_384
MAX_MAX_FRAME_BYTES = (1 << 24) - 1
INITIAL_WINDOW_BYTES = 65_535
INITIAL_TABLE_BYTES = 4096  # for header blocks
MAX_WINDOW_BYTES = (1 << 31) - 1
# Of a frame other than DATA, and of a header block with its continuations.
MAX_CONTROL_BYTES = 64 << 10

DATA = 0
HEADERS = 1
RST_STREAM = 3
SETTINGS = 4
PUSH_PROMISE = 5
PING = 6
GOAWAY = 7
WINDOW_UPDATE = 8
CONTINUATION = 9

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

SETTING_HEADER_TABLE_SIZE = 1
SETTING_ENABLE_PUSH = 2
SETTING_INITIAL_WINDOW_SIZE = 4
SETTING_MAX_FRAME_SIZE = 5
SETTING_MAX_HEADER_LIST_SIZE = 6

NO_ERROR = 0
PROTOCOL_ERROR = 1
FLOW_CONTROL_ERROR = 3
FRAME_SIZE_ERROR = 6
REFUSED_STREAM = 7
CANCEL = 8
COMPRESSION_ERROR = 9
ENHANCE_YOUR_CALM = 11
INADEQUATE_SECURITY = 12
# Index: error code.
_ERROR_NAMES = (
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
)

# Of a frame header: the upper 16 bits of the length, the lower 8, type, flags, stream id with its reserved bit.
_HEADER = struct.Struct(">HBBBL")
_SETTING = struct.Struct(">HL")


class H2Fault(Exception):
    """The peer broke HTTP/2. `code` is for the peer, the text for people."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def header(n_bytes: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The nine bytes in front of a payload."""
    return _HEADER.pack(n_bytes >> 8, n_bytes & 0xFF, kind, flags, stream_id)


def read_header(data: bytes | bytearray, at: int) -> tuple[int, int, int, int]:
    """Length of the payload, type, flags and stream of the nine bytes at `at`."""
    high, low, kind, flags, stream_id = _HEADER.unpack_from(data, at)
    return high << 8 | low, kind, flags, stream_id & 0x7FFF_FFFF


def settings(values: dict[int, int]) -> bytes:
    payload = b"".join(_SETTING.pack(name, value) for name, value in values.items())
    return header(len(payload), SETTINGS, 0, 0) + payload


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Names and values in order. Raises: H2Fault."""
    if len(payload) % _SETTING.size:
        raise H2Fault(FRAME_SIZE_ERROR, f"a SETTINGS frame has {len(payload)} bytes")
    return list(_SETTING.iter_unpack(payload))


def window_update(stream_id: int, n_bytes: int) -> bytes:
    return header(4, WINDOW_UPDATE, 0, stream_id) + n_bytes.to_bytes(4, "big")


def ping_ack(data: bytes) -> bytes:
    return header(8, PING, ACK, 0) + data


def rst_stream(stream_id: int, code: int) -> bytes:
    return header(4, RST_STREAM, 0, stream_id) + code.to_bytes(4, "big")


def goaway(code: int, last_stream: int = 0) -> bytes:
    """`last_stream`: that was taken of the peer; a client takes none of its server."""
    return header(8, GOAWAY, 0, 0) + last_stream.to_bytes(4, "big") + code.to_bytes(4, "big")


def error_name(code: int) -> str:
    return _ERROR_NAMES[code] if code < len(_ERROR_NAMES) else f"error {code}"


def exactly(n_bytes: int, payload: bytes, what: str) -> bytes:
    """Raises: H2Fault when the payload has another length."""
    if len(payload) != n_bytes:
        raise H2Fault(FRAME_SIZE_ERROR, f"a {what} has {len(payload)} bytes, not {n_bytes}")
    return payload


def unpadded(flags: int, payload: bytes) -> bytes:
    """The payload of a DATA or HEADERS frame without its padding. Raises: H2Fault."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise H2Fault(PROTOCOL_ERROR, "the padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


class FrameHandler(Protocol):
    """Where a FrameReader puts what it read. Each may raise H2Fault."""

    def on_data_begin(self, stream_id: int, n_bytes: int) -> None:
        """A DATA frame of that many bytes begins."""

    def on_data(self, data: bytes, at: int, end: int) -> None:
        """`data[at:end]` is the next of the DATA frame; as it arrives, never waiting for the whole frame."""

    def on_data_end(self) -> None:
        """The last DATA frame of the stream is complete."""

    def on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Any other frame, whole. Padded DATA as well, which gRPC does not write."""


class FrameReader:
    """Cuts what arrives into frames. Keeps at most a control frame that has not arrived completely."""

    def __init__(self, handler: FrameHandler) -> None:
        self._handler = handler
        self._rest = b""  # the beginning of a frame that is no DATA
        self._n_left = 0  # bytes of a DATA frame that have not come yet
        self._is_last = False  # that DATA frame ends the stream
        self._is_stopped = False

    @property
    def is_inside(self) -> bool:
        """Whether a frame has begun that has not ended."""
        return bool(self._rest) or self._n_left > 0

    def stop(self) -> None:
        """Read nothing further, from within a handler as well."""
        self._is_stopped = True
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Read what has arrived. Raises: H2Fault; then nothing more can be read."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at, n_bytes = 0, len(data)
        while not self._is_stopped:
            if self._n_left:
                if at == n_bytes:
                    return
                end = min(n_bytes, at + self._n_left)
                self._n_left -= end - at
                self._handler.on_data(data, at, end)
                at = end
                if self._is_last and not self._n_left and not self._is_stopped:
                    self._handler.on_data_end()
                continue
            if n_bytes - at < HEADER_BYTES:
                break
            high, low, kind, flags, stream_id = _HEADER.unpack_from(data, at)
            length = high << 8 | low
            stream_id &= 0x7FFF_FFFF
            if kind == DATA and not flags & PADDED:
                at += HEADER_BYTES
                self._begin_data(stream_id, length, flags)
                continue
            if length > MAX_CONTROL_BYTES:
                raise H2Fault(FRAME_SIZE_ERROR, f"a frame of type {kind} has {length} bytes")
            end = at + HEADER_BYTES + length
            if end > n_bytes:
                break
            self._handler.on_frame(kind, flags, stream_id, data[at + HEADER_BYTES : end])
            at = end
        if not self._is_stopped:
            self._rest = data[at:]

    def _begin_data(self, stream_id: int, length: int, flags: int) -> None:
        self._handler.on_data_begin(stream_id, length)
        self._n_left = length
        self._is_last = bool(flags & END_STREAM)
        if self._is_last and not length and not self._is_stopped:
            self._handler.on_data_end()
