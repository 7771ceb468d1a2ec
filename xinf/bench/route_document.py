"""The file of `xinf bench route --json` and `xinf simulate --json`.

`schema` names the layout; fields may be added under the same name, a changed or removed field makes a new one. Times
are seconds, rates per second.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from xinf.bench.document import Spread
from xinf.bench.fleet import FleetSettings
from xinf.bench.host import Host
from xinf.bench.record import Record
from xinf.bench.report import Distribution
from xinf.bench.result_file import read_result, write_result
from xinf.bench.route_plan import RouteLoad
from xinf.bench.route_report import Imbalance, RouteSummary
from xinf.bench.route_workload import RouteWorkloadSettings
from xinf.bench.slo import Slo
from xinf.core.errors import InvalidRequest

SCHEMA = "xinf-route/1"


class RouteSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. `policies` and `pools_pct` are each tried on every workload, in rotated order.

    `pools_pct` None: the fleet's own `kv_blocks`. `is_simulated`: in virtual time, with what is
    said here of delays and of what engines tell of their caches (`residency`: see `virtual_residency.Telling`).
    """

    workloads: tuple[RouteWorkloadSettings, ...]
    policies: tuple[str, ...]
    load: RouteLoad
    fleet: FleetSettings
    is_simulated: bool
    pools_pct: tuple[float, ...] | None = None
    slo: Slo | None = None
    n_repeats: int = 1
    seed: int = 0
    report_delay_s: float | None = None
    residency: str | None = None
    residency_delay_s: float | None = None
    url: str | None = None  # of a server that was there already
    keeps_records: bool = False
    label: str | None = None

    def __post_init__(self) -> None:
        if self.n_repeats < 1:
            raise InvalidRequest(f"{self.n_repeats} repeats are none", remedy="--repeat 5 shows the spread")
        for pool_pct in self.pools_pct or ():
            if not 0 < pool_pct < float("inf"):
                raise InvalidRequest(
                    f"a pool of {pool_pct:g} % of the working set holds nothing",
                    remedy="write for example --pool 7,50,150",
                )


class RouteCase(msgspec.Struct, frozen=True, kw_only=True):
    """What the repeats of a figure have in common. `pool_pct` None: pools as large as the engines were told."""

    workload: str
    pool_pct: float | None
    policy: str


class RouteResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `kv_blocks`: of one replica; None where the engines are not ours."""

    case: RouteCase
    repeat: int
    seed: int
    rate: float  # requests per second on average
    working_set_blocks: int
    shared_share: float  # of prompt tokens that an earlier prompt has too
    kv_blocks: int | None
    is_pool_raised: bool  # to hold the longest request
    took_s: float  # of real time
    summary: RouteSummary
    records: tuple[Record, ...] | None = None


class RoutePoint(msgspec.Struct, frozen=True, kw_only=True):
    """All repeats of one case; figures by name as in ROUTE_METRICS, those that exist."""

    case: RouteCase
    n_repeats: int
    figures: dict[str, Spread]


class RouteDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The file. `points` follow from `results`."""

    schema: str
    created: str  # ISO 8601, UTC
    host: Host
    settings: RouteSettings
    is_interrupted: bool
    results: tuple[RouteResult, ...]
    points: tuple[RoutePoint, ...]


class RouteMetric(msgspec.Struct, frozen=True):
    """A figure of a RouteSummary. `unit`: s, share, per_s, us, tokens or ratio. `read` gives None without one."""

    name: str
    title: str
    unit: str
    read: Callable[[RouteSummary], float | None]


def _at(which: Callable[[RouteSummary], Distribution | None], p: str) -> Callable[[RouteSummary], float | None]:
    def read(summary: RouteSummary) -> float | None:
        found = which(summary)
        return None if found is None else found.percentiles[p]

    return read


def _of(which: Callable[[RouteSummary], Imbalance | None], field: str) -> Callable[[RouteSummary], float | None]:
    def read(summary: RouteSummary) -> float | None:
        found = which(summary)
        return None if found is None else float(getattr(found, field))

    return read


ROUTE_METRICS: tuple[RouteMetric, ...] = (
    RouteMetric("hit_share", "hits", "share", lambda s: s.hit_share),
    RouteMetric("ttft_p50_s", "TTFT p50", "s", _at(lambda s: s.ttft, "p50")),
    RouteMetric("ttft_p90_s", "p90", "s", _at(lambda s: s.ttft, "p90")),
    RouteMetric("ttft_p99_s", "p99", "s", _at(lambda s: s.ttft, "p99")),
    RouteMetric("e2e_p50_s", "e2e p50", "s", _at(lambda s: s.e2e, "p50")),
    RouteMetric("e2e_p90_s", "e2e p90", "s", _at(lambda s: s.e2e, "p90")),
    RouteMetric("e2e_p99_s", "e2e p99", "s", _at(lambda s: s.e2e, "p99")),
    RouteMetric("goodput_share", "goodput", "share", lambda s: None if s.goodput is None else s.goodput.share),
    RouteMetric(
        "goodput_per_s", "goodput/s", "per_s", lambda s: None if s.goodput is None else s.goodput.requests_per_s
    ),
    RouteMetric("requests_cv", "requests cv", "ratio", _of(lambda s: s.requests_imbalance, "cv")),
    RouteMetric("requests_max", "max/mean", "ratio", _of(lambda s: s.requests_imbalance, "max_over_mean")),
    RouteMetric("prefill_cv", "prefill cv", "ratio", _of(lambda s: s.prefill_imbalance, "cv")),
    RouteMetric("prefill_max", "max/mean", "ratio", _of(lambda s: s.prefill_imbalance, "max_over_mean")),
    RouteMetric(
        "predicted_within_block",
        "predicted",
        "share",
        lambda s: None if s.prediction is None else s.prediction.within_block_share,
    ),
    RouteMetric(
        "prediction_error_tokens",
        "error",
        "tokens",
        lambda s: None if s.prediction is None else s.prediction.mean_error_tokens,
    ),
    RouteMetric("gateway_cpu_us", "gateway CPU", "us", lambda s: s.gateway_cpu_us_per_request),
    RouteMetric("requests_per_s", "requests/s", "per_s", lambda s: s.requests_per_s),
    RouteMetric("refused_share", "refused", "share", lambda s: s.n_refused / s.n_planned if s.n_planned else None),
    RouteMetric(
        "failed_share",
        "failed",
        "share",
        lambda s: (s.n_failed + s.n_skipped) / s.n_planned if s.n_planned else None,
    ),
)


def make_route_points(results: Iterable[RouteResult]) -> tuple[RoutePoint, ...]:
    """Put the repeats of each case together, workload by workload and pool by pool."""
    by_case: dict[RouteCase, list[RouteSummary]] = {}
    for result in results:
        by_case.setdefault(result.case, []).append(result.summary)
    # Rotated order is for the machine; who reads wants policies beside each other.
    places = {name: place for place, name in enumerate(dict.fromkeys(case.workload for case in by_case))}
    ordered = sorted(by_case, key=lambda case: (places[case.workload], case.pool_pct or 0.0, case.policy))
    return tuple(
        RoutePoint(case=case, n_repeats=len(by_case[case]), figures=_figures(by_case[case])) for case in ordered
    )


def _figures(summaries: Sequence[RouteSummary]) -> dict[str, Spread]:
    figures = {}
    for metric in ROUTE_METRICS:
        values = [value for summary in summaries if (value := metric.read(summary)) is not None]
        if values:
            figures[metric.name] = Spread(median=statistics.median(values), min=min(values), max=max(values))
    return figures


def write_route_document(document: RouteDocument, path: Path) -> None:
    """Write the file, indented. Raises: NotFound if it cannot be written."""
    write_result(document, path)


def read_route_document(path: Path) -> RouteDocument:
    """Read a file that `write_route_document` wrote. Raises: NotFound, InvalidRequest."""
    return read_result(path, RouteDocument, schema=SCHEMA, command="xinf bench route")
