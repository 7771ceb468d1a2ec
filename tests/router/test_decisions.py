"""Whole lives of requests against the naive router, and what failing allocations leave behind."""

from __future__ import annotations

import random
from collections.abc import Callable

import orjson
import pytest

from tests.model.router_model import ModelChoice, RouterModel
from xinf._fast import decide, fleet, ledger
from xinf._fast.scan import Scan, scan
from xinf.core.clock import FakeClock
from xinf.core.records import RoutingPolicy
from xinf.router import Choice, CostTerms, LoadView, Router, RouterSettings

WORDS = ["alpha ", "béta ", "gamma\n", "δ", "epsilon and some more ", '"quoted" ']
SEEDS = range(24)


def request(rng: random.Random, dialogues: list[list[str]]) -> bytes:
    """A dialogue that grows, branches or begins: prefixes are common."""
    if not dialogues or rng.random() < 0.2:
        dialogues.append([" ".join(rng.choices(WORDS, k=rng.randrange(1, rng.choice([200, 200, 2000]))))])
    turns = list(rng.choice(dialogues))
    for _ in range(rng.choice([0, 1, 1, 1, 9])):
        turns.append(" ".join(rng.choices(WORDS, k=rng.randrange(0, 80))))
        dialogues.append(turns)
    body = {"messages": [{"role": "user", "content": turn} for turn in turns], "stream": rng.random() < 0.5}
    if rng.random() < 0.1:
        body["n"] = 2
    if rng.random() < 0.3:
        body["user"] = rng.choice("abc")
    if rng.random() < 0.1:
        body = {"prompt": list(range(rng.randrange(1, 3000)))}
    return orjson.dumps(body)


class Pair:
    """A router and its model, told the same."""

    def __init__(self, rng: random.Random, policy: RoutingPolicy) -> None:
        self.rng, self.policy = rng, policy
        self.clock = FakeClock(1000.0)
        settings = RouterSettings(max_inflight=6)
        self.router = Router(settings, clock=self.clock, turn=rng.randrange(100))
        self.model = RouterModel(
            rate=settings.prior_prefill_tokens_per_s,
            service_s=settings.prior_service_s,
            bytes_per_token=settings.prior_bytes_per_token,
            uses_prefix=policy in (RoutingPolicy.AUTO, RoutingPolicy.PREFIX),
        )
        self.rows: dict[str, int] = {}  # the model's own numbers
        self.n_submits = 0
        self.open: list[tuple[Choice, ModelChoice]] = []
        self.dialogues: list[list[str]] = []

    def add(self, name: str) -> None:
        block_tokens, slots = self.rng.choice([1, 16, 64]), self.rng.choice([2, 64])
        self.rows[name] = min(set(range(64)) - set(self.rows.values()))
        self.model.add(self.rows[name], slots, block_tokens)
        self.router.set_replica(
            name, model="m", policy=self.policy, block_tokens=block_tokens, is_ready=True, max_running=slots
        )

    def remove(self, name: str) -> None:
        row = self.rows.pop(name)
        self.model.remove(row)
        self.router.remove_replica(name)
        gone = [choice for choice, twin in self.open if twin.row == row]
        self.open = [(choice, twin) for choice, twin in self.open if twin.row != row]
        for choice in gone:
            self.router.finished(choice, prompt_tokens=9, cached_tokens=0, completion_tokens=1, is_ok=True)

    def make_request(self) -> bytes:
        return request(self.rng, self.dialogues)

    def choose(self) -> None:
        raw = self.make_request()
        body = scan(raw)
        excluded = {name for name in self.rows if self.rng.random() < 0.1}
        prompt = self.model.look_up(raw, body, 5)
        now_s = self.clock.monotonic_s()
        shown = {view.replica_id: view for view in self.router.explain("m", body, seed=5, exclude=excluded)}
        picked = [(view.replica_id, view.reason) for view in shown.values() if view.reason is not None]
        able = {
            row
            for name, row in self.rows.items()
            if name not in excluded and len(self.model.ledger.replicas[row].reservations) < 6
        }
        assert {self.rows[name] for name, view in shown.items() if view.is_open} == able
        choice = self.router.choose("m", body, seed=5, exclude=excluded)
        if choice is None:
            assert not able
            assert not picked
            return
        # Explaining moved no turn: it names exactly the one that is chosen then.
        assert picked == [(choice.replica_id, choice.reason)]
        row = self.rows[choice.replica_id]
        assert row in able
        self.check_policy(
            choice, row, {one: cost for one, cost in self.model.costs(prompt, now_s).items() if one in able}
        )
        if self.policy is RoutingPolicy.PREFIX:
            held = {one: self.model.promised(one, prompt.tokens, prompt.lengths[one]) for one in able}
            assert held[row] == max(held.values())
        twin = self.model.choose(row, body, prompt, now_s)
        for name in ("prompt_tokens", "n_hits", "matched_tokens", "promised_tokens", "predicted_cached_tokens"):
            assert getattr(choice, name) == getattr(twin, name), name
        assert choice.n_marks == len(twin.marks)
        assert choice.queued_tokens == twin.queued_tokens
        assert choice.matched_bytes == twin.matched_bytes
        view = shown[choice.replica_id]
        assert view.matched_bytes == choice.matched_bytes
        assert view.matched_tokens == choice.matched_tokens
        assert view.predicted_cached_tokens == choice.predicted_cached_tokens
        assert view.terms == CostTerms(choice.queued_s, choice.prefill_s, choice.decode_s, choice.full_s)
        self.open.append((choice, twin))

    def check_policy(self, choice: Choice, row: int, costs: dict[int, float]) -> None:
        if self.policy in (RoutingPolicy.AUTO, RoutingPolicy.LEAST_LOAD):
            assert costs[row] == pytest.approx(min(costs.values()), rel=1e-9)
            assert choice.reason == ("prefix" if choice.predicted_cached_tokens else "load")
        elif self.policy is RoutingPolicy.ROUND_ROBIN:
            assert choice.reason == "round_robin"

    def report(self, name: str) -> None:
        rng = self.rng
        view = LoadView(
            running=rng.randrange(4),
            waiting=rng.randrange(3),
            queued_prefill_tokens=rng.randrange(3000),
            kv_blocks_used=rng.randrange(100),
            kv_blocks_total=rng.choice([0, 100]),
            last_submit=rng.randrange(self.n_submits + 1),
        )
        self.router.on_load(name, view)
        self.model.ledger.report(
            self.rows[name],
            {
                "requests": view.running + view.waiting,
                "waiting": view.waiting,
                "queued_prefill_tokens": view.queued_prefill_tokens,
                "kv_blocks_used": view.kv_blocks_used,
                "kv_blocks_total": view.kv_blocks_total,
                "last_submit": view.last_submit,
                "now_s": self.clock.monotonic_s(),
            },
        )

    def submit(self) -> None:
        choice, twin = self.rng.choice(self.open)
        assert twin.reservation is not None
        if twin.reservation.submit_id == 0:
            self.n_submits += 1
            self.router.submitted(choice, self.n_submits)
            twin.reservation.submit_id = self.n_submits
            report = self.model.ledger.replicas[twin.row].report
            twin.reservation.is_counted = report is not None and self.n_submits <= report["last_submit"]

    def start(self) -> None:
        choice, twin = self.rng.choice(self.open)
        self.router.started(choice)
        self.model.start(twin, self.clock.monotonic_s())
        assert choice.started_s == twin.started_s

    def finish(self) -> None:
        choice, twin = self.open.pop(self.rng.randrange(len(self.open)))
        prompt_tokens = self.rng.choice([0, 0, twin.prompt_tokens, self.rng.randrange(1, 2 * twin.prompt_tokens + 50)])
        cached = self.rng.randrange(prompt_tokens + 1)
        completion, is_ok = self.rng.choice([0, 1, 50]), self.rng.random() < 0.7
        self.router.finished(
            choice, prompt_tokens=prompt_tokens, cached_tokens=cached, completion_tokens=completion, is_ok=is_ok
        )
        self.model.finish(twin, prompt_tokens, cached, completion, is_ok, self.clock.monotonic_s())

    def check(self) -> None:
        seen = self.router.snapshot()
        if self.rows:
            assert seen.bytes_per_token["m"] == pytest.approx(self.model.density.bytes_per_token, rel=1e-12)
        assert seen.index_entries == len(self.model.index)
        for view in seen.replicas:
            row = self.rows[view.replica_id]
            rates = self.model.rates[row]
            learnt = (view.prefill_tokens_per_s, view.service_s, view.trust)
            assert learnt == pytest.approx((rates.prefill_tokens_per_s, rates.service_s, rates.trust), rel=1e-12)
            assert view.held_chunks == sum(row in holders for holders in self.model.index.holders.values())


@pytest.mark.parametrize("policy", list(RoutingPolicy))
@pytest.mark.parametrize("seed", SEEDS)
def test_router_agrees_with_the_naive_one(policy: RoutingPolicy, seed: int) -> None:
    print("seed", seed, policy)
    pair = Pair(random.Random(seed), policy)
    names = [f"r{i}" for i in range(5)]
    for name in names:
        pair.add(name)
    for step in range(150):
        pair.clock.advance(pair.rng.choice([0.0, 0.01, 0.3]))
        pick = pair.rng.random()
        if pick < 0.4:
            pair.choose()
        elif pick < 0.5:
            pair.report(pair.rng.choice(names))
        elif pick < 0.51:
            name = pair.rng.choice(names)
            pair.remove(name)
            pair.add(name)
        elif pair.open:
            pair.rng.choice([pair.submit, pair.start, pair.finish, pair.finish])()
        if step % 30 == 0:
            pair.check()
    pair.check()


def body_of(n_words: int) -> Scan:
    return scan(orjson.dumps({"messages": [{"role": "user", "content": "word " * n_words}]}))


@pytest.mark.parametrize("k", range(1, 8))
def test_failed_allocations_reserve_nothing(k: int) -> None:
    router = Router(RouterSettings(), clock=FakeClock(), turn=0)
    router.set_replica("r0", model="m", policy=RoutingPolicy.AUTO, block_tokens=16, is_ready=True)
    decide._fail_allocation(k)
    try:
        choice = router.choose("m", body_of(4000), seed=1)
    except MemoryError:
        assert router.inflight("r0") == 0
        choice = router.choose("m", body_of(4000), seed=1)  # the fault is over
    finally:
        decide._fail_allocation(0)
    assert choice is not None
    assert router.inflight("r0") == 1
    router.finished(choice, prompt_tokens=4000, cached_tokens=0, completion_tokens=1, is_ok=True)
    assert router.inflight("r0") == 0


def test_no_room_for_a_reservation_is_an_error_and_nothing_is_held() -> None:
    router = Router(RouterSettings(), clock=FakeClock(), turn=0)
    router.set_replica("r0", model="m", policy=RoutingPolicy.AUTO, block_tokens=16, is_ready=True)
    ledger._fail_allocation(1)
    try:
        with pytest.raises(MemoryError, match="reservation"):
            router.choose("m", body_of(100), seed=1)
    finally:
        ledger._fail_allocation(0)
    assert router.inflight("r0") == 0
    assert router.snapshot().index_entries == 0


@pytest.mark.parametrize(
    ("fail", "k"),
    [*((decide._fail_allocation, k) for k in range(1, 8)), *((fleet._fail_allocation, k) for k in range(1, 4))],
)
def test_failed_allocations_enter_no_half_of_a_replica(fail: Callable[[int], None], k: int) -> None:
    router = Router(RouterSettings(), clock=FakeClock(), turn=0)
    fail(k)
    try:
        router.set_replica("r0", model="m", policy=RoutingPolicy.AUTO, block_tokens=16, is_ready=True)
    except MemoryError:
        assert router.snapshot().replicas == ()
        assert router.choose("m", None, seed=1) is None
        router.set_replica("r0", model="m", policy=RoutingPolicy.AUTO, block_tokens=16, is_ready=True)
    finally:
        fail(0)
    choice = router.choose("m", None, seed=1)
    assert choice is not None
    assert choice.replica_id == "r0"


def test_a_choice_is_what_its_maker_said() -> None:
    made = Choice(replica_id="r", handle=1, reason="load", chosen_s=0.5)
    assert (made.replica_id, made.handle, made.reason, made.chosen_s) == ("r", 1, "load", 0.5)
    assert (made.prompt_tokens, made.started_s, made.is_done) == (1, None, False)
    assert "'r', 'load'" in repr(made)


def test_a_router_is_set_up_once_and_within_limits() -> None:
    router = Router(turn=0)
    with pytest.raises(ValueError, match="set up once"):
        router.__init__(turn=0)  # type: ignore[misc]
    with pytest.raises(ValueError, match="chunk_bytes is 8"):
        Router(RouterSettings(chunk_bytes=8))
    router.set_replica("r0", model="m", policy=RoutingPolicy.AUTO, block_tokens=16, is_ready=True)
    with pytest.raises(ValueError, match="order is 3"):
        router.choose("m", body_of(1), seed=1, order=3)
