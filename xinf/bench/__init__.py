"""Load generation against an OpenAI-compatible server, and what to make of the numbers.

Owns the plan of a run (arrivals, prompts: pure and seeded), a lean HTTP/1.1 client, the loop that drives it, the
figures, the result file and its charts. Prints nothing and finds no server: the CLI does.

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
from xinf.bench.load import ClosedLoop, Load, OpenLoop
from xinf.bench.models import find_model
from xinf.bench.report import Distribution, Summary
from xinf.bench.run import Progress, run_bench
from xinf.bench.slo import Slo, parse_slo
from xinf.bench.target import Endpoint, Target
from xinf.bench.workload import WorkloadKind, WorkloadSettings

__all__ = [
    "METRICS",
    "ClosedLoop",
    "Comparison",
    "Distribution",
    "Document",
    "Endpoint",
    "Load",
    "Metric",
    "OpenLoop",
    "Point",
    "Progress",
    "Result",
    "Row",
    "Settings",
    "Slo",
    "Spread",
    "Summary",
    "Target",
    "WorkloadKind",
    "WorkloadSettings",
    "check_chart",
    "compare",
    "draw",
    "find_model",
    "parse_slo",
    "read_document",
    "run_bench",
    "write_document",
]
