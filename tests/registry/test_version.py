"""Ranges of engine versions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xinf.registry.version import check_range, is_in_range, may_share

RANGE = ">=0.32,<0.33"
NUMBERS = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))
RANGES = st.lists(st.tuples(st.sampled_from([">=", "<", "==", "<=", ">"]), NUMBERS).map("".join), max_size=2).map(
    lambda parts: ",".join(parts) or "*"
)


@pytest.mark.parametrize("version", ["0.32", "0.32.0", "0.32.5+cpu", "0.32.0rc1", "v0.32.1", "0.32.0.post1"])
def test_versions_of_the_range(version: str) -> None:
    assert is_in_range(version, RANGE)


@pytest.mark.parametrize("version", ["0.31.9", "0.33", "1.0", "0.4"])
def test_versions_beside_the_range(version: str) -> None:
    assert not is_in_range(version, RANGE)


@pytest.mark.parametrize("version", [None, "unknown", ""])
def test_a_version_that_is_not_known_is_taken_to_fit(version: str | None) -> None:
    assert is_in_range(version, RANGE)


@pytest.mark.parametrize("text", ["0.32", "~=0.32", ">=0.32;<0.33", ">=x", ""])
def test_what_is_no_range_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is no bound"):
        check_range(text)


@given(RANGES, RANGES, NUMBERS)
def test_ranges_with_a_common_version_may_share(first: str, second: str, version: str) -> None:
    assert may_share(first, second) or not (is_in_range(version, first) and is_in_range(version, second))


def test_neighbours_share_nothing() -> None:
    assert not may_share("<0.33", ">=0.33")
    assert may_share("<=0.33", ">=0.33")
