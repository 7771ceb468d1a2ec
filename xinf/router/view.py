"""What a router shows of itself: for metrics, `xinf ps` and explanations."""

from __future__ import annotations

import msgspec

from xinf.router.cost import CostTerms


class ReplicaView(msgspec.Struct, frozen=True, kw_only=True):
    """One replica, as this process sees it."""

    replica_id: str
    model: str
    policy: str
    is_ready: bool
    inflight: int
    uncounted: int  # of them, not in the engine's last report
    index_state: str  # what predictions go by: "exact", "approx" or "off"
    index_cause: str  # why: "beginning", "policy", "engine", "form", "check", "recovery"
    is_told: bool  # the engine says what it holds, and that is gone by
    n_checked: int  # answers that what it says was checked by, since the last change of sides; 200 stands for more
    share: float  # of them, within a block of the engine's count; the last 200 weigh most
    changes: dict[tuple[str, str], int]  # how often it came to (state, cause)
    held_chunks: int  # marks of what was routed there
    told_chunks: int  # chunks that its engine says it holds
    prefill_tokens_per_s: float
    service_s: float
    trust: float
    answers: int  # that had a prediction
    answers_within_block: int  # of them, predicted to within one block of the engine's count
    predicted_cached_tokens: int
    cached_tokens: int
    index_failures: int  # prompts that the index had no memory for


class Savings(msgspec.Struct, frozen=True):
    """What `auto` gave over `least_load`, by the router's own model and the cached tokens that engines found."""

    n_compared: int  # answered choices that were compared: all, or of more than 32 replicas one in 16
    saved_s: float  # of cost, where the other would have been dearer
    regret_s: float  # where it would have been cheaper


class Repetition(msgspec.Struct, frozen=True):
    """Work that larger caches, or other choices, would have saved. Of policies that look at prefixes."""

    computed_tokens: int  # of prompts
    repeated_tokens: int  # of them, those that had been asked for not long before


class RouterView(msgspec.Struct, frozen=True, kw_only=True):
    """All replicas and the indexes they share."""

    replicas: tuple[ReplicaView, ...]
    index_bytes: int
    index_max_bytes: int
    index_entries: int
    index_evictions: int
    exact_index_bytes: int
    exact_index_max_bytes: int
    exact_index_entries: int
    exact_index_evictions: int
    bytes_per_token: dict[str, float]  # by model
    savings: dict[str, Savings]  # by model
    repetitions: dict[str, Repetition]  # by model


class CandidateView(msgspec.Struct, frozen=True, kw_only=True):
    """One replica in the explanation of a choice."""

    replica_id: str
    index_state: str  # what the prediction goes by: see ReplicaView
    reason: str | None  # of the one that `choose` would pick; None: another one
    closed: str | None  # why it cannot be picked: "not_ready", "tried", "full"
    inflight: int  # requests of this process on it
    matched_bytes: int
    matched_tokens: int
    predicted_cached_tokens: int  # of the matched tokens, those that count
    prompt_tokens: int
    terms: CostTerms

    @property
    def is_open(self) -> bool:
        """Whether it could take the request."""
        return self.closed is None
