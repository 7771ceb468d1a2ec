"""What is learnt about a replica and a model from the answers: exponentially forgetting means with a prior."""

from __future__ import annotations

# Weight of a new sample. A change of the engine's speed is believed after some ten answers.
_NEW_SHARE = 0.1
# The prefill rate is taken from requests with so many tokens to compute; smaller ones measure fixed costs instead.
_MIN_PREFILL_TOKENS = 64
# Rates outside are clock noise. A service time of 1 ms keeps a tie between idle and busy from ever being exact.
_MAX_PREFILL_TOKENS_PER_S = 1e8
_MIN_SERVICE_S = 1e-3
# A share that does not vanish, so that an index that is right again can show it.
_MIN_TRUST = 0.05


class ReplicaRates:
    """Prefill rate, stay of a request, and how far the prefix index can be trusted, for one replica."""

    __slots__ = ("has_prefill", "has_service", "prefill_tokens_per_s", "service_s", "trust")

    def __init__(self, *, prefill_tokens_per_s: float, service_s: float) -> None:
        self.prefill_tokens_per_s = prefill_tokens_per_s
        self.service_s = service_s
        self.trust = 1.0
        self.has_prefill = False  # measured, not prior
        self.has_service = False

    def learn_prefill(self, n_tokens: int, seconds: float) -> None:
        """`n_tokens` were computed, those queued before it included, until the first token came."""
        if n_tokens < _MIN_PREFILL_TOKENS or seconds <= 0:
            return
        sample = min(n_tokens / seconds, _MAX_PREFILL_TOKENS_PER_S)
        if self.has_prefill:
            # The mean of seconds per token, not of tokens per second: one lucky sample must not dominate.
            mean_s = (1 - _NEW_SHARE) / self.prefill_tokens_per_s + _NEW_SHARE / sample
            self.prefill_tokens_per_s = 1 / mean_s
        else:
            self.prefill_tokens_per_s = sample
            self.has_prefill = True

    def learn_service(self, seconds: float) -> None:
        """A request stayed so long."""
        share = _NEW_SHARE if self.has_service else 1.0
        self.service_s = max(_MIN_SERVICE_S, self.service_s + share * (seconds - self.service_s))
        self.has_service = True

    def learn_trust(self, *, promised_tokens: int, cached_tokens: int) -> None:
        """The index promised cached tokens and the engine found so many."""
        if promised_tokens > 0:
            came_true = min(cached_tokens, promised_tokens) / promised_tokens
            self.trust = max(_MIN_TRUST, self.trust + _NEW_SHARE * (came_true - self.trust))


class TextDensity:
    """Bytes of prompt text per token of one model."""

    __slots__ = ("bytes_per_token", "has_sample")

    def __init__(self, bytes_per_token: float) -> None:
        self.bytes_per_token = bytes_per_token
        self.has_sample = False

    def learn(self, *, n_bytes: int, n_tokens: int) -> None:
        """A prompt of `n_bytes` turned out to have `n_tokens`."""
        if n_bytes <= 0 or n_tokens <= 0:
            return
        # A token stands for at least a part of a byte and at most for a long run of spaces.
        sample = min(max(n_bytes / n_tokens, 0.25), 64.0)
        share = _NEW_SHARE if self.has_sample else 1.0
        self.bytes_per_token += share * (sample - self.bytes_per_token)
        self.has_sample = True
