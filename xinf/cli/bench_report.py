"""How `xinf bench` shows its figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from xinf.cli.table import print_table
from xinf.core.units import format_seconds

if TYPE_CHECKING:
    from xinf.bench import Comparison, Distribution, Document, Point, Result, Settings, Spread, Summary

_FEW_COLUMNS = ("requests_per_s", "goodput_per_s", "output_tokens_per_s", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s",
                "tpot_p99_s", "e2e_p50_s", "e2e_p99_s", "concurrency_mean", "failed_share")  # fmt: skip
_SHARES = ("failed_share", "cache_hit_share", "generator_cpu")


def print_plan(settings: Settings) -> None:
    """Say what is about to be measured; the seed too, so that it can be done again."""
    work = settings.workload
    out = "" if settings.endpoint.value == "embeddings" else f", {work.output_tokens} out"
    lengths = f"{work.input_tokens} tokens in{out}"
    details = {
        "random": lengths,
        "shared-prefix": f"{work.n_prefixes} prefixes of {work.prefix_tokens} tokens in {work.prefix_share:.0%} of "
        f"requests, then {lengths}",
        "conversation": f"{work.n_turns} turns of {lengths}",
        "file": str(work.file),
    }
    ends = [f"{settings.n_requests} requests"] if settings.n_requests else []
    ends += [format_seconds(settings.duration_s)] if settings.duration_s else []
    stream = "" if settings.is_stream else ", no stream"
    print(f"{settings.model} at {settings.url}{settings.endpoint.path}{stream}")
    print(f"workload {work.kind.value}: {details[work.kind.value]}; seed {settings.seed}")
    times = f", {settings.n_repeats} times" if settings.n_repeats > 1 else ""
    print(f"load: {'; '.join(load.label for load in settings.loads)}; {' or '.join(ends)} each{times}")


def print_document(document: Document) -> None:
    """Print one run in full, several as one row per load."""
    print()
    if document.is_interrupted:
        print("interrupted; what was measured until then:" if document.results else "interrupted before a run")
    if not document.results:
        return
    if len(document.results) == 1:
        _print_result(document.results[0])
    else:
        _print_points(document.points)
    _print_errors(document.results)
    _print_warnings(_cautions(document.results))


def print_comparison(comparison: Comparison) -> None:
    """Print B against A, load by load."""
    for load in dict.fromkeys(row.load for row in comparison.rows):
        print(f"{load.label}:")
        rows = [
            (
                f"  {row.title}",
                _spread(row.a, row.metric),
                _spread(row.b, row.metric),
                "-" if row.ratio is None else f"{row.ratio:.3f}",
                "-" if row.lowest is None or row.highest is None else f"{row.lowest:.3f}-{row.highest:.3f}",
                "" if row.differs else "within the spread",
            )
            for row in comparison.rows
            if row.load == load
        ]
        print_table(("", "A", "B", "B/A", "of extremes", ""), rows)
        print()
    _print_warnings(comparison.warnings)


# ---- one run ------------------------------------------------------------------------------------------------------


def _print_result(result: Result) -> None:
    summary = result.summary
    rows = [("load", result.load.label), *_count_rows(summary), *_rate_rows(summary), *_generator_rows(summary)]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name.ljust(width)}  {value}")
    print()
    _print_latency(summary)


def _count_rows(summary: Summary) -> list[tuple[str, str]]:
    failed = f", {summary.n_failed} failed" if summary.n_failed else ""
    cut = f", {summary.n_unfinished} cut off" if summary.n_unfinished else ""
    rows = [("requests", f"{summary.n_good} good{failed}{cut} in {summary.window_s:.2f} s")]
    if summary.input_tokens is not None:
        rows.append(("input tokens", str(summary.input_tokens)))
    if summary.output_tokens:
        rows.append(("output tokens", f"{summary.output_tokens} (counted from {summary.output_tokens_from})"))
    if summary.cached_tokens is not None and summary.cache_hit_share is not None:
        rows.append(("prefix cache hits", f"{summary.cache_hit_share:.1%} of input tokens"))
    return rows


def _rate_rows(summary: Summary) -> list[tuple[str, str]]:
    rows = [("requests/s", f"{summary.requests_per_s:.2f}")]
    if summary.goodput is not None:
        rows.append(
            ("goodput", f"{summary.goodput.requests_per_s:.2f} requests/s, {summary.goodput.share:.1%} within the SLO")
        )
    if summary.input_tokens_per_s is not None:
        rows.append(("input tokens/s", f"{summary.input_tokens_per_s:.1f}"))
    if summary.output_tokens:
        rows.append(("output tokens/s", f"{summary.output_tokens_per_s:.1f}"))
    rows.append(("concurrency", f"{summary.concurrency_mean:.1f} on average, {summary.concurrency_max} at most"))
    return rows


def _generator_rows(summary: Summary) -> list[tuple[str, str]]:
    generator = summary.generator
    text = f"{generator.cpu_mean:.0%} of a core on average, {generator.cpu_max:.0%} at most"
    rows = [("generator's CPU", text)]
    if generator.lateness is not None:
        late = generator.lateness
        p50, p99 = _ms(late.percentiles["p50"]), _ms(late.percentiles["p99"])
        rows.append(("sent late by", f"p50 {p50}, p99 {p99}, at most {_ms(late.max)}"))
    rows.append(("new connections", str(generator.connections_opened)))
    return rows


def _print_latency(summary: Summary) -> None:
    named = (("TTFT", summary.ttft), ("TPOT", summary.tpot), ("inter-token", summary.itl), ("end to end", summary.e2e))
    found: list[tuple[str, Distribution]] = [(name, dist) for name, dist in named if dist is not None]
    if not found:
        return
    columns = list(found[0][1].percentiles)
    rows = [
        (name, _number_ms(dist.mean), *(_number_ms(dist.percentiles[p]) for p in columns), _number_ms(dist.max))
        for name, dist in found
    ]
    print_table(("latency (ms)", "mean", *columns, "max"), rows)


def _print_errors(results: Sequence[Result]) -> None:
    rows = [
        (str(error.n), error.failure.value + (f" {error.status}" if error.status else ""), error.example[:150])
        for result in results
        for error in result.summary.errors
    ]
    if rows:
        print()
        print_table(("errors", "class", "the first said"), rows)


# ---- several runs -------------------------------------------------------------------------------------------------


def _print_points(points: Sequence[Point]) -> None:
    from xinf.bench import METRICS

    shown = [m for m in METRICS if m.name in _FEW_COLUMNS and any(m.name in point.figures for point in points)]
    header = ["load", *(f"{m.title} (ms)" if m.is_time else m.title for m in shown)]
    rows = [
        [point.load.label, *(_spread(point.figures.get(m.name), m.name, has_unit=False) for m in shown)]
        for point in points
    ]
    print_table(header, rows)
    if any(point.n_repeats > 1 for point in points):
        print("medians of the repeats, (least-most)")


def _spread(spread: Spread | None, metric: str, *, has_unit: bool = True) -> str:
    if spread is None:
        return "-"

    def one(value: float) -> str:
        if metric in _SHARES:
            return f"{value:.1%}"
        return f"{value * 1e3:.4g}" if metric.endswith("_s") and not metric.endswith("per_s") else f"{value:.4g}"

    unit = " ms" if has_unit and metric.endswith("_s") and not metric.endswith("per_s") else ""
    median, least, most = one(spread.median), one(spread.min), one(spread.max)
    return f"{median}{unit}" if least == most else f"{median}{unit} ({least}-{most})"


# ---- words --------------------------------------------------------------------------------------------------------


def _cautions(results: Sequence[Result]) -> list[str]:
    """Each kind of warning once, in the words of the first run that has it."""
    by_kind: dict[str, list[str]] = {}
    for result in results:
        for caution in result.summary.warnings:
            which = f"{result.load.label}: " if len(results) > 1 else ""
            by_kind.setdefault(caution.kind, []).append(f"{which}{caution.text}")
    return [
        texts[0] if len(texts) == 1 else f"{texts[0]} (so or alike in {len(texts)} of {len(results)} runs)"
        for texts in by_kind.values()
    ]


def _print_warnings(texts: Sequence[str]) -> None:
    if texts:
        print()
    for text in texts:
        typer.secho(f"warning: {text}", fg=typer.colors.YELLOW)


def _ms(seconds: float) -> str:
    return f"{_number_ms(seconds)} ms"


def _number_ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}" if seconds < 10 else f"{seconds * 1e3:.0f}"
