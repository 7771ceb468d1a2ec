"""The routing section of the report, from a file of `xinf bench route`: policies beside each other."""

from __future__ import annotations

from pathlib import Path

from benchmarks.sample import RESULTS
from xinf.bench import RouteDocument, RoutePoint, Spread, read_route_document

MARK = "-route-"  # in the names of results
_AUTO = "auto"
_COLUMNS = (
    ("hit_share", "hits, %", 100.0, 1),
    ("ttft_p50_s", "TTFT p50, ms", 1000.0, 0),
    ("ttft_p99_s", "TTFT p99, ms", 1000.0, 0),
    ("goodput_share", "goodput, %", 100.0, 1),
    ("requests_max", "requests, max/mean", 1.0, 2),
    ("prefill_cv", "prefill, CV", 1.0, 2),
    ("predicted_within_block", "predicted within a block, %", 100.0, 1),
    ("gateway_cpu_us", "gateway CPU, us/request", 1.0, 0),
)


def newest_routing(directory: Path = RESULTS) -> Path | None:
    """The newest routing results; None without any."""
    found = sorted(directory.glob(f"20*{MARK}*.json"))
    return max(found, key=lambda path: read_route_document(path).created) if found else None


def render_routing(document: RouteDocument, results_name: str) -> str:
    """Give the section as Markdown."""
    settings, engine = document.settings, document.settings.fleet.engine
    how = "in virtual time (`xinf simulate`)" if settings.is_simulated else "through a real gateway"
    slo = ", ".join(
        f"{name.removesuffix('_s')} ≤ {limit:g} s"
        for name in ("ttft_s", "tpot_s", "e2e_s")
        if settings.slo is not None and (limit := getattr(settings.slo, name)) is not None
    )
    intro = (
        f"From [{results_name}](results/{results_name}), {document.created[:10]}, {how}: {settings.fleet.n_replicas} "
        f"simulated engines of {engine.prefill_tokens_per_s:g} prefill tokens/s, steps of {engine.step_ms:g} ms and "
        f"{engine.max_running} running; medians (extremes) of {settings.n_repeats} repeats with rotated policies. "
        f"Goodput: {slo or 'none asked'}. Pools are percent of the working set. Bold: `auto` is no worse than the "
        "others, by the extremes of the repeats."
    )
    lines = [
        "## Routing policies",
        "",
        intro,
        "",
        "| workload | pool | policy | " + " | ".join(title for _, title, _, _ in _COLUMNS) + " |",
        "|---|---|---|" + "---|" * len(_COLUMNS),
    ]
    for point in document.points:
        others = [one for one in document.points if _is_rival(one, point)]
        entries = [_entry(point, others, name, factor, digits) for name, _, factor, digits in _COLUMNS]
        pool = "" if point.case.pool_pct is None else f"{point.case.pool_pct:g} %"
        lines.append(f"| {point.case.workload} | {pool} | {point.case.policy} | " + " | ".join(entries) + " |")
    return "\n".join(lines) + "\n"


def is_no_worse(ours: Spread, theirs: Spread, *, is_larger_better: bool) -> bool:
    """Whether ours is better, or as good as repeats can tell: the extremes overlap."""
    return ours.max >= theirs.min if is_larger_better else ours.min <= theirs.max


def _is_rival(one: RoutePoint, point: RoutePoint) -> bool:
    return (one.case.workload, one.case.pool_pct) == (point.case.workload, point.case.pool_pct) and one is not point


def _entry(point: RoutePoint, others: list[RoutePoint], name: str, factor: float, digits: int) -> str:
    found = point.figures.get(name)
    if found is None:
        return ""
    text = f"{found.median * factor:,.{digits}f}"
    if found.min != found.max:
        text += f" ({found.min * factor:,.{digits}f}-{found.max * factor:,.{digits}f})"
    if point.case.policy != _AUTO or name not in ("ttft_p99_s", "goodput_share"):
        return text
    is_good = all(
        is_no_worse(found, other.figures[name], is_larger_better=name == "goodput_share")
        for other in others
        if name in other.figures
    )
    return f"**{text}**" if is_good else text
