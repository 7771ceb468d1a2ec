"""Renders README.md from one run's results: tables, ratios, which targets are met, how it was measured. All of it.

`python -m benchmarks.render [RESULTS.json]`; without a file, from the newest results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.arena import NOISY, WARM_UP_S
from benchmarks.cells import CELLS, CHUNKS_PER_STREAM, MEMORY_STEPS, SLOW, SLOW_S, Cell, Kind
from benchmarks.contestant import Family
from benchmarks.route_table import newest_routing, render_routing
from benchmarks.sample import RESULTS, Run, Sample, of_peers, read
from benchmarks.spread import Metric, Spread, is_sound, ratio, spread
from benchmarks.targets import (
    MIB,
    Against,
    Target,
    Verdict,
    chunks_per_s,
    judge,
    latency_p50_ms,
    opponent,
    requests_per_s,
    samples_by_contestant,
    ttft_p99_ms,
    us_per_chunk,
    us_per_request,
)
from xinf.bench import read_route_document

REPORT = Path(__file__).resolve().parent / "README.md"
BUSY = 0.9  # of the load core: from here on, engines and load generator may have been the limit
_TITLES = {cell.name: cell.title for cell in CELLS}

_INTRO = """\
# Benchmarks

How xinf's gateway compares with other gateways on the same work. This page is rendered by `render.py` from
[{results}](results/{results}); nothing in it is written by hand.

    make bench          # micro-benchmarks, and xinf's gateway behind each of its fronts
    make bench-peers    # installs the other gateways, runs everybody interleaved, renders this page

Ratios are the claim, absolute figures are of this machine on this day. A ratio is taken within one repeat, seconds
apart; its median and extremes over the repeats are shown. Ratios between 0.77 and 1.3 are a tie.
"""

_METHOD = """\
## Method

- The gateway under test has core {gateway_cpu} to itself. The load generator (`loadgen.c`), the engines and, for xinf,
  the control process, the supervisor and the agent share core {load_cpu}.
- CPU of the gateway is that of its whole process tree (for xinf: the gateway's master and its workers), from the
  kernel's process clocks, read by the load generator at both ends of the window in which it counts.
- Engines: two simulated ones, prefill takes no time. The peers reach them over HTTP/1.1 (`xinf sim --http`); behind
  xinf the same engine runs in a shim that speaks gRPC. That is what differs: its CPU stands beside the gateway's.
- Every prompt is distinct from its first chunk on, so that prefix indexes grow with every request. Bodies have a
  content-length, connections are kept alive, TCP_NODELAY is set. Closed loop; seeds are in the raw results.
- Whole answers: {warm_up} s warm-up, then {request_s} s ({slow_s} s for {slow}).
- Streams: {chunks} chunks each, all started at once after a short warm-up of as many streams, counted for {stream_s}.
  Every stream must carry all its chunks, `data: [DONE]` and the last HTTP chunk, also those that end after the window.
  A chunk is one server-sent event; events that a gateway merges into one write still count one by one.
- Interleaved: in each of {repeats} repeats every contestant runs once in each cell, in an order that rotates. All
  contestants are up, one is under load; before each run the engines must have come to rest. The memory cell runs
  once, on a fresh gateway.
- A run with errors in more than 0.1 % of its requests, or a stream without its end, cannot be the best of its kind;
  ⚠ marks it. † marks cells where engines and load generator used more than {busy:.0f} % of their core: there the
  gateway may not have been the limit.
"""


def render(run: Run, results_name: str) -> str:
    """Give the report as Markdown."""
    parts = [
        _INTRO.format(results=results_name),
        _machine(run),
        _targets(run),
        _request_tables(run),
        _stream_tables(run),
        _memory_table(run),
        _contestants(run),
        _method(run),
    ]
    return "\n".join(part for part in parts if part)


def summary(run: Run) -> str:
    """The tables alone, for the terminal."""
    return "\n".join(part for part in (_request_tables(run), _stream_tables(run), _memory_table(run)) if part)


def whole_report(path: Path) -> str:
    """The report of a results file, with the newest results of routing behind it, if there are any."""
    report = render(read(path), path.name)
    routing = newest_routing()
    if routing is None:
        return report
    return f"{report}\n{render_routing(read_route_document(routing), routing.name)}"


def write_report(path: Path) -> Path:
    """Render README.md from a results file."""
    REPORT.write_text(whole_report(path))
    return REPORT


def newest() -> Path:
    """The newest results. Raises: FileNotFoundError."""
    found = of_peers(RESULTS)
    if not found:
        raise FileNotFoundError(f"no results in {RESULTS}: run `make bench-peers` first")
    return max(found, key=lambda path: read(path).date)


# ---- parts ---------------------------------------------------------------------------------------------------------


def _machine(run: Run) -> str:
    quick = "\n\n**A quick run: it shows that everything works, not how fast it is.**" if run.is_quick else ""
    noise = ""
    if run.background_share > NOISY:
        noise = f"\n\n**A noisy machine: others used {run.background_share:.0%} of its cores before the run began.**"
    names = ("date", "commit", "processor", "cores", "kernel", "Python", "repeats", "took")
    minutes = f"{run.duration_s / 60:.0f} min"
    host = (run.cpu_model, run.n_cpus, run.kernel, run.python)
    values = (run.date[:10], run.commit, *host, run.repeats, minutes)
    rows = (names, ("---",) * len(names), values)
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows) + f"{quick}{noise}\n"


def _targets(run: Run) -> str:
    verdicts = judge(run)
    if not verdicts:
        return ""
    n_met = sum(verdict.is_met is True for verdict in verdicts if not verdict.limit.is_stretch)
    n_judged = sum(verdict.is_met is not None for verdict in verdicts if not verdict.limit.is_stretch)
    lines = [
        "## Targets",
        "",
        f"{n_met} of {n_judged} targets are met, stretch goals apart. × is a ratio to the opponent named.",
        "“Close”: single repeats lie on both sides of the limit. “No gateway”: the same figure of the",
        "HTTP engines alone, which tells how far a gateway can get in front of such engines.",
        "",
        "| what | cell | front | opponent | limit | no gateway | median (min-max) | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_verdict_row(verdict) for verdict in verdicts]
    return "\n".join(lines) + "\n"


def _verdict_row(verdict: Verdict) -> str:
    sign = "≥" if verdict.is_larger_better else "≤"
    limit = f"{sign} {verdict.limit.value:g} {verdict.unit}{' (stretch)' if verdict.limit.is_stretch else ''}"
    digits = 0 if verdict.unit == "MiB" else 2
    found = "not measured" if verdict.found is None else f"{_figure(verdict.found, digits)} {verdict.unit}"
    word = {True: "met", False: "**missed**", None: ""}[verdict.is_met]
    close = ", close" if verdict.is_close and word else ""
    cell = _TITLES.get(verdict.cell, verdict.cell)
    front = verdict.contestant.removeprefix("xinf ")
    without = "" if verdict.without is None else f"{verdict.without.median:.2f} {verdict.unit}"
    columns = (verdict.title, cell, front, verdict.opponent, limit, without, found, f"{word}{close}")
    return f"| {' | '.join(columns)} |"


def _request_tables(run: Run) -> str:
    cells = _cells(run, Kind.REQUESTS)
    if not cells:
        return ""
    loaded = [cell for cell in cells if cell.connections > 1]
    parts = ["## Whole answers", ""]
    parts += _table(run, "Gateway CPU per request, µs", loaded, us_per_request, 1)
    parts += _ratios(run, "CPU per request", loaded, us_per_request, (Against.CACHE_AWARE, Against.ROUND_ROBIN))
    parts += _table(run, "Requests/s", loaded, requests_per_s, 0)
    parts += _ratios(run, "requests/s", loaded, requests_per_s, (Against.RUST,), is_larger_better=True)
    parts += _table(run, "Latency p50, ms", cells, latency_p50_ms, 3)
    parts += _table(run, "Latency p99, ms", cells, lambda sample: sample.latency_p99_ms, 2)
    parts += _table(run, "Engine CPU per request, µs", loaded, lambda sample: sample.engine_us_per_request, 1)
    return "\n".join(parts)


def _stream_tables(run: Run) -> str:
    cells = _cells(run, Kind.STREAMS)
    if not cells:
        return ""
    parts = ["## Streams", ""]
    parts += _table(run, "Gateway CPU per chunk, µs", cells, us_per_chunk, 1)
    parts += _ratios(run, "CPU per chunk", cells, us_per_chunk, (Against.RUST,))
    parts += _table(run, "Time to first token p99, ms", cells, ttft_p99_ms, 1)
    parts += _ratios(run, "time to first token p99", cells, ttft_p99_ms, (Against.RUST,))
    parts += _table(run, "Gap between chunks p99, ms", cells, lambda sample: sample.gap_p99_ms, 1)
    parts += _table(run, "Chunks/s", cells, chunks_per_s, 0)
    parts += _ratios(run, "chunks/s", cells, chunks_per_s, (Against.RUST,), is_larger_better=True)
    parts += _table(run, "Streams without their end, per repeat", cells, lambda sample: float(sample.unfinished), 0)
    parts += _table(run, "Engine CPU per chunk, µs", cells, lambda sample: sample.engine_us_per_chunk, 1)
    return "\n".join(parts)


def _memory_table(run: Run) -> str:
    samples = [sample for sample in run.samples if sample.cell == "memory"]
    if not samples:
        return ""
    steps = " | ".join(f"after {n:,} of {size / 1024:g} KB" for size, n in MEMORY_STEPS)
    lines = [
        "## Memory",
        "",
        "Resident MiB of a fresh gateway, distinct prompts.",
        "",
        f"| | start | {steps} | growth |",
        "|---|---|" + "---|" * (len(MEMORY_STEPS) + 1),
    ]
    for sample in samples:
        if sample.rss_bytes is None or sample.rss_start_bytes is None:
            lines.append(f"| {sample.contestant} | failed |" + " |" * (len(MEMORY_STEPS) + 1))
            continue
        sizes = [sample.rss_start_bytes, *sample.rss_bytes]
        growth = (max(sample.rss_bytes) - sample.rss_start_bytes) / MIB
        mark = "" if is_sound(sample) else " ⚠"
        row = " | ".join(f"{size / MIB:.0f}" for size in sizes)
        lines.append(f"| {sample.contestant}{mark} | {row} | {growth:.0f} |")
    return "\n".join(lines) + "\n"


def _contestants(run: Run) -> str:
    lines = [
        "## Contestants",
        "",
        "| | compared as | version | idle, % of core | settings |",
        "|---|---|---|---|---|",
    ]
    for one in run.contestants:
        idle = run.idle_core_share.get(one.name)
        idle_pct = "" if idle is None else f"{idle * 100:.1f}"
        lines.append(f"| {one.name} | {one.family} | {one.version} | {idle_pct} | {one.settings} |")
    failures = sorted({(s.contestant, s.failure.split("\n")[0]) for s in run.samples if s.failure is not None})
    if failures:
        lines += ["", "What did not run:", "", *(f"- {name}: {reason}" for name, reason in failures)]
    return "\n".join(lines) + "\n"


def _method(run: Run) -> str:
    requests, streams = _cells(run, Kind.REQUESTS), _cells(run, Kind.STREAMS)
    stream_s = ", ".join(f"{cell.seconds:g} s ({cell.title})" for cell in streams) or "-"
    return _METHOD.format(
        gateway_cpu=run.gateway_cpu,
        load_cpu=run.load_cpu,
        warm_up=f"{WARM_UP_S:g}",
        request_s=f"{requests[0].seconds:g}" if requests else "-",
        slow_s=f"{SLOW_S:g}",
        slow=" and ".join(sorted(SLOW)),
        chunks=CHUNKS_PER_STREAM,
        stream_s=stream_s,
        repeats=run.repeats,
        busy=BUSY * 100,
    )


# ---- tables --------------------------------------------------------------------------------------------------------


def _cells(run: Run, kind: Kind) -> list[Cell]:
    names = {sample.cell for sample in run.samples}
    return [cell for cell in CELLS if cell.kind is kind and cell.name in names]


def _figure(found: Spread, digits: int) -> str:
    if found.n == 1:
        return f"{found.median:,.{digits}f}"
    return f"{found.median:,.{digits}f} ({found.low:,.{digits}f}-{found.high:,.{digits}f})"


def _table(run: Run, title: str, cells: Sequence[Cell], metric: Metric, digits: int) -> list[str]:
    """A contestant a row, a cell a column: median and extremes."""
    columns = [samples_by_contestant(run, cell.name) for cell in cells]
    return _rows(run, title, cells, lambda name, index: _entry(columns[index].get(name, []), metric, digits))


def _entry(samples: Sequence[Sample], metric: Metric, digits: int) -> str:
    found = spread(metric(sample) for sample in samples if sample.failure is None)
    if found is None:
        return ""
    busy = spread(sample.load_core_share for sample in samples)
    marks = ("" if all(map(is_sound, samples)) else " ⚠") + (" †" if busy is not None and busy.median > BUSY else "")
    return _figure(found, digits) + marks


def _ratios(
    run: Run,
    what: str,
    cells: Sequence[Cell],
    metric: Metric,
    against: Sequence[Against],
    *,
    is_larger_better: bool = False,
) -> list[str]:
    """A table per opponent: everybody's ratio to the best of that kind in each cell."""
    parts: list[str] = []
    for kind in against:
        target = Target(title=what, cells=(), metric=metric, against=kind, limits={}, is_larger_better=is_larger_better)
        best_names = [opponent(run, target, cell.name) for cell in cells]
        if not any(best_names):
            continue
        columns = [samples_by_contestant(run, cell.name) for cell in cells]

        def entry(
            name: str,
            index: int,
            columns: list[dict[str, list[Sample]]] = columns,
            best_names: list[str | None] = best_names,
        ) -> str:
            other = best_names[index]
            if other is None:
                return ""
            sound = [sample for sample in columns[index].get(name, []) if is_sound(sample)]
            found = ratio(sound, columns[index][other], metric)
            if found is None:
                return ""
            return "1" if other == name else _figure(found, 2)

        parts += _rows(run, f"Ratio of {what} to the {kind.value}", cells, entry)
    return parts


def _rows(run: Run, title: str, cells: Sequence[Cell], entry: Callable[[str, int], str]) -> list[str]:
    head = "| | " + " | ".join(cell.title for cell in cells) + " |"
    lines = [f"### {title}", "", head, "|---|" + "---|" * len(cells)]
    for taker in run.contestants:
        entries = [entry(taker.name, index) for index in range(len(cells))]
        if any(entries):
            name = f"**{taker.name}**" if taker.family == Family.XINF.value else taker.name
            lines.append(f"| {name} | " + " | ".join(entries) + " |")
    return [*lines, ""]


if __name__ == "__main__":
    print(write_report(Path(sys.argv[1]) if len(sys.argv) > 1 else newest()))
