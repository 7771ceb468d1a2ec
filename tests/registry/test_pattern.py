"""Patterns of architecture names against fnmatch, which knows the same two wildcards."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xinf.registry.pattern import is_match, may_meet, weight

LETTERS = st.text("ab1", max_size=5)
PATTERNS = st.text("ab1*?", max_size=5)


@given(PATTERNS, LETTERS)
def test_matching_is_that_of_fnmatch(pattern: str, name: str) -> None:
    assert is_match(pattern, name) == fnmatch.fnmatchcase(name, pattern)


@given(PATTERNS, PATTERNS, LETTERS)
def test_patterns_that_fit_one_name_may_meet(first: str, second: str, name: str) -> None:
    assert may_meet(first, second) or not (is_match(first, name) and is_match(second, name))


@given(LETTERS, PATTERNS)
def test_a_name_meets_what_it_fits_and_nothing_else(name: str, pattern: str) -> None:
    assert may_meet(name, pattern) == is_match(pattern, name)
    assert may_meet(name, pattern) == may_meet(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("sm_12?", "sm_120"),
        ("gfx11*", "GFX1151"),
        ("*Arc* A???*", "Intel(R) Arc(TM) A770 Graphics"),
        ("MTT S5000*", "MTT S5000"),
    ],
)
def test_names_as_devices_have_them(pattern: str, name: str) -> None:
    assert is_match(pattern, name)


def test_sm_12_does_not_fit_a_longer_name() -> None:
    assert not is_match("sm_12?", "sm_1200")
    assert not is_match("sm_12?", "sm_12")


def test_weight_counts_what_a_pattern_insists_on() -> None:
    assert [weight(pattern) for pattern in ("*", "gfx11*", "gfx1?00")] == [0, 5, 6]
