"""What is no measurement, whoever tells it."""

from __future__ import annotations

import pytest

from xinf.device.quantity import celsius, count, is_count, percent, size_in_bytes, watts


@pytest.mark.parametrize("text", ["", "-1", "1.0", "²", "٣", "1 ", "9" * 19, "N/A"])
def test_text_that_is_no_count(text: str) -> None:
    assert not is_count(text)


def test_text_that_is_a_count() -> None:
    assert is_count("0")
    assert is_count("9" * 18)


@pytest.mark.parametrize("amount", [None, -1, float("nan"), float("inf"), 1 << 64, 10**400])
def test_size_that_nothing_has_is_unknown(amount: float | None) -> None:
    assert size_in_bytes(amount, 1) is None


def test_sizes_are_whole_bytes() -> None:
    assert size_in_bytes(0, 1 << 20) == 0
    assert size_in_bytes(1.5, 1 << 30) == 3 << 29


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -101.0, 32765.0, 4294967295.0])
def test_value_that_no_sensor_measures_is_unknown(value: float | None) -> None:
    assert (percent(value), celsius(value)) == (None, None)
    assert watts(value) is None


def test_value_that_may_be_is_kept() -> None:
    assert (percent(100.0), celsius(-5.0), watts(1400.0), count(0)) == (100.0, -5.0, 1400.0, 0)
    assert (count(None), count(0xFFFFFFFF), count(-1)) == (None, None, None)
