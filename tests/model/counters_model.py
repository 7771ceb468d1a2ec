"""The counters naively: every observation is kept, everything is counted when asked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise


def status_class(status: int) -> str:
    if status == 499:
        return "499"
    return f"{status // 100}xx" if 100 <= status < 600 else "other"


def bucket_counts(observed: list[float], bounds: tuple[float, ...]) -> list[int]:
    ends = [float("-inf"), *bounds, float("inf")]
    return [sum(low < value <= high for value in observed) for low, high in pairwise(ends)]


@dataclass
class CountersModel:
    max_reasons: int
    requests: Counter[str] = field(default_factory=Counter)
    decided: list[str] = field(default_factory=list)
    in_flight: int = 0
    tokens: list[tuple[int, int, int, int]] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    first_bytes: list[float] = field(default_factory=list)

    @property
    def reasons(self) -> dict[str, int]:
        told = [name for name in dict.fromkeys(self.decided) if name != "other"][: self.max_reasons]
        return dict(Counter(name if name in told else "other" for name in self.decided))

    @property
    def sums(self) -> tuple[int, ...]:
        errors = [abs(predicted - cached) for _, cached, _, predicted in self.tokens]
        return (*(sum(told[column] for told in self.tokens) for column in range(4)), sum(errors))
