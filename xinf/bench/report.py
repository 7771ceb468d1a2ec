"""Figures out of records. Pure: the same records give the same report.

Latency figures are of good answers only; errors stand beside them by class and never vanish. The window is from the
first intended send to the end of the last request, as vLLM's `bench serve` has it.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from xinf.bench.collector import TICK_S, Collector, Sample
from xinf.bench.load import Load, OpenLoop
from xinf.bench.record import Failure, Record
from xinf.bench.slo import Slo

ALWAYS = (50.0, 99.0)
_CURVE = (*range(100), 99.5, 99.9, 100)
_MAX_BUCKETS = 60


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Values in seconds. `percentiles` by name (`p50`, `p99.9`), linear between ranks as in numpy."""

    n: int
    mean: float
    min: float
    max: float
    percentiles: dict[str, float]


class ErrorCount(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that failed alike. `example` is what the first of them said."""

    failure: Failure
    status: int | None
    n: int
    example: str


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that were answered within the objectives; `share` is of all that were sent."""

    n: int
    requests_per_s: float
    share: float


class Generator(msgspec.Struct, frozen=True, kw_only=True):
    """How the load generator itself did. CPU is in cores. `lateness`: dispatched after intended, open loop only."""

    cpu_mean: float
    cpu_max: float
    lateness: Distribution | None
    connections_opened: int
    connection_waits: int
    reconnects: int


class Caution(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be doubted. `kind` is a word for programs, `text` a sentence with this run's values."""

    kind: str
    text: str


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One run in figures."""

    n_sent: int
    n_good: int
    n_failed: int
    n_unfinished: int
    n_skipped_turns: int
    errors: tuple[ErrorCount, ...]
    window_s: float
    requests_per_s: float
    input_tokens: int | None
    output_tokens: int
    input_tokens_per_s: float | None
    output_tokens_per_s: float
    output_tokens_from: str  # usage, events, both (some answers had no usage), none
    cached_tokens: int | None
    ttft: Distribution | None
    tpot: Distribution | None
    itl: Distribution | None
    e2e: Distribution | None
    goodput: Goodput | None
    concurrency_mean: float
    concurrency_max: int
    generator: Generator
    warnings: tuple[Caution, ...]

    @property
    def cache_hit_share(self) -> float | None:
        """Share of prompt tokens that came from a prefix cache; None if the server does not tell."""
        if self.cached_tokens is None or not self.input_tokens:
            return None
        return self.cached_tokens / self.input_tokens


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """The run over time, in buckets of `step_s` from its start; the last one ends with the run, at `end_s`."""

    step_s: float
    end_s: float
    requests_per_s: tuple[float, ...]
    events_per_s: tuple[float, ...]
    errors_per_s: tuple[float, ...]
    concurrency: tuple[float, ...]


def percentile(ordered: Sequence[float], p: float) -> float:
    """The p-th percentile (0 to 100) of ascending values, linear between the two nearest ranks."""
    if not ordered:
        raise ValueError("no values have no percentile")
    rank = (len(ordered) - 1) * p / 100.0
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def distribution(values: Iterable[float | None], percentiles: Sequence[float]) -> Distribution | None:
    """Describe the values that are there; None if there are none."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return None
    return Distribution(
        n=len(ordered),
        mean=math.fsum(ordered) / len(ordered),
        min=ordered[0],
        max=ordered[-1],
        percentiles={f"p{p:g}": percentile(ordered, p) for p in sorted({*ALWAYS, *percentiles})},
    )


def curve(values: Iterable[float | None]) -> tuple[float, ...]:
    """Quantiles for drawing a CDF: the values at CURVE_SHARES; () if there are none."""
    ordered = sorted(value for value in values if value is not None)
    return tuple(percentile(ordered, p) for p in _CURVE) if ordered else ()


CURVE_SHARES = tuple(p / 100.0 for p in _CURVE)


def summarize(
    collector: Collector,
    load: Load,
    *,
    slo: Slo | None,
    percentiles: Sequence[float],
    connections_opened: int,
    connection_waits: int,
) -> Summary:
    """Make one run's figures."""
    records = collector.records
    good = [record for record in records if record.failure is None]
    n_unfinished = sum(record.failure is Failure.UNFINISHED for record in records)
    window_s = max((record.end_s for record in records), default=0.0)
    per_s = 1.0 / window_s if window_s > 0 else 0.0
    input_tokens = _sum_known(record.prompt_tokens for record in good)
    output_tokens = sum(record.output_tokens for record in good)
    n_in_slo = sum(
        slo is not None and slo.is_kept(ttft_s=record.ttft_s, tpot_s=record.tpot_s, e2e_s=record.e2e_s)
        for record in good
    )
    lateness = None
    if isinstance(load, OpenLoop):
        lateness = distribution((max(0.0, r.dispatched_s - r.intended_s) for r in records), percentiles)
    cpu_mean, cpu_max = cpu_share(collector.samples)
    n_max, area = _concurrency(records)
    return Summary(
        n_sent=len(records),
        n_good=len(good),
        n_failed=len(records) - len(good) - n_unfinished,
        n_unfinished=n_unfinished,
        n_skipped_turns=collector.n_skipped_turns,
        errors=count_errors(records),
        window_s=window_s,
        requests_per_s=len(good) * per_s,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        input_tokens_per_s=None if input_tokens is None else input_tokens * per_s,
        output_tokens_per_s=output_tokens * per_s,
        output_tokens_from=_source(good),
        cached_tokens=_sum_known(record.cached_tokens for record in good),
        ttft=distribution((record.ttft_s for record in good), percentiles),
        tpot=distribution((record.tpot_s for record in good), percentiles),
        itl=distribution(collector.gaps.kept, percentiles),
        e2e=distribution((record.e2e_s for record in good), percentiles),
        goodput=None
        if slo is None
        else Goodput(n=n_in_slo, requests_per_s=n_in_slo * per_s, share=n_in_slo / len(records) if records else 0.0),
        concurrency_mean=area * per_s,
        concurrency_max=n_max,
        generator=Generator(
            cpu_mean=cpu_mean,
            cpu_max=cpu_max,
            lateness=lateness,
            connections_opened=connections_opened,
            connection_waits=connection_waits,
            reconnects=sum(record.has_reconnected for record in records),
        ),
        warnings=(),
    )


def count_errors(records: Iterable[Record]) -> tuple[ErrorCount, ...]:
    """Group what failed by class and status, the most frequent first."""
    counts: Counter[tuple[Failure, int | None]] = Counter()
    examples: dict[tuple[Failure, int | None], str] = {}
    for record in records:
        if record.failure is None or record.failure is Failure.UNFINISHED:
            continue
        key = (record.failure, record.status if record.failure is Failure.STATUS else None)
        counts[key] += 1
        examples.setdefault(key, record.message or "")
    return tuple(
        ErrorCount(failure=failure, status=status, n=n, example=examples[failure, status])
        for (failure, status), n in counts.most_common()
    )


def cpu_share(samples: Sequence[Sample]) -> tuple[float, float]:
    """Mean and busiest interval of the generator's CPU, in cores."""
    if len(samples) < 2 or samples[-1].at_s <= 0:
        return 0.0, 0.0
    mean = samples[-1].cpu_s / samples[-1].at_s
    # The last interval may be too short to mean anything.
    shares = [
        (after.cpu_s - before.cpu_s) / (after.at_s - before.at_s)
        for before, after in itertools.pairwise(samples)
        if after.at_s - before.at_s > TICK_S
    ]
    return mean, max([mean, *shares])


def make_series(collector: Collector) -> Series:
    """Cut the run into at most 60 buckets of a tick or more; the last one takes what is left, half as much at most."""
    records = collector.records
    end_s = max((record.end_s for record in records), default=0.0)
    n_ticks = max(1, math.ceil(end_s / TICK_S))
    ticks_per_step = math.ceil(n_ticks / _MAX_BUCKETS)
    step_s = ticks_per_step * TICK_S
    n_steps = max(1, round(n_ticks / ticks_per_step))
    done, failed, events, busy = ([0.0] * n_steps for _ in range(4))
    for record in records:
        at = min(int(record.end_s / step_s), n_steps - 1)
        if record.failure is None:
            done[at] += 1
        elif record.failure is not Failure.UNFINISHED:
            failed[at] += 1
        first = min(int(record.intended_s / step_s), n_steps - 1)
        for step in range(first, at + 1):
            begin_s = step * step_s
            step_end_s = begin_s + step_s if step < n_steps - 1 else end_s
            busy[step] += max(0.0, min(record.end_s, step_end_s) - max(record.intended_s, begin_s))
    for tick, n in enumerate(collector.events_per_tick):
        events[min(tick // ticks_per_step, n_steps - 1)] += n
    # At the very least a part of a tick: an empty run divides by it.
    widths = [step_s] * (n_steps - 1) + [max(end_s - (n_steps - 1) * step_s, TICK_S / 10)]

    def per_s(counts: list[float]) -> tuple[float, ...]:
        return tuple(count / width for count, width in zip(counts, widths, strict=True))

    return Series(
        step_s=step_s,
        end_s=end_s,
        requests_per_s=per_s(done),
        events_per_s=per_s(events),
        errors_per_s=per_s(failed),
        concurrency=per_s(busy),
    )


def _concurrency(records: Sequence[Record]) -> tuple[int, float]:
    """The most requests open at once, and the sum of the seconds they were open."""
    changes = sorted(
        [(record.intended_s, 1) for record in records] + [(record.end_s, -1) for record in records],
        key=lambda change: (change[0], change[1]),
    )
    n = n_max = 0
    for _, change in changes:
        n += change
        n_max = max(n_max, n)
    return n_max, math.fsum(record.end_s - record.intended_s for record in records)


def _sum_known(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _source(good: Sequence[Record]) -> str:
    n_usage = sum(record.completion_tokens is not None for record in good)
    if n_usage == len(good):
        return "usage" if good else "none"
    if n_usage:
        return "both"
    return "events" if any(record.n_events for record in good) else "none"
