"""What xinf/_fast/rates.pxd computes, in plain Python: exponentially forgetting means, and lines through points."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean


def share(has_sample: bool) -> float:
    return 0.1 if has_sample else 1.0


MEMORY = 32
ENOUGH = 6


@dataclass
class LineModel:
    """The points with their weights, oldest first; everything worked out anew from them."""

    points: list[tuple[float, float, float]] = field(default_factory=list)

    @property
    def n(self) -> int:
        return min(len(self.points), MEMORY)

    def add(self, x: float, y: float) -> None:
        new = 1 / min(len(self.points) + 1, MEMORY)
        self.points = [(weight * (1 - new), *point) for weight, *point in self.points] + [(new, x, y)]

    def mean(self) -> tuple[float, float]:
        return sum(weight * x for weight, x, _ in self.points), sum(weight * y for weight, _, y in self.points)

    def slope(self) -> float | None:
        """None: the points say too little."""
        mean_x, mean_y = self.mean()
        xx = sum(weight * (x - mean_x) ** 2 for weight, x, _ in self.points)
        xy = sum(weight * (x - mean_x) * (y - mean_y) for weight, x, y in self.points)
        return xy / xx if self.n >= ENOUGH and xx > (mean_x / 4) ** 2 else None


def clamp(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))


@dataclass
class RatesModel:
    prefill_tokens_per_s: float
    service_s: float
    peers: dict[int, RatesModel] = field(default_factory=dict)  # all replicas of the model
    trust: float = 1.0
    fixed_s: float = 0.0
    crowd_s: float = 0.0
    own_s_per_token: float = 0.0
    answer_tokens: float = 0.0
    prefill: LineModel = field(default_factory=LineModel)
    decode: LineModel = field(default_factory=LineModel)
    has_prefill: bool = False
    has_service: bool = False

    def learn_prefill(self, n_tokens: int, seconds: float) -> None:
        if n_tokens < 64 or seconds <= 0:
            return
        if self.prefill.n >= ENOUGH:
            seconds = min(seconds, 4 * (self.fixed_s + n_tokens * self.own_s_per_token))
        self.prefill.add(n_tokens, seconds)
        mean_x, mean_y = self.prefill.mean()
        slope = self.prefill.slope()
        if slope is None:
            slope = (mean_y - self.fixed_s) / mean_x
        slope = max(clamp(slope, 0.1 * mean_y / mean_x, mean_y / mean_x), 1e-8)
        self.fixed_s = max(0.0, mean_y - slope * mean_x)
        self.own_s_per_token = slope
        self.has_prefill = True
        common = fmean(one.own_s_per_token for one in self.peers.values() if one.has_prefill)
        # Within a quarter it counts as the others do; what it differs more, it differs.
        self.prefill_tokens_per_s = 1 / (slope - clamp(slope - common, -common / 4, common / 4))

    def learn_crowd(self, requests: float, n_tokens: int, seconds: float) -> None:
        if n_tokens < 8 or seconds <= 0:
            return
        self.answer_tokens += share(self.decode.n > 0) * (n_tokens - self.answer_tokens)
        per_token = seconds / (n_tokens - 1)
        if self.decode.n >= ENOUGH:
            per_token = min(per_token, 4 * self.decode.mean()[1])
        self.decode.add(requests, per_token)
        mean_x, mean_y = self.decode.mean()
        slope = self.decode.slope()
        slope = 0.01 * mean_y if slope is None else max(0.0, min(slope, mean_y / mean_x))
        self.crowd_s = slope * self.answer_tokens

    def learn_service(self, seconds: float) -> None:
        self.service_s = max(1e-3, self.service_s + share(self.has_service) * (seconds - self.service_s))
        self.has_service = True

    def learn_trust(self, promised_tokens: int, cached_tokens: int) -> None:
        if promised_tokens > 0:
            came_true = min(cached_tokens, promised_tokens) / promised_tokens
            self.trust = max(0.05, self.trust + 0.1 * (came_true - self.trust))


@dataclass
class DensityModel:
    bytes_per_token: float
    has_sample: bool = False

    def learn(self, n_bytes: int, n_tokens: int) -> None:
        if n_bytes > 0 and n_tokens > 0:
            sample = min(max(n_bytes / n_tokens, 0.25), 64.0)
            self.bytes_per_token += share(self.has_sample) * (sample - self.bytes_per_token)
            self.has_sample = True
