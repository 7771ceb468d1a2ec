"""`xinf bench route` and `xinf simulate`: routing policies on the same requests, really and in virtual time."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xinf.cli.failure import INTERRUPTED
from xinf.cli.options import ConfigFile, Front, Settings
from xinf.cli.screen import Screen
from xinf.cli.session import open_session
from xinf.cli.wish import parse_engine_args
from xinf.core.errors import InvalidRequest, NotFound
from xinf.core.units import format_seconds, parse_seconds

if TYPE_CHECKING:
    from xinf.bench import (
        FleetSettings,
        RouteCase,
        RouteDocument,
        RouteOutcome,
        RoutePlan,
        RouteProgress,
        RouteSettings,
        RouteSite,
        RouteWorkloadSettings,
        Target,
    )
    from xinf.cli.private_stack import PrivateStack

_LOAD = "Load"
_WORKLOAD = "Workload"
_FLEET = "Fleet"
_REPORT = "Report"
_REQUEST_TIMEOUT_S = 300.0
_LENGTH_MARGIN_TOKENS = 64  # the gateway's engines count as we do; a margin for templates that say more

Policy = Annotated[
    str,
    typer.Option(
        "--policy",
        metavar="POLICY",
        help="auto, least_load, round_robin, session, prefix; several with commas; or all.",
    ),
]
Workloads = Annotated[
    str,
    typer.Option(
        "--workload",
        metavar="NAME",
        help="chat, hot-prefix, documents, agents, random or trace; several with commas.",
        rich_help_panel=_WORKLOAD,
    ),
]
TraceFile = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help="JSONL in the Mooncake format.", rich_help_panel=_WORKLOAD),
]
TraceBlock = Annotated[
    int,
    typer.Option("--trace-block", metavar="N", help="Tokens that one hash id stands for.", rich_help_panel=_WORKLOAD),
]
Speed = Annotated[
    float,
    typer.Option(
        "--speed", metavar="FACTOR", help="Of a trace at its own times: 2 is twice as fast.", rich_help_panel=_WORKLOAD
    ),
]
Scale = Annotated[
    float,
    typer.Option(
        "--scale", metavar="FACTOR", help="Lengths of made-up prompts, times this.", rich_help_panel=_WORKLOAD
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="The same seed asks the same (default: a new one).",
        rich_help_panel=_WORKLOAD,
        show_default=False,
    ),
]
Rate = Annotated[
    float | None, typer.Option("--rate", metavar="RATE", help="Requests per second, Poisson.", rich_help_panel=_LOAD)
]
Share = Annotated[
    float | None,
    typer.Option(
        "--load",
        metavar="SHARE",
        help="Instead: share of what the engines could do with nothing cached (default: 0.9; a trace: its times).",
        rich_help_panel=_LOAD,
        show_default=False,
    ),
]
Requests = Annotated[
    int | None,
    typer.Option("--requests", min=1, metavar="N", help="How many, in whole sessions.", rich_help_panel=_LOAD),
]
Duration = Annotated[
    str | None,
    typer.Option(
        "--duration",
        metavar="TIME",
        help="Instead: sessions begin for so long (default: 30s).",
        rich_help_panel=_LOAD,
        show_default=False,
    ),
]
Repeat = Annotated[
    int,
    typer.Option("--repeat", metavar="N", help="Do it so many times, each with its own seed.", rich_help_panel=_LOAD),
]
Replicas = Annotated[int, typer.Option("--replicas", metavar="N", help="Simulated engines.", rich_help_panel=_FLEET)]
Pool = Annotated[
    str | None,
    typer.Option(
        "--pool",
        metavar="PERCENT",
        help="KV of all replicas together, in percent of the working set; several with commas. "
        "Without: as --engine-arg kv_blocks says.",
        rich_help_panel=_FLEET,
    ),
]
EngineArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-arg",
        metavar="KEY=VALUE",
        help="Of the simulated engines: prefill_tokens_per_s, step_ms, max_running, ...; repeatable.",
        rich_help_panel=_FLEET,
    ),
]
ReportDelay = Annotated[
    str,
    typer.Option(
        "--report-delay",
        metavar="TIME",
        help="From an engine's step until the router knows its load.",
        rich_help_panel=_FLEET,
    ),
]
ResidencyOption = Annotated[
    str,
    typer.Option(
        "--residency",
        metavar="HOW",
        help="What engines say of their caches: exact, approx (what one of their size would hold) or off (nothing).",
        rich_help_panel=_FLEET,
    ),
]
ResidencyDelay = Annotated[
    str,
    typer.Option(
        "--residency-delay",
        metavar="TIME",
        help="From a change of an engine's cache until the router knows.",
        rich_help_panel=_FLEET,
    ),
]
SloOption = Annotated[
    str,
    typer.Option(
        "--slo", "--goodput", metavar="LIMITS", help="What goodput counts: ttft=1s,tpot=50ms.", rich_help_panel=_REPORT
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the whole result there.", rich_help_panel=_REPORT)
]
RecordsOption = Annotated[
    bool, typer.Option("--records", help="Every single request into the --json file.", rich_help_panel=_REPORT)
]
Label = Annotated[
    str | None, typer.Option("--label", metavar="TEXT", help="Name of this result.", rich_help_panel=_REPORT)
]


def route(
    policy: Policy = "all",
    workload: Workloads = "chat",
    trace: TraceFile = None,
    trace_block: TraceBlock = 512,
    speed: Speed = 1.0,
    scale: Scale = 1.0,
    seed: Seed = None,
    rate: Rate = None,
    load: Share = None,
    requests: Requests = None,
    duration: Duration = None,
    repeat: Repeat = 1,
    replicas: Replicas = 4,
    pool: Pool = None,
    engine_arg: EngineArgs = None,
    slo: SloOption = "ttft=1s",
    json: JsonFile = None,
    records: RecordsOption = False,
    label: Label = None,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="A server that runs already, with the policy it has.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Its model (default: its only one).")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar=["XINF_API_KEY"], metavar="KEY", help="Its API key.", show_envvar=True),
    ] = None,
    front: Front = None,
    settings: Settings = None,
) -> None:
    """Compare routing policies through a real gateway, on workloads that differ in what their prompts share.

    Without --url it starts an installation of its own: gateway, control process, worker and simulated engines, whose
    caches are empty before each run.
    """
    asked = _read(
        policy=policy, workload=workload, trace=trace, trace_block=trace_block, speed=speed, scale=scale, seed=seed,
        rate=rate, share=load, requests=requests, duration=duration, repeat=repeat, replicas=replicas, pool=pool,
        engine_arg=engine_arg, slo=slo, json=json, records=records, label=label, url=url, report_delay=None,
        residency=None, residency_delay=None,
    )  # fmt: skip
    if url is not None:
        target = _target(url, api_key)
        _compare(asked, _ServerSite(target, model or _only_model(target)), json)
        return
    from xinf.cli.private_stack import PrivateStack

    print("starting a gateway and a worker of its own", file=sys.stderr)
    with PrivateStack(front=front, settings=settings or ()) as stack:
        _compare(asked, PrivateSite(stack), json)


def simulate(
    policy: Policy = "all",
    workload: Workloads = "chat",
    trace: TraceFile = None,
    trace_block: TraceBlock = 512,
    speed: Speed = 1.0,
    scale: Scale = 1.0,
    seed: Seed = None,
    rate: Rate = None,
    load: Share = None,
    requests: Requests = None,
    duration: Duration = None,
    repeat: Repeat = 1,
    replicas: Replicas = 8,
    pool: Pool = None,
    engine_arg: EngineArgs = None,
    report_delay: ReportDelay = "1ms",
    residency: ResidencyOption = "exact",
    residency_delay: ResidencyDelay = "2ms",
    slo: SloOption = "ttft=1s",
    json: JsonFile = None,
    records: RecordsOption = False,
    label: Label = None,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Compare routing policies in virtual time: the real router, simulated engines, up to 1,000 of them, no waiting.

    The same workloads and the same report as `xinf bench route`; the guide says what it leaves out.
    """
    from xinf.bench import GatewaySettings, Telling, VirtualSite
    from xinf.router import RouterSettings

    asked = _read(
        policy=policy, workload=workload, trace=trace, trace_block=trace_block, speed=speed, scale=scale, seed=seed,
        rate=rate, share=load, requests=requests, duration=duration, repeat=repeat, replicas=replicas, pool=pool,
        engine_arg=engine_arg, slo=slo, json=json, records=records, label=label, url=None, report_delay=report_delay,
        residency=residency, residency_delay=residency_delay,
    )  # fmt: skip
    loaded = open_session(config, None, settings=settings).config
    gateway = GatewaySettings(
        router=RouterSettings.of(loaded.routing, max_inflight=loaded.gateway.max_inflight_per_replica),
        max_waiting=loaded.gateway.max_waiting,
        waiting_timeout_s=loaded.gateway.waiting_timeout,
        report_delay_s=asked.report_delay_s or 0.0,
        telling=Telling(asked.residency),
        residency_delay_s=asked.residency_delay_s or 0.0,
    )
    since_s = time.monotonic()
    document = _compare(asked, VirtualSite(gateway), json)
    took_s = time.monotonic() - since_s
    n_requests = sum(result.summary.n_planned for result in document.results)
    print(
        f"{n_requests} requests simulated in {format_seconds(took_s)}: {n_requests / max(took_s, 1e-3):.0f} per second"
    )


def _compare(asked: RouteSettings, site: RouteSite, json: Path | None) -> RouteDocument:
    from xinf.bench import run_route, write_route_document
    from xinf.cli.route_report import print_route_document, print_route_plan

    print_route_plan(asked)
    screen = Screen(sys.stderr)
    try:
        document = run_route(asked, site, lambda progress: screen.status(_status(progress)))
    finally:
        screen.close()
    print_route_document(document)
    if json is not None:
        write_route_document(document, json)
        print(f"result: {json}")
    if document.is_interrupted:
        raise typer.Exit(INTERRUPTED)
    if not any(result.summary.n_good for result in document.results):
        raise typer.Exit(1)
    return document


def _status(progress: RouteProgress) -> str:
    case = progress.case
    pool = "" if case.pool_pct is None else f", pool {case.pool_pct:g} %"
    return (
        f"run {progress.run} of {progress.n_runs}, {case.workload}{pool}, {case.policy}: "
        f"{format_seconds(progress.elapsed_s)}, {progress.n_done} of {progress.n_requests} done"
    )


# ---- where it runs --------------------------------------------------------------------------------------------------


class PrivateSite:
    """Runs through a gateway of our own, each time in front of new engines."""

    def __init__(self, stack: PrivateStack) -> None:
        self._stack = stack
        self._numbers = itertools.count(1)

    def run(
        self, case: RouteCase, plan: RoutePlan, fleet: FleetSettings, on_progress: Callable[[int], None]
    ) -> RouteOutcome:
        """Raises: Unavailable when the engines do not start."""
        import msgspec

        from xinf.bench import cpu_s, send_plan

        stack = self._stack
        name = f"route-{next(self._numbers)}"
        engine = fleet.engine
        arguments = [f"{key}={value}" for key, value in msgspec.to_builtins(engine).items()]
        longest = plan.working_set.longest_tokens
        if longest > engine.kv_tokens:
            raise InvalidRequest(
                f"the longest request needs {longest} tokens of KV, an engine has {engine.kv_tokens}",
                remedy="raise --engine-arg kv_blocks, or size the pools with --pool",
            )
        max_model_len = min(longest + _LENGTH_MARGIN_TOKENS, engine.kv_tokens)
        stack.launch(
            name, policy=case.policy, replicas=fleet.n_replicas, engine_args=arguments, max_model_len=max_model_len
        )
        try:
            pids = stack.gateway_pids()
            before_s = sum(cpu_s(pid) or 0.0 for pid in pids)
            target = _target(stack.url, None)
            outcome = send_plan(plan, target, name, timeout_s=_REQUEST_TIMEOUT_S, on_progress=on_progress)
            spent_s = sum(cpu_s(pid) or 0.0 for pid in pids) - before_s
        finally:
            stack.stop(name)
        replicas = _named(outcome, fleet.n_replicas)
        return msgspec.structs.replace(outcome, gateway_cpu_s=spent_s, replicas=replicas)


class _ServerSite:
    """Runs against a server that is there; its caches are as they are."""

    def __init__(self, target: Target, model: str) -> None:
        self._target = target
        self._model = model

    def run(
        self,
        case: RouteCase,  # noqa: ARG002
        plan: RoutePlan,
        fleet: FleetSettings,  # noqa: ARG002
        on_progress: Callable[[int], None],
    ) -> RouteOutcome:
        from xinf.bench import send_plan

        return send_plan(plan, self._target, self._model, timeout_s=_REQUEST_TIMEOUT_S, on_progress=on_progress)


def _named(outcome: RouteOutcome, n_replicas: int) -> tuple[str, ...]:
    """The replicas that answered, and as many more as never did: those without requests are part of the imbalance."""
    seen = dict.fromkeys(record.replica for record in outcome.records if record.replica is not None)
    return (*seen, *(f"idle-{number}" for number in range(n_replicas - len(seen))))


def _target(url: str, api_key: str | None) -> Target:
    from xinf.bench import Target

    headers = [("accept", "*/*"), ("user-agent", "xinf-bench"), ("x-xinf-decision", "1")]
    if api_key:
        headers.append(("authorization", f"Bearer {api_key.strip()}"))
    return Target.parse(url, headers=tuple(headers))


def _only_model(target: Target) -> str:
    from xinf.bench import find_model

    return find_model(target)


# ---- options --------------------------------------------------------------------------------------------------------


def _read(
    *,
    policy: str,
    workload: str,
    trace: Path | None,
    trace_block: int,
    speed: float,
    scale: float,
    seed: int | None,
    rate: float | None,
    share: float | None,
    requests: int | None,
    duration: str | None,
    repeat: int,
    replicas: int,
    pool: str | None,
    engine_arg: Sequence[str] | None,
    slo: str,
    json: Path | None,
    records: bool,
    label: str | None,
    url: str | None,
    report_delay: str | None,
    residency: str | None,
    residency_delay: str | None,
) -> RouteSettings:
    """Make the settings of what was typed. Raises: InvalidRequest, NotFound."""
    from xinf.bench import (
        AS_DEPLOYED,
        ENGINE,
        FleetSettings,
        RouteLoad,
        RouteSettings,
        check_policies,
        check_telling,
        draw_seed,
        parse_slo,
        read_engine_arguments,
    )

    if records and json is None:
        raise typer.BadParameter("--records go into the --json file: name one")
    if json is not None and not json.absolute().parent.is_dir():
        raise NotFound(f"cannot write {json}", remedy="name a file in a directory that exists")
    if url is not None and (share is not None or pool is not None):
        raise InvalidRequest(
            "--load and --pool are of engines that are started here, not of --url",
            remedy="give --rate, and set the pools where the engines are launched",
        )
    kinds = [name.strip() for name in workload.split(",")]
    if trace is not None and kinds == ["chat"]:
        kinds = ["trace"]  # the default gives way
    if trace is not None and "trace" not in kinds:
        raise InvalidRequest("--trace is of the workload `trace`", remedy="add it to --workload, or leave the file out")
    workloads = tuple(_workload(name, trace, trace_block, speed, scale) for name in kinds)
    has_own_times = kinds == ["trace"] and rate is None and share is None
    if rate is None and share is None and not has_own_times:
        if url is not None:
            raise InvalidRequest("nobody knows what the server can do", remedy="give --rate, requests per second")
        share = 0.9
    duration_s = parse_seconds(duration) if duration else None
    if requests is None and duration_s is None:
        duration_s = 30.0
    return RouteSettings(
        workloads=workloads,
        policies=(AS_DEPLOYED,) if url is not None else check_policies(policy),
        load=RouteLoad(rate=rate, share=share, n_requests=requests, duration_s=duration_s),
        fleet=FleetSettings(
            n_replicas=replicas, engine=read_engine_arguments(dict(parse_engine_args(engine_arg or ())), ENGINE)
        ),
        is_simulated=report_delay is not None,
        pools_pct=_percents(pool),
        slo=parse_slo(slo) if slo else None,
        n_repeats=repeat,
        seed=draw_seed() if seed is None else seed,
        report_delay_s=None if report_delay is None else parse_seconds(report_delay),
        residency=None if residency is None else check_telling(residency),
        residency_delay_s=None if residency_delay is None else parse_seconds(residency_delay),
        url=url,
        keeps_records=records,
        label=label,
    )


def _workload(name: str, trace: Path | None, trace_block: int, speed: float, scale: float) -> RouteWorkloadSettings:
    from xinf.bench import RouteKind, RouteWorkloadSettings

    try:
        kind = RouteKind(name)
    except ValueError:
        known = ", ".join(kind.value for kind in RouteKind)
        raise InvalidRequest(f"there is no workload {name!r}", remedy=f"choose from {known}") from None
    is_trace = kind is RouteKind.TRACE
    return RouteWorkloadSettings(
        kind=kind,
        scale=scale,
        trace=str(trace) if is_trace and trace is not None else None,
        trace_block_tokens=trace_block,
        speed=speed,
    )


def _percents(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part.strip().removesuffix("%")) for part in text.split(","))
    except ValueError:
        raise InvalidRequest(f"--pool {text!r} is not in percent", remedy="write for example --pool 7,50,150") from None
