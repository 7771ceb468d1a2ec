"""One connection of the front `direct`: bytes from uvloop to the core and back, with no task, future or queue.

    HEAD ──whole head──▶ admit ──▶ BODY ──whole body──▶ serve ──▶ ANSWER ──taken by the transport──▶ HEAD
      │ bad, slow          │ raises  │ slow, too large                 │ Connection: close, drain, refused
      └────────────────────┴─────────┴──▶ refused, then LINGER ─▶ CLOSING ─▶ GONE

Invariants:
- requests are served one after the other; what comes meanwhile stays as bytes in `_rest`, and beyond PIPELINE_BYTES in
  the kernel. The next begins when the transport has taken the whole answer before it
- the connection is the core's `Client` for the request that it serves; `_exchange` is set exactly while that can still
  want to know of a vanished client or of room to write
- where the next request begins is always known, or the connection ends: a refused head or body closes it
- a connection that is refused while its client sends lingers: closing with unread bytes makes the kernel reset it, and
  the reset overtakes the answer
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from xinf._fast.http1 import answer as fast_answer
from xinf._fast.http1 import digits_of
from xinf._fast.http1 import front as fast_front
from xinf.core.errors import BodyTooLarge, InvalidRequest, RequestTimeout, XinfError
from xinf.gateway.answers import Answer
from xinf.gateway.asgi_call import AsgiApp, AsgiCall
from xinf.gateway.client import Admission, Client, Exchange, Head, RawHeaders
from xinf.gateway.direct_chunks import ChunkedBody, ChunkedTooLarge
from xinf.gateway.direct_head import END, BadHead, Shape

if TYPE_CHECKING:
    from xinf.gateway.direct_server import DirectServer

logger = logging.getLogger("xinf.gateway")

PIPELINE_BYTES = 64 << 10
PAGE_BODY_BYTES = 64 << 10  # no page takes a body; clients send one by mistake
# From here on a copy costs more than a second piece in writev.
JOIN_BYTES = 32 << 10
SMALL_PART_BYTES = 4096
LINGER_BYTES = 8 << 20  # what a refused client may still send before it is cut
_BODILESS = frozenset((*range(100, 200), 204, 304))
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

# NEXT: the answer is out and a pipelined request waits for its turn.
HEAD, BODY, ANSWER, NEXT, LINGER, CLOSING, GONE = range(7)


class Core(Protocol):
    """What this front needs of `xinf.gateway.core.Core`."""

    n_turned_away: int

    def admit(self, head: Head) -> Admission | None: ...

    def refuse(self, head: Head, error: XinfError) -> Answer: ...

    def serve(self, admission: Admission, body: bytes, client: Client) -> Exchange: ...


class Connection:
    """Implements Client, for one request at a time, and asyncio.Protocol: a compiled class can have no Python base."""

    _transport: asyncio.Transport
    _shape: Shape

    def __init__(self, server: DirectServer) -> None:
        self._server = server
        self._shape = server.heads.nothing  # of the request, or the last one
        self._state = HEAD
        self._since_s = server.now_s  # of the state's beginning, or of a head's first byte
        self._partial: bytearray | None = None  # a head whose end has not come
        self._rest: bytes | None = None  # what came behind the request, from `_rest_at` on
        self._rest_at = 0
        self._next_check = 0  # how long an unfinished head must be before llhttp looks at it again
        self._peer: str | None = None
        self._head: Head | None = None
        self._admission: Admission | None = None
        self._parts: list[bytes | bytearray] | None = None
        self._missing = 0  # of the body, or of what is thrown away while lingering
        self._chunks: ChunkedBody | None = None
        self._exchange: Exchange | None = None
        self._start: bytes | None = None  # head of an answer, goes out with the first bytes of its body
        self._has_body = True  # the answer's
        self._is_last = False  # the connection ends after this answer
        self._is_refused = False  # ... and what the client still sends is thrown away
        self._is_owing = False  # the answer is complete, but not taken by the transport
        self._is_reading_paused = False
        self._is_writing_paused = False

    # ---- the loop's calls --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        if not self._server.add(self):
            self._state = CLOSING
            self._transport.abort()
            return
        # Resume only when all is out: what the core is told to be writable again must be really away.
        self._transport.set_write_buffer_limits(high=self._server.limits.write_buffer_bytes, low=0)

    def connection_lost(self, _: Exception | None) -> None:
        self._state = GONE
        self._server.discard(self)
        self._partial = self._rest = self._parts = self._chunks = None
        self._tell_gone()

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state == HEAD:
            if self._partial is None:
                self._since_s = self._server.now_s
                self._read(data, 0)
            else:
                self._read_partial(self._partial, data)
        elif state == BODY:
            self._read_body(data, 0)
        elif state in (ANSWER, NEXT):
            self._rest = data if self._rest is None else self._rest[self._rest_at :] + data
            self._rest_at = 0
            if len(self._rest) > PIPELINE_BYTES and not self._is_reading_paused:
                self._is_reading_paused = True
                self._transport.pause_reading()
        elif state == LINGER:
            self._missing -= len(data)
            if self._missing < 0:
                self._abort()

    def eof_received(self) -> bool:
        # As hyper does: a client that closes its side is gone. A close cannot be told from a shutdown of one direction,
        # and an engine that works for nobody costs more than the few clients that do the latter.
        if self._state == ANSWER:
            self._abort()
        return False

    def pause_writing(self) -> None:
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        exchange = self._exchange
        if self._is_owing:
            self._is_owing = False
            self._end_request()
        if exchange is not None:
            exchange.on_writable()

    def sweep(self, now_s: float) -> None:
        """Enforce the limits of time. `now_s`: monotonic, called about once a second."""
        limits, state, age_s = self._server.limits, self._state, now_s - self._since_s
        if state == HEAD:
            if self._partial is not None:
                if age_s > limits.head_timeout_s:
                    self._refuse_timeout(limits.head_timeout_s)
            elif age_s > limits.idle_timeout_s:
                self.close()
        elif state == BODY:
            if age_s > limits.body_timeout_s:
                self._refuse_timeout(limits.body_timeout_s)
        elif state == LINGER:
            if age_s > limits.linger_s:
                self.close()
        elif (self._is_owing or state == CLOSING) and age_s > limits.stall_timeout_s:
            self._abort()

    def close(self) -> None:
        """End the connection when what was written is out."""
        self._state = CLOSING
        self._since_s = self._server.now_s
        self._transport.close()

    def close_if_idle(self) -> None:
        """The server stops: end the connection unless a request is on its way."""
        if self._state == HEAD and self._partial is None:
            self.close()

    def abort(self) -> None:
        """End the connection now."""
        self._abort()

    # ---- a request ---------------------------------------------------------------------------------------------

    def _read(self, data: bytes, at: int) -> None:
        """Read the request that begins at `at`."""
        shape = self._shape
        if shape.before is not None:
            # The head before it over again, but for the digits of its content-length: see direct_head.
            digits = digits_of(data, at, shape.before, shape.after)
            if digits is not None:
                headers = shape.headers.copy()
                headers[b"content-length"] = digits
                head = Head(shape.method, shape.path, shape.query, headers, self._peer)
                self._begin(head, data, at + shape.n_around + len(digits), int(digits))
                return
        self._read_new(data, at)

    def _read_new(self, data: bytes, at: int) -> None:
        if data[at] in b"\r\n":  # an empty line before the request, which some clients send after a body
            data, at = data[at:].lstrip(b"\r\n"), 0
            if not data:
                return
        end = data.find(END, at) + len(END)
        if end < len(END):
            self._partial = bytearray(data[at:])
            self._check_partial(self._partial)
            return
        try:
            found = self._server.heads.read(data[at:end])
        except BadHead as bad:
            self._refuse_bad(bad)
            return
        shape = self._shape = found.shape
        head = Head(shape.method, shape.path, shape.query, found.headers(), self._peer or self._find_peer())
        self._begin(head, data, end, found.length)

    def _read_partial(self, partial: bytearray, data: bytes) -> None:
        searched = max(0, len(partial) - len(END) + 1)
        partial += data
        if partial.find(END, searched) >= 0:
            self._partial = None
            self._read_new(bytes(partial), 0)
        elif len(partial) >= self._next_check:
            self._check_partial(partial)

    def _check_partial(self, partial: bytearray) -> None:
        """Refuse now what cannot become a head. Looks again when twice as much has come, so that it stays linear."""
        self._next_check = 2 * len(partial)
        try:
            self._server.heads.check(bytes(partial))
        except BadHead as bad:
            self._refuse_bad(bad)

    def _begin(self, head: Head, data: bytes, at: int, length: int | None) -> None:
        """Begin with a request whose body begins at `at`. `length`: of the body, None for a chunked one."""
        self._head = head
        is_whole = length is not None and len(data) - at >= length
        try:
            admission = self._server.core.admit(head)
            if admission is None and length is not None and length > PAGE_BODY_BYTES:
                raise _too_large(length, PAGE_BODY_BYTES)
        except XinfError as error:
            if is_whole and length is not None:
                self._keep(data, at + length)
            # With the whole body here, the next request's beginning is known.
            self._refuse(head, error, is_last=not is_whole)
            return
        except Exception as error:
            self._fail(head, error)
            return
        if length is None or not is_whole:
            self._admission = admission
            self._begin_body(length, data, at)
            return
        end = at + length
        if end < len(data):
            self._keep(data, end)
        self._serve(admission, data[at:end])

    def _keep(self, data: bytes, at: int) -> None:
        """Keep what belongs to the next request."""
        if at < len(data):
            self._rest, self._rest_at = data, at

    def _begin_body(self, length: int | None, data: bytes, at: int) -> None:
        self._state = BODY
        if length is None:
            admission = self._admission
            self._chunks = ChunkedBody(PAGE_BODY_BYTES if admission is None else admission.max_body_bytes)
        else:
            self._parts = []
            self._missing = length
        if at < len(data):
            self._read_body(data, at)
        elif self._shape.expects_continue:
            self._transport.write(CONTINUE)

    def _read_body(self, data: bytes, at: int) -> None:
        """Take more of the body, from `at` on."""
        if self._chunks is not None:
            self._read_chunks(self._chunks, data, at)
            return
        parts = self._parts
        assert parts is not None
        end = at + self._missing
        part = data[at:end]
        if end > len(data):
            self._missing -= len(part)
            # A client that sends byte by byte must not cost an object for each.
            if len(part) >= SMALL_PART_BYTES:
                parts.append(part)
            elif parts and isinstance(parts[-1], bytearray):
                parts[-1] += part
            else:
                parts.append(bytearray(part))
            return
        self._keep(data, end)
        parts.append(part)
        self._parts = None
        self._serve(self._admission, b"".join(parts))

    def _read_chunks(self, chunks: ChunkedBody, data: bytes, at: int) -> None:
        head = self._head
        assert head is not None
        try:
            end = chunks.feed(data, at)
        except BadHead as bad:
            self._refuse(head, InvalidRequest(bad.message), status=bad.status, is_last=True)
            return
        except ChunkedTooLarge as large:
            self._refuse(head, _too_large(large.n_bytes, chunks.limit_bytes), is_last=True)
            return
        if chunks.is_complete:
            self._chunks = None
            self._keep(data, end)
            self._serve(self._admission, chunks.take())

    def _serve(self, admission: Admission | None, body: bytes) -> None:
        self._state = ANSWER
        if admission is not None:
            exchange = self._server.core.serve(admission, body, self)
        else:
            exchange = self._call_application(body)
        if self._state == ANSWER:  # else it has been answered within the call
            self._exchange = exchange

    def _call_application(self, body: bytes) -> Exchange:
        server, head = self._server, self._head
        assert head is not None
        return AsgiCall.begin(server.application, head, body, self, scheme=server.scheme, address=server.address)

    def _refuse_bad(self, bad: BadHead) -> None:
        self._refuse(Head("", "", b"", {}, self._peer), InvalidRequest(bad.message), status=bad.status, is_last=True)

    def _refuse_timeout(self, timeout_s: float) -> None:
        error = RequestTimeout(f"the request was not complete after {timeout_s:g} s", timeout_s=timeout_s)
        self._refuse(self._head or Head("", "", b"", {}, self._peer), error, is_last=True)

    def _refuse(self, head: Head, error: XinfError, *, status: int | None = None, is_last: bool = False) -> None:
        answer = self._server.core.refuse(head, error)
        self._partial = self._parts = self._chunks = None
        if is_last:
            self._rest = None
            self._is_last = self._is_refused = True
        self._state = ANSWER
        self.answer(answer.status if status is None else status, answer.headers, answer.body)

    def _fail(self, head: Head, error: Exception) -> None:
        """The edge of the process: one request may fail, the gateway goes on."""
        logger.error("request failed", exc_info=error, extra={"kv": {"path": head.path[:200]}})
        self._refuse(head, XinfError("the gateway failed to handle the request"), is_last=True)

    def _end_request(self) -> None:
        """The transport has taken the answer: go on with the next request, or end."""
        self._head = self._admission = self._exchange = None
        self._since_s = self._server.now_s
        if self._is_last or self._server.is_draining:
            if self._is_refused:
                self._linger()
            else:
                self.close()
            return
        if self._rest is None:
            self._state = HEAD
        else:
            # One request of a connection per turn of the loop: others have their turn, and no answer nests in another.
            self._state = NEXT
            self._server.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._state != NEXT:
            return
        rest, at, self._rest = self._rest, self._rest_at, None
        self._state = HEAD
        if self._is_reading_paused:
            self._is_reading_paused = False
            self._transport.resume_reading()
        if rest is not None:
            self._read(rest, at)

    def _linger(self) -> None:
        self._state = LINGER
        self._missing = LINGER_BYTES
        if self._is_reading_paused:
            self._is_reading_paused = False
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    # ---- the core's calls --------------------------------------------------------------------------------------

    def answer(self, status: int, headers: RawHeaders, body: bytes) -> bool:
        if self._state != ANSWER:
            return True
        server = self._server
        is_ordinary = self._shape.is_plain and not (self._is_last or server.is_draining or status in _BODILESS)
        whole = None
        if is_ordinary and len(body) < JOIN_BYTES:
            whole = fast_answer(server.lines.get(status) or server.make_line(status), headers, body)
        if whole is not None:
            self._transport.write(whole)
        else:
            self._answer_apart(status, headers, body)
        if self._is_writing_paused:
            return self._owe()
        self._end_request()
        return True

    def _answer_apart(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """Answer what is not the ordinary case, and what is too long to be copied."""
        length = b"" if status in _BODILESS else b"content-length: %d\r\n" % len(body)
        if self._head is not None and self._head.method == "HEAD":
            body = b""
        self._transport.writelines((self._front(status, headers, length), body))

    def start(self, status: int, headers: RawHeaders) -> None:
        if self._state != ANSWER:
            return
        head = self._head
        assert head is not None
        self._has_body = head.method != "HEAD" and status not in _BODILESS
        if self._shape.is_http10:  # its end is the connection's
            self._is_last = True
            self._start = self._front(status, headers, b"")
        else:
            self._start = self._front(status, headers, b"transfer-encoding: chunked\r\n" if self._has_body else b"")

    def write(self, data: bytes) -> bool:
        if self._state != ANSWER:
            return True
        if not data or not self._has_body:
            return not self._is_writing_paused
        front, self._start = self._start or b"", None
        if self._shape.is_http10:
            self._transport.writelines((front, data))
        elif len(data) < JOIN_BYTES:
            self._transport.write(b"%b%x\r\n%b\r\n" % (front, len(data), data))
        else:
            self._transport.writelines((b"%b%x\r\n" % (front, len(data)), data, b"\r\n"))
        return not self._is_writing_paused

    def finish(self, data: bytes) -> bool:
        if self._state != ANSWER:
            return True
        front, self._start = self._start or b"", None
        if not self._has_body:
            self._transport.write(front)
            self._has_body = True
        elif self._shape.is_http10:
            self._transport.writelines((front, data))
        elif not data:
            self._transport.write(front + b"0\r\n\r\n")
        elif len(data) < JOIN_BYTES:
            self._transport.write(b"%b%x\r\n%b\r\n0\r\n\r\n" % (front, len(data), data))
        else:
            self._transport.writelines((b"%b%x\r\n" % (front, len(data)), data, b"\r\n0\r\n\r\n"))
        if self._is_writing_paused:
            return self._owe()
        self._end_request()
        return True

    def drop(self) -> None:
        if self._state != ANSWER:
            return
        self._exchange = None
        if self._shape.is_http10:
            # Its answers end where the connection does: only a reset says that this one was not complete.
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._abort()

    def watch(self) -> None:
        """Nothing to do: the loop tells of a disconnect by itself."""

    # ---- writing -----------------------------------------------------------------------------------------------

    def _front(self, status: int, headers: RawHeaders, framing: bytes) -> bytes:
        """The bytes of an answer up to its body."""
        server, shape = self._server, self._shape
        line = server.lines.get(status) or server.make_line(status)
        front = fast_front(line, headers, b"")
        if front is None:
            front = fast_front(line, self._clean(headers), b"")
            assert front is not None
        if self._is_last or server.is_draining or not shape.is_keep_alive:
            self._is_last = True
            framing += b"connection: close\r\n"
        elif shape.is_http10:
            framing += b"connection: keep-alive\r\n"
        return b"%b%b\r\n" % (front[:-2], framing)

    def _clean(self, headers: RawHeaders) -> RawHeaders:
        """Leave out what would be read as another header, and take a wish to close as that."""
        kept: RawHeaders = []
        for name, value in headers:
            if name == b"connection":
                self._is_last = self._is_last or b"close" in value.lower()
            elif not any(end in text for end in (b"\r", b"\n") for text in (name, value)):
                kept.append((name, value))
        return kept

    def _owe(self) -> bool:
        """The answer is written but not taken by the transport: the request ends when it is."""
        self._is_owing = True
        self._since_s = self._server.now_s
        return False

    # ---- the end -----------------------------------------------------------------------------------------------

    def _abort(self) -> None:
        self._state = GONE
        self._tell_gone()
        self._transport.abort()

    def _tell_gone(self) -> None:
        exchange, self._exchange = self._exchange, None
        self._is_owing = False
        if exchange is not None:
            exchange.on_gone()

    def _find_peer(self) -> str | None:
        name = self._transport.get_extra_info("peername")
        self._peer = str(name[0]) if name else None
        return self._peer


def status_line(status: int) -> bytes:
    """The first line of an answer."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    return b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode("ascii"))


def _too_large(n_bytes: int, limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body has {n_bytes} bytes or more, the limit is {limit_bytes}",
        remedy="send less, or raise gateway.max_body_bytes",
        limit_bytes=limit_bytes,
    )


__all__ = ["AsgiApp", "Connection", "Core", "status_line"]
