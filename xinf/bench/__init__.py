"""Load generation against an OpenAI-compatible server, and what to make of the numbers.

Owns the plan of a run (arrivals, prompts: pure and seeded), a lean HTTP/1.1 client, the loop that drives it, the
figures, the result file and its charts. Compares routing policies too: workloads that share prefixes, the same requests
for each policy, really or in virtual time. Prints nothing, finds and starts no server: the CLI does.

Invariants: nothing that was sent is dropped from the report: a request is good, an error with its class, or cut off by
the end of the run. In an open loop latency counts from the intended send time. The same seed gives the same requests
at the same intended times. The generator's own CPU is part of every result, because it distorts.

`import xinf.bench` loads neither matplotlib nor uvloop.
"""

from __future__ import annotations

from xinf.bench.chart import check_chart, draw
from xinf.bench.compare import Comparison, Row, compare
from xinf.bench.document import (
    METRICS,
    Document,
    Metric,
    Point,
    Result,
    Settings,
    Spread,
    read_document,
    write_document,
)
from xinf.bench.fleet import ENGINE, FleetSettings
from xinf.bench.load import ClosedLoop, Load, OpenLoop
from xinf.bench.models import find_model
from xinf.bench.process import cpu_s, descendants
from xinf.bench.report import Distribution, Summary
from xinf.bench.route_document import (
    ROUTE_METRICS,
    RouteCase,
    RouteDocument,
    RouteMetric,
    RoutePoint,
    RouteResult,
    RouteSettings,
    make_route_points,
    read_route_document,
    write_route_document,
)
from xinf.bench.route_driver import RouteOutcome
from xinf.bench.route_plan import RouteLoad, RoutePlan
from xinf.bench.route_report import RouteSummary
from xinf.bench.route_run import (
    AS_DEPLOYED,
    RouteProgress,
    RouteSite,
    VirtualSite,
    check_policies,
    check_telling,
    draw_seed,
    read_engine_arguments,
    run_route,
    send_plan,
)
from xinf.bench.route_workload import RouteKind, RouteWorkloadSettings
from xinf.bench.run import Progress, run_bench
from xinf.bench.slo import Slo, parse_slo
from xinf.bench.target import Endpoint, Target
from xinf.bench.virtual_fleet import GatewaySettings
from xinf.bench.virtual_residency import Telling
from xinf.bench.workload import WorkloadKind, WorkloadSettings

__all__ = [
    "AS_DEPLOYED",
    "ENGINE",
    "METRICS",
    "ROUTE_METRICS",
    "ClosedLoop",
    "Comparison",
    "Distribution",
    "Document",
    "Endpoint",
    "FleetSettings",
    "GatewaySettings",
    "Load",
    "Metric",
    "OpenLoop",
    "Point",
    "Progress",
    "Result",
    "RouteCase",
    "RouteDocument",
    "RouteKind",
    "RouteLoad",
    "RouteMetric",
    "RouteOutcome",
    "RoutePlan",
    "RoutePoint",
    "RouteProgress",
    "RouteResult",
    "RouteSettings",
    "RouteSite",
    "RouteSummary",
    "RouteWorkloadSettings",
    "Row",
    "Settings",
    "Slo",
    "Spread",
    "Summary",
    "Target",
    "Telling",
    "VirtualSite",
    "WorkloadKind",
    "WorkloadSettings",
    "check_chart",
    "check_policies",
    "check_telling",
    "compare",
    "cpu_s",
    "descendants",
    "draw",
    "draw_seed",
    "find_model",
    "make_route_points",
    "parse_slo",
    "read_document",
    "read_engine_arguments",
    "read_route_document",
    "run_bench",
    "run_route",
    "send_plan",
    "write_document",
    "write_route_document",
]
