"""Workloads that tell routing policies apart, by name and size."""

from __future__ import annotations

import enum
from collections.abc import Callable

import msgspec

from xinf.bench.mooncake import read_trace
from xinf.bench.route_session import RouteWorkload
from xinf.bench.route_synthetic import Agents, Chat, Documents, HotPrefix, RandomPrompts
from xinf.core.errors import InvalidRequest


class RouteKind(enum.Enum):
    """What is shared among prompts."""

    CHAT = "chat"
    HOT_PREFIX = "hot-prefix"
    DOCUMENTS = "documents"
    AGENTS = "agents"
    RANDOM = "random"
    TRACE = "trace"


class RouteWorkloadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`scale` multiplies the lengths of made-up prompts. `speed` of a trace at its own times: 2 is twice as fast."""

    kind: RouteKind
    scale: float = 1.0
    trace: str | None = None
    trace_block_tokens: int = 512
    speed: float = 1.0

    def __post_init__(self) -> None:
        for what, value in (("scale", self.scale), ("speed", self.speed)):
            if not 0 < value < float("inf"):
                raise InvalidRequest(f"the {what} is {value:g}, must be above 0", remedy="1 leaves it as it is")
        if self.trace_block_tokens < 1:
            raise InvalidRequest(f"the trace's block is {self.trace_block_tokens} tokens, must be at least 1")
        if (self.kind is RouteKind.TRACE) != (self.trace is not None):
            raise InvalidRequest("the workload `trace` and a trace file go together", remedy="name one with --trace")


def make_route_workload(settings: RouteWorkloadSettings, seed: int) -> RouteWorkload:
    """Raises: NotFound, InvalidRequest for a trace that is not there or not right."""
    if settings.kind is RouteKind.TRACE:
        return read_trace(
            settings.trace or "", seed=seed, block_tokens=settings.trace_block_tokens, speed=settings.speed
        )
    makers: dict[RouteKind, Callable[[int, float], RouteWorkload]] = {
        RouteKind.CHAT: Chat,
        RouteKind.HOT_PREFIX: HotPrefix,
        RouteKind.DOCUMENTS: Documents,
        RouteKind.AGENTS: Agents,
        RouteKind.RANDOM: RandomPrompts,
    }
    return makers[settings.kind](seed, settings.scale)
