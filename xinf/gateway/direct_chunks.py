"""A chunked request body, decoded. Our own because httptools does not say where in its input a message ended.

Strict on purpose: what another server in front of us could read in another way is an error, never a guess.

    size [;extension] CRLF   data CRLF   ...   0 CRLF   trailers CRLF
"""

from __future__ import annotations

import re
from enum import Enum

from xinf.gateway.direct_head import BadHead

# Of one size with its extensions; of all trailers together.
MAX_LINE_BYTES = 1024
MAX_TRAILER_BYTES = 16 << 10
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n")


class ChunkedTooLarge(Exception):
    """The body passes its limit, `n_bytes` at least."""

    def __init__(self, n_bytes: int) -> None:
        super().__init__(n_bytes)
        self.n_bytes = n_bytes


class _Part(Enum):
    SIZE = 1
    DATA = 2
    DATA_END = 3
    TRAILER = 4
    COMPLETE = 5


class ChunkedBody:
    """Decodes one body of at most `limit_bytes`."""

    __slots__ = ("_body", "_left", "_line", "_n_trailer_bytes", "_part", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._body = bytearray()
        self._part = _Part.SIZE
        self._line = b""  # the beginning of a line whose end has not come
        self._left = 0  # of the chunk
        self._n_trailer_bytes = 0

    @property
    def is_complete(self) -> bool:
        return self._part is _Part.COMPLETE

    def take(self) -> bytes:
        """Give the body, once it is complete."""
        return bytes(self._body)

    def feed(self, data: bytes, at: int = 0) -> int:
        """Take what belongs to the body, from `at` on, and say where it ended: at the end, unless it is complete.

        Raises: ChunkedTooLarge as soon as a size says so; BadHead.
        """
        n_bytes = len(data)
        while at < n_bytes and self._part is not _Part.COMPLETE:
            if self._part is _Part.DATA:
                taken = min(self._left, n_bytes - at)
                self._body += memoryview(data)[at : at + taken]
                self._left -= taken
                at += taken
                if self._left == 0:
                    self._part = _Part.DATA_END
            elif self._part is _Part.DATA_END:
                at = self._feed_data_end(data, at)
            else:
                at = self._feed_line(data, at)
        return at

    def _feed_data_end(self, data: bytes, at: int) -> int:
        end = at + 2 - len(self._line)
        line = self._line + data[at:end]
        if not b"\r\n".startswith(line):
            raise BadHead(400, "a chunk is longer than its size")
        self._line = line
        if line == b"\r\n":
            self._line = b""
            self._part = _Part.SIZE
        return min(end, len(data))

    def _feed_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at) + 1
        if end == 0:
            self._line += data[at:]
            self._check_line(self._line)
            return len(data)
        line = self._line + data[at:end] if self._line else data[at:end]
        self._check_line(line)
        self._line = b""
        if self._part is _Part.SIZE:
            self._begin_chunk(line)
        elif line == b"\r\n":
            self._part = _Part.COMPLETE
        else:
            self._skip_trailer(line)
        return end

    def _check_line(self, line: bytes) -> None:
        if len(line) > (MAX_TRAILER_BYTES if self._part is _Part.TRAILER else MAX_LINE_BYTES):
            raise BadHead(400, f"a chunk's size has more than {MAX_LINE_BYTES} bytes")

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise BadHead(400, f"{line[:40]!r} is not the size of a chunk")
        self._left = int(match[1], 16)
        n_bytes = len(self._body) + self._left
        if n_bytes > self.limit_bytes:
            raise ChunkedTooLarge(n_bytes)
        self._part = _Part.DATA if self._left else _Part.TRAILER

    def _skip_trailer(self, line: bytes) -> None:
        self._n_trailer_bytes += len(line)
        if self._n_trailer_bytes > MAX_TRAILER_BYTES:
            raise BadHead(431, f"the trailers have more than {MAX_TRAILER_BYTES} bytes")
        if _TRAILER.fullmatch(line) is None:
            raise BadHead(400, f"{line[:40]!r} is not a trailer")
