"""The hot path: from an admitted request with its body to the bytes of its answer.

    understand ▸ [room] ▸ router.choose ▸ Link.submit ▸ relay ▸ verdict ▸ router.finished
                              ▲                            │
                              └── died before first byte ──┘

Nothing here waits: what happens next is a call from the Link, the front or the waiting room, so a request has no task
and no future. An attempt reserves a place in the router's ledger in `choose` and gives it back exactly once, in
`_settle`.
"""

from __future__ import annotations

import asyncio
import logging
import time

from xinf.core.config import GatewayConfig
from xinf.core.errors import EngineDied, Overloaded, RequestTimeout, Unavailable, XinfError
from xinf.gateway.access_log import AccessLog, Entry
from xinf.gateway.admission import Room
from xinf.gateway.answers import error_answer
from xinf.gateway.client import Admission, Client
from xinf.gateway.decision_header import with_decision
from xinf.gateway.decisions import Decisions
from xinf.gateway.intake import Intake
from xinf.gateway.job import Job
from xinf.gateway.metrics import NO_MODEL, Metrics
from xinf.gateway.relay import Outcome, Relay, Verdict
from xinf.gateway.retry import RetryBudget
from xinf.gateway.table import Table
from xinf.router import Choice, Router

logger = logging.getLogger("xinf.gateway")

SWEEP_S = 0.02  # also how old a request is when its client's disconnect begins to be watched
SLOW_SWEEPS = 5  # deadlines are looked at once in so many sweeps
CLIENT_LEFT = 499  # what a request counts as whose client went away


class HotPath:
    """The hot path of one gateway process."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        intake: Intake,
        router: Router,
        table: Table,
        metrics: Metrics,
        access_log: AccessLog,
        decisions: Decisions,
    ) -> None:
        self._config = config
        self._intake = intake
        self._router = router
        self._table = table
        self._metrics = metrics
        self._access_log = access_log
        self._decisions = decisions
        self._budget = RetryBudget(config.retry_budget_pct)
        self._rooms: dict[str, Room] = {}
        self._open: set[Relay] = set()
        self._young: list[Relay] = []
        self._has_work = asyncio.Event()

    @property
    def n_open(self) -> int:
        """Requests whose answer has not ended."""
        return len(self._open)

    def waiting(self) -> dict[str, int]:
        """Requests in each waiting room."""
        return {name: len(room) for name, room in self._rooms.items()}

    def open_jobs(self) -> list[Job]:
        """The requests whose answer has not ended."""
        return [relay.owner for relay in self._open if isinstance(relay.owner, Job)]

    def on_ready(self, deployment: str) -> None:
        """A replica of `deployment` may take requests again."""
        if (room := self._rooms.get(deployment)) is not None:
            room.wake()

    def fail_open(self, error: XinfError) -> None:
        """End everything that is open or waits, with an error: the gateway has no time left."""
        for room in self._rooms.values():
            for guest in room.dismiss():
                guest.fail(error)
        for relay in list(self._open):
            relay.fail(error)

    def serve(self, admission: Admission, body: bytes, client: Client) -> Relay:
        """Answer one request through `client`. Never raises: errors are answers."""
        relay = Relay(client, buffer_bytes=self._config.stream_buffer_bytes, extra_headers=admission.extra_headers)
        try:
            job = self._intake.understand(admission, body, relay, path=self)
        except XinfError as error:
            return self._refuse_unread(relay, error)
        except Exception:
            return self._refuse_unread(relay, _failed(admission))
        relay.owner = job
        if self._decisions.takes_sample():
            job.wants_candidates = True
        self._open.add(relay)
        self._young.append(relay)
        if not self._has_work.is_set():
            self._has_work.set()
        job.counters.began()
        self._budget.earn()
        self._dispatch(job)
        return relay

    def _refuse_unread(self, relay: Relay, error: XinfError) -> Relay:
        """Refuse what did not become a job."""
        self._metrics.model(NO_MODEL).count_request(error.http_status)
        relay.answer(error_answer(error))
        relay.close()
        return relay

    async def sweep(self) -> None:
        """Run for ever: watch for disconnects of requests that stay, enforce deadlines. Idle while nothing is open."""
        turn = 0
        while True:
            if not self._open:
                self._young.clear()
                self._has_work.clear()
                await self._has_work.wait()
            await asyncio.sleep(SWEEP_S)
            turn += 1
            young, self._young = self._young, []
            for relay in young:
                if relay in self._open:
                    relay.arm()
            if turn % SLOW_SWEEPS:
                continue
            now_s = time.monotonic()
            for relay in list(self._open):
                relay.tick(now_s)

    # ---- choosing ----------------------------------------------------------------------------------------------

    def choose(self, job: Job) -> Choice | None:
        """Ask the router for a replica that was not tried yet; reserves it. None: nobody can take the request now."""
        model = job.model
        form = model.form
        if job.wants_candidates:
            self._note_candidates(job)
        return self._router.choose(
            model.deployment,
            job.scanned,
            seed=form.seed,
            exclude=job.unfit(),
            order=form.order,
            session=job.session,
            chunk_bytes=form.chunk_bytes,
        )

    def _note_candidates(self, job: Job) -> None:
        """Keep what the router would weigh, right before it does."""
        form = job.model.form
        views = self._router.explain(
            job.model.deployment,
            job.scanned,
            seed=form.seed,
            exclude=job.unfit(),
            order=form.order,
            session=job.session,
            chunk_bytes=form.chunk_bytes,
        )
        self._decisions.note_candidates(job, views)

    def _dispatch(self, job: Job) -> None:
        """Run an attempt, now or when there is a place."""
        try:
            room = self._room(job.model.deployment)
            choice = self.choose(job) if not room or job.excluded else None
            if choice is None:
                self._wait(job, room)
            else:
                self._attempt(job, choice)
        except XinfError as error:
            self._refuse(job, error)
        except Exception:
            self._refuse(job, _failed(job.admission))

    def _room(self, deployment: str) -> Room:
        room = self._rooms.get(deployment)
        if room is None:
            room = self._rooms[deployment] = Room()
        return room

    def _wait(self, job: Job, room: Room) -> None:
        """Enter the waiting room. Raises: Overloaded."""
        timeout_s = self._config.waiting_timeout
        if job.relay.deadline_s is not None:
            timeout_s = min(timeout_s, max(0.0, job.relay.deadline_s - time.monotonic()))
        bound = job.model.max_waiting if job.model.max_waiting is not None else self._config.max_waiting
        room.enter(job, max_waiting=bound, timeout_s=timeout_s)
        job.relay.arm()

    def leave_room(self, job: Job) -> None:
        """The client left, perhaps while it waited for a place."""
        self._room(job.model.deployment).leave(job)
        if job.choice is None:
            self._finish(job, CLIENT_LEFT)

    def refuse_dismissed(self, job: Job, error: XinfError) -> None:
        """A request was sent out of the waiting room."""
        self._refuse(job, error)

    def refuse_waiting(self, job: Job) -> None:
        """A request was not let in while it could wait: say why."""
        name = job.model.deployment
        if self._table.ready(name, exclude=job.model.lacking):
            room = self._room(name)
            error: XinfError = Overloaded(
                f"every replica of {name} is at its limit",
                remedy="retry later, or add replicas with `xinf scale`",
                retry_after_s=room.retry_after_s(time.monotonic()),
            )
        else:
            error = Unavailable(f"no replica of {name} is ready: {self._table.why_not_ready(name)}")
        self._refuse(job, error)

    # ---- attempts ----------------------------------------------------------------------------------------------

    def attempt(self, job: Job, choice: Choice) -> None:
        """Run on the replica that was chosen while the request waited."""
        try:
            self._attempt(job, choice)
        except XinfError as error:
            self._refuse(job, error)

    def _attempt(self, job: Job, choice: Choice) -> None:
        relay = job.relay
        job.choice = job.chosen = choice
        job.replica = choice.replica_id
        job.counters.count_decision(choice.reason)
        relay.expect()
        link = self._table.link(choice.replica_id)
        if link is None or not link.is_up:
            error = EngineDied(f"replica {choice.replica_id} went away", replica=choice.replica_id)
            relay.on_lost(error, may_retry=True)
            return
        if job.wants_decision:
            relay.extra_headers = with_decision(relay.extra_headers, choice, job.candidates, n_retries=job.n_retries)
        submit_id = link.submit(job, relay)
        self._router.submitted(choice, submit_id)
        relay.bind(link, submit_id)

    def first_byte(self, job: Job) -> None:
        if job.choice is not None:
            self._router.started(job.choice)

    def decide(self, job: Job, verdict: Verdict) -> None:
        """An attempt is over: settle it with the router, then end the request or move it."""
        job.verdict = verdict
        self._settle(job, verdict)
        outcome = verdict.outcome
        if outcome is Outcome.DONE:
            self._finish(job, job.relay.status)
        elif outcome is Outcome.GONE:
            self._finish(job, CLIENT_LEFT)
        elif outcome is Outcome.CUT:
            job.counters.stream_errors += 1
            self._finish(job, job.relay.status)
        elif self._may_move(job, verdict):
            job.n_retries += 1
            error_code = "engine_died" if verdict.error is None else verdict.error.code
            if job.chosen is not None:
                job.earlier = [*(job.earlier or ()), (job.chosen, error_code)]
            job.chosen = None
            job.counters.retries += 1
            self._dispatch(job)
        else:
            self._refuse(job, verdict.error or EngineDied("the answer was cut off"))

    def _may_move(self, job: Job, verdict: Verdict) -> bool:
        job.excluded.add(job.replica)
        return (
            verdict.may_retry
            and not job.relay.is_gone
            and job.n_retries < self._config.max_retries
            and bool(self._table.ready(job.model.deployment, exclude=job.unfit()))
            and self._budget.take()
        )

    def _settle(self, job: Job, verdict: Verdict) -> None:
        """Give the place of an attempt back, once, with what was learnt."""
        choice, job.choice = job.choice, None
        if choice is None:
            return
        ending = verdict.ending
        room = self._room(job.model.deployment)
        if ending is None:
            self._router.finished(choice, prompt_tokens=0, cached_tokens=0, completion_tokens=0, is_ok=False)
        else:
            is_ok = verdict.outcome is Outcome.DONE and verdict.error is None and job.relay.status < 400
            self._router.finished(
                choice,
                prompt_tokens=ending.prompt_tokens,
                cached_tokens=ending.cached_tokens,
                completion_tokens=ending.completion_tokens,
                is_ok=is_ok,
            )
            if is_ok and ending.prompt_tokens:
                job.counters.count_tokens(
                    ending.prompt_tokens,
                    ending.cached_tokens,
                    ending.completion_tokens,
                    choice.predicted_cached_tokens,
                )
            room.count_finished(time.monotonic())
        if room:
            room.wake()

    # ---- the end -----------------------------------------------------------------------------------------------

    def _refuse(self, job: Job, error: XinfError) -> None:
        """Tell the client that there is no answer."""
        if job.choice is not None:
            self._settle(job, Verdict(Outcome.FAILED, error))
        job.refusal = error.code
        job.relay.answer(error_answer(error))
        self._finish(job, error.http_status)

    def _finish(self, job: Job, status: int) -> None:
        relay = job.relay
        if relay not in self._open:
            return
        self._open.discard(relay)
        self._count(job, status)
        relay.close()

    def _count(self, job: Job, status: int) -> None:
        counters, relay, verdict = job.counters, job.relay, job.verdict
        begun_s = job.admission.begun_s
        now_s = time.monotonic()
        duration_s = now_s - begun_s
        counters.ended(status, duration_s, None if relay.first_byte_s is None else relay.first_byte_s - begun_s)
        self._decisions.keep(job, status, now_s)
        error = verdict.error if verdict is not None else None
        if error is not None and verdict is not None and verdict.outcome is Outcome.DONE:
            counters.stream_errors += 1
            if isinstance(error, RequestTimeout):
                counters.slow_readers += 1
        if self._access_log.wants():
            ending = verdict.ending if verdict is not None else None
            entry = Entry(
                request_id=job.request_id,
                path=job.admission.route.path,
                model=job.model.deployment,
                replica=job.replica,
                status=status,
                duration_s=duration_s,
                retries=job.n_retries,
                prompt_tokens=None if ending is None else ending.prompt_tokens,
                completion_tokens=None if ending is None else ending.completion_tokens,
                error=None if error is None else error.code,
            )
            self._access_log.put(entry)


def _failed(admission: Admission) -> XinfError:
    """What a request is told that we failed on. The edge of the process: one may fail, the gateway goes on."""
    logger.exception("request failed", extra={"kv": {"id": admission.request_id}})
    return XinfError("the gateway failed to handle the request", request_id=admission.request_id)
