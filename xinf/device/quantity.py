"""Numbers as vendors' tools print them and their libraries tell them: of a plausible size, or nothing.

    "²".isdigit() is true and int("²") fails; int() of five thousand digits fails; a JSON answer holds 64 bits
    all ones, 0x7fff, NaN      what libraries write for "I do not know"

Memory of more than a pebibyte, a utilisation above 100 % and the like are no measurement, whoever tells them.
"""

from __future__ import annotations

import re

_COUNT = re.compile(r"[0-9]{1,18}")  # fits into 63 bits
_MAX_BYTES = 1 << 50
_NO_COUNT = (1 << 32) - 1
_C_RANGE, _W_RANGE = (-100.0, 250.0), (0.0, 10_000.0)


def is_count(text: str) -> bool:
    """Whether int() takes it and gives a whole number from 0 on that fits into 64 bits."""
    return _COUNT.fullmatch(text) is not None


def size_in_bytes(amount: float | None, unit_bytes: int) -> int | None:
    """Make bytes of an amount in a unit; None for nothing, and for what no device and no host has."""
    if amount is None or not 0 <= amount * unit_bytes < _MAX_BYTES:
        return None  # NaN too
    return int(amount * unit_bytes)


def count(number: int | None) -> int | None:
    """Give a number of events that is one: none has 32 bits all ones, or more."""
    return number if number is not None and 0 <= number < _NO_COUNT else None


def percent(value: float | None) -> float | None:
    """Give a utilisation that is one."""
    return _within(value, (0.0, 100.0))


def celsius(value: float | None) -> float | None:
    """Give a temperature that a sensor may measure."""
    return _within(value, _C_RANGE)


def watts(value: float | None) -> float | None:
    """Give a power that a device may draw."""
    return _within(value, _W_RANGE)


def _within(value: float | None, bounds: tuple[float, float]) -> float | None:
    return value if value is not None and bounds[0] <= value <= bounds[1] else None  # NaN is not
