"""A fleet in virtual time: the real router in front of simulated engines, nothing in between.

    plan ─▶ start ─▶ Router.choose ─▶ SimEngine ─▶ tokens ─▶ Router.finished ─▶ the steps that follow
                       ▲     └─ nobody is open: the waiting room                    └▶ the waiting room
                       └──────────── load, `report_delay_s` after the step that changed it; what its cache holds,
                                     `residency_delay_s` after it changed

Bodies are written, scanned and hashed as the gateway does it, because the router learns from their text. What has no
counterpart: HTTP, the Link, several gateway processes, CPU of anything. A request costs O(its text + replicas), a step
O(running + log of what is due).

Invariants: nothing reads a clock or a random source but virtual time and the plan's seed; every request of the plan
ends in exactly one record, or is counted as skipped.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec

from xinf._fast.scan import TOOLS_FIRST, Scan, scan
from xinf.bench.fleet import FleetSettings
from xinf.bench.prompt_text import render
from xinf.bench.record import Failure, Record
from xinf.bench.route_body import RouteBody
from xinf.bench.route_driver import RouteOutcome
from xinf.bench.route_plan import RoutePlan
from xinf.bench.route_session import RouteSession
from xinf.bench.virtual_residency import Held, Telling, VirtualResidency
from xinf.core.records import RoutingPolicy
from xinf.router import Choice, LoadView, ResidencyUpdate, Router, RouterSettings
from xinf.sim import SimEngine, SimLoad, SimSequence, TextSource, Timeline

MODEL = "simulated"
REPEAT_S = 1.0  # a load report at least this often, as shims do
_SEED = 1  # of the prefix chains: one model, one tenant
_TELL_EVERY = 1000
_BY_PREFIX = (RoutingPolicy.AUTO, RoutingPolicy.PREFIX)


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What of the gateway is simulated.

    `report_delay_s`, `residency_delay_s`: from a change of an engine's load, or of its cache, until the router knows.
    """

    router: RouterSettings = RouterSettings()
    max_waiting: int = 1024
    waiting_timeout_s: float = 30.0
    report_delay_s: float = 0.001
    telling: Telling = Telling.EXACT
    residency_delay_s: float = 0.002


class _Talk:
    """A session under way."""

    __slots__ = ("answers", "number", "session")

    def __init__(self, number: int, session: RouteSession) -> None:
        self.number = number
        self.session = session
        self.answers: dict[int, str] = {}


class _Call:
    """One request under way."""

    __slots__ = ("answer", "choice", "held", "prompt", "record", "replica", "scan", "talk")

    def __init__(self, talk: _Talk, record: Record, scanned: Scan, prompt: bytes, answer: bytes) -> None:
        self.talk = talk
        self.record = record
        self.scan = scanned
        self.prompt = prompt
        self.answer = answer
        self.choice: Choice
        self.replica: _Replica
        self.held: Held | None = None


class _Replica:
    """An engine as the router knows it."""

    __slots__ = ("engine", "last_submit", "name", "reported_s", "residency", "sent")

    def __init__(self, name: str, engine: SimEngine) -> None:
        self.name = name
        self.engine = engine
        self.last_submit = 0
        self.sent: tuple[SimLoad, int] | None = None
        self.reported_s = -REPEAT_S
        self.residency: VirtualResidency | None = None


class VirtualFleet:
    """One run of one policy; `run` once."""

    def __init__(self, settings: FleetSettings, policy: RoutingPolicy, gateway: GatewaySettings) -> None:
        self._gateway = gateway
        self._timeline = Timeline()
        self._router = Router(gateway.router, clock=self._timeline, turn=0)
        self._text = TextSource(settings.engine.seed)
        self._writer = RouteBody(MODEL)
        self._replicas: dict[str, _Replica] = {}
        for number in range(settings.n_replicas):
            self._add(f"{MODEL}-{number}", settings, policy)
        self._waiting: deque[_Call] = deque()
        self._numbers = itertools.count()
        self._records: list[Record] = []
        self._n_skipped = 0
        self._n_open = 0
        self._n_to_start = 0
        self._plan: RoutePlan
        self._on_progress: Callable[[int], None] = lambda _: None

    def _add(self, name: str, settings: FleetSettings, policy: RoutingPolicy) -> None:
        engine = SimEngine(settings.engine)
        replica = self._replicas[name] = _Replica(name, engine)
        self._router.set_replica(
            name,
            model=MODEL,
            policy=policy,
            block_tokens=settings.engine.block_tokens,
            is_ready=True,
            max_running=settings.engine.max_running,
        )
        if policy in _BY_PREFIX and self._gateway.telling is not Telling.OFF:
            replica.residency = VirtualResidency(
                engine,
                self._gateway.telling,
                timeline=self._timeline,
                seed=_SEED,
                chunk_bytes=self._gateway.router.chunk_bytes,
                tell=partial(self._tell, name),
            )
        self._timeline.attach(engine, self._on_token, partial(self._on_step, replica))

    def run(self, plan: RoutePlan, on_progress: Callable[[int], None] = lambda _: None) -> RouteOutcome:
        """Play a plan to its end. `on_progress` hears how many requests have ended, now and then."""
        self._plan = plan
        self._on_progress = on_progress
        self._n_to_start = len(plan.starts_s)
        for replica in self._replicas.values():
            self._report(replica)
        self._start_next(iter(enumerate(plan.starts_s)))
        self._timeline.call_at(REPEAT_S, self._repeat)
        self._timeline.run()
        return RouteOutcome(records=self._records, n_skipped=self._n_skipped, replicas=tuple(self._replicas))

    # ---- requests -------------------------------------------------------------------------------------------------

    def _start_next(self, starts: enumerate[float]) -> None:
        """Wait for the next session of the plan: one event at a time, however many there are."""
        for number, at_s in starts:
            self._timeline.call_at(at_s, partial(self._start, number, starts))
            return

    def _start(self, number: int, starts: enumerate[float]) -> None:
        self._n_to_start -= 1
        self._start_next(starts)
        session = self._plan.workload.session(number)
        talk = _Talk(number, session)
        for step in session.roots():
            self._n_open += 1
            self._send(talk, step)

    def _send(self, talk: _Talk, number: int) -> None:
        session = talk.session
        step = session.steps[number]
        now_s = self._timeline.now_s()
        messages = session.history(number, talk.answers)
        body = self._writer.write(session, messages, step.max_tokens)
        prompt = render(messages, session.tools)
        record = Record(
            number=next(self._numbers),
            session=talk.number,
            turn=number,
            intended_s=now_s,
            dispatched_s=now_s,
            sent_s=now_s,
            max_tokens=step.max_tokens,
            request_bytes=len(body),
        )
        call = _Call(talk, record, scan(body), prompt, self._text.answer(prompt, step.max_tokens))
        if self._waiting or not self._dispatch(call):
            self._wait(call)

    def _dispatch(self, call: _Call) -> bool:
        """Give a request to a replica. False: none is open."""
        choice = self._router.choose(MODEL, call.scan, seed=_SEED, order=TOOLS_FIRST)
        if choice is None:
            return False
        replica = self._replicas[choice.replica_id]
        replica.last_submit += 1
        self._router.submitted(choice, replica.last_submit)
        call.choice = choice
        call.replica = replica
        record = call.record
        record.replica = replica.name
        record.predicted_cached_tokens = choice.predicted_cached_tokens
        now_s = self._timeline.now_s()
        if replica.residency is not None:
            call.held = replica.residency.begin(call.scan, call.prompt)
        sequence = SimSequence(call.prompt, call.answer, arrived_s=now_s, owner=call)
        try:
            replica.engine.submit(sequence, now_s)
        except ValueError as error:
            self._router.finished(choice, prompt_tokens=0, cached_tokens=0, completion_tokens=0, is_ok=False)
            self._fail(call, 400, str(error))
        if replica.residency is not None:
            replica.residency.flush()
        return True

    def _on_token(self, sequence: SimSequence) -> None:
        call: _Call = sequence.owner
        record = call.record
        now_s = self._timeline.now_s()
        if record.first_token_s is None:
            record.first_token_s = now_s
            self._router.started(call.choice)
        if not sequence.is_done:
            return
        record.last_token_s = record.end_s = now_s
        record.status = 200
        record.prompt_tokens = sequence.n_prompt
        record.cached_tokens = sequence.cached_tokens
        record.completion_tokens = record.n_events = sequence.n_generated
        self._router.finished(
            call.choice,
            prompt_tokens=sequence.n_prompt,
            cached_tokens=sequence.cached_tokens,
            completion_tokens=sequence.n_generated,
            is_ok=True,
        )
        if call.held is not None and call.replica.residency is not None:
            call.replica.residency.end(call.held, call.prompt, call.answer)
        self._end(record)
        talk, number = call.talk, record.turn
        followers = talk.session.followers(number)
        if followers:
            talk.answers[number] = call.answer.decode()
        for follower in followers:
            self._n_open += 1
            at_s = now_s + talk.session.steps[follower].pause_s
            self._timeline.call_at(at_s, partial(self._send, talk, follower))
        while self._waiting and self._dispatch(self._waiting[0]):
            self._waiting.popleft()

    def _end(self, record: Record) -> None:
        self._n_open -= 1
        self._records.append(record)
        if len(self._records) % _TELL_EVERY == 0:
            self._on_progress(len(self._records))

    # ---- the waiting room -----------------------------------------------------------------------------------------

    def _wait(self, call: _Call) -> None:
        if len(self._waiting) >= self._gateway.max_waiting:
            self._fail(call, 429, f"{len(self._waiting)} requests wait already")
            return
        self._waiting.append(call)
        until_s = self._timeline.now_s() + self._gateway.waiting_timeout_s
        self._timeline.call_at(until_s, partial(self._give_up, call))

    def _give_up(self, call: _Call) -> None:
        if call in self._waiting:
            self._waiting.remove(call)
            self._fail(call, 429, f"no replica was free for {self._gateway.waiting_timeout_s:g} s")

    def _fail(self, call: _Call, status: int, message: str) -> None:
        record = call.record
        record.status = status
        record.failure = Failure.STATUS
        record.message = message
        record.end_s = self._timeline.now_s()
        self._n_skipped += call.talk.session.below(record.turn)
        self._end(record)

    # ---- what engines say -----------------------------------------------------------------------------------------

    def _on_step(self, replica: _Replica) -> None:
        if replica.residency is not None:
            replica.residency.flush()
        self._report(replica)

    def _tell(self, name: str, update: ResidencyUpdate) -> None:
        """Let the router know what an engine's cache holds."""
        delay_s = self._gateway.residency_delay_s
        if delay_s:
            self._timeline.call_at(self._timeline.now_s() + delay_s, partial(self._router.on_residency, name, update))
        else:
            self._router.on_residency(name, update)

    def _report(self, replica: _Replica) -> None:
        """Tell the router the load if it is not what it was told last."""
        said = (replica.engine.load(), replica.last_submit)
        if said != replica.sent:
            self._say(replica, said)

    def _repeat(self) -> None:
        now_s = self._timeline.now_s()
        for replica in self._replicas.values():
            if now_s - replica.reported_s >= REPEAT_S:
                self._say(replica, (replica.engine.load(), replica.last_submit))
        if self._n_open or self._n_to_start:
            self._timeline.call_at(now_s + REPEAT_S, self._repeat)

    def _say(self, replica: _Replica, said: tuple[SimLoad, int]) -> None:
        load, last_submit = said
        replica.sent = said
        replica.reported_s = self._timeline.now_s()
        view = LoadView(
            load.running,
            load.waiting,
            load.queued_prefill_tokens,
            load.kv_blocks_used,
            load.kv_blocks_total,
            last_submit,
        )
        delay_s = self._gateway.report_delay_s
        if delay_s:
            self._timeline.call_at(replica.reported_s + delay_s, partial(self._router.on_load, replica.name, view))
        else:
            self._router.on_load(replica.name, view)
