"""What xinf/_fast/rates.pxd computes, in plain Python: exponentially forgetting means with a prior."""

from __future__ import annotations

from dataclasses import dataclass


def share(has_sample: bool) -> float:
    return 0.1 if has_sample else 1.0


@dataclass
class RatesModel:
    prefill_tokens_per_s: float
    service_s: float
    trust: float = 1.0
    has_prefill: bool = False
    has_service: bool = False

    def learn_prefill(self, n_tokens: int, seconds: float) -> None:
        if n_tokens >= 64 and seconds > 0:
            new = share(self.has_prefill)
            mean_s = (1 - new) / self.prefill_tokens_per_s + new / min(n_tokens / seconds, 1e8)
            self.prefill_tokens_per_s = 1 / mean_s
            self.has_prefill = True

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
