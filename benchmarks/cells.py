"""The cells of the comparison: what is asked of every contestant."""

from __future__ import annotations

import enum

import msgspec

from benchmarks.contestant import Family
from benchmarks.engines import INSTANT, STEP_10_MS, STEP_50_MS, Profile

KIB = 1024
CHUNKS_PER_STREAM = 100
# Too slow, or of too little interest, for every cell: these take part in the few that place them.
_GUESTS = frozenset({Family.PROXY, Family.NAIVE, Family.FLOOR, Family.NONE})


class Kind(enum.Enum):
    """How a cell is run and what it yields."""

    REQUESTS = "requests"
    STREAMS = "streams"
    MEMORY = "memory"  # a fresh gateway, many distinct prompts, its memory before and after


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One question asked of every contestant."""

    name: str
    title: str
    kind: Kind
    profile: Profile
    connections: int
    size_bytes: int
    seconds: float
    guests: frozenset[str] = frozenset()  # besides xinf and the Rust routers


_ALL_GUESTS = frozenset({"nginx", "litellm", "naive ASGI proxy", "Granian hello", "no gateway"})
_FAST_GUESTS = frozenset({"nginx", "Granian hello", "no gateway"})


def _requests(size: str, size_bytes: int, connections: int, guests: frozenset[str]) -> Cell:
    return Cell(
        name=f"requests-{size}-c{connections}",
        title=f"{size.replace('k', ' KB')}, c={connections}",
        kind=Kind.REQUESTS,
        profile=INSTANT,
        connections=connections,
        size_bytes=size_bytes,
        seconds=1.0,
        guests=guests,
    )


def _streams(connections: int, profile: Profile, seconds: float, guests: frozenset[str]) -> Cell:
    return Cell(
        name=f"streams-{connections}-{profile.step_ms:.0f}ms",
        title=f"{connections:,} streams, {profile.name}",
        kind=Kind.STREAMS,
        profile=profile,
        connections=connections,
        size_bytes=KIB // 2,
        seconds=seconds,
        guests=guests,
    )


CELLS: tuple[Cell, ...] = (
    _requests("0.5k", KIB // 2, 1, _FAST_GUESTS),
    _requests("0.5k", KIB // 2, 64, _ALL_GUESTS),
    _requests("0.5k", KIB // 2, 256, _FAST_GUESTS),
    _requests("8k", 8 * KIB, 64, _FAST_GUESTS | {"naive ASGI proxy"}),
    _requests("8k", 8 * KIB, 256, frozenset({"nginx"})),
    _requests("64k", 64 * KIB, 16, _FAST_GUESTS),
    _requests("64k", 64 * KIB, 64, frozenset({"nginx"})),
    _streams(64, STEP_10_MS, 2.2, frozenset({"nginx", "naive ASGI proxy", "no gateway"})),
    _streams(256, STEP_10_MS, 2.2, frozenset({"nginx", "no gateway"})),
    _streams(1000, STEP_10_MS, 2.2, frozenset({"nginx", "no gateway"})),
    # As long as one generation of streams takes: all begin at once and are counted to their end.
    _streams(1000, STEP_50_MS, 5.2, frozenset({"nginx", "no gateway"})),
    Cell(
        name="memory",
        title="100k distinct prompts of 0.5 KB, then 30k of 8 KB",
        kind=Kind.MEMORY,
        profile=INSTANT,
        connections=64,
        size_bytes=KIB // 2,
        seconds=0,
    ),
)
# (bytes of a body, requests) of the memory cell, one after the other on one gateway
MEMORY_STEPS: tuple[tuple[int, int], ...] = ((KIB // 2, 100_000), (8 * KIB, 30_000))
# Dozens of requests/s: their window is longer, so that it holds more than the requests that were open at its start.
SLOW = frozenset({"litellm", "naive ASGI proxy"})
SLOW_S = 6.0
SCALING_CELLS = frozenset({"requests-0.5k-c64", "requests-0.5k-c256"})


def takes_part(name: str, family: Family, cell: Cell) -> bool:
    """Whether a contestant runs in a cell."""
    if name.endswith("workers"):
        return cell.name in SCALING_CELLS
    return family not in _GUESTS or name in cell.guests


def chosen(names: str | None) -> tuple[Cell, ...]:
    """The cells whose names contain one of the comma-separated words. Raises: ValueError when there is none."""
    if not names:
        return CELLS
    words = names.split(",")
    found = tuple(cell for cell in CELLS if any(word in cell.name for word in words))
    if not found:
        raise ValueError(f"no cell matches {names}; there are {', '.join(cell.name for cell in CELLS)}")
    return found
