"""The result file: everything needed to read, repeat and compare a measurement, as one JSON document.

`schema` names the layout; fields may be added under the same name, a changed or removed field makes a new one. Times
are seconds, rates per second. Keys and values of headers are not written, only the headers' names.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from xinf.bench.host import Host
from xinf.bench.load import Load
from xinf.bench.record import Record
from xinf.bench.report import Distribution, Series, Summary
from xinf.bench.result_file import read_result, write_result
from xinf.bench.slo import Slo
from xinf.bench.target import Endpoint
from xinf.bench.workload import WorkloadSettings
from xinf.core.errors import InvalidRequest

SCHEMA = "xinf-bench/1"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. One of `n_requests` and `duration_s` is None or both bind; never both None."""

    url: str
    model: str
    endpoint: Endpoint
    loads: tuple[Load, ...]
    workload: WorkloadSettings
    n_requests: int | None
    duration_s: float | None
    n_warmup: int = 1
    is_stream: bool = True
    ignore_eos: bool = False
    extra_body: str | None = None
    header_names: tuple[str, ...] = ()
    slo: Slo | None = None
    percentiles: tuple[float, ...] = (50.0, 90.0, 95.0, 99.0)
    seed: int = 0
    n_repeats: int = 1
    timeout_s: float = 600.0
    max_connections: int = 4096
    keeps_records: bool = False
    label: str | None = None

    def __post_init__(self) -> None:
        if self.n_requests is None and self.duration_s is None:
            raise InvalidRequest("a run needs an end: a number of requests or a duration")
        for what, value in (("number of requests", self.n_requests), ("duration", self.duration_s),
                            ("time-out", self.timeout_s)):  # fmt: skip
            if value is not None and not 0 < value < float("inf"):
                raise InvalidRequest(f"the {what} is {value:g}, must be above 0")
        for p in self.percentiles:
            if not 0 <= p <= 100:
                raise InvalidRequest(f"there is no percentile {p:g}, they go from 0 to 100")


class Curves(msgspec.Struct, frozen=True, kw_only=True):
    """Quantiles in seconds, to draw the distributions: at 0, 1, ... 99, 99.5, 99.9 and 100 %; empty: no values."""

    ttft: tuple[float, ...]
    tpot: tuple[float, ...]
    itl: tuple[float, ...]
    e2e: tuple[float, ...]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Its prompts and arrivals follow from `seed`."""

    load: Load
    repeat: int
    seed: int
    started_s: float
    is_interrupted: bool
    summary: Summary
    series: Series
    curves: Curves
    records: tuple[Record, ...] | None = None


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """One figure over the repeats of a load."""

    median: float
    min: float
    max: float


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """All repeats of one load; figures by name as in METRICS, those that exist."""

    load: Load
    n_repeats: int
    figures: dict[str, Spread]


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """The file. `points` follow from `results`."""

    schema: str
    created: str  # ISO 8601, UTC
    host: Host
    settings: Settings
    is_interrupted: bool
    results: tuple[Result, ...]
    points: tuple[Point, ...]


class Metric(msgspec.Struct, frozen=True):
    """A figure of a Summary. `read` gives None where the run has none."""

    name: str
    title: str
    is_time: bool
    read: Callable[[Summary], float | None]


def _at(which: Callable[[Summary], Distribution | None], p: str) -> Callable[[Summary], float | None]:
    def read(summary: Summary) -> float | None:
        found = which(summary)
        return None if found is None else found.percentiles.get(p)

    return read


METRICS: tuple[Metric, ...] = (
    Metric("requests_per_s", "requests/s", False, lambda s: s.requests_per_s),
    Metric("goodput_per_s", "goodput/s", False, lambda s: s.goodput.requests_per_s if s.goodput else None),
    Metric("input_tokens_per_s", "input tok/s", False, lambda s: s.input_tokens_per_s),
    Metric("output_tokens_per_s", "output tok/s", False, lambda s: s.output_tokens_per_s),
    Metric("ttft_p50_s", "TTFT p50", True, _at(lambda s: s.ttft, "p50")),
    Metric("ttft_p99_s", "TTFT p99", True, _at(lambda s: s.ttft, "p99")),
    Metric("tpot_p50_s", "TPOT p50", True, _at(lambda s: s.tpot, "p50")),
    Metric("tpot_p99_s", "TPOT p99", True, _at(lambda s: s.tpot, "p99")),
    Metric("itl_p50_s", "ITL p50", True, _at(lambda s: s.itl, "p50")),
    Metric("itl_p99_s", "ITL p99", True, _at(lambda s: s.itl, "p99")),
    Metric("e2e_p50_s", "e2e p50", True, _at(lambda s: s.e2e, "p50")),
    Metric("e2e_p99_s", "e2e p99", True, _at(lambda s: s.e2e, "p99")),
    Metric("concurrency_mean", "concurrency", False, lambda s: s.concurrency_mean),
    Metric("failed_share", "failed", False, lambda s: s.n_failed / s.n_sent if s.n_sent else None),
    Metric("cache_hit_share", "cache hits", False, lambda s: s.cache_hit_share),
    Metric("generator_cpu", "generator CPU", False, lambda s: s.generator.cpu_mean),
)


def make_points(results: Sequence[Result]) -> tuple[Point, ...]:
    """Put the repeats of each load together, in the order of the loads."""
    by_load: dict[Load, list[Summary]] = {}
    for result in results:
        by_load.setdefault(result.load, []).append(result.summary)
    return tuple(
        Point(load=load, n_repeats=len(summaries), figures=_figures(summaries)) for load, summaries in by_load.items()
    )


def _figures(summaries: Sequence[Summary]) -> dict[str, Spread]:
    figures = {}
    for metric in METRICS:
        values = [value for summary in summaries if (value := metric.read(summary)) is not None]
        if values:
            figures[metric.name] = Spread(median=statistics.median(values), min=min(values), max=max(values))
    return figures


def write_document(document: Document, path: Path) -> None:
    """Write the file, indented. Raises: NotFound if it cannot be written."""
    write_result(document, path)


def read_document(path: Path) -> Document:
    """Read a file that `write_document` wrote. Raises: NotFound, InvalidRequest."""
    return read_result(path, Document, schema=SCHEMA, command="xinf bench serve")
