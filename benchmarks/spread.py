"""Medians with their spread, and ratios that are taken within one repeat."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from benchmarks.sample import Sample

Metric = Callable[[Sample], float | None]


class Spread(msgspec.Struct, frozen=True):
    """Median and extremes of some repeats."""

    median: float
    low: float
    high: float
    n: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """Median, smallest and largest of the values that are there; None when there is none."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    return Spread(statistics.median(found), min(found), max(found), len(found))


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample], metric: Metric) -> Spread | None:
    """The spread of ours / theirs, each taken within one repeat: drift of the machine over a run cancels out."""
    other = {sample.repeat: metric(sample) for sample in theirs}
    ratios = []
    for sample in ours:
        mine, other_value = metric(sample), other.get(sample.repeat)
        if mine is not None and other_value:
            ratios.append(mine / other_value)
    return spread(ratios)


def best(candidates: Mapping[str, Sequence[Sample]], metric: Metric, *, largest: bool) -> str | None:
    """The name whose median is best; a candidate without figures, or with errors in most repeats, cannot be it."""
    medians = {}
    for name, samples in candidates.items():
        found = spread(metric(sample) for sample in samples if is_sound(sample))
        if found is not None and found.n * 2 > len(samples):
            medians[name] = found.median
    if not medians:
        return None
    return (max if largest else min)(medians, key=lambda name: medians[name])


def is_sound(sample: Sample) -> bool:
    """Whether a run did what was asked: no failure, next to no errors, every stream whole and with its end."""
    if sample.failure is not None or not (sample.requests or sample.chunks):
        return False
    return sample.errors <= sample.requests * 0.001 and sample.unfinished == 0 and sample.short == 0
