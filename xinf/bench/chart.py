"""Charts of a result, as SVG or PNG. matplotlib is an extra (`xinf[bench]`) and is loaded when something is drawn."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xinf.bench.document import Document, Point, Result, Spread
from xinf.bench.load import ClosedLoop
from xinf.bench.report import CURVE_SHARES
from xinf.core.errors import InvalidRequest, NotFound, Unavailable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")
_DPI = 150
# Above the curves, for the legend.
_HEADROOM = 1.2
# A latency axis that spans more than this is logarithmic; else it begins at 0.
_LOG_FROM = 10
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _GREEN, _PINK, _GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
_CURVES = (("ttft", "TTFT", _BLUE), ("tpot", "TPOT", _GREEN), ("itl", "ITL", _PINK), ("e2e", "end to end", _ORANGE))


def check_chart(path: Path) -> None:
    """Raises: InvalidRequest, Unavailable before a long run whose chart could not be drawn."""
    if path.suffix not in FORMATS:
        raise InvalidRequest(f"a chart is written as {' or '.join(FORMATS)}, not as {path.name!r}")
    if importlib.util.find_spec("matplotlib") is None:
        raise Unavailable("charts need matplotlib, which is not installed", remedy="pip install 'xinf[bench]'")


def draw(document: Document, path: Path) -> None:
    """Draw one run as it went, or several loads against each other.

    Raises: InvalidRequest, Unavailable as `check_chart`; NotFound if the file cannot be written.
    """
    check_chart(path)
    if not document.results:
        raise InvalidRequest("no run has ended: there is nothing to draw")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text stays text in SVG, so that it can be searched; a fixed salt makes equal charts equal files.
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "xinf", "font.size": 9, "axes.titlesize": 10,
             "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.spines.top": False,
             "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False}  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(11, 7), layout="constrained")
        if len(document.points) > 1:
            _draw_sweep(figure, document.points)
        else:
            _draw_run(figure, document.results)
        settings = document.settings
        what = document.points[0].load.label if len(document.points) == 1 else f"{len(document.points)} loads"
        repeats = f", {settings.n_repeats} repeats" if settings.n_repeats > 1 else ""
        figure.suptitle(
            f"{settings.label or settings.model}: {settings.endpoint.value}, {settings.workload.kind.value}, "
            f"{what}{repeats}\n{settings.url}, {document.created}, "
            f"load from {document.host.n_cpus} x {document.host.cpu}",
            fontsize=10,
        )
        try:
            figure.savefig(path, dpi=_DPI, metadata={"Date": None} if path.suffix == ".svg" else None)
        except OSError as error:
            raise NotFound(f"cannot write {path}: {error.strerror}") from error


# ---- one load -----------------------------------------------------------------------------------------------------


def _draw_run(figure: Figure, results: Sequence[Result]) -> None:
    """The first repeat over time; distributions of all repeats, thin after the first."""
    grid = figure.add_gridspec(2, 2)
    _draw_distributions(figure.add_subplot(grid[0, 0]), results)
    _draw_tail(figure.add_subplot(grid[0, 1]), results)
    series = results[0].series
    at_s = [*(step * series.step_s for step in range(len(series.requests_per_s))), series.end_s]

    def steps(axes: Axes, values: Sequence[float], colour: str, label: str) -> None:
        axes.step(at_s, [*values, values[-1]], where="post", color=colour, label=label, linewidth=1.4)

    rate = figure.add_subplot(grid[1, 0])
    steps(rate, series.requests_per_s, _BLUE, "answers/s")
    if any(series.errors_per_s):
        steps(rate, series.errors_per_s, "#c00000", "errors/s")
    most = _HEADROOM * max([*series.requests_per_s, *series.errors_per_s], default=0.0)
    rate.set(
        title="throughput over time", xlabel="seconds", ylabel="requests/s", ylim=(0, most or 1), xlim=(0, at_s[-1])
    )
    lines = [*rate.get_lines()]
    if any(series.events_per_s):
        events = rate.twinx()
        steps(events, series.events_per_s, _ORANGE, "stream events/s (right)")
        events.set(ylabel="events/s", ylim=(0, _HEADROOM * max(series.events_per_s)))
        events.spines["right"].set_visible(True)
        events.grid(visible=False)
        lines += events.get_lines()
    rate.legend(lines, [str(line.get_label()) for line in lines], loc="upper left", ncols=len(lines))
    busy = figure.add_subplot(grid[1, 1])
    busy.fill_between(at_s, [*series.concurrency, series.concurrency[-1]], step="post", color=_BLUE, alpha=0.3)
    steps(busy, series.concurrency, _BLUE, "open requests")
    busy.set(title="concurrency over time", xlabel="seconds", ylabel="open requests", ylim=(0, None),
             xlim=(0, at_s[-1]))  # fmt: skip


def _curves(result: Result) -> list[tuple[str, str, list[float]]]:
    """Title, colour and milliseconds of the distributions that a run has."""
    return [
        (title, colour, [value * 1e3 for value in values])
        for name, title, colour in _CURVES
        if (values := getattr(result.curves, name))
    ]


def _draw_distributions(axes: Axes, results: Sequence[Result]) -> None:
    for number, result in enumerate(results):
        for title, colour, values in _curves(result):
            axes.plot(values, CURVE_SHARES, color=colour, alpha=0.35 if number else 1, linewidth=0.8 if number else 1.6,
                      label=None if number else title)  # fmt: skip
    axes.set_xscale("log")
    _plain_log(axes.xaxis)
    axes.set(title="latency: share of requests (ITL: of events) below", xlabel="milliseconds", ylim=(0, 1.01))
    # The least of all is often a matter of two events in one packet: the axis begins where one in twenty is below.
    least = [values[5] for result in results for *_, values in _curves(result) if values[5] > 0]
    if least:
        axes.set_xlim(left=min(least) / 1.1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 0.9, 1], ["0", "25 %", "50 %", "75 %", "90 %", "100 %"])
    if axes.get_lines():
        axes.legend(loc="best")


def _draw_tail(axes: Axes, results: Sequence[Result]) -> None:
    """The same, turned so that the tail is wide: nines on the x axis."""
    shown = [(50, "p50"), (90, "p90"), (99, "p99"), (99.9, "p99.9")]
    for number, result in enumerate(results):
        for title, colour, values in _curves(result):
            pairs = [(1 / (1 - share), value) for share, value in zip(CURVE_SHARES, values, strict=True) if share < 1]
            axes.plot([x for x, _ in pairs], [y for _, y in pairs], color=colour, alpha=0.35 if number else 1,
                      linewidth=0.8 if number else 1.6, label=None if number else title)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([100 / (100 - p) for p, _ in shown], [name for _, name in shown])
    axes.minorticks_off()
    _plain_log(axes.yaxis)
    axes.set(title="the tail: latency by percentile", ylabel="milliseconds", xlim=(1, 1000))


def _plain_log(axis: Axis) -> None:
    """Ticks at 0.5, 1, 2, 5, 10 ... instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(lambda value, _position: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


# ---- several loads ------------------------------------------------------------------------------------------------


def _draw_sweep(figure: Figure, points: Sequence[Point]) -> None:
    is_closed = isinstance(points[0].load, ClosedLoop)
    grid = figure.add_gridspec(2, 2)
    ordered = sorted(points, key=lambda p: p.load.concurrency if isinstance(p.load, ClosedLoop) else p.load.rate)
    answered = _spreads(ordered, "requests_per_s")
    label = "answered requests/s"
    has_tokens = any(spread is not None and spread.median for spread in _spreads(ordered, "output_tokens_per_s"))
    for place, name, title in (((0, 0), "ttft", "time to first token"), ((0, 1), "tpot", "time per output token"),
                               ((1, 0), "e2e", "end to end")):  # fmt: skip
        axes = figure.add_subplot(grid[place])
        for p, colour in (("p50", _BLUE), ("p99", _ORANGE)):
            _errorbars(axes, answered, _spreads(ordered, f"{name}_{p}_s"), colour, p, scale=1e3)
        axes.set(title=f"{title} against throughput", xlabel=label, ylabel="milliseconds", xlim=(0, None))
        values = [s for p in ("p50", "p99") for s in _spreads(ordered, f"{name}_{p}_s") if s is not None]
        if values and max(s.max for s in values) > _LOG_FROM * min(s.min for s in values) > 0:
            axes.set_yscale("log")
            _plain_log(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)
        if axes.get_lines():
            axes.legend(loc="upper left")
    axes = figure.add_subplot(grid[1, 1])
    offered: list[Spread | None] = [_exactly(_load_value(point)) for point in ordered]
    _errorbars(axes, offered, answered, _BLUE, "answered", scale=1)
    _errorbars(axes, offered, _spreads(ordered, "goodput_per_s"), _GREEN, "within the objectives", scale=1)
    if not is_closed:
        most = max(_load_value(point) for point in ordered)
        axes.plot([0, most], [0, most], color=_GREY, linestyle=":", label="offered")
    axes.set(title="throughput against load", xlabel="concurrency" if is_closed else "offered requests/s",
             ylabel="requests/s", xlim=(0, None), ylim=(0, None))  # fmt: skip
    if has_tokens:
        tokens = axes.twinx()
        _errorbars(
            tokens,
            offered,
            _spreads(ordered, "output_tokens_per_s"),
            _PINK,
            "output tokens/s (right)",
            scale=1,
            style="--",
        )
        tokens.set(ylabel="tokens/s", ylim=(0, None))
        tokens.spines["right"].set_visible(True)
        tokens.grid(visible=False)
        tokens.legend(loc="lower right")
    axes.legend(loc="upper left")


def _load_value(point: Point) -> float:
    return point.load.concurrency if isinstance(point.load, ClosedLoop) else point.load.rate


def _spreads(points: Sequence[Point], name: str) -> list[Spread | None]:
    return [point.figures.get(name) for point in points]


def _exactly(value: float) -> Spread:
    return Spread(median=value, min=value, max=value)


def _errorbars(
    axes: Axes,
    xs: Sequence[Spread | None],
    ys: Sequence[Spread | None],
    colour: str,
    label: str,
    *,
    scale: float,
    style: str = "-",
) -> None:
    """Medians joined by a line; bars from the least to the most of the repeats, both ways."""
    pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if x is not None and y is not None]
    if not pairs:
        return

    def bars(pick: Callable[[tuple[Spread, Spread]], Spread], by: float) -> list[list[float]]:
        spreads = [pick(pair) for pair in pairs]
        return [[(s.median - s.min) * by for s in spreads], [(s.max - s.median) * by for s in spreads]]

    axes.errorbar([x.median for x, _ in pairs], [y.median * scale for _, y in pairs], color=colour, label=label,
                  xerr=bars(lambda pair: pair[0], 1), yerr=bars(lambda pair: pair[1], scale), marker="o",
                  linestyle=style, markersize=4, linewidth=1.4, elinewidth=0.8, capsize=2)  # fmt: skip
