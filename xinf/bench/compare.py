"""Two result files beside each other: ratios, with what the repeats allow to say about them. Pure."""

from __future__ import annotations

import msgspec

from xinf.bench.document import METRICS, Document, Spread
from xinf.bench.load import Load


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of one load. `ratio` is B's median to A's; `lowest`, `highest` are of the extremes of the repeats.

    None where A's is 0.
    """

    load: Load
    metric: str
    title: str
    is_time: bool
    a: Spread
    b: Spread
    ratio: float | None
    lowest: float | None
    highest: float | None

    @property
    def differs(self) -> bool:
        """Whether the repeats of A and of B do not overlap."""
        return self.a.max < self.b.min or self.b.max < self.a.min


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """`warnings` say why the two may not be comparable."""

    rows: tuple[Row, ...]
    warnings: tuple[str, ...]


def compare(a: Document, b: Document) -> Comparison:
    """Compare the loads that both have."""
    points_b = {point.load: point for point in b.points}
    rows = []
    for point in a.points:
        other = points_b.get(point.load)
        if other is None:
            continue
        for metric in METRICS:
            before, after = point.figures.get(metric.name), other.figures.get(metric.name)
            if before is not None and after is not None:
                rows.append(
                    Row(
                        load=point.load,
                        metric=metric.name,
                        title=metric.title,
                        is_time=metric.is_time,
                        a=before,
                        b=after,
                        ratio=_ratio(after.median, before.median),
                        lowest=_ratio(after.min, before.max),
                        highest=_ratio(after.max, before.min),
                    )
                )
    return Comparison(rows=tuple(rows), warnings=tuple(_warnings(a, b, has_rows=bool(rows))))


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def _warnings(a: Document, b: Document, *, has_rows: bool) -> list[str]:
    found = []
    loads_a, loads_b = ({point.load.label for point in document.points} for document in (a, b))
    if not has_rows:
        found.append(f"no load is in both: A has {_list(loads_a)}, B has {_list(loads_b)}")
    elif loads_a != loads_b:
        found.append(f"only in one of them: {_list(loads_a ^ loads_b)}")
    if (a.host.cpu, a.host.n_cpus) != (b.host.cpu, b.host.n_cpus):
        found.append(
            f"the load generators ran on different machines ({a.host.n_cpus} x {a.host.cpu}, "
            f"{b.host.n_cpus} x {b.host.cpu}): a ratio means nothing"
        )
    for name in ("model", "endpoint", "workload", "is_stream", "ignore_eos", "extra_body", "n_requests", "duration_s"):
        one, other = getattr(a.settings, name), getattr(b.settings, name)
        if one != other:
            found.append(f"{name} differs: {_show(one)} and {_show(other)}")
    if min((point.n_repeats for document in (a, b) for point in document.points), default=0) < 3:
        found.append("fewer than 3 repeats: the spread says little, use --repeat 5")
    if a.is_interrupted or b.is_interrupted:
        found.append("a run was interrupted")
    return found


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _show(value: object) -> str:
    return msgspec.json.encode(value).decode()
