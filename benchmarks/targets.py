"""What xinf's gateway has to reach, and whether a run shows it."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from benchmarks.contestant import Family
from benchmarks.sample import Run, Sample
from benchmarks.spread import Metric, Spread, best, is_sound, ratio, spread

MIB = 2**20
NO_GATEWAY = "no gateway"


class Against(enum.Enum):
    """What a figure is compared with."""

    CACHE_AWARE = "best cache-aware Rust router"
    ROUND_ROBIN = "best round-robin Rust router"
    RUST = "best Rust router in any mode"
    DIRECT = "the engine without a gateway, difference"
    NOTHING = "absolute"
    ONE_WORKER = "the same with 1 worker"


class Limit(msgspec.Struct, frozen=True):
    """What one front has to reach; `is_stretch`: hoped for, not demanded."""

    value: float
    is_stretch: bool = False


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table of targets."""

    title: str
    cells: tuple[str, ...]
    metric: Metric
    against: Against
    limits: dict[str, Limit]  # by front
    unit: str = "×"
    is_larger_better: bool = False


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One target for one front in one cell. `found` is None where the run has no figure for it."""

    title: str
    cell: str
    contestant: str
    opponent: str
    limit: Limit
    found: Spread | None
    unit: str
    is_larger_better: bool
    without: Spread | None = None  # the same figure with no gateway at all, where one can be had

    @property
    def is_met(self) -> bool | None:
        """Whether the median reaches the limit; None without a figure."""
        if self.found is None:
            return None
        reached = self.found.median >= self.limit.value if self.is_larger_better else None
        return self.found.median <= self.limit.value if reached is None else reached

    @property
    def is_close(self) -> bool:
        """Whether single repeats lie on both sides of the limit."""
        return self.found is not None and self.found.low <= self.limit.value <= self.found.high


def us_per_request(sample: Sample) -> float | None:
    return sample.gateway_us_per_request


def us_per_chunk(sample: Sample) -> float | None:
    return sample.gateway_us_per_chunk


def ttft_p99_ms(sample: Sample) -> float | None:
    return sample.ttft_p99_ms


def latency_p50_ms(sample: Sample) -> float | None:
    return sample.latency_p50_ms


def requests_per_s(sample: Sample) -> float | None:
    return sample.requests_per_s or None


def chunks_per_s(sample: Sample) -> float | None:
    return sample.chunks_per_s or None


def rss_growth_mib(sample: Sample) -> float | None:
    if sample.rss_bytes is None or sample.rss_start_bytes is None:
        return None
    return (max(sample.rss_bytes) - sample.rss_start_bytes) / MIB


def requests_per_cpu_s(sample: Sample) -> float | None:
    return 1e6 / sample.gateway_us_per_request if sample.gateway_us_per_request else None


_SMALL = ("requests-0.5k-c64", "requests-0.5k-c256")
_MIDDLE = ("requests-8k-c64", "requests-8k-c256")
_LARGE = ("requests-64k-c16", "requests-64k-c64")
_STREAMS = ("streams-64-10ms", "streams-256-10ms", "streams-1000-50ms")


def _cpu_per_request(cells: tuple[str, ...], against: Against, limits: dict[str, Limit]) -> Target:
    return Target(title="CPU per request", cells=cells, metric=us_per_request, against=against, limits=limits)


def _requests_per_s(cell: str, limits: dict[str, Limit]) -> Target:
    return Target(
        title="requests/s",
        cells=(cell,),
        metric=requests_per_s,
        against=Against.RUST,
        limits=limits,
        is_larger_better=True,
    )


def _limits(granian: float, direct: float, *, stretch: bool = False) -> dict[str, Limit]:
    return {"xinf granian": Limit(granian, stretch), "xinf direct": Limit(direct)}


TARGETS: tuple[Target, ...] = (
    _cpu_per_request(_SMALL, Against.CACHE_AWARE, _limits(0.7, 0.4)),
    _cpu_per_request(_MIDDLE, Against.CACHE_AWARE, _limits(0.7, 0.4, stretch=True)),
    _cpu_per_request(_LARGE, Against.CACHE_AWARE, _limits(0.6, 0.3)),
    _cpu_per_request((*_SMALL, *_MIDDLE, *_LARGE), Against.ROUND_ROBIN, _limits(1.0, 0.6, stretch=True)),
    _requests_per_s("requests-0.5k-c64", _limits(1.0, 1.7)),
    _requests_per_s("requests-0.5k-c256", _limits(1.4, 2.5)),
    Target(
        title="added latency, p50",
        cells=("requests-0.5k-c1",),
        metric=latency_p50_ms,
        against=Against.DIRECT,
        limits=_limits(0.6, 0.3),
        unit="ms",
    ),
    Target(
        title="CPU per chunk",
        cells=_STREAMS,
        metric=us_per_chunk,
        against=Against.RUST,
        limits=_limits(0.8, 0.6),
    ),
    Target(
        title="time to first token, p99",
        cells=_STREAMS,
        metric=ttft_p99_ms,
        against=Against.RUST,
        limits=_limits(0.5, 0.25),
    ),
    Target(
        title="chunks/s, every stream with its end",
        cells=("streams-1000-10ms",),
        metric=chunks_per_s,
        against=Against.RUST,
        limits=_limits(1.3, 1.3),
        is_larger_better=True,
    ),
    Target(
        title="growth of resident memory",
        cells=("memory",),
        metric=rss_growth_mib,
        against=Against.NOTHING,
        limits=_limits(60.0, 60.0),
        unit="MiB",
    ),
    Target(
        title="requests per gateway-CPU-second, 2 workers",
        cells=_SMALL,
        metric=requests_per_cpu_s,
        against=Against.ONE_WORKER,
        limits={"xinf granian, 2 workers": Limit(0.85), "xinf direct, 2 workers": Limit(0.85)},
        is_larger_better=True,
    ),
)

_FAMILIES = {
    Against.CACHE_AWARE: {Family.CACHE_AWARE.value},
    Against.ROUND_ROBIN: {Family.ROUND_ROBIN.value},
    Against.RUST: {Family.CACHE_AWARE.value, Family.ROUND_ROBIN.value},
}


def samples_by_contestant(run: Run, cell: str) -> dict[str, list[Sample]]:
    """The samples of a cell."""
    found: dict[str, list[Sample]] = {}
    for sample in run.samples:
        if sample.cell == cell:
            found.setdefault(sample.contestant, []).append(sample)
    return found


def opponent(run: Run, target: Target, cell: str) -> str | None:
    """The peer with the best median in a cell among those that the target compares with."""
    families = _FAMILIES[target.against]
    names = {taker.name for taker in run.contestants if taker.family in families}
    candidates = {name: samples for name, samples in samples_by_contestant(run, cell).items() if name in names}
    return best(candidates, target.metric, largest=target.is_larger_better)


def judge(run: Run) -> list[Verdict]:
    """Every target for every front that the run has."""
    takers = {taker.name for taker in run.contestants}
    return [
        _judge(run, target, cell, name, limit)
        for target in TARGETS
        for name, limit in target.limits.items()
        if name in takers
        for cell in target.cells
    ]


def _judge(run: Run, target: Target, cell: str, name: str, limit: Limit) -> Verdict:
    samples = samples_by_contestant(run, cell)
    ours: Sequence[Sample] = [sample for sample in samples.get(name, []) if is_sound(sample)]
    other = ""
    if target.against is Against.NOTHING:
        found = spread(target.metric(sample) for sample in ours)
    elif target.against is Against.DIRECT:
        other = NO_GATEWAY
        found = _difference(ours, samples.get(other, []), target.metric)
    else:
        is_scaling = target.against is Against.ONE_WORKER
        other = name.partition(",")[0] if is_scaling else opponent(run, target, cell) or ""
        found = ratio(ours, samples.get(other, []), target.metric)
    is_bounded = target.against is Against.RUST and target.metric is not us_per_chunk
    without = ratio(samples.get(NO_GATEWAY, []), samples.get(other, []), target.metric) if is_bounded else None
    return Verdict(
        title=target.title,
        cell=cell,
        contestant=name,
        opponent=other,
        limit=limit,
        found=found,
        unit=target.unit,
        is_larger_better=target.is_larger_better,
        without=without,
    )


def _difference(ours: Sequence[Sample], theirs: Sequence[Sample], metric: Metric) -> Spread | None:
    """The spread of ours - theirs, each taken within one repeat."""
    other = {sample.repeat: metric(sample) for sample in theirs}
    differences = []
    for sample in ours:
        mine, base = metric(sample), other.get(sample.repeat)
        if mine is not None and base is not None:
            differences.append(mine - base)
    return spread(differences)
