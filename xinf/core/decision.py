"""What a gateway tells of a routing decision: the answers of its admin routes, read by `xinf why` and `xinf route`.

No text of prompts or answers is in any of it: ids, names, counts and times. Times are in seconds; None is unknown.
"""

from __future__ import annotations

import msgspec


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of one replica for one request by cause: docs/reference/http.md."""

    queued_s: float
    prefill_s: float
    decode_s: float
    full_s: float

    @property
    def total_s(self) -> float:
        """What is compared."""
        return self.queued_s + self.prefill_s + self.decode_s + self.full_s


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The replica that was chosen, and what was believed then."""

    replica: str
    reason: str  # "prefix", "load", "session", "round_robin"
    index_state: str  # how its cache was known: "exact", "approx", "off"
    matched_bytes: int  # of canonical prompt text
    matched_tokens: int
    predicted_cached_tokens: int  # of the matched tokens, those that count
    prompt_tokens: int  # estimated
    queued_tokens: int  # of prefill on the replica, this request's included
    cost: Cost


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One replica of a decision, as it stood before the choice."""

    replica: str
    index_state: str
    picked: str | None  # the reason, of the one that the policy picks
    closed: str | None  # why it could not be picked: "not_ready", "tried", "no_adapter", "full"
    inflight: int  # requests of this gateway process on it
    matched_bytes: int
    matched_tokens: int
    predicted_cached_tokens: int
    prompt_tokens: int
    cost: Cost


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that died before its first byte, so that the request moved on."""

    replica: str
    reason: str
    error: str  # code


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine counted."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One request: what was decided, and what became of it."""

    request_id: str
    worker: int  # number of the gateway process
    at_s: float  # wall clock, of its arrival
    path: str
    asked: str  # the model, as the client calls it
    deployment: str
    outcome: str  # "open", "done", "failed" (got an error as its answer), "cut" (in its middle), "gone" (the client)
    status: int | None  # None: nothing was answered yet
    error: str | None  # code
    waited_s: float | None  # from the arrival to the last choice
    first_byte_s: float | None
    duration_s: float | None
    earlier: tuple[Attempt, ...]
    chosen: Chosen | None  # None: no replica could take it
    usage: Usage | None
    candidates: tuple[Candidate, ...] | None  # cheapest first; None: not kept
    n_candidates: int  # there were; of many only the cheapest are kept


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """How far back one gateway process remembers."""

    worker: int
    size: int  # 0: it keeps nothing
    n_kept: int
    oldest_s: float | None  # wall clock, of the arrival


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Decisions, the newest first."""

    decisions: tuple[Decision, ...]
    reach: tuple[Reach, ...]


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """What one gateway process would do with a request now."""

    worker: int
    asked: str
    deployment: str
    policy: str
    order: int  # in which the template's parts are chained: Scan.canonical
    chunk_bytes: int  # of canonical text, that a match is counted in
    text_bytes: int  # of the canonical prompt text
    prompt_tokens: int  # estimated
    candidates: tuple[Candidate, ...]  # cheapest first
