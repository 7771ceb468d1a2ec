"""What is kept of one request."""

from __future__ import annotations

import enum

import msgspec


class Failure(enum.Enum):
    """Why a request is no good."""

    CONNECT = "connect"  # no connection: refused, no such host, TLS
    TIMEOUT = "timeout"  # not answered in full within the time for one request
    STATUS = "status"  # an HTTP status other than 200
    CLOSED = "closed"  # the connection ended before the answer began
    CUT = "cut"  # the connection ended inside the answer
    NO_DONE = "no_done"  # a stream that ended in order but without [DONE]
    ERROR_EVENT = "error_event"  # the stream itself says that it failed
    MALFORMED = "malformed"  # not HTTP, not SSE, not JSON, or not of the endpoint's shape
    UNFINISHED = "unfinished"  # the run was interrupted; says nothing about the server


class Record(msgspec.Struct, kw_only=True, gc=False):
    """Times are seconds from the start of the run. `failure` None is a good answer.

    `intended_s` is when it should have been sent, `dispatched_s` when the generator got to it, `sent_s` when it was
    written to a connection (None: never). Latency counts from `intended_s`; in a closed loop the two are the same.
    """

    number: int
    session: int
    turn: int = 0
    intended_s: float
    dispatched_s: float
    sent_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    end_s: float = 0.0
    status: int | None = None
    failure: Failure | None = None
    message: str | None = None
    prompt_tokens: int | None = None  # of `usage`; None where the server does not say
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    n_events: int = 0  # events with text in them
    request_bytes: int = 0
    response_bytes: int = 0
    has_reconnected: bool = False  # a kept-alive connection turned out closed, so it was sent again on a new one
    max_tokens: int | None = None
    replica: str | None = None  # of the gateway's decision header, where one was asked for
    predicted_cached_tokens: int | None = None

    @property
    def output_tokens(self) -> int:
        """Tokens by `usage`, else events."""
        return self.n_events if self.completion_tokens is None else self.completion_tokens

    @property
    def ttft_s(self) -> float | None:
        """Time to first token."""
        return None if self.first_token_s is None else self.first_token_s - self.intended_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first."""
        if self.first_token_s is None or self.last_token_s is None or self.output_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.output_tokens - 1)

    @property
    def e2e_s(self) -> float:
        """End-to-end latency."""
        return self.end_s - self.intended_s
