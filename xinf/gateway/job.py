"""One request for an engine while it is open: what was asked, where it runs, how it went."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from xinf._fast.scan import Scan
from xinf.core.errors import XinfError
from xinf.gateway.client import Admission
from xinf.gateway.metrics import ModelCounters
from xinf.gateway.relay import Relay, Verdict
from xinf.gateway.table import Model
from xinf.router import CandidateView, Choice

MAX_TIMEOUT_MS = 2**32 - 1


class Path(Protocol):
    """What decides and acts for a job: the hot path."""

    def choose(self, job: Job) -> Choice | None: ...

    def attempt(self, job: Job, choice: Choice) -> None: ...

    def decide(self, job: Job, verdict: Verdict) -> None: ...

    def first_byte(self, job: Job) -> None: ...

    def leave_room(self, job: Job) -> None: ...

    def refuse_waiting(self, job: Job) -> None: ...

    def refuse_dismissed(self, job: Job, error: XinfError) -> None: ...


class Job:
    """The state, and what relay and waiting room call. Implements Guest and the Link's Submission."""

    def __init__(
        self,
        path: Path,
        admission: Admission,
        relay: Relay,
        *,
        model: Model,
        asked: str,
        scanned: Scan | None,
        head: bytes,
        body: bytes,
        counters: ModelCounters,
    ) -> None:
        headers = admission.head.headers
        self.path = path
        self.admission = admission
        self.relay = relay
        self.model = model
        self.asked = asked  # the model, as the client calls it
        self.scanned = scanned
        self.head = head  # method, path and headers as the engine gets them, encoded
        self.body = body
        self.counters = counters
        deadline_s = admission.deadline_s
        self.timeout_ms = 0 if deadline_s is None else min(int((deadline_s - admission.begun_s) * 1000), MAX_TIMEOUT_MS)
        self.trace = headers.get(b"traceparent", b"").decode("latin-1")
        self.request_id = admission.request_id
        self.session = headers.get(b"x-session-id")
        self.wants_decision = headers.get(b"x-xinf-decision", b"0") not in (b"", b"0")
        self.choice: Choice | None = None  # of the attempt that is open
        self.replica = ""  # of the last attempt
        self.excluded: set[str] = set()  # replicas that were tried
        self.n_retries = 0
        self.verdict: Verdict | None = None  # of the last attempt
        # For a look back: decisions.py.
        self.chosen: Choice | None = None  # of the last attempt
        self.earlier: list[tuple[Choice, str]] | None = None  # attempts before it, and the codes of their errors
        self.refusal: str | None = None  # code of the error that was the answer
        self.wants_candidates = self.wants_decision
        self.candidates: tuple[CandidateView, ...] | None = None  # as they stood before the last choice
        self.n_candidates = 0

    # ---- a guest of the waiting room -----------------------------------------------------------------------------

    @property
    def is_picky(self) -> bool:
        return bool(self.excluded or self.model.lacking)

    def unfit(self) -> Collection[str]:
        """Replicas that may not have it: tried already, or without its adapter."""
        return self.excluded | self.model.lacking if self.model.lacking else self.excluded

    def attempt(self) -> Choice | None:
        return self.path.choose(self)

    def admit(self, choice: Choice) -> None:
        self.path.attempt(self, choice)

    def refuse(self) -> None:
        self.path.refuse_waiting(self)

    def fail(self, error: XinfError) -> None:
        self.path.refuse_dismissed(self, error)

    # ---- what its relay tells ------------------------------------------------------------------------------------

    def on_verdict(self, verdict: Verdict) -> None:
        self.path.decide(self, verdict)

    def on_first_byte(self) -> None:
        self.path.first_byte(self)

    def on_leave(self) -> None:
        self.path.leave_room(self)
