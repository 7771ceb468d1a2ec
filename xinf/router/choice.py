"""The replica chosen for one request, and what the router must remember until the request ends."""

from __future__ import annotations


class Choice:
    """Made by `Router.choose`; the gateway hands it back to `submitted`, `started` and `finished`."""

    __slots__ = (
        "can_learn",
        "chain",
        "chosen_s",
        "ends",
        "handle",
        "is_done",
        "is_stream",
        "matched_bytes",
        "matched_tokens",
        "n_hits",
        "predicted_cached_tokens",
        "promised_tokens",
        "prompt_tokens",
        "queued_tokens",
        "reason",
        "replica_id",
        "started_s",
    )

    def __init__(self, *, replica_id: str, handle: int, reason: str, chosen_s: float) -> None:
        self.replica_id = replica_id
        self.handle = handle  # of the reservation
        self.reason = reason  # "prefix", "load", "round_robin", "session"
        self.chosen_s = chosen_s
        self.chain = b""
        self.ends = b""  # bytes of text up to each chunk of the chain
        self.n_hits = 0  # chunks up to the furthest one that the replica holds
        self.matched_bytes = 0
        self.matched_tokens = 0
        self.promised_tokens = 0  # of them, whole blocks
        self.predicted_cached_tokens = 0  # the same, times the replica's trust
        self.prompt_tokens = 1  # estimated
        self.queued_tokens = 0  # before it on the replica
        self.can_learn = False  # the answer's usage says something about the prompt's text
        self.is_stream = False
        self.started_s: float | None = None
        self.is_done = False

    def __repr__(self) -> str:
        return f"Choice({self.replica_id!r}, {self.reason!r}, predicted_cached_tokens={self.predicted_cached_tokens})"
