"""From a Link to one client: bytes as they come, no task and no queue of its own.

    Link's reader ──on_chunk──▶ outbox ──flush──▶ client.write        joined, once per frame
                                   ▲                │ not taken at once: blocked, the outbox grows up to its bound
                                   └──on_writable───┘

Invariants:
- the start is held back until the first bytes of a stream, or the end of anything else, so that a request that died
  early leaves no trace at the client and can move to another replica
- what went wrong is told once: as the answer if none has begun, else as the stream's last event
- the owner's `on_verdict` is called once per attempt; after it the relay hears nothing of that attempt
- a client that goes away, or does not read, ends its request at the engine
"""

from __future__ import annotations

import time
from enum import Enum
from typing import Protocol

from xinf.core.errors import DeadlineExceeded, EngineError, RequestTimeout, XinfError
from xinf.gateway.answers import DONE, Answer, error_events, error_of_code
from xinf.gateway.client import Client, RawHeaders
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

_HOP_BY_HOP = frozenset(
    {
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
)


class Outcome(Enum):
    """What became of an attempt, as the client sees it."""

    DONE = "done"  # the client has its answer, or the error as the end of its stream
    FAILED = "failed"  # the client has seen nothing; the error is still to be told, or the request moves
    GONE = "gone"  # nobody is there any more
    CUT = "cut"  # begun and impossible to end properly: the connection was dropped


class Verdict:
    """How an attempt ended."""

    def __init__(
        self, outcome: Outcome, error: XinfError | None = None, *, may_retry: bool = False, ending: Ending | None = None
    ) -> None:
        self.outcome = outcome
        self.error = error
        self.may_retry = may_retry
        self.ending = ending


class Owner(Protocol):
    """Whose request it is."""

    def on_verdict(self, verdict: Verdict) -> None:
        """An attempt is over."""

    def on_first_byte(self) -> None:
        """A stream begins."""

    def on_leave(self) -> None:
        """The client left, perhaps while no attempt was open."""


class Relay:
    """One request's way back. Attempts follow each other; `expect` begins one.

    Implements the Link's Sink and the front's Exchange.
    """

    def __init__(
        self, client: Client, *, buffer_bytes: int, extra_headers: RawHeaders, dialect: str = "openai"
    ) -> None:
        self.status = 0  # what the client got to see, 0 while nothing
        self.first_byte_s: float | None = None  # monotonic
        self.extra_headers = extra_headers
        self.dialect = dialect  # how its stream ends: see answers.error_events
        self.deadline_s: float | None = None  # monotonic
        self.is_gone = False
        self.owner: Owner | None = None
        self._client = client
        self._buffer_bytes = buffer_bytes
        self._link: Link | None = None
        self._submit_id = 0
        self._is_expecting = False
        self._engine_status = 0
        self._engine_headers: RawHeaders = []
        self._is_stream = False
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._tail = b""
        self._ending: Ending | None = None
        self._error: XinfError | None = None  # told as the end of the stream
        self._is_last_sent = False
        self._is_blocked = False
        self.blocked_since_s = 0.0
        self._is_watching = False
        self._is_over = False  # nothing may be said to the client any more

    # ---- the request's side ------------------------------------------------------------------------------------

    def expect(self) -> None:
        """Begin an attempt; nothing of an earlier one is left."""
        self._is_expecting = True
        if self._engine_status:
            self._engine_status = 0
            self._engine_headers = []
            self._is_stream = False
            self._outbox.clear()
            self._outbox_bytes = 0
        self._ending = self._error = None

    def bind(self, link: Link, submit_id: int) -> None:
        """Say where the attempt runs, for its cancellation."""
        self._link, self._submit_id = link, submit_id
        if self.is_gone:
            self._end(Outcome.GONE)

    def answer(self, answer: Answer) -> None:
        """Give an answer of the gateway's own: the request never got one from an engine."""
        if self._is_over or self.status:
            return
        self.status = answer.status
        self._is_over = True
        self._client.answer(answer.status, [*answer.headers, *self.extra_headers], answer.body)

    def arm(self) -> None:
        """Watch for the client's disconnect. Called late, because it may cost a hop between threads."""
        if not self._is_watching and not self._is_over:
            self._is_watching = True
            self._client.watch()

    def tick(self, now_s: float) -> None:
        """Enforce the deadline and the patience with a client that reads nothing. `now_s`: monotonic."""
        blocked_s = now_s - self.blocked_since_s if self._is_blocked else 0.0
        if blocked_s > SLOW_S and self._outbox_bytes > self._buffer_bytes and self._error is None:
            self._overflow()
        elif blocked_s > STALL_S:
            self._cut(RequestTimeout(f"the client has read nothing for {STALL_S:.0f} s"))
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
        self._is_expecting = False
        self._is_over = True
        self.owner = None

    # ---- the Link's side ---------------------------------------------------------------------------------------

    def on_start(self, status: int, headers: RawHeaders) -> None:
        self._engine_status = status
        self._engine_headers = headers
        for name, value in headers:
            if name == b"content-type":
                self._is_stream = value.startswith(b"text/event-stream")
                return
        self._is_stream = False

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
        if not self._is_expecting or self._error is not None:
            return
        ending = self._ending
        if self.is_gone:
            if ending is not None:
                self._end(Outcome.DONE)
        elif ending is not None and ending.error:
            self._fail(error_of_code(ending.error, ending.message), may_retry=ending.is_retryable)
        elif ending is not None and self._engine_status == 0:
            self._fail(EngineError("the engine ended the request without an answer"))
        elif ending is not None or self._is_stream or self._outbox_bytes > HOLD_BYTES:
            self._pump()

    # ---- the front's side --------------------------------------------------------------------------------------

    def on_writable(self) -> None:
        self._is_blocked = False
        if self._is_last_sent:
            self._end(Outcome.DONE, self._error)
        else:
            self._pump()

    def on_gone(self) -> None:
        if self.is_gone or self._is_over:
            return
        self.is_gone = True
        has_all = self._ending is None and not self._is_blocked and not self._outbox and self._tail.endswith(DONE)
        self._is_blocked = False
        if has_all and self._is_expecting and self._error is None:
            return  # clients close at [DONE]; the engine's own end, with its counts, is a moment behind
        if self.owner is not None:
            self.owner.on_leave()
        self._end(Outcome.GONE)

    # ---- towards the client ------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Send what there is, unless the client is not through with what came before."""
        if not self._is_expecting:
            return
        is_last = self._ending is not None or self._error is not None
        if self.status == 0 and (self._outbox or is_last):
            if is_last and not self._is_stream:
                self._send_whole()
                return
            self._begin()
            self._client.start(self.status, self._answer_headers())
        while not self._is_blocked and (self._outbox or is_last):
            data = self._take()
            if is_last and not self._outbox:
                self._is_last_sent = True
                if self._client.finish(data):
                    self._end(Outcome.DONE, self._error)
                    return
                self._block()
            elif data and not self._client.write(data):
                self._block()
        if self._is_blocked and self._outbox_bytes > MAX_BUFFERS * self._buffer_bytes and self._error is None:
            self._overflow()

    def _send_whole(self) -> None:
        outbox = self._outbox
        body = outbox[0] if len(outbox) == 1 else b"".join(outbox)
        outbox.clear()
        self._outbox_bytes = 0
        self._begin()
        self._is_last_sent = True
        if self._client.answer(self.status, self._answer_headers(), body):
            self._end(Outcome.DONE)
        else:
            self._block()

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

    def _begin(self) -> None:
        self.status = self._engine_status
        self.first_byte_s = time.monotonic()
        if self._is_stream and self.owner is not None:
            self.owner.on_first_byte()

    def _answer_headers(self) -> RawHeaders:
        headers = [pair for pair in self._engine_headers if pair[0] not in _HOP_BY_HOP]
        headers += self.extra_headers
        return headers

    def _block(self) -> None:
        self._is_blocked = True
        self.blocked_since_s = time.monotonic()

    def _overflow(self) -> None:
        """The client does not read: stop the engine, keep only what explains the end."""
        n_bytes = self._outbox_bytes
        self._cancel()
        self._outbox.clear()
        self._outbox_bytes = 0
        self._fail(RequestTimeout(f"the client left {n_bytes} bytes of its stream unread", unread_bytes=n_bytes))

    def _fail(self, error: XinfError, *, may_retry: bool = False) -> None:
        if not self._is_expecting or self._error is not None:
            return
        if self.is_gone:
            self._end(Outcome.DONE)  # it had its [DONE] before
        elif self.status == 0:
            self._end(Outcome.FAILED, error, may_retry)
        elif self._is_last_sent:
            return  # everything is on its way already
        elif not self._is_stream:
            self._cut(error)
        else:
            tail = self._outbox[-1] if self._outbox else self._tail
            self._error = error
            self.on_chunk(error_events(error, dialect=self.dialect, tail=tail))
            if not self._is_blocked:
                self._pump()

    def _cut(self, error: XinfError) -> None:
        if not self._is_expecting:
            return
        self._is_over = True
        self._client.drop()
        self._end(Outcome.CUT, error)

    def _end(self, outcome: Outcome, error: XinfError | None = None, may_retry: bool = False) -> None:
        self._cancel()
        if not self._is_expecting:
            return
        self._is_expecting = False
        if outcome is not Outcome.FAILED:
            self._is_over = True
        if self.owner is not None:
            self.owner.on_verdict(Verdict(outcome, error, may_retry=may_retry, ending=self._ending))

    def _cancel(self) -> None:
        """Tell the engine to stop, if it has not ended by itself."""
        link, self._link = self._link, None
        if link is not None:
            link.cancel(self._submit_id)
