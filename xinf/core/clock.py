"""Time as a parameter: code that decides takes `now_s`, code that acts takes a Clock."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What a loop needs to know of time; tests pass a FakeClock."""

    def now_s(self) -> float:
        """Wall-clock time in seconds since the epoch; may jump."""

    def monotonic_s(self) -> float:
        """Seconds that only ever grow; the zero means nothing."""


class SystemClock:
    """The machine's own clocks."""

    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()


class FakeClock:
    """A clock that stands still until `advance` moves it."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        return self._now_s

    def monotonic_s(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        self._now_s += seconds
