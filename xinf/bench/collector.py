"""What a run has seen so far. Fed by the driver, read by the report."""

from __future__ import annotations

import itertools
import random
from array import array

import msgspec

from xinf.bench.record import Failure, Record

TICK_S = 0.1
_MAX_GAPS = 4 << 20


class Sample(msgspec.Struct, frozen=True, gc=False):
    """The generator itself at one moment. `cpu_s`: CPU time of this process since the start of the run."""

    at_s: float
    cpu_s: float
    in_flight: int


class Gaps:
    """Times between events, at most so many: beyond that an even sample of all (reservoir, Vitter's algorithm R)."""

    def __init__(self, max_kept: int = _MAX_GAPS) -> None:
        self.kept = array("d")
        self.n_seen = 0
        self._max_kept = max_kept
        self._random = random.Random(0).random

    def add(self, times: array[float]) -> None:
        """Add the gaps between the events of one answer."""
        gaps = [after - before for before, after in itertools.pairwise(times)]
        self.n_seen += len(gaps)
        if self.n_seen <= self._max_kept:
            self.kept.extend(gaps)
            return
        for number, gap in enumerate(gaps, self.n_seen - len(gaps)):
            if number < self._max_kept:
                self.kept.append(gap)
            elif (place := int(self._random() * (number + 1))) < self._max_kept:
                self.kept[place] = gap


class Collector:
    """Keeps every request's record (about 0.3 KB each) and bounded samples of what there is more of."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.gaps = Gaps()
        self.samples: list[Sample] = []
        self.events_per_tick = array("Q")
        self.n_failed = 0
        self.n_skipped_turns = 0

    def add(self, record: Record, token_times: array[float]) -> None:
        """Take one request that has ended."""
        self.records.append(record)
        if record.failure is not None:
            self.n_failed += record.failure is not Failure.UNFINISHED
            return
        self.gaps.add(token_times)
        for at_s in token_times:
            tick = int(at_s / TICK_S)
            if tick >= len(self.events_per_tick):
                self.events_per_tick.extend([0] * (tick + 1 - len(self.events_per_tick)))
            self.events_per_tick[tick] += 1
