"""What the policies come to in `xinf simulate`, in small: `auto` loses to neither of what it is made of."""

from __future__ import annotations

import functools

import msgspec
import pytest

from xinf.bench.fleet import ENGINE, FleetSettings
from xinf.bench.route_plan import RouteLoad, make_plan
from xinf.bench.route_report import RouteSummary, summarize_route
from xinf.bench.route_workload import RouteKind, RouteWorkloadSettings, make_route_workload
from xinf.bench.slo import parse_slo
from xinf.bench.virtual_fleet import GatewaySettings, VirtualFleet
from xinf.bench.working_set import size_pool
from xinf.core.records import RoutingPolicy

N_REPLICAS = 4
AGENTS = (RouteKind.AGENTS, 7.0)  # far more work than the pools allow: three runs spread by a factor of three
HOT = (RouteKind.HOT_PREFIX, 50.0)
CASES = [(RouteKind.CHAT, 50.0), HOT, (RouteKind.DOCUMENTS, 50.0)]


@functools.cache
def play(kind: RouteKind, pool_pct: float, policy: RoutingPolicy, seed: int) -> RouteSummary:
    """600 requests at 0.9 of what the fleet can do without caches."""
    fleet = FleetSettings(n_replicas=N_REPLICAS)
    workload = make_route_workload(RouteWorkloadSettings(kind=kind), seed)
    plan = make_plan(workload, RouteLoad(share=0.9, n_requests=600), fleet, seed)
    kv_blocks = size_pool(plan.working_set, pool_pct, N_REPLICAS).kv_blocks
    fleet = msgspec.structs.replace(fleet, engine=msgspec.structs.replace(ENGINE, kv_blocks=kv_blocks))
    outcome = VirtualFleet(fleet, policy, GatewaySettings()).run(plan)
    return summarize_route(outcome, slo=parse_slo("ttft=1s"), block_tokens=ENGINE.block_tokens, has_predictions=False)


def p99_s(kind: RouteKind, pool_pct: float, policy: RoutingPolicy) -> float:
    """The median of three seeds."""
    found = []
    for seed in range(3):
        ttft = play(kind, pool_pct, policy, seed).ttft
        assert ttft is not None
        found.append(ttft.percentiles["p99"])
    return sorted(found)[1]


def good(kind: RouteKind, pool_pct: float, policy: RoutingPolicy) -> int:
    return sum(play(kind, pool_pct, policy, seed).n_good for seed in range(3))


@pytest.mark.parametrize(("kind", "pool_pct"), CASES)
@pytest.mark.parametrize("other", [RoutingPolicy.LEAST_LOAD, RoutingPolicy.PREFIX])
def test_auto_is_no_worse(kind: RouteKind, pool_pct: float, other: RoutingPolicy) -> None:
    """Within what three small runs can tell: 10 % of the TTFT's p99."""
    assert p99_s(kind, pool_pct, RoutingPolicy.AUTO) <= 1.1 * p99_s(kind, pool_pct, other)


@pytest.mark.parametrize(("kind", "pool_pct"), [*CASES, AGENTS])
def test_auto_answers_as_many_in_time_as_least_load(kind: RouteKind, pool_pct: float) -> None:
    assert good(kind, pool_pct, RoutingPolicy.AUTO) >= 0.99 * good(kind, pool_pct, RoutingPolicy.LEAST_LOAD)


def test_auto_keeps_kinds_of_prompts_apart_where_caches_are_small() -> None:
    """Pools that hold one kind's prompts each: who spreads them computes most of all of them again."""
    auto, least_load = (
        sum(play(*AGENTS, policy, seed).hit_share or 0.0 for seed in range(3))
        for policy in (RoutingPolicy.AUTO, RoutingPolicy.LEAST_LOAD)
    )
    assert auto > 1.4 * least_load


@pytest.mark.parametrize("case", [CASES[0], CASES[2], AGENTS])
def test_auto_beats_least_load_where_prompts_share_something(case: tuple[RouteKind, float]) -> None:
    assert p99_s(*case, RoutingPolicy.AUTO) < 0.9 * p99_s(*case, RoutingPolicy.LEAST_LOAD)


def test_auto_does_not_let_one_prefix_overload_anybody() -> None:
    assert p99_s(*HOT, RoutingPolicy.AUTO) < 0.5 * p99_s(*HOT, RoutingPolicy.PREFIX)
