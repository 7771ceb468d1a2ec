"""The first bytes of a connection: does it carry one stream of our path alone, or anything that gRPC's server takes?

    preface | SETTINGS | WINDOW_UPDATE, PING, SETTINGS (ACK), ... | HEADERS    then it is known

Everything that is not plainly ours is left to gRPC: another path, compression, a deadline, a header block in pieces,
bytes that are no HTTP/2. A client may wait for the server's SETTINGS before it sends HEADERS (gRPC's does), so whoever
looks must send SETTINGS once the client's have come; a server behind then sends its own, and the client acknowledges
both. `SettingsAck` takes the first acknowledgement out: gRPC counts them.

Bounded by MAX_OPENING_BYTES and the read that went beyond.
"""

from __future__ import annotations

from enum import Enum

import hpack

from xinf.link import h2frames as h2
from xinf.link.client import DEDICATED
from xinf.link.h2stream import CONNECTION, STREAM

MAX_OPENING_BYTES = 64 << 10
# May come before HEADERS; any other type that we know is out of place there.
_PRIORITY = 2
_HARMLESS = {h2.SETTINGS, h2.WINDOW_UPDATE, h2.PING, _PRIORITY}


class Carries(Enum):
    """What a connection turned out to carry."""

    UNKNOWN = "unknown"  # more must come
    ONE_STREAM = "one stream"
    ANYTHING = "anything"


class Opening:
    """What has come of a connection so far."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._at = 0  # up to here it is read
        self.received = bytearray()
        self.has_settings = False  # the client speaks HTTP/2 and may be waiting for ours

    def feed(self, data: bytes) -> Carries:
        """Look at what came. Says what it is once; then everything is in `received`."""
        self.received += data
        received = self.received
        if not self._at:
            if not h2.PREFACE.startswith(received[: len(h2.PREFACE)]):
                return Carries.ANYTHING
            if len(received) < len(h2.PREFACE):
                return Carries.UNKNOWN
            self._at = len(h2.PREFACE)
        while len(received) - self._at >= h2.HEADER_BYTES:
            begin = self._at + h2.HEADER_BYTES
            length, kind, flags, stream_id = h2.read_header(received, self._at)
            end = begin + length
            is_in_place = self.has_settings or kind == h2.SETTINGS
            if end > MAX_OPENING_BYTES or not is_in_place or (kind != h2.HEADERS and kind not in _HARMLESS):
                return Carries.ANYTHING
            if end > len(received):
                return Carries.UNKNOWN
            if kind == h2.HEADERS:
                is_ours = stream_id == STREAM and self._is_ours(flags, bytes(received[begin:end]))
                return Carries.ONE_STREAM if is_ours else Carries.ANYTHING
            if kind == h2.SETTINGS and stream_id == CONNECTION:
                self.has_settings = True
            self._at = end
        return Carries.UNKNOWN

    def _is_ours(self, flags: int, payload: bytes) -> bool:
        """Whether the request is one that a ServerStream serves."""
        if not flags & h2.END_HEADERS or flags & h2.END_STREAM:
            return False
        try:
            block = h2.unpadded(flags, payload)
            decoder = hpack.Decoder(max_header_list_size=h2.MAX_CONTROL_BYTES)
            found = decoder.decode(block[5:] if flags & h2.HAS_PRIORITY else block)
            headers = {str(name): str(value) for name, value in found}
        except (h2.H2Fault, hpack.HPACKError, UnicodeDecodeError):
            return False
        return (
            headers.get(DEDICATED) == "1"
            and headers.get(":method") == "POST"
            and headers.get(":path") == self._path
            and headers.get("content-type", "").startswith("application/grpc")
            and headers.get("grpc-encoding", "identity") == "identity"
            and "grpc-timeout" not in headers
        )


class SettingsAck:
    """Takes the first acknowledgement of SETTINGS out of what a client sends."""

    def __init__(self) -> None:
        self._n_left = len(h2.PREFACE)  # bytes before the next frame
        self._header = b""  # of a frame, not yet complete
        self.is_done = False

    def without(self, data: bytes) -> bytes:
        """What to pass on of the next that came."""
        if self.is_done:
            return data
        passed, data, at = bytearray(), self._header + data, 0
        self._header = b""
        while at < len(data):
            if self._n_left:
                end = min(len(data), at + self._n_left)
                self._n_left -= end - at
                passed += data[at:end]
                at = end
                continue
            if len(data) - at < h2.HEADER_BYTES:
                self._header = data[at:]
                break
            length, kind, flags, _ = h2.read_header(data, at)
            if kind == h2.SETTINGS and flags & h2.ACK:
                self.is_done = True
                passed += data[at + h2.HEADER_BYTES :]
                break
            passed += data[at : at + h2.HEADER_BYTES]
            self._n_left = length
            at += h2.HEADER_BYTES
        return bytes(passed)
