"""A whole comparison of policies: every workload, pool and policy, every repeat, one document.

    for each repeat: for each workload: for each pool: the policies, beginning with another one each time
                                                          └─ RouteSite.run: fresh engines, one plan, one outcome

Within a repeat all policies get the same requests at the same intended times.
"""

from __future__ import annotations

import datetime
import random
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec

from xinf.bench.fleet import FleetSettings
from xinf.bench.host import describe_host
from xinf.bench.route_document import (
    SCHEMA,
    RouteCase,
    RouteDocument,
    RouteResult,
    RouteSettings,
    make_route_points,
)
from xinf.bench.route_driver import RouteDriver, RouteOutcome
from xinf.bench.route_plan import RoutePlan, make_plan
from xinf.bench.route_report import summarize_route
from xinf.bench.route_workload import RouteWorkloadSettings, make_route_workload
from xinf.bench.target import Target
from xinf.bench.virtual_fleet import GatewaySettings, VirtualFleet
from xinf.bench.virtual_residency import Telling
from xinf.bench.working_set import size_pool
from xinf.core.errors import InvalidRequest
from xinf.core.records import RoutingPolicy
from xinf.sim import SimSettings

AS_DEPLOYED = "deployed"  # the policy of a server that was there already
_WITH_PREDICTIONS = (RoutingPolicy.AUTO.value, RoutingPolicy.PREFIX.value, AS_DEPLOYED)


class RouteProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is. `run` counts from 1 over everything."""

    run: int
    n_runs: int
    case: RouteCase
    elapsed_s: float
    n_done: int
    n_requests: int


class RouteSite(Protocol):
    """Where one run takes place."""

    def run(
        self, case: RouteCase, plan: RoutePlan, fleet: FleetSettings, on_progress: Callable[[int], None]
    ) -> RouteOutcome:
        """Let a plan meet a fleet whose caches are empty, under the policy of the case."""


class _Run(msgspec.Struct, frozen=True):
    workload: RouteWorkloadSettings
    pool_pct: float | None
    policy: str
    repeat: int
    seed: int


def run_route(settings: RouteSettings, site: RouteSite, on_progress: Callable[[RouteProgress], None]) -> RouteDocument:
    """Measure. Ctrl-C ends it early with the runs that were complete (`is_interrupted`). Raises: InvalidRequest."""
    started = datetime.datetime.now(datetime.UTC)
    results: list[RouteResult] = []
    is_interrupted = False
    n_runs = sum(1 for _ in plan_route_runs(settings))
    planned: tuple[tuple[RouteWorkloadSettings, int], RoutePlan] | None = None
    try:
        for number, run in enumerate(plan_route_runs(settings), 1):
            key = (run.workload, run.seed)
            if planned is None or planned[0] != key:
                planned = (
                    key,
                    make_plan(make_route_workload(run.workload, run.seed), settings.load, settings.fleet, run.seed),
                )
            results.append(_run_one(settings, site, run, planned[1], _teller(on_progress, number, n_runs, planned[1])))
    except KeyboardInterrupt:
        is_interrupted = True
    return RouteDocument(
        schema=SCHEMA,
        created=started.isoformat(timespec="seconds"),
        host=describe_host(),
        settings=settings,
        is_interrupted=is_interrupted,
        results=tuple(results),
        points=make_route_points(results),
    )


def plan_route_runs(settings: RouteSettings) -> Iterator[_Run]:
    """Every policy begins as often as any other, so that a slow minute of the machine does not hit the same one."""
    turn = 0
    policies = settings.policies
    for repeat in range(settings.n_repeats):
        for workload in settings.workloads:
            for pool_pct in settings.pools_pct or (None,):
                for place in range(len(policies)):
                    policy = policies[(place + turn) % len(policies)]
                    yield _Run(workload, pool_pct, policy, repeat, settings.seed + repeat)
                turn += 1


def _teller(
    on_progress: Callable[[RouteProgress], None], number: int, n_runs: int, plan: RoutePlan
) -> Callable[[RouteCase, int], None]:
    since_s = time.monotonic()

    def tell(case: RouteCase, n_done: int) -> None:
        on_progress(
            RouteProgress(
                run=number,
                n_runs=n_runs,
                case=case,
                elapsed_s=time.monotonic() - since_s,
                n_done=n_done,
                n_requests=plan.n_requests,
            )
        )

    return tell


def _run_one(
    settings: RouteSettings, site: RouteSite, run: _Run, plan: RoutePlan, tell: Callable[[RouteCase, int], None]
) -> RouteResult:
    case = RouteCase(workload=run.workload.kind.value, pool_pct=run.pool_pct, policy=run.policy)
    fleet = settings.fleet
    is_raised = False
    if run.pool_pct is not None:
        pool = size_pool(plan.working_set, run.pool_pct, fleet.n_replicas)
        is_raised = pool.is_raised
        engine = msgspec.structs.replace(fleet.engine, kv_blocks=pool.kv_blocks)
        fleet = msgspec.structs.replace(fleet, engine=engine)
    since_s = time.monotonic()
    outcome = site.run(case, plan, fleet, lambda n_done: tell(case, n_done))
    return RouteResult(
        case=case,
        repeat=run.repeat,
        seed=run.seed,
        rate=plan.rate,
        working_set_blocks=plan.working_set.n_blocks,
        shared_share=plan.working_set.shared_share,
        kv_blocks=None if settings.url is not None else fleet.engine.kv_blocks,
        is_pool_raised=is_raised,
        took_s=time.monotonic() - since_s,
        summary=summarize_route(
            outcome,
            slo=settings.slo,
            block_tokens=fleet.engine.block_tokens,
            has_predictions=run.policy in _WITH_PREDICTIONS,
        ),
        records=tuple(outcome.records) if settings.keeps_records else None,
    )


class VirtualSite:
    """Runs in virtual time."""

    def __init__(self, gateway: GatewaySettings) -> None:
        self._gateway = gateway

    def run(
        self, case: RouteCase, plan: RoutePlan, fleet: FleetSettings, on_progress: Callable[[int], None]
    ) -> RouteOutcome:
        """Play the plan against new engines. Raises: InvalidRequest where no request of the plan would fit them."""
        if plan.working_set.longest_tokens > fleet.engine.kv_tokens:
            raise InvalidRequest(
                f"the longest request needs {plan.working_set.longest_tokens} tokens of KV, an engine has "
                f"{fleet.engine.kv_tokens}",
                remedy="raise kv_blocks, or size the pools with --pool",
            )
        return VirtualFleet(fleet, RoutingPolicy(case.policy), self._gateway).run(plan, on_progress)


def send_plan(
    plan: RoutePlan, target: Target, model: str, *, timeout_s: float, on_progress: Callable[[int], None]
) -> RouteOutcome:
    """Send a plan to a server over HTTP and wait for all answers."""
    import asyncio

    import uvloop

    async def drive() -> RouteOutcome:
        return await RouteDriver(target, model, plan, timeout_s=timeout_s).run(on_progress)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(drive())


def check_policies(names: str) -> tuple[str, ...]:
    """Read `auto,prefix`, or `all`. Raises: InvalidRequest."""
    known = tuple(policy.value for policy in RoutingPolicy)
    if names.strip() == "all":
        return known
    chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in chosen:
        if name not in known:
            raise InvalidRequest(f"there is no policy {name!r}", remedy=f"choose from {', '.join(known)}, or all")
    return chosen


def check_telling(name: str) -> str:
    """Read what engines say of their caches. Raises: InvalidRequest."""
    known = tuple(telling.value for telling in Telling)
    if name not in known:
        raise InvalidRequest(f"engines cannot tell {name!r} of their caches", remedy=f"choose from {', '.join(known)}")
    return name


def read_engine_arguments(arguments: dict[str, object], base: SimSettings) -> SimSettings:
    """Lay engine arguments over the defaults. Raises: InvalidRequest."""
    known = SimSettings.__struct_fields__
    for name in arguments:
        if name not in known:
            raise InvalidRequest(
                f"the simulated engine has no argument {name!r}", remedy=f"known are {', '.join(known)}"
            )
    try:
        return msgspec.convert(msgspec.to_builtins(base) | arguments, SimSettings, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"an argument of the simulated engine is not valid: {error}") from error


def draw_seed() -> int:
    """A seed that nobody chose, printed with the report."""
    return random.SystemRandom().randrange(1 << 31)
