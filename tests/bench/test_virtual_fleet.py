"""The simulation: deterministic, conserving, and the same router as the gateway's."""

from __future__ import annotations

import msgspec
import pytest

from tests.bench.test_route_workload import MADE_UP, workload_of
from xinf.bench.fleet import FleetSettings
from xinf.bench.record import Failure, Record
from xinf.bench.route_document import RouteSettings, read_route_document, write_route_document
from xinf.bench.route_driver import RouteOutcome
from xinf.bench.route_plan import RouteLoad, RoutePlan, make_plan
from xinf.bench.route_run import VirtualSite, check_policies, plan_route_runs, read_engine_arguments, run_route
from xinf.bench.route_workload import RouteKind, RouteWorkloadSettings
from xinf.bench.virtual_fleet import GatewaySettings, VirtualFleet
from xinf.bench.virtual_residency import Telling
from xinf.bench.working_set import size_pool
from xinf.core.errors import InvalidRequest
from xinf.core.records import RoutingPolicy
from xinf.router import RouterSettings
from xinf.sim import SimSettings

ENGINE = SimSettings(
    prefill_tokens_per_s=20_000.0, step_ms=10.0, max_running=16, max_batched_tokens=2048, kv_blocks=2000
)
FLEET = FleetSettings(n_replicas=4, engine=ENGINE)


def plan_of(kind: RouteKind, n_requests: int = 150, share: float = 0.9) -> RoutePlan:
    return make_plan(workload_of(kind), RouteLoad(share=share, n_requests=n_requests), FLEET, seed=1)


def play(
    plan: RoutePlan,
    policy: RoutingPolicy = RoutingPolicy.AUTO,
    fleet: FleetSettings = FLEET,
    gateway: GatewaySettings | None = None,
) -> RouteOutcome:
    return VirtualFleet(fleet, policy, gateway or GatewaySettings()).run(plan)


def facts(records: list[Record]) -> list[object]:
    return [msgspec.to_builtins(record) for record in records]


@pytest.mark.parametrize("kind", MADE_UP)
@pytest.mark.parametrize("policy", [RoutingPolicy.AUTO, RoutingPolicy.ROUND_ROBIN])
def test_every_request_ends_once(kind: RouteKind, policy: RoutingPolicy) -> None:
    plan = plan_of(kind)
    outcome = play(plan, policy)
    assert outcome.n_skipped == 0
    asked = {(n, step) for n in range(len(plan.starts_s)) for step in range(len(plan.workload.session(n).steps))}
    assert len(outcome.records) == plan.n_requests == len(asked)
    assert {(record.session, record.turn) for record in outcome.records} == asked
    for record in outcome.records:
        step = plan.workload.session(record.session).steps[record.turn]
        assert record.failure is None
        assert record.completion_tokens == step.max_tokens
        assert record.first_token_s is not None
        assert record.intended_s < record.first_token_s <= record.end_s
        assert record.replica in outcome.replicas


@pytest.mark.parametrize("policy", list(RoutingPolicy))
def test_runs_are_deterministic(policy: RoutingPolicy) -> None:
    plan = plan_of(RouteKind.AGENTS)
    assert facts(play(plan, policy).records) == facts(play(plan, policy).records)


def test_steps_wait_for_the_answer_that_they_follow_and_the_pause() -> None:
    plan = plan_of(RouteKind.AGENTS)
    by_step = {(record.session, record.turn): record for record in play(plan).records}
    for (session, turn), record in by_step.items():
        step = plan.workload.session(session).steps[turn]
        begins_s = (
            plan.starts_s[session] if step.follows is None else by_step[session, step.follows].end_s + step.pause_s
        )
        assert record.intended_s == pytest.approx(begins_s)


def test_hits_are_what_engines_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted apart from records: the tokens that the engines' caches did not have to compute."""
    from xinf.sim import SimEngine

    found: list[int] = []
    admit = SimEngine._admit

    def counting(self: SimEngine, now_s: float, budget: int) -> int | None:
        first = next(one for one in self._waiting if not one.is_done)
        admitted = admit(self, now_s, budget)
        if admitted is not None and first.preemptions == 0:
            found.append(first.cached_tokens)
        return admitted

    monkeypatch.setattr(SimEngine, "_admit", counting)
    outcome = play(plan_of(RouteKind.CHAT))
    assert sum(found) == sum(record.cached_tokens or 0 for record in outcome.records) > 0


def test_one_replica_with_room_finds_all_that_is_shared() -> None:
    plan = plan_of(RouteKind.CHAT, n_requests=300, share=0.1)
    engine = msgspec.structs.replace(ENGINE, kv_blocks=50_000)
    records = play(plan, fleet=FleetSettings(n_replicas=1, engine=engine)).records
    hit_share = sum(record.cached_tokens or 0 for record in records) / plan.working_set.prompt_tokens
    # An answer is cached before it comes back in a prompt for the first time.
    sessions = [plan.workload.session(number) for number in range(len(plan.starts_s))]
    answers = sum(step.max_tokens for one in sessions for number, step in enumerate(one.steps) if one.followers(number))
    assert hit_share == pytest.approx(
        plan.working_set.shared_share + answers / plan.working_set.prompt_tokens, abs=0.01
    )


def test_round_robin_goes_by_turns() -> None:
    records = play(plan_of(RouteKind.RANDOM, n_requests=100), RoutingPolicy.ROUND_ROBIN).records
    counts = [sum(record.replica == name for record in records) for name in {record.replica for record in records}]
    assert counts == [25] * 4


def test_session_policy_keeps_a_session_on_one_replica() -> None:
    records = play(plan_of(RouteKind.CHAT), RoutingPolicy.SESSION).records
    homes: dict[int, set[str | None]] = {}
    for record in records:
        homes.setdefault(record.session, set()).add(record.replica)
    assert all(len(home) == 1 for home in homes.values())
    assert len(set.union(*homes.values())) == 4


def test_full_replicas_make_requests_wait_and_a_full_room_refuses_them() -> None:
    plan = plan_of(RouteKind.RANDOM, n_requests=60, share=50.0)
    tight = GatewaySettings(router=RouterSettings(max_inflight=2), max_waiting=10)
    outcome = play(plan, gateway=tight)
    refused = [record for record in outcome.records if record.failure is not None]
    assert len(outcome.records) == plan.n_requests
    assert refused
    assert all((record.failure, record.status) == (Failure.STATUS, 429) for record in refused)
    roomy = GatewaySettings(router=RouterSettings(max_inflight=2), max_waiting=1000, waiting_timeout_s=1e6)
    waited = play(plan, gateway=roomy)
    assert all(record.failure is None for record in waited.records)
    # Nobody has more than two at once.
    events = sorted(
        event
        for record in waited.records
        for event in ((record.first_token_s or 0.0, 1, record.replica), (record.end_s, 0, record.replica))
    )
    inside: dict[str | None, int] = {}
    for _, is_begin, name in events:
        inside[name] = inside.get(name, 0) + (1 if is_begin else -1)
        assert inside[name] <= 2


def test_who_waits_too_long_is_refused_and_what_follows_is_skipped() -> None:
    plan = plan_of(RouteKind.CHAT, n_requests=80, share=50.0)
    impatient = GatewaySettings(router=RouterSettings(max_inflight=1), max_waiting=1000, waiting_timeout_s=0.5)
    outcome = play(plan, gateway=impatient)
    refused = [record for record in outcome.records if record.status == 429]
    assert refused
    assert all(record.e2e_s == pytest.approx(0.5) for record in refused)
    assert outcome.n_skipped == sum(plan.workload.session(record.session).below(record.turn) for record in refused)
    assert len(outcome.records) + outcome.n_skipped == plan.n_requests


def test_late_reports_change_choices() -> None:
    plan = plan_of(RouteKind.HOT_PREFIX, n_requests=300)
    prompt, late = (play(plan, gateway=GatewaySettings(report_delay_s=delay_s)) for delay_s in (0.0, 0.5))
    assert [record.replica for record in prompt.records] != [record.replica for record in late.records]


def test_thousand_replicas_share_the_work() -> None:
    fleet = FleetSettings(n_replicas=1000, engine=ENGINE)
    plan = make_plan(workload_of(RouteKind.RANDOM), RouteLoad(share=0.5, n_requests=2000), fleet, seed=1)
    records = play(plan, fleet=fleet).records
    assert all(record.failure is None for record in records)
    assert len({record.replica for record in records}) > 600


# ---- comparisons ----------------------------------------------------------------------------------------------------


def settings_of(**fields: object) -> RouteSettings:
    given = {
        "workloads": (RouteWorkloadSettings(kind=RouteKind.CHAT), RouteWorkloadSettings(kind=RouteKind.RANDOM)),
        "policies": ("auto", "least_load", "prefix"),
        "load": RouteLoad(share=0.7, n_requests=60),
        "fleet": FLEET,
        "is_simulated": True,
        "pools_pct": (50.0, 150.0),
        "n_repeats": 3,
        "seed": 5,
    }
    return RouteSettings(**(given | fields))  # type: ignore[arg-type]


def test_policies_begin_in_turns_and_meet_the_same_requests() -> None:
    runs = list(plan_route_runs(settings_of()))
    assert len(runs) == 2 * 2 * 3 * 3
    begins = [runs[at].policy for at in range(0, len(runs), 3)]
    assert [begins.count(policy) for policy in ("auto", "least_load", "prefix")] == [4, 4, 4]
    for at in range(0, len(runs), 3):
        group = runs[at : at + 3]
        assert {run.policy for run in group} == {"auto", "least_load", "prefix"}
        assert len({(run.seed, run.workload.kind, run.pool_pct) for run in group}) == 1
    assert {run.seed for run in runs} == {5, 6, 7}


def test_document_has_every_case_and_survives_the_file(tmp_path: object) -> None:
    from pathlib import Path

    document = run_route(settings_of(n_repeats=2, keeps_records=True), VirtualSite(GatewaySettings()), lambda _: None)
    assert len(document.results) == 24
    assert len(document.points) == 12
    assert {point.n_repeats for point in document.points} == {2}
    small, large = (
        next(r for r in document.results if r.case.pool_pct == pool and r.case.workload == "chat")
        for pool in (50.0, 150.0)
    )
    assert small.kv_blocks is not None
    assert large.kv_blocks == pytest.approx(3 * small.kv_blocks, abs=3)
    assert all(result.records and len(result.records) == result.summary.n_planned for result in document.results)
    path = Path(str(tmp_path)) / "route.json"
    write_route_document(document, path)
    assert read_route_document(path) == document


def test_pool_too_small_for_a_request_is_raised_and_said() -> None:
    document = run_route(settings_of(pools_pct=(0.1,), n_repeats=1), VirtualSite(GatewaySettings()), lambda _: None)
    assert all(result.is_pool_raised for result in document.results)
    assert all(result.summary.n_good == result.summary.n_planned for result in document.results)


def test_interrupt_keeps_the_runs_that_were_complete() -> None:
    class Interrupted(VirtualSite):
        n_runs = 0

        def run(self, *args: object) -> RouteOutcome:
            self.n_runs += 1
            if self.n_runs == 3:
                raise KeyboardInterrupt
            return super().run(*args)  # type: ignore[arg-type]

    document = run_route(settings_of(), Interrupted(GatewaySettings()), lambda _: None)
    assert document.is_interrupted
    assert len(document.results) == 2


def test_engines_that_no_request_fits_are_refused() -> None:
    tiny = FleetSettings(n_replicas=1, engine=msgspec.structs.replace(ENGINE, kv_blocks=4))
    with pytest.raises(InvalidRequest, match=r"the longest request needs \d+ tokens of KV, an engine has 64.*--pool"):
        run_route(settings_of(pools_pct=None, fleet=tiny), VirtualSite(GatewaySettings()), lambda _: None)


def test_policies_by_name() -> None:
    assert check_policies("auto, prefix,auto") == ("auto", "prefix")
    assert set(check_policies("all")) == {policy.value for policy in RoutingPolicy}
    with pytest.raises(InvalidRequest, match=r"no policy 'best'.*auto, least_load"):
        check_policies("auto,best")


def test_engine_arguments_are_laid_over_the_defaults() -> None:
    made = read_engine_arguments({"step_ms": 20, "kv_blocks": 77}, ENGINE)
    assert (made.step_ms, made.kv_blocks, made.max_running) == (20.0, 77, ENGINE.max_running)
    with pytest.raises(InvalidRequest, match=r"no argument 'speed'.*prefill_tokens_per_s"):
        read_engine_arguments({"speed": 1}, ENGINE)
    with pytest.raises(InvalidRequest, match="max_running"):
        read_engine_arguments({"max_running": 0}, ENGINE)


def within_a_block(records: list[Record]) -> float:
    """The share of requests, of those with anything predicted or found, whose prediction was right."""
    pairs = [(record.predicted_cached_tokens or 0, record.cached_tokens or 0) for record in records]
    said = [abs(a - b) <= ENGINE.block_tokens for a, b in pairs if a or b]
    assert len(said) > len(pairs) / 2
    return sum(said) / len(said)


@pytest.mark.parametrize("kind", [RouteKind.CHAT, RouteKind.AGENTS, RouteKind.DOCUMENTS])
def test_what_engines_tell_comes_true(kind: RouteKind) -> None:
    """Little traffic, so that nothing is evicted between choice and admission, in caches that evict all the time."""
    plan = plan_of(kind, n_requests=300, share=0.1)
    fleet = FleetSettings(
        n_replicas=4, engine=msgspec.structs.replace(ENGINE, kv_blocks=size_pool(plan.working_set, 30, 4).kv_blocks)
    )
    told, guessed = (
        within_a_block(play(plan, fleet=fleet, gateway=GatewaySettings(telling=telling)).records)
        for telling in (Telling.EXACT, Telling.OFF)
    )
    assert told >= 0.99
    assert guessed < told


def test_residency_that_comes_late_is_less_true() -> None:
    plan = plan_of(RouteKind.AGENTS)
    soon, late = (
        within_a_block(play(plan, gateway=GatewaySettings(residency_delay_s=delay_s)).records) for delay_s in (0.0, 5.0)
    )
    assert soon > late
