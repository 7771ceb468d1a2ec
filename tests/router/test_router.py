"""Choosing, spreading, learning and releasing, with a clock that stands still."""

from __future__ import annotations

import random
from collections import Counter

import orjson
import psutil
import pytest

from xinf._fast.scan import Scan, scan
from xinf.core.clock import FakeClock
from xinf.core.config import load
from xinf.core.records import RoutingPolicy
from xinf.router import Choice, LoadView, Router, RouterSettings

BLOCK_TOKENS = 16


def request(text: str = "hello " * 200, **fields: object) -> Scan:
    return scan(orjson.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **fields}))


def router_of(
    n: int, policy: RoutingPolicy = RoutingPolicy.AUTO, *, max_inflight: int = 1000, turn: int | None = 0
) -> tuple[Router, FakeClock]:
    clock = FakeClock()
    router = Router(RouterSettings(max_inflight=max_inflight), clock=clock, turn=turn)
    for i in range(n):
        router.set_replica(f"r{i}", model="m", policy=policy, block_tokens=BLOCK_TOKENS, is_ready=True)
    return router, clock


def choose(router: Router, body: Scan | None = None, **arguments: object) -> Choice:
    choice = router.choose("m", request() if body is None else body, seed=1, **arguments)  # type: ignore[arg-type]
    assert choice is not None
    return choice


def finish(router: Router, choice: Choice, prompt_tokens: int = 300, cached_tokens: int = 0) -> None:
    router.finished(choice, prompt_tokens=prompt_tokens, cached_tokens=cached_tokens, completion_tokens=1, is_ok=True)


def serve(router: Router, clock: FakeClock, body: Scan, *, prompt_tokens: int, cached_tokens: int = 0) -> Choice:
    """One whole request that takes 100 ms."""
    choice = choose(router, body)
    clock.advance(0.1)
    finish(router, choice, prompt_tokens, cached_tokens)
    return choice


# Those that look at prefixes let identical prompts wait for each other: that takes no longer than computing them anew.
@pytest.mark.parametrize("policy", [RoutingPolicy.LEAST_LOAD, RoutingPolicy.ROUND_ROBIN, RoutingPolicy.SESSION])
@pytest.mark.parametrize("n_replicas", range(1, 10))
def test_identical_simultaneous_requests_spread_within_one(policy: RoutingPolicy, n_replicas: int) -> None:
    for n_requests in range(2, 65):
        router, _ = router_of(n_replicas, policy, turn=n_requests)
        counts = Counter(choose(router).replica_id for _ in range(n_requests))
        spread = [counts[f"r{i}"] for i in range(n_replicas)]
        assert max(spread) - min(spread) <= 1, n_requests


@pytest.mark.parametrize("n_replicas", range(1, 10))
def test_identical_simultaneous_requests_do_not_pile_up(n_replicas: int) -> None:
    """A new replica counts as having four slots: about so many wait for one prompt, more only where all are as busy."""
    for n_requests in range(2, 65):
        router, _ = router_of(n_replicas, turn=n_requests)
        counts = Counter(choose(router).replica_id for _ in range(n_requests))
        assert max(counts.values()) <= max(4, -(-n_requests // n_replicas)) + 1, n_requests


def test_identical_requests_of_one_session_spread_too() -> None:
    router, _ = router_of(4)
    counts = Counter(choose(router, request(user="anna")).replica_id for _ in range(10))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_ties_begin_at_random() -> None:
    firsts = {choose(router_of(8, turn=None)[0]).replica_id for _ in range(60)}
    assert len(firsts) > 2


def test_a_prefix_goes_back_to_its_replica() -> None:
    router, clock = router_of(4)
    first = serve(router, clock, request("a" * 4000), prompt_tokens=1000)
    for i in range(3):
        serve(router, clock, request(f"{i}" * 3500), prompt_tokens=900)
    again = choose(router, request("a" * 4000 + "and more"))
    assert again.replica_id == first.replica_id
    assert again.reason == "prefix"
    assert again.matched_bytes >= 3900
    assert 900 <= again.predicted_cached_tokens <= 1000
    assert again.predicted_cached_tokens % BLOCK_TOKENS == 0


def test_less_than_a_block_is_no_prefix() -> None:
    """All chats begin with the same role header: it is found on whoever had any, and worth nothing."""
    router, _ = router_of(4, RoutingPolicy.PREFIX)
    seen = Counter(choose(router, request(f"{i:04d} " * 500)).replica_id for i in range(40))
    assert set(seen.values()) == {10}


def test_a_prefix_does_not_go_back_to_a_busy_replica() -> None:
    router, clock = router_of(2)
    first = serve(router, clock, request("a" * 4000), prompt_tokens=1000)
    router.on_load(first.replica_id, LoadView(running=8, waiting=30, queued_prefill_tokens=30_000))
    other = choose(router, request("a" * 4000))
    assert other.replica_id != first.replica_id
    assert other.reason == "load"


def test_positions_are_learnt_from_usage() -> None:
    router, clock = router_of(1)
    text = "z" * 4000
    serve(router, clock, request(text), prompt_tokens=2000)  # two bytes a token, not four
    again = choose(router, request(text + "y" * 400))
    assert 2000 * (1 - 1 / 16) - 2 * BLOCK_TOKENS <= again.predicted_cached_tokens <= 2000
    assert router.snapshot().bytes_per_token["m"] == pytest.approx(2.0, rel=0.02)


def test_a_prediction_that_does_not_come_true_loses_trust() -> None:
    router, clock = router_of(1)
    body = request("q" * 4000)
    serve(router, clock, body, prompt_tokens=1000)
    trusting = choose(router, body)
    finish(router, trusting, 1000, 0)
    for _ in range(30):
        serve(router, clock, body, prompt_tokens=1000, cached_tokens=0)
    view = router.snapshot().replicas[0]
    assert view.trust < 0.1
    assert choose(router, body).predicted_cached_tokens < trusting.predicted_cached_tokens / 5
    for _ in range(60):
        serve(router, clock, body, prompt_tokens=1000, cached_tokens=992)
    assert router.snapshot().replicas[0].trust > 0.9


def test_rates_are_learnt() -> None:
    router, clock = router_of(1)
    choice = choose(router, request("w" * 8000, stream=True))
    clock.advance(0.5)
    router.started(choice)
    clock.advance(1.5)
    router.finished(choice, prompt_tokens=2000, cached_tokens=0, completion_tokens=100, is_ok=True)
    view = router.snapshot().replicas[0]
    assert view.prefill_tokens_per_s == pytest.approx(4000)
    assert view.service_s == pytest.approx(2.0)


def stream(router: Router, clock: FakeClock, n_tokens: int, first_s: float, *, answer_s: float = 0.5) -> Choice:
    """One streamed request of so many tokens, none of them cached, alone on its replica."""
    choice = choose(router, request(f"{n_tokens} " * (4 * n_tokens // 5), stream=True))
    clock.advance(first_s)
    router.started(choice)
    clock.advance(answer_s)
    router.finished(choice, prompt_tokens=n_tokens, cached_tokens=0, completion_tokens=50, is_ok=True)
    return choice


def rate_of(router: Router, replica: int = 0) -> float:
    return router.snapshot().replicas[replica].prefill_tokens_per_s


def test_fixed_costs_are_told_from_the_rate() -> None:
    router, clock = router_of(1)
    for n_tokens in (80, 2000, 300, 800, 4000, 120, 1500):
        stream(router, clock, n_tokens, 0.015 + n_tokens / 20_000)
    assert rate_of(router) == pytest.approx(20_000, rel=0.01)
    for _ in range(60):  # prompts of one size say nothing of what is fixed: it holds on
        stream(router, clock, 100, 0.015 + 100 / 20_000)
    assert rate_of(router) == pytest.approx(20_000, rel=0.05)


def test_a_request_that_stalled_does_not_ruin_the_rate() -> None:
    router, clock = router_of(1)
    for n_tokens in (80, 2000, 300, 800, 4000, 120, 1500) * 3:
        stream(router, clock, n_tokens, 0.015 + n_tokens / 20_000)
    stream(router, clock, 1000, 60.0)
    assert rate_of(router) > 15_000


def test_an_engine_that_became_slow_is_believed() -> None:
    router, clock = router_of(1)
    for speed in (20_000, 4_000):
        for n_tokens in (80, 2000, 300, 800, 4000, 120, 1500) * 12:
            stream(router, clock, n_tokens, 0.015 + n_tokens / speed)
        assert rate_of(router) == pytest.approx(speed, rel=0.15)


def test_requests_that_decode_are_not_queued_where_nothing_is_reported() -> None:
    router, clock = router_of(1)
    rng = random.Random(1)
    open_choices: list[tuple[Choice, int]] = []
    for _ in range(60):  # four at a time, of which three decode
        n_tokens = rng.randrange(200, 4000)
        choice = choose(router, request(f"{rng.random()} " * (n_tokens // 5), stream=True))
        clock.advance(0.015 + n_tokens / 20_000)
        router.started(choice)
        open_choices.append((choice, n_tokens))
        if len(open_choices) == 4:
            done, n_done = open_choices.pop(0)
            router.finished(done, prompt_tokens=n_done, cached_tokens=0, completion_tokens=9, is_ok=True)
    assert rate_of(router) == pytest.approx(20_000, rel=0.02)


def test_who_had_to_wait_for_a_slot_teaches_no_rate() -> None:
    router, clock = router_of(1)
    router.on_load("r0", LoadView(running=64, waiting=3, queued_prefill_tokens=500))
    choice = choose(router, request("w" * 8000, stream=True))
    clock.advance(9.0)
    router.started(choice)
    router.finished(choice, prompt_tokens=2000, cached_tokens=0, completion_tokens=9, is_ok=True)
    assert rate_of(router) == 8000


def test_replicas_that_differ_little_count_as_equal_and_unused_ones_as_the_others() -> None:
    router, clock = router_of(4)
    speeds = {"r0": 20_000, "r1": 22_000, "r2": 8_000}
    for n_tokens in (80, 2000, 300, 800, 4000, 120, 1500) * 8:
        for name, speed in speeds.items():
            others = [f"r{i}" for i in range(4) if f"r{i}" != name]
            choice = choose(router, request(f"{n_tokens} {name}" * n_tokens, stream=True), exclude=others)
            clock.advance(0.015 + n_tokens / speed)
            router.started(choice)
            router.finished(choice, prompt_tokens=n_tokens, cached_tokens=0, completion_tokens=9, is_ok=True)
    rates = [rate_of(router, replica) for replica in range(4)]
    assert rates[0] == pytest.approx(rates[1], rel=0.1)
    assert rates[2] < 0.75 * rates[0]
    assert min(rates[:3]) < rates[3] < max(rates[:3])


def test_the_first_byte_of_a_whole_answer_teaches_no_rate() -> None:
    router, clock = router_of(1)
    choice = choose(router, request("w" * 8000))
    clock.advance(5.0)
    router.started(choice)
    router.finished(choice, prompt_tokens=2000, cached_tokens=0, completion_tokens=100, is_ok=True)
    assert router.snapshot().replicas[0].prefill_tokens_per_s == 8000


def test_queued_tokens_of_others_count_in_the_rate() -> None:
    router, clock = router_of(1)
    router.on_load("r0", LoadView(waiting=1, queued_prefill_tokens=6000))
    choice = choose(router, request("w" * 8000, stream=True))
    clock.advance(1.0)
    router.started(choice)
    router.finished(choice, prompt_tokens=2000, cached_tokens=0, completion_tokens=100, is_ok=True)
    assert router.snapshot().replicas[0].prefill_tokens_per_s == pytest.approx(8000)


def test_finished_releases_once() -> None:
    router, _ = router_of(1)
    one, two = choose(router), choose(router)
    assert router.inflight("r0") == 2
    for _ in range(3):
        finish(router, one)
    assert router.inflight("r0") == 1
    finish(router, two)
    assert router.inflight("r0") == 0
    assert router.snapshot().replicas[0].answers == 2


def test_a_failed_request_leaves_no_claim_in_the_index() -> None:
    router, clock = router_of(2)
    shared = serve(router, clock, request("s" * 640), prompt_tokens=160)
    failed = choose(router, request("s" * 640 + "t" * 6400))
    held = {view.replica_id: view.held_chunks for view in router.snapshot().replicas}
    router.finished(failed, prompt_tokens=0, cached_tokens=0, completion_tokens=0, is_ok=False)
    after = {view.replica_id: view.held_chunks for view in router.snapshot().replicas}
    assert after[failed.replica_id] < held[failed.replica_id]
    assert after[shared.replica_id] >= 11


def test_load_reports_count_nothing_twice() -> None:
    router, _ = router_of(1)
    choices = [choose(router) for _ in range(3)]
    for number, choice in enumerate(choices, start=1):
        router.submitted(choice, number)
    assert router.snapshot().replicas[0].uncounted == 3
    router.on_load("r0", LoadView(running=2, queued_prefill_tokens=700, last_submit=2))
    assert router.snapshot().replicas[0].uncounted == 1
    terms = router.explain("m", request("x"), seed=1)[0].terms
    own = choices[2].prompt_tokens - choices[2].predicted_cached_tokens
    assert terms.queued_s == pytest.approx((700 + own) / 8000)
    assert terms.decode_s == pytest.approx(terms.prefill_s * (4 + 3 / 16))  # three are there, each of them once


def test_reports_that_stop_count_for_nothing_after_two_seconds() -> None:
    router, clock = router_of(2)
    router.on_load("r0", LoadView(running=60, waiting=30, queued_prefill_tokens=50_000))
    router.on_load("r1", LoadView(running=1))
    clock.advance(1.9)
    router.on_load("r1", LoadView(running=1))
    assert {choose(router, request(f"{i}")).replica_id for i in range(6)} == {"r1"}
    clock.advance(0.2)
    assert {choose(router, request(f"{i}")).replica_id for i in range(6)} == {"r0"}  # r1 has the six of before


def test_a_new_replica_is_taken_for_as_fast_as_its_peers() -> None:
    router, clock = router_of(2)
    for _ in range(4):
        choice = choose(router, request("w" * 8000, stream=True))
        clock.advance(0.5)
        router.started(choice)
        clock.advance(1.5)
        router.finished(choice, prompt_tokens=2000, cached_tokens=0, completion_tokens=9, is_ok=True)
    router.set_replica("new", model="m", policy=RoutingPolicy.AUTO, block_tokens=BLOCK_TOKENS, is_ready=True)
    router.set_replica("other", model="n", policy=RoutingPolicy.AUTO, block_tokens=BLOCK_TOKENS, is_ready=True)
    views = {view.replica_id: view for view in router.snapshot().replicas}
    assert views["new"].prefill_tokens_per_s == pytest.approx(views["r0"].prefill_tokens_per_s, rel=0.5)
    assert views["new"].prefill_tokens_per_s < 5000
    assert views["new"].service_s == pytest.approx(2.0)
    assert views["other"].prefill_tokens_per_s == 8000


def test_slots_count_as_answers_show_them() -> None:
    router, clock = router_of(1)
    router.on_load("r0", LoadView(running=8))
    costs = []
    for _ in range(40):
        costs.append(router.explain("m", request("x"), seed=1)[0].terms.decode_s / 0.5)
        router.finished(choose(router, None), prompt_tokens=0, cached_tokens=0, completion_tokens=0, is_ok=False)
    assert costs == pytest.approx([5 / 4] * 40, rel=0.01)  # five wait for one of four slots
    for n in range(1, 40):
        choice = choose(router)
        clock.advance(0.5)
        router.on_load("r0", LoadView(running=8))
        router.finished(choice, prompt_tokens=9, cached_tokens=0, completion_tokens=9, is_ok=True)
        slots = min(64, 4 + 2 * n)
        wait_s = max(0, 9 - slots) * 0.5 / slots
        assert router.explain("m", request("x"), seed=1)[0].terms.decode_s == pytest.approx(wait_s, rel=0.05, abs=0.03)


def test_what_affinity_saves_is_counted() -> None:
    router, clock = router_of(2)
    first = serve(router, clock, request("a" * 4000), prompt_tokens=1000)
    other = "r1" if first.replica_id == "r0" else "r0"
    # Something is queued on the one that holds it: least-load would choose the other.
    router.on_load(first.replica_id, LoadView(queued_prefill_tokens=400))
    router.on_load(other, LoadView())
    costs = {view.replica_id: view.terms.total_s for view in router.explain("m", request("a" * 4000), seed=1)}
    choice = choose(router, request("a" * 4000))
    assert choice.replica_id == first.replica_id
    finish(router, choice, 1000, choice.predicted_cached_tokens)
    savings = router.snapshot().savings["m"]
    assert savings.n_compared == 2
    assert savings.saved_s == pytest.approx(costs[other] - costs[first.replica_id])
    assert savings.regret_s == 0


def test_affinity_that_did_not_come_true_is_regretted() -> None:
    router, clock = router_of(2)
    first = serve(router, clock, request("a" * 4000), prompt_tokens=1000)
    other = "r1" if first.replica_id == "r0" else "r0"
    router.on_load(first.replica_id, LoadView(queued_prefill_tokens=400))
    router.on_load(other, LoadView())
    costs = {view.replica_id: view.terms.total_s for view in router.explain("m", request("b" * 4000), seed=1)}
    choice = choose(router, request("a" * 4000))
    finish(router, choice, 1000, 0)
    savings = router.snapshot().savings["m"]
    assert savings.saved_s == 0
    # Without a prefix it would have been the other one.
    assert savings.regret_s == pytest.approx(costs[first.replica_id] - costs[other], rel=0.1)


def test_nothing_is_saved_where_least_load_chooses_the_same() -> None:
    router, clock = router_of(1)
    for _ in range(3):
        serve(router, clock, request("a" * 4000), prompt_tokens=1000, cached_tokens=500)
    savings = router.snapshot().savings["m"]
    assert (savings.n_compared, savings.saved_s, savings.regret_s) == (3, 0, 0)


def test_of_many_replicas_some_choices_are_compared() -> None:
    router, clock = router_of(40)
    for i in range(64):
        serve(router, clock, request(f"{i}" * 400), prompt_tokens=1000)
    assert router.snapshot().savings["m"].n_compared == 4


def test_comparing_does_not_change_what_is_chosen() -> None:
    """The rotation of ties goes on as if nobody had compared."""
    names = []
    for policy in (RoutingPolicy.AUTO, RoutingPolicy.LEAST_LOAD):
        router, _ = router_of(5, policy)
        for _ in range(20):
            choice = choose(router, request("b" * 640))
            names.append(choice.replica_id)
            router.finished(choice, prompt_tokens=0, cached_tokens=0, completion_tokens=0, is_ok=False)
    assert names[:20] == names[20:]


def test_nobody_is_chosen_when_nobody_is_open() -> None:
    router, _ = router_of(2, max_inflight=1)
    assert router.choose("other", request(), seed=1) is None
    assert {choose(router).replica_id, choose(router).replica_id} == {"r0", "r1"}
    assert router.choose("m", request(), seed=1) is None
    for i in range(2):
        router.set_replica(f"r{i}", model="m", policy=RoutingPolicy.AUTO, block_tokens=16, is_ready=False)
    assert Router().choose("m", None, seed=1) is None


@pytest.mark.parametrize("policy", list(RoutingPolicy))
def test_excluded_and_full_replicas_are_not_chosen(policy: RoutingPolicy) -> None:
    router, _ = router_of(3, policy, max_inflight=2)
    body = request(user="u")
    choices = [router.choose("m", body, seed=1, exclude={"r1", "unknown"}) for _ in range(5)]
    names = Counter(choice.replica_id for choice in choices if choice is not None)
    assert names == {"r0": 2, "r2": 2}
    assert choices[-1] is None


def test_a_replica_that_is_not_ready_keeps_what_it_holds() -> None:
    router, clock = router_of(2)
    first = serve(router, clock, request("k" * 4000), prompt_tokens=1000)

    def set_ready(is_ready: bool) -> None:
        router.set_replica(
            first.replica_id, model="m", policy=RoutingPolicy.AUTO, block_tokens=BLOCK_TOKENS, is_ready=is_ready
        )

    set_ready(False)
    assert choose(router, request("other")).replica_id != first.replica_id
    set_ready(True)
    assert choose(router, request("k" * 4000)).predicted_cached_tokens > 900


def test_a_removed_replica_is_forgotten_and_its_requests_end_quietly() -> None:
    router, clock = router_of(2)
    first = serve(router, clock, request("k" * 4000), prompt_tokens=1000)
    open_choice = choose(router, request("k" * 4000))
    router.remove_replica(first.replica_id)
    router.remove_replica(first.replica_id)
    router.on_load(first.replica_id, LoadView(running=3))
    router.submitted(open_choice, 5)
    router.started(open_choice)
    finish(router, open_choice, 1000, 900)
    assert router.inflight(first.replica_id) == 0
    router.set_replica(first.replica_id, model="m", policy=RoutingPolicy.AUTO, block_tokens=BLOCK_TOKENS, is_ready=True)
    view = next(view for view in router.snapshot().replicas if view.replica_id == first.replica_id)
    assert (view.held_chunks, view.answers) == (0, 0)


def test_a_replica_may_change_its_model() -> None:
    router, _ = router_of(1)
    router.set_replica("r0", model="new", policy=RoutingPolicy.AUTO, block_tokens=16, is_ready=True)
    assert router.choose("m", request(), seed=1) is None
    assert router.choose("new", request(), seed=1) is not None


def test_seeds_keep_prefixes_apart() -> None:
    router, clock = router_of(1)
    serve(router, clock, request("k" * 4000), prompt_tokens=1000)
    other = router.choose("m", request("k" * 4000), seed=2)
    assert other is not None
    assert other.matched_bytes == 0


def test_sessions_stay_under_the_session_policy() -> None:
    router, _ = router_of(5, RoutingPolicy.SESSION)
    homes = {name: choose(router, request(session_id=name)).replica_id for name in "abcdefghij"}
    assert len(set(homes.values())) > 1
    assert all(choose(router, request(session_id=name)).replica_id == home for name, home in homes.items())
    assert choose(router, request(), session=b"a").replica_id == homes["a"]
    assert choose(router, request(session_id="z"), session=b"a").replica_id == homes["a"]


def test_a_session_breaks_ties_under_auto() -> None:
    router, _ = router_of(6)
    homes = set()
    for i in range(12):
        choice = choose(router, request(f"a new question {i}", user="anna"))
        homes.add(choice.replica_id)
        router.finished(choice, prompt_tokens=0, cached_tokens=0, completion_tokens=0, is_ok=False)
    assert len(homes) == 1


def test_bodies_without_a_scan_are_routed_by_load() -> None:
    router, _ = router_of(2)
    names = []
    for _ in range(4):
        choice = router.choose("m", None, seed=1)
        assert choice is not None
        assert choice.reason == "load"
        names.append(choice.replica_id)
    assert Counter(names) == {"r0": 2, "r1": 2}


def test_least_load_looks_at_no_prefix() -> None:
    router, _ = router_of(2, RoutingPolicy.LEAST_LOAD)
    assert choose(router).n_marks == 0
    assert router.snapshot().replicas[0].index_state == "off"


def test_an_index_of_no_bytes_is_off() -> None:
    router = Router(RouterSettings(index_max_bytes=0), clock=FakeClock(), turn=0)
    router.set_replica("r0", model="m", policy=RoutingPolicy.AUTO, block_tokens=16, is_ready=True)
    choice = choose(router)
    finish(router, choice)
    assert router.snapshot().replicas[0].index_state == "off"


def test_token_ids_are_counted_as_they_are() -> None:
    router, _ = router_of(1)
    choice = choose(router, scan(orjson.dumps({"prompt": list(range(777))})))
    assert choice.prompt_tokens == 777


def test_several_answers_teach_nothing_about_the_text() -> None:
    router, clock = router_of(1)
    choice = choose(router, request("n" * 400, n=4))
    clock.advance(0.1)
    finish(router, choice, 400)
    assert router.snapshot().bytes_per_token["m"] == 4.0


def test_explain_changes_nothing_and_names_the_cheapest_first() -> None:
    router, clock = router_of(3)
    first = serve(router, clock, request("k" * 4000), prompt_tokens=1000)
    before = router.snapshot()
    views = router.explain("m", request("k" * 4000), seed=1)
    assert views[0].replica_id == first.replica_id
    assert views[0].terms.total_s < views[1].terms.total_s
    assert views[0].matched_bytes > 3900
    assert router.snapshot() == before
    assert choose(router, request("k" * 4000)).replica_id == first.replica_id
    assert router.explain("unknown", None, seed=1) == ()


def test_explain_says_who_is_closed_and_why() -> None:
    router, _ = router_of(4, max_inflight=2)
    router.set_replica("r1", model="m", policy=RoutingPolicy.AUTO, block_tokens=BLOCK_TOKENS, is_ready=False)
    while router.inflight("r2") < 2:
        choose(router, exclude={"r0", "r3"})
    views = {view.replica_id: view for view in router.explain("m", request(), seed=1, exclude={"r0"})}
    assert {name: view.closed for name, view in views.items()} == {
        "r0": "tried",
        "r1": "not_ready",
        "r2": "full",
        "r3": None,
    }
    assert views["r2"].inflight == 2
    assert [name for name, view in views.items() if view.reason is not None] == ["r3"]
    assert {view.index_state for view in views.values()} == {"approx"}


def test_explain_names_the_favourite_of_a_session() -> None:
    router, _ = router_of(5, RoutingPolicy.SESSION)
    for session in (b"anna", b"ben", b"carl"):
        views = router.explain("m", request(), seed=1, session=session)
        choice = choose(router, session=session)
        assert [(view.replica_id, view.reason) for view in views if view.reason] == [(choice.replica_id, "session")]
        assert {view.index_state for view in views} == {"off"}


def test_choice_keeps_what_was_predicted_and_lets_its_marks_go() -> None:
    router, clock = router_of(1)
    text = "k" * 400_000
    serve(router, clock, request(text), prompt_tokens=100_000)
    kept = []
    before = psutil.Process().memory_info().rss
    for i in range(10_000):
        choice = choose(router, request(text[: 350_000 + i]) if i % 100 == 0 else request(text))
        seen = (choice.matched_tokens, choice.matched_bytes, choice.predicted_cached_tokens)
        finish(router, choice, 90_000 + i, 80_000)
        assert (choice.matched_tokens, choice.matched_bytes, choice.predicted_cached_tokens) == seen
        kept.append(choice)
    assert kept[0].n_marks >= 150  # 12 bytes each: 18 MB, if they were kept
    assert psutil.Process().memory_info().rss - before < 10 << 20


def test_settings_come_from_the_configuration() -> None:
    config = load(environ={})
    settings = RouterSettings.of(config.routing, max_inflight=7)
    assert settings == RouterSettings(max_inflight=7)


def test_many_rows_are_used_again() -> None:
    router, _ = router_of(0)
    for round_number in range(5):
        for i in range(50):
            router.set_replica(
                f"x{round_number}-{i}", model="m", policy=RoutingPolicy.AUTO, block_tokens=1, is_ready=True
            )
        for i in range(50):
            router.remove_replica(f"x{round_number}-{i}")
    assert router._n_rows() == 50
    assert router.choose("m", request(), seed=1) is None
