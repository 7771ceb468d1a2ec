"""When sessions begin, and what a share of the fleet is."""

from __future__ import annotations

import math

import pytest

from tests.bench.test_mooncake import LINES
from xinf.bench.fleet import FleetSettings
from xinf.bench.mooncake import Trace, TraceLine
from xinf.bench.route_plan import RouteLoad, make_plan
from xinf.bench.route_workload import RouteKind, RouteWorkloadSettings, make_route_workload
from xinf.core.errors import InvalidRequest
from xinf.sim import SimSettings

FLEET = FleetSettings(n_replicas=2, engine=SimSettings(prefill_tokens_per_s=1000.0, step_ms=100.0, max_running=10))
CHAT = make_route_workload(RouteWorkloadSettings(kind=RouteKind.CHAT), 1)


def trace() -> Trace:
    made = [
        TraceLine(line["timestamp"], line["input_length"], line["output_length"], line["hash_ids"]) for line in LINES
    ]  # type: ignore[arg-type]
    return Trace(made, seed=1)


def test_capacity_is_prefill_and_a_share_of_the_steps() -> None:
    # 500 tokens take 0.5 s; 20 steps of 0.1 s with nine others beside it are 0.2 s.
    assert FLEET.capacity_per_s(500, 20) == pytest.approx(2 / 0.7)


def test_engines_without_time_have_no_capacity() -> None:
    with pytest.raises(InvalidRequest, match="take no time have no load"):
        FleetSettings(n_replicas=1, engine=SimSettings()).capacity_per_s(100, 10)


@pytest.mark.parametrize("n", [0, 1001])
def test_fleets_have_a_size(n: int) -> None:
    with pytest.raises(InvalidRequest, match=f"a fleet of {n} replicas, must be 1 to 1000"):
        FleetSettings(n_replicas=n)


def test_rate_is_of_requests_and_sessions_are_whole() -> None:
    plan = make_plan(CHAT, RouteLoad(rate=50.0, n_requests=2000), FLEET, seed=1)
    assert plan.n_requests == sum(len(CHAT.session(n).steps) for n in range(len(plan.starts_s)))
    assert 2000 <= plan.n_requests < 2007
    assert list(plan.starts_s) == sorted(plan.starts_s)
    # Poisson: the end of n arrivals strays by about sqrt(n) of them.
    assert plan.starts_s[-1] == pytest.approx(plan.n_requests / 50.0, rel=4 / math.sqrt(len(plan.starts_s)))


def test_share_is_of_the_capacity_for_these_very_requests() -> None:
    plan = make_plan(CHAT, RouteLoad(share=0.5, n_requests=500), FLEET, seed=1)
    sizes = plan.working_set
    capacity = FLEET.capacity_per_s(sizes.prompt_tokens / sizes.n_requests, sizes.answer_tokens / sizes.n_requests)
    assert plan.rate == pytest.approx(0.5 * capacity)


def test_duration_gives_the_number() -> None:
    plan = make_plan(CHAT, RouteLoad(rate=20.0, duration_s=30.0), FLEET, seed=1)
    assert 600 <= plan.n_requests < 607


def test_plans_of_a_seed_are_equal() -> None:
    one, other = (make_plan(CHAT, RouteLoad(rate=5.0, n_requests=50), FLEET, seed=3) for _ in range(2))
    assert one.starts_s == other.starts_s
    assert make_plan(CHAT, RouteLoad(rate=5.0, n_requests=50), FLEET, seed=4).starts_s != one.starts_s


def test_trace_keeps_its_times_or_is_stretched_to_a_rate() -> None:
    own = make_plan(trace(), RouteLoad(n_requests=10), FLEET, seed=1)
    assert own.starts_s == (0.0, 1.5, 2.0)
    assert own.rate == pytest.approx(1.5)
    assert make_plan(trace(), RouteLoad(duration_s=1.8), FLEET, seed=1).starts_s == (0.0, 1.5)
    stretched = make_plan(trace(), RouteLoad(rate=0.3, n_requests=10), FLEET, seed=1)
    assert stretched.starts_s == pytest.approx((0.0, 7.5, 10.0))


def test_made_up_workloads_need_a_rate() -> None:
    with pytest.raises(InvalidRequest, match=r"no times of its own.*--rate or --load"):
        make_plan(CHAT, RouteLoad(n_requests=10), FLEET, seed=1)


@pytest.mark.parametrize("what", [{"rate": 0.0}, {"share": -1.0}, {"rate": math.inf}, {"share": math.nan}])
def test_a_load_of_nothing_is_refused(what: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match=r"--(rate|load) is .*, must be above 0"):
        RouteLoad(n_requests=10, **what)  # type: ignore[arg-type]


def test_two_ways_to_say_one_thing_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="say the same thing"):
        RouteLoad(rate=1.0, share=1.0, n_requests=1)
    for ends in ({}, {"n_requests": 1, "duration_s": 1.0}):
        with pytest.raises(InvalidRequest, match="needs one end"):
            RouteLoad(rate=1.0, **ends)  # type: ignore[arg-type]
