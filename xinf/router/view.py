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
    index_state: str  # "approx" or "off"
    held_chunks: int
    prefill_tokens_per_s: float
    service_s: float
    trust: float
    answers: int  # that had a prediction
    answers_within_block: int  # of them, predicted to within one block of the engine's count
    predicted_cached_tokens: int
    cached_tokens: int


class RouterView(msgspec.Struct, frozen=True, kw_only=True):
    """All replicas and the index they share."""

    replicas: tuple[ReplicaView, ...]
    index_bytes: int
    index_max_bytes: int
    index_entries: int
    index_evictions: int
    bytes_per_token: dict[str, float]  # by model


class CandidateView(msgspec.Struct, frozen=True, kw_only=True):
    """One replica in the explanation of a choice."""

    replica_id: str
    is_open: bool  # ready and below its limit
    matched_bytes: int
    predicted_cached_tokens: int
    prompt_tokens: int
    terms: CostTerms
