"""The replicas of one model, and what the router remembers of each."""

from __future__ import annotations

from array import array
from collections.abc import Callable

from xinf.core.records import RoutingPolicy
from xinf.router.rates import ReplicaRates, TextDensity


class Pool:
    """The replicas that serve one model under one policy."""

    __slots__ = ("density", "model", "policy", "rows", "turn")

    def __init__(self, model: str, policy: RoutingPolicy, bytes_per_token: float, *, turn: int) -> None:
        self.model = model
        self.policy = policy
        self.rows = array("I")
        self.density = TextDensity(bytes_per_token)
        self.turn = turn  # of round robin

    def next_turn(self, is_able: Callable[[int], bool]) -> int | None:
        """Give the next row in turn that is able, None if none is."""
        n_rows = len(self.rows)
        for step in range(n_rows):
            row = self.rows[(self.turn + step) % n_rows]
            if is_able(row):
                self.turn = (self.turn + step + 1) % n_rows
                return row
        return None


class Replica:
    """One replica. `row` is its number in ledger and index."""

    __slots__ = (
        "answers",
        "answers_within_block",
        "block_tokens",
        "cached_tokens",
        "has_index",
        "index_failures",
        "is_ready",
        "pool",
        "predicted_cached_tokens",
        "rates",
        "replica_id",
        "row",
    )

    def __init__(self, replica_id: str, row: int, pool: Pool, *, prefill_tokens_per_s: float, service_s: float) -> None:
        self.replica_id = replica_id
        self.row = row
        self.pool = pool
        self.rates = ReplicaRates(prefill_tokens_per_s=prefill_tokens_per_s, service_s=service_s)
        self.is_ready = False
        self.block_tokens = 1
        self.has_index = False
        self.index_failures = 0
        self.answers = 0
        self.answers_within_block = 0
        self.predicted_cached_tokens = 0
        self.cached_tokens = 0

    def count_prediction(self, *, predicted: int, cached: int) -> None:
        """Compare a prediction with what the engine found."""
        self.answers += 1
        self.answers_within_block += abs(predicted - cached) <= self.block_tokens
        self.predicted_cached_tokens += predicted
        self.cached_tokens += cached
