"""From a Link to one client: bytes as they come, no task and no queue of its own.

    Link's reader ──on_chunk──▶ outbox ──flush──▶ send()        joined, once per frame
                                   ▲                │ not taken at once: blocked, the outbox grows up to its bound
                                   └────resumed─────┘

Invariants:
- the start is held back until the first bytes of a stream, or the end of anything else, so that a request that died
  early leaves no trace at the client and can move to another replica
- what went wrong is told once: as the answer if none has begun, else as the stream's last event
- `verdict` is set once per attempt; after it the relay hears nothing
- a client that goes away, or does not read, ends its request at the engine
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Enum
from typing import Any

import msgspec

from xinf.core.errors import DeadlineExceeded, EngineError, RequestTimeout, XinfError
from xinf.gateway.answers import error_events, error_of_code
from xinf.gateway.asgi import Pending, RawHeaders, Receive, Send
from xinf.gateway.link import Ending, Link

# Of an answer that is no stream, held until it is complete; beyond it the client gets it as it comes.
HOLD_BYTES = 16 << 20
# Of a stream that goes out in one piece: the server holds a few pieces (Granian four), so their size is bounded too.
SEND_BYTES = 256 << 10
# A client is slow when more than its buffer waits and it has taken nothing for SLOW_S: an engine may hand over several
# MiB at once, which a client that reads takes in milliseconds. Beyond MAX_BUFFERS buffers there is no such patience.
SLOW_S = 1.0
MAX_BUFFERS = 8
# A client that takes nothing for this long while anything waits for it is given up.
STALL_S = 60.0

_HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"transfer-encoding",
    b"content-length",
    b"te",
    b"trailer",
    b"upgrade",
    b"date",
    b"server",
    b"x-request-id",
}


class Outcome(Enum):
    """What became of an attempt, as the client sees it."""

    DONE = "done"  # the client has its answer, or the error as the end of its stream
    FAILED = "failed"  # the client has seen nothing; the error is still to be told, or the request moves
    GONE = "gone"  # nobody is there any more
    CUT = "cut"  # begun and impossible to end properly: the connection must be dropped


class Verdict(msgspec.Struct, frozen=True):
    outcome: Outcome
    error: XinfError | None = None
    may_retry: bool = False
    ending: Ending | None = None


class Relay:
    """One request's way back. Attempts follow each other; `expect` begins one."""

    def __init__(
        self, send: Send, receive: Receive, *, buffer_bytes: int, extra_headers: RawHeaders, dialect: str = "openai"
    ) -> None:
        self.status = 0  # what the client got to see, 0 while nothing
        self.first_byte_s: float | None = None  # monotonic
        self.extra_headers = extra_headers
        self.dialect = dialect  # how its stream ends: see answers.error_events
        self.deadline_s: float | None = None  # monotonic
        self.is_gone = False
        self.on_gone: Callable[[], None] | None = None  # told when the client leaves while no attempt is open
        self.on_first_byte: Callable[[], None] | None = None  # told when a stream begins
        self._send = send
        self._receive = receive
        self._buffer_bytes = buffer_bytes
        self._link: Link | None = None
        self._submit_id = 0
        self._verdict: asyncio.Future[Verdict] | None = None
        self._engine_status = 0
        self._engine_headers: RawHeaders = []
        self._is_stream = False
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._tail = b""
        self._ending: Ending | None = None
        self._error: XinfError | None = None  # told as the end of the stream
        self._is_last_sent = False
        self._blocked: Pending | None = None
        self._blocked_since_s = 0.0
        self._watch: Pending | None = None
        self._is_watching = False
        # A server that answers "no more body" again and again instead of waiting must not make us spin.
        self._is_body_over = False

    # ---- the request's side ------------------------------------------------------------------------------------

    def expect(self) -> asyncio.Future[Verdict]:
        """Begin an attempt; nothing of an earlier one is left."""
        self._engine_status = 0
        self._engine_headers = []
        self._is_stream = False
        self._outbox.clear()
        self._outbox_bytes = 0
        self._ending = self._error = None
        self._verdict = asyncio.get_running_loop().create_future()
        return self._verdict

    def bind(self, link: Link, submit_id: int) -> None:
        """Say where the attempt runs, for its cancellation."""
        self._link, self._submit_id = link, submit_id
        if self.is_gone:
            self._end(Outcome.GONE)

    def arm(self) -> None:
        """Watch for the client's disconnect. Called late, because each receive() is a hop between threads."""
        if not self._is_watching:
            self._is_watching = True
            self._watch_on()

    def tick(self, now_s: float) -> None:
        """Enforce the deadline and the patience with a client that reads nothing. `now_s`: monotonic."""
        blocked_s = 0.0 if self._blocked is None else now_s - self._blocked_since_s
        if blocked_s > SLOW_S and self._outbox_bytes > self._buffer_bytes and self._error is None:
            self._overflow()
        elif blocked_s > STALL_S:
            self._end(Outcome.CUT, RequestTimeout(f"the client has read nothing for {STALL_S:.0f} s"))
        elif self.deadline_s is not None and now_s > self.deadline_s and self._error is None:
            self._cancel()
            self._fail(DeadlineExceeded("the request's time is over", remedy="raise x-request-timeout"))

    def fail(self, error: XinfError) -> None:
        """End the attempt from the gateway's side: the gateway stops."""
        self._cancel()
        self._fail(error)

    def close(self) -> None:
        """Let go of the client; an attempt that is still open is cancelled at its engine."""
        self._cancel()
        self._verdict = None
        for pending in (self._watch, self._blocked):
            if pending is not None:
                pending.close()
        self._watch = self._blocked = None

    # ---- the Link's side ---------------------------------------------------------------------------------------

    def on_start(self, status: int, headers: RawHeaders) -> None:
        self._engine_status = status
        self._engine_headers = headers
        self._is_stream = any(
            name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers
        )

    def on_chunk(self, data: bytes) -> None:
        self._outbox.append(data)
        self._outbox_bytes += len(data)

    def on_end(self, ending: Ending) -> None:
        self._link = None
        self._ending = ending

    def on_lost(self, error: XinfError, *, may_retry: bool) -> None:
        self._link = None
        self._fail(error, may_retry=may_retry)

    def flush(self) -> None:
        if self._verdict is None or self._error is not None:
            return
        ending = self._ending
        if ending is not None and ending.error:
            self._fail(error_of_code(ending.error, ending.message), may_retry=ending.is_retryable)
        elif ending is not None and self._engine_status == 0:
            self._fail(EngineError("the engine ended the request without an answer"))
        elif ending is not None or self._is_stream or self._outbox_bytes > HOLD_BYTES:
            self._pump()

    # ---- towards the client ------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Send what there is, unless the client is not through with what came before."""
        while self._blocked is None and self._verdict is not None:
            is_last = self._ending is not None or self._error is not None
            if self._is_last_sent:
                self._end(Outcome.DONE, self._error)
                return
            if not self._outbox and not is_last:
                return
            if self.status == 0:
                self._begin(is_complete=is_last and not self._is_stream)
                continue
            data = self._take()
            self._is_last_sent = is_last and not self._outbox
            self._put({"type": "http.response.body", "body": data, "more_body": not self._is_last_sent})
        if self._blocked is not None and self._outbox_bytes > MAX_BUFFERS * self._buffer_bytes and self._error is None:
            self._overflow()

    def _take(self) -> bytes:
        """Take everything that waits, of a long stream a piece of it."""
        outbox = self._outbox
        if self._outbox_bytes > SEND_BYTES and self._is_stream:
            if len(outbox[0]) != SEND_BYTES:
                joined = b"".join(outbox)
                outbox[:] = [joined[at : at + SEND_BYTES] for at in range(0, len(joined), SEND_BYTES)]
            data = outbox.pop(0)
        else:
            data = outbox[0] if len(outbox) == 1 else b"".join(outbox)
            outbox.clear()
        self._outbox_bytes -= len(data)
        if data:
            self._tail = data
        return data

    def _begin(self, *, is_complete: bool) -> None:
        headers = [pair for pair in self._engine_headers if pair[0] not in _HOP_BY_HOP]
        if is_complete:
            headers.append((b"content-length", b"%d" % self._outbox_bytes))
        headers += self.extra_headers
        self.status = self._engine_status
        self.first_byte_s = time.monotonic()
        if self._is_stream and self.on_first_byte is not None:
            self.on_first_byte()
        self._put({"type": "http.response.start", "status": self.status, "headers": headers})

    def _put(self, message: dict[str, Any]) -> None:
        _, self._blocked = Pending.begin(self._send(message), self._on_sent)
        if self._blocked is not None:
            self._blocked_since_s = time.monotonic()

    def _on_sent(self, _: Any, error: BaseException | None) -> None:
        self._blocked = None
        if error is not None:  # other servers than Granian raise when the client is gone
            self._client_gone()
            return
        self._pump()

    def _overflow(self) -> None:
        """The client does not read: stop the engine, keep only what explains the end."""
        n_bytes = self._outbox_bytes
        self._cancel()
        self._outbox.clear()
        self._outbox_bytes = 0
        self._fail(RequestTimeout(f"the client left {n_bytes} bytes of its stream unread", unread_bytes=n_bytes))

    def _fail(self, error: XinfError, *, may_retry: bool = False) -> None:
        if self._verdict is None or self._error is not None:
            return
        if self.status == 0:
            self._end(Outcome.FAILED, error, may_retry=may_retry)
        elif not self._is_stream:
            self._end(Outcome.CUT, error)
        elif self._is_last_sent:
            return  # everything is on its way already
        else:
            tail = self._outbox[-1] if self._outbox else self._tail
            self._error = error
            self.on_chunk(error_events(error, dialect=self.dialect, tail=tail))
            self._pump()

    def _end(self, outcome: Outcome, error: XinfError | None = None, *, may_retry: bool = False) -> None:
        self._cancel()
        verdict, self._verdict = self._verdict, None
        if verdict is not None and not verdict.done():
            verdict.set_result(Verdict(outcome, error, may_retry, self._ending))

    def _cancel(self) -> None:
        """Tell the engine to stop, if it has not ended by itself."""
        link, self._link = self._link, None
        if link is not None:
            link.cancel(self._submit_id)

    # ---- the client's disconnect -------------------------------------------------------------------------------

    def _watch_on(self) -> None:
        while True:
            message, self._watch = Pending.begin(self._receive(), self._on_received)
            if self._watch is not None:
                return
            if message["type"] == "http.disconnect":
                self._client_gone()
                return
            if not message.get("more_body") and self._is_body_over:
                return
            self._is_body_over = not message.get("more_body")

    def _on_received(self, message: Any, error: BaseException | None) -> None:
        self._watch = None
        if error is not None or message["type"] == "http.disconnect":
            self._client_gone()
        else:
            # The rest of a body whose bytes were already complete; the disconnect comes after it.
            self._watch_on()

    def _client_gone(self) -> None:
        if self.is_gone:
            return
        self.is_gone = True
        if self._blocked is not None:
            self._blocked.close()
            self._blocked = None
        if self.on_gone is not None:
            self.on_gone()
        self._end(Outcome.GONE)
