"""Arrivals: their rate, their shape, and that a seed means the same every time."""

from __future__ import annotations

import itertools
import statistics

import pytest

from xinf.bench.load import ClosedLoop, OpenLoop, arrivals
from xinf.core.errors import InvalidRequest


def times(load: OpenLoop, n: int, seed: int = 1) -> list[float]:
    return list(itertools.islice(arrivals(load, seed), n))


def gaps(load: OpenLoop, n: int = 20_000, seed: int = 1) -> list[float]:
    return [after - before for before, after in itertools.pairwise([0.0, *times(load, n, seed)])]


def test_constant_arrivals_are_one_each_interval() -> None:
    assert times(OpenLoop(rate=4.0, burstiness=None), 4) == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 9.0])
def test_random_arrivals_have_the_rate(burstiness: float) -> None:
    # The standard error of the mean of n gaps is mean / sqrt(n * shape): four of them hold for any seed we choose.
    mean = statistics.fmean(gaps(OpenLoop(rate=50.0, burstiness=burstiness)))
    assert mean == pytest.approx(0.02, rel=4 / (20_000 * burstiness) ** 0.5)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 9.0])
def test_burstiness_is_the_shape_of_the_gaps(burstiness: float) -> None:
    found = gaps(OpenLoop(rate=50.0, burstiness=burstiness))
    variation = statistics.stdev(found) / statistics.fmean(found)
    assert variation == pytest.approx(burstiness**-0.5, rel=0.06)


def test_arrivals_ascend() -> None:
    found = times(OpenLoop(rate=1000.0, burstiness=0.1), 1000)
    assert found == sorted(found)


def test_seed_decides_the_arrivals() -> None:
    load = OpenLoop(rate=10.0)
    assert times(load, 50, seed=7) == times(load, 50, seed=7)
    assert times(load, 50, seed=7) != times(load, 50, seed=8)


def test_arrivals_of_a_seed_are_the_same_in_every_version() -> None:
    """Results of two versions are compared: what a seed means must not change unnoticed."""
    assert times(OpenLoop(rate=10.0), 3, seed=0) == pytest.approx([0.198967, 0.262616, 0.515506], abs=2e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClosedLoop(0),
        lambda: OpenLoop(rate=0.0),
        lambda: OpenLoop(rate=float("inf")),
        lambda: OpenLoop(rate=float("nan")),
        lambda: OpenLoop(rate=1.0, burstiness=0.0),
        lambda: OpenLoop(rate=1.0, max_concurrency=0),
    ],
)
def test_loads_that_mean_nothing_are_refused(make: object) -> None:
    with pytest.raises(InvalidRequest):
        make()  # type: ignore[operator]
