"""One request and its answer, told by the connection what arrives and when."""

from __future__ import annotations

import asyncio
from array import array

from xinf.bench.answer import DONE, check_whole, decode, error_message
from xinf.bench.decision import read_decision
from xinf.bench.record import Failure, Record
from xinf.bench.stream import EventStream
from xinf.bench.target import Endpoint

_MAX_ERROR_BYTES = 64 << 10
_MAX_ANSWER_BYTES = 256 << 20
_WORDS = {
    Failure.CLOSED: "the connection was closed before an answer",
    Failure.CUT: "the connection was closed inside the answer",
}


class Exchange:
    """Fills a Record. `zero_s`: the run's start on the connection's clock; `keep_text`: the answer is needed later."""

    __slots__ = ("_body", "_endpoint", "_events", "_has_done", "_is_stream", "_n_body", "_parts", "_zero_s", "done",
                 "record", "token_times")  # fmt: skip

    def __init__(
        self,
        record: Record,
        done: asyncio.Future[None],
        *,
        endpoint: Endpoint,
        is_stream: bool,
        keep_text: bool,
        zero_s: float,
    ) -> None:
        self.record = record
        self.done = done
        self.token_times = array("d")
        self._endpoint = endpoint
        self._is_stream = is_stream
        self._events = EventStream() if is_stream else None
        self._parts: list[str] | None = [] if keep_text else None
        self._zero_s = zero_s
        self._body: list[bytes] = []
        self._n_body = 0
        self._has_done = False

    @property
    def text(self) -> str:
        """The answer so far, if it is kept."""
        return "".join(self._parts or ())

    def on_sent(self, now_s: float) -> None:
        """It was handed to a connection."""
        self.record.sent_s = now_s - self._zero_s

    def on_head(self, status: int, content_type: bytes, decision: bytes) -> None:
        """The answer begins. `decision`: the gateway's x-xinf-decision, if it has one."""
        self.record.status = status
        if decision:
            self.record.replica, self.record.predicted_cached_tokens = read_decision(decision)
        if status != 200:
            self._events = None
        elif self._events is not None and not content_type.lower().startswith(b"text/event-stream"):
            # Goes on as a body that is thrown away: the connection stays in order.
            told = content_type.decode("latin-1") or "no content type"
            self._note(Failure.MALFORMED, f"a stream was asked for, the answer is {told}")
            self._events = None

    def on_data(self, data: bytes, now_s: float) -> None:
        """A piece of the answer's body."""
        self.record.response_bytes += len(data)
        if self._events is not None:
            try:
                for payload in self._events.feed(data):
                    self._on_event(payload, now_s)
            except ValueError as error:
                self._note(Failure.MALFORMED, str(error))
            return
        self._n_body += len(data)
        limit = _MAX_ERROR_BYTES if self.record.status != 200 else _MAX_ANSWER_BYTES
        if self._n_body <= limit and self.record.failure is None:
            self._body.append(data)

    def on_complete(self, now_s: float) -> None:
        """The answer is complete as HTTP has it."""
        record = self.record
        if record.failure is None:
            if record.status != 200:
                self._note(Failure.STATUS, error_message(b"".join(self._body)))
            elif self._events is None:
                self._read_whole()
            elif not self._has_done:
                cut = ", inside an event" if self._events.has_rest else ""
                self._note(Failure.NO_DONE, f"the stream ended without [DONE]{cut}")
        self._end(now_s)

    def on_lost(self, now_s: float, reason: str) -> None:
        """The connection is gone before the answer was complete."""
        failure = Failure.CLOSED if self.record.status is None else Failure.CUT
        self.fail(failure, f"{_WORDS[failure]}{f': {reason}' if reason else ''}", now_s)

    def fail(self, failure: Failure, message: str, now_s: float) -> None:
        """End it as an error; what was found wrong before stays its reason."""
        self._note(failure, message)
        self._end(now_s)

    def _on_event(self, payload: bytes, now_s: float) -> None:
        record = self.record
        if record.failure is not None:
            return
        if payload == DONE:
            self._has_done = True
            return
        if self._has_done:
            self._note(Failure.MALFORMED, "the stream goes on after [DONE]")
            return
        answer = decode(payload)
        if answer.is_error:
            self._note(Failure.ERROR_EVENT, error_message(payload))
            return
        if answer.has_output:
            at_s = now_s - self._zero_s
            if record.first_token_s is None:
                record.first_token_s = at_s
            record.last_token_s = at_s
            record.n_events += 1
            self.token_times.append(at_s)
            if self._parts is not None:
                self._parts.append(answer.text)
        if answer.usage is not None:
            # The last word holds: some servers count along in every event.
            record.prompt_tokens = answer.usage.prompt_tokens
            record.completion_tokens = answer.usage.completion_tokens
            record.cached_tokens = answer.usage.cached_tokens

    def _read_whole(self) -> None:
        record = self.record
        try:
            answer = decode(b"".join(self._body))
            if answer.is_error:
                self._note(Failure.ERROR_EVENT, error_message(b"".join(self._body)))
                return
            check_whole(answer, self._endpoint)
        except ValueError as error:
            self._note(Failure.MALFORMED, str(error))
            return
        if self._parts is not None:
            self._parts.append(answer.text)
        if answer.usage is not None:
            record.prompt_tokens = answer.usage.prompt_tokens
            record.completion_tokens = answer.usage.completion_tokens
            record.cached_tokens = answer.usage.cached_tokens

    def _note(self, failure: Failure, message: str) -> None:
        if self.record.failure is None:
            self.record.failure = failure
            self.record.message = message

    def _end(self, now_s: float) -> None:
        self.record.end_s = now_s - self._zero_s
        if not self.done.done():
            self.done.set_result(None)
