"""What came of one request, and what its difference means."""

from __future__ import annotations

import enum

import msgspec


class Cause(enum.Enum):
    """Why more was predicted than the engine served, as its KV events tell."""

    RACE = "race"  # the first block that was not served was there when the request was sent, and went before its end
    LAG = "lag"  # it went so shortly before that the event cannot have been known
    OTHER = "other"


class Record(msgspec.Struct):
    """One request. Tokens are counted by the engine, times are of time.time()."""

    number: int
    kind: str
    template: str
    mode: str
    block_tokens: int
    state: str  # of the replica's index, as the gateway says it
    predicted: int  # tokens, by the gateway
    cached: int  # tokens, by the engine
    prompt_tokens: int
    completion_tokens: int
    sent_s: float
    ended_s: float
    is_streamed: bool
    lora: str
    salt: str
    walked: int | None = None  # tokens, by a walk over token ids when the request was sent; needs the events
    cause: Cause | None = None  # of an over-prediction by more than a block

    @property
    def error_blocks(self) -> int:
        """Predicted minus actual, in whole blocks."""
        return self.predicted // self.block_tokens - self.cached // self.block_tokens

    @property
    def is_lost(self) -> bool:
        """Whether the engine lost a race that nobody outside it can win."""
        return self.cause in (Cause.RACE, Cause.LAG)
