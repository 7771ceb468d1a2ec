"""The data of the index benchmarks: 1.0M (worker, block) entries over 64 workers.

    shared prompt, 64 blocks, held by all workers ─┬─ worker 0: 15 conversations of 976 blocks   + 1 that shares nothing
                                                   ├─ worker 1: ...
                                                   └─ worker 63

64 + 15 x 976 + 976 blocks a worker are 1,003,520 entries. Hashes are random 64-bit numbers, none of them 0.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass, field

N_WORKERS = 64
N_SHARED = 64
N_OWN = 976
N_CONVERSATIONS = 16  # the last one begins without the shared prompt
EVENT_BLOCKS = 16  # what an engine reports at once


@dataclass
class Event:
    """Blocks that a worker stored behind `parent`."""

    worker: int
    parent: int | None
    blocks: list[int]
    first_position: int

    def chain(self) -> bytes:
        return array("Q", self.blocks).tobytes()

    def positions(self) -> bytes:
        return array("I", range(self.first_position, self.first_position + len(self.blocks))).tobytes()


@dataclass
class Residency:
    """Who holds what, as events in the order of arrival, and chains to look for."""

    events: list[Event] = field(default_factory=list)
    queries: dict[str, list[int]] = field(default_factory=dict)
    expected: dict[str, dict[int, int]] = field(default_factory=dict)  # query -> worker -> blocks held
    n_entries: int = 0


def residency(scale: int = 1, seed: int = 1) -> Residency:
    """Make the data; `scale` divides the number of workers' conversations' blocks, for a look whether it runs."""
    rng = random.Random(seed)

    def fresh(n: int) -> list[int]:
        return [rng.getrandbits(64) | 1 for _ in range(n)]

    made = Residency()
    n_own = N_OWN // scale
    shared = fresh(N_SHARED)
    per_worker: list[list[Event]] = []
    conversations: dict[int, list[int]] = {}
    for worker in range(N_WORKERS):
        events = events_of(worker, shared, None, 1)
        for number in range(N_CONVERSATIONS):
            own = fresh(n_own)
            is_apart = number == N_CONVERSATIONS - 1
            events += events_of(worker, own, None if is_apart else shared[-1], 1 if is_apart else N_SHARED + 1)
            if number == 7:
                conversations[worker] = shared + own
            if is_apart and worker == 40:
                alone = own
        per_worker.append(events)
    # Engines work side by side: their events come mixed, each engine's in order.
    for step in range(max(map(len, per_worker))):
        made.events += [events[step] for events in per_worker if step < len(events)]
    made.n_entries = sum(len(event.blocks) for event in made.events)
    longest = conversations[17][:1000]
    everybody = dict.fromkeys(range(N_WORKERS), N_SHARED)
    made.queries = {
        "1000 blocks, all match": longest,
        "1000 blocks, 64 match": shared + fresh(len(longest) - N_SHARED),
        "976 blocks, all match on one worker alone": alone,
        "8 blocks, hit": shared[:8],
        "8 blocks, miss": fresh(8),
    }
    made.expected = {
        "1000 blocks, all match": everybody | {17: len(longest)},
        "1000 blocks, 64 match": everybody,
        "976 blocks, all match on one worker alone": {40: len(alone)},
        "8 blocks, hit": dict.fromkeys(range(N_WORKERS), 8),
        "8 blocks, miss": {},
    }
    return made


def events_of(worker: int, blocks: list[int], parent: int | None, first_position: int) -> list[Event]:
    events = []
    for at in range(0, len(blocks), EVENT_BLOCKS):
        piece = blocks[at : at + EVENT_BLOCKS]
        events.append(Event(worker, parent, piece, first_position + at))
        parent = piece[-1]
    return events
