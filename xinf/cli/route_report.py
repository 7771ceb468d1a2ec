"""How `xinf bench route` and `xinf simulate` show their figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from xinf.cli.table import print_table
from xinf.core.units import format_seconds

if TYPE_CHECKING:
    from xinf.bench import RouteDocument, RouteMetric, RoutePoint, RouteResult, RouteSettings, Spread

# Two tables, as one would be too wide for a terminal.
_SPEED = ("hit_share", "ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "e2e_p50_s", "e2e_p90_s", "e2e_p99_s", "goodput_share")
_SPREAD = ("goodput_per_s", "requests_cv", "requests_max", "prefill_cv", "prefill_max", "predicted_within_block",
           "prediction_error_tokens", "gateway_cpu_us", "refused_share", "failed_share")  # fmt: skip
_FACTORS = {"s": 1e3, "share": 1e2}
_UNITS = {"s": "ms", "share": "%", "us": "us", "tokens": "tokens", "per_s": "", "ratio": ""}


def print_route_plan(settings: RouteSettings) -> None:
    """Say what is about to be compared; the seed too, so that it can be done again."""
    load, fleet, engine = settings.load, settings.fleet, settings.fleet.engine
    where = settings.url or f"{fleet.n_replicas} simulated engines{' in virtual time' if settings.is_simulated else ''}"
    print(f"{where}; policies {', '.join(settings.policies)}; seed {settings.seed}")
    if settings.url is None:
        print(
            f"each engine: {engine.prefill_tokens_per_s:g} prefill tokens/s, steps of {engine.step_ms:g} ms, "
            f"{engine.max_running} running, {engine.max_batched_tokens} tokens a step, blocks of {engine.block_tokens}"
        )
    ends = f"{load.n_requests} requests" if load.n_requests else format_seconds(load.duration_s or 0.0)
    how = f"{load.rate:g} requests/s" if load.rate else f"load {load.share:g}" if load.share else "at the trace's times"
    times = f", {settings.n_repeats} times" if settings.n_repeats > 1 else ""
    print(f"workloads {', '.join(one.kind.value for one in settings.workloads)}; {how}, {ends} each{times}")


def print_route_document(document: RouteDocument) -> None:
    """Print all cases, one a row."""
    print()
    if document.is_interrupted:
        print(
            "interrupted; the runs that were complete:" if document.results else "interrupted before a run was complete"
        )
    if not document.results:
        return
    for result in _first_of_each_pool(document.results):
        print(_describe(result, document.settings.fleet.n_replicas))
    print()
    _print_metrics(document.points, _SPEED)
    print()
    _print_metrics(document.points, _SPREAD)
    if any(point.n_repeats > 1 for point in document.points):
        print("medians of the repeats, (least-most)")
    for text in _warnings(document):
        typer.secho(f"warning: {text}", fg=typer.colors.YELLOW)


def _first_of_each_pool(results: Sequence[RouteResult]) -> list[RouteResult]:
    found = {(result.case.workload, result.case.pool_pct): result for result in reversed(results)}
    return list(reversed(found.values()))


def _describe(result: RouteResult, n_replicas: int) -> str:
    case = result.case
    text = (
        f"{case.workload}: {result.summary.n_planned} requests at {result.rate:.4g}/s, working set "
        f"{result.working_set_blocks} blocks, {result.shared_share:.0%} of prompt tokens came before"
    )
    if case.pool_pct is not None and result.kv_blocks is not None:
        text += f"; pool {case.pool_pct:g} %: {n_replicas} x {result.kv_blocks} blocks"
    return text


def _print_metrics(points: Sequence[RoutePoint], names: Sequence[str]) -> None:
    from xinf.bench import ROUTE_METRICS

    by_name = {metric.name: metric for metric in ROUTE_METRICS}
    shown = [by_name[name] for name in names if any(name in point.figures for point in points)]
    shown = [metric for metric in shown if metric.unit != "share" or metric.name not in _RARE or _any(points, metric)]
    has_pools = any(point.case.pool_pct is not None for point in points)
    header = ["workload", *(["pool %"] if has_pools else []), "policy", *map(_title, shown)]
    rows = [
        [
            point.case.workload,
            *([f"{point.case.pool_pct:g}"] if has_pools else []),
            point.case.policy,
            *(_spread(point.figures.get(metric.name), metric) for metric in shown),
        ]
        for point in points
    ]
    print_table(header, rows)


_RARE = ("refused_share", "failed_share")  # not worth a column of zeros


def _any(points: Sequence[RoutePoint], metric: RouteMetric) -> bool:
    return any(metric.name in point.figures and point.figures[metric.name].max > 0 for point in points)


def _title(metric: RouteMetric) -> str:
    unit = _UNITS[metric.unit]
    return f"{metric.title} ({unit})" if unit else metric.title


def _spread(spread: Spread | None, metric: RouteMetric) -> str:
    if spread is None:
        return "-"
    factor = _FACTORS.get(metric.unit, 1.0)
    digits = {"share": 1, "ratio": 2, "per_s": 1, "s": 0, "us": 0, "tokens": 0}[metric.unit]
    median, least, most = (f"{value * factor:.{digits}f}" for value in (spread.median, spread.min, spread.max))
    return median if least == most else f"{median} ({least}-{most})"


def _warnings(document: RouteDocument) -> list[str]:
    """What is to be doubted, in sentences."""
    found = []
    n_failed = sum(result.summary.n_failed for result in document.results)
    if n_failed:
        example = next(error.example for result in document.results for error in result.summary.errors)
        found.append(f"{n_failed} requests failed; the first said: {example[:150]}")
    least = min(result.summary.n_good for result in document.results)
    if 0 < least < 100:
        found.append(f"only {least} good answers in a run: p99 means little, send at least 100")
    if not document.settings.is_simulated and document.settings.n_repeats < 3:
        found.append("fewer than 3 repeats: the spread says little, use --repeat 5")
    raised = {
        f"{result.case.workload} {result.case.pool_pct:g} %"
        for result in document.results
        if result.is_pool_raised and result.case.pool_pct is not None
    }
    if raised:
        found.append(f"pools of {', '.join(sorted(raised))} were raised to hold the longest request")
    return found
