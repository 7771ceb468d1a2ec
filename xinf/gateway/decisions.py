"""What was decided for each of the last requests: kept by reference when a request ends, told when somebody asks.

    _finish ──keep──▶ ring of `size` entries ──find, last──▶ core.decision.Decision ──▶ /admin/decisions, `xinf why`

An entry holds what a request leaves behind anyway (its id, its Choice without marks) and numbers, so that keeping one
is a few stores; it holds no body, no header and no message of an error. An entry takes some 500 bytes.

Candidates cost a look at every replica, so they are taken for the requests that ask and for one in `sample_every` of
the others; the more replicas there are the rarer, so that their share of the work stays what it is.

    keep  O(1)      find, last  O(size)
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from xinf.core.decision import Attempt, Candidate, Chosen, Cost, Decision, Reach, Usage
from xinf.gateway.job import Job
from xinf.gateway.link import Ending
from xinf.gateway.relay import Outcome
from xinf.gateway.routes import Route
from xinf.gateway.table import Model
from xinf.router import CandidateView, Choice

# Of a large fleet only the cheapest are kept, and more replicas than CANDIDATES_FREE make samples rarer.
MAX_CANDIDATES = 16
CANDIDATES_FREE = 8


class Entry:
    """One request, as it is kept."""

    request_id: str
    asked: str
    model: Model
    route: Route
    outcome: Outcome | None
    error: str | None
    status: int
    begun_s: float  # monotonic
    has_first_byte: bool
    first_byte_s: float
    ended_s: float
    choice: Choice | None
    has_usage: bool
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    earlier: list[tuple[Choice, str]] | None
    candidates: tuple[CandidateView, ...] | None
    n_candidates: int


class Decisions:
    """The last requests of one gateway process."""

    def __init__(self, size: int, *, sample_every: int) -> None:
        """`size`: requests kept, 0 for none. `sample_every`: one in so many gets its candidates kept, 0 for none."""
        self.size = size
        self.worker = 0
        self._ring: list[Entry] = []
        self._next = 0
        self._sample_every = sample_every if size else 0
        self._until_sample = self._sample_every

    def takes_sample(self) -> bool:
        """Whether the candidates of this request should be kept."""
        if self._sample_every == 0:
            return False
        self._until_sample -= 1
        return self._until_sample <= 0

    def note_candidates(self, job: Job, views: tuple[CandidateView, ...]) -> None:
        """Keep what was weighed for a job: as Router.explain sorts it."""
        job.n_candidates = len(views)
        job.candidates = views if len(views) <= MAX_CANDIDATES else _first(views)
        if self._until_sample <= 0:
            self._until_sample = self._sample_every * max(1, len(views) // CANDIDATES_FREE)

    def keep(self, job: Job, status: int, ended_s: float) -> None:
        """Keep a request that ended. `ended_s`: monotonic."""
        if self.size == 0:
            return
        # The oldest entry becomes the newest: nothing is allocated once the ring is full.
        if self._next < len(self._ring):
            _fill(self._ring[self._next], job, status, ended_s)
        else:
            self._ring.append(_fill(Entry(), job, status, ended_s))
        self._next = self._next + 1 if self._next + 1 < self.size else 0

    # ---- questions ---------------------------------------------------------------------------------------------

    def find(self, request_id: str, open_jobs: Iterable[Job] = ()) -> list[Decision]:
        """What is known of a request, of one that is still open too; several when its id was used again."""
        now_s = time.monotonic()
        open_now = [_fill(Entry(), job, job.relay.status, now_s) for job in open_jobs if job.request_id == request_id]
        ended = [entry for entry in self._newest() if entry.request_id == request_id]
        return [self._told(entry, "open") for entry in open_now] + [
            self._told(entry, _outcome(entry)) for entry in ended
        ]

    def last(self, n: int) -> list[Decision]:
        """The requests that ended last, the newest first."""
        return [self._told(entry, _outcome(entry)) for entry in self._newest()[:n]]

    def reach(self) -> Reach:
        """How far back this goes."""
        entries = self._newest()
        oldest_s = _wall_s(entries[-1].begun_s) if entries else None
        return Reach(worker=self.worker, size=self.size, n_kept=len(entries), oldest_s=oldest_s)

    def _newest(self) -> list[Entry]:
        return [*self._ring[: self._next][::-1], *self._ring[self._next :][::-1]]

    def _told(self, entry: Entry, outcome: str) -> Decision:
        choice, earlier = entry.choice, entry.earlier or ()
        views, lacking = entry.candidates, entry.model.lacking
        candidates = None if views is None else tuple(told_candidate(view, lacking) for view in views)
        return Decision(
            request_id=entry.request_id,
            worker=self.worker,
            at_s=_wall_s(entry.begun_s),
            path=entry.route.path,
            asked=entry.asked,
            deployment=entry.model.deployment,
            outcome=outcome,
            status=entry.status or None,
            error=entry.error,
            waited_s=None if choice is None else choice.chosen_s - entry.begun_s,
            first_byte_s=entry.first_byte_s - entry.begun_s if entry.has_first_byte else None,
            duration_s=entry.ended_s - entry.begun_s,
            earlier=tuple(Attempt(replica=old.replica_id, reason=old.reason, error=code) for old, code in earlier),
            chosen=None if choice is None else _told_choice(choice),
            usage=_told_usage(entry) if entry.has_usage else None,
            candidates=candidates,
            n_candidates=entry.n_candidates,
        )


def _fill(entry: Entry, job: Job, status: int, ended_s: float) -> Entry:
    """Write what a request leaves behind."""
    admission, verdict, first_byte_s = job.admission, job.verdict, job.relay.first_byte_s
    entry.request_id = job.request_id
    entry.asked = job.asked
    entry.model = job.model
    entry.route = admission.route
    entry.status = status
    entry.begun_s = admission.begun_s
    entry.has_first_byte = first_byte_s is not None
    if first_byte_s is not None:
        entry.first_byte_s = first_byte_s
    entry.ended_s = ended_s
    entry.choice = job.chosen
    entry.earlier = job.earlier
    entry.candidates = job.candidates
    entry.n_candidates = job.n_candidates
    entry.error = job.refusal
    entry.outcome = None
    entry.has_usage = False
    if verdict is None:
        return entry
    entry.outcome = verdict.outcome
    if verdict.error is not None:
        entry.error = verdict.error.code
    elif verdict.ending is not None:
        _count(entry, verdict.ending)
    return entry


def _count(entry: Entry, ending: Ending) -> None:
    entry.has_usage = True
    entry.prompt_tokens = ending.prompt_tokens
    entry.cached_tokens = ending.cached_tokens
    entry.completion_tokens = ending.completion_tokens


def _first(views: tuple[CandidateView, ...]) -> tuple[CandidateView, ...]:
    """Those in front, and the one that is picked: a session's favourite may be dear."""
    kept = views[:MAX_CANDIDATES]
    picked = next((view for view in views[MAX_CANDIDATES:] if view.reason is not None), None)
    return kept if picked is None else (*kept[:-1], picked)


def _outcome(entry: Entry) -> str:
    """How the client sees it; one that was refused without an attempt has failed too."""
    return Outcome.FAILED.value if entry.outcome is None else str(entry.outcome.value)


def told_candidate(view: CandidateView, lacking: Collection[str]) -> Candidate:
    """One replica that was weighed, as the admin routes tell it. `lacking`: those without the adapter asked for."""
    terms = view.terms
    # The router is told of all that a request must not have in the same way.
    closed = "no_adapter" if view.closed == "tried" and view.replica_id in lacking else view.closed
    return Candidate(
        replica=view.replica_id,
        index_state=view.index_state,
        picked=view.reason,
        closed=closed,
        inflight=view.inflight,
        matched_bytes=view.matched_bytes,
        matched_tokens=view.matched_tokens,
        predicted_cached_tokens=view.predicted_cached_tokens,
        prompt_tokens=view.prompt_tokens,
        cost=Cost(queued_s=terms.queued_s, prefill_s=terms.prefill_s, decode_s=terms.decode_s, full_s=terms.full_s),
    )


def _told_choice(choice: Choice) -> Chosen:
    return Chosen(
        replica=choice.replica_id,
        reason=choice.reason,
        index_state=choice.index_state,
        matched_bytes=choice.matched_bytes,
        matched_tokens=choice.matched_tokens,
        predicted_cached_tokens=choice.predicted_cached_tokens,
        prompt_tokens=choice.prompt_tokens,
        queued_tokens=choice.queued_tokens,
        cost=Cost(queued_s=choice.queued_s, prefill_s=choice.prefill_s, decode_s=choice.decode_s, full_s=choice.full_s),
    )


def _told_usage(entry: Entry) -> Usage:
    return Usage(
        prompt_tokens=entry.prompt_tokens,
        cached_tokens=entry.cached_tokens,
        completion_tokens=entry.completion_tokens,
    )


def _wall_s(monotonic_s: float) -> float:
    return time.time() - time.monotonic() + monotonic_s
