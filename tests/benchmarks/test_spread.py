"""Medians, and ratios within one repeat."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.spread import best, is_sound, ratio, spread
from benchmarks.targets import us_per_request
from tests.benchmarks.runs import samples


def test_spread_is_median_and_extremes_of_what_is_there() -> None:
    found = spread([5.0, None, 1.0, 2.0])
    assert found is not None
    assert (found.median, found.low, found.high, found.n) == (2.0, 1.0, 5.0, 3)
    assert spread([None, None]) is None


def test_ratio_is_taken_within_a_repeat() -> None:
    # The machine is three times as slow in the second repeat: a ratio of medians would say 1 or more.
    ours, theirs = samples("a", "c", [10, 30, 10]), samples("b", "c", [20, 60, 20])
    found = ratio(ours, theirs, us_per_request)
    assert found is not None
    assert (found.median, found.low, found.high) == (0.5, 0.5, 0.5)


def test_ratio_leaves_out_repeats_that_one_side_lacks() -> None:
    found = ratio(samples("a", "c", [10, 30]), samples("b", "c", [20]), us_per_request)
    assert found is not None
    assert (found.median, found.n) == (0.5, 1)
    assert ratio(samples("a", "c", [10]), [], us_per_request) is None


@pytest.mark.parametrize(("largest", "name"), [(False, "low"), (True, "high")])
def test_best_is_by_the_median(largest: bool, name: str) -> None:
    candidates = {"low": samples("low", "c", [1, 2, 99]), "high": samples("high", "c", [3, 4, 5])}
    assert best(candidates, us_per_request, largest=largest) == name


def test_best_is_nobody_whose_streams_lack_their_end_or_who_fails() -> None:
    cheap = samples("cheap", "c", [1, 1, 1])
    broken = [msgspec.structs.replace(sample, unfinished=1) for sample in cheap]
    failed = [msgspec.structs.replace(sample, errors=2) for sample in cheap]
    short = [msgspec.structs.replace(sample, short=1) for sample in cheap]
    sound = samples("sound", "c", [9, 9, 9])
    for bad in (broken, failed, short):
        assert best({"cheap": bad, "sound": sound}, us_per_request, largest=False) == "sound"
    assert best({"cheap": broken}, us_per_request, largest=False) is None


def test_one_error_in_a_thousand_is_sound_and_two_are_not() -> None:
    sample = samples("a", "c", [1])[0]
    assert is_sound(msgspec.structs.replace(sample, errors=1))
    assert not is_sound(msgspec.structs.replace(sample, errors=2))
    assert not is_sound(msgspec.structs.replace(sample, failure="did not start"))
    assert not is_sound(msgspec.structs.replace(sample, requests=0))
