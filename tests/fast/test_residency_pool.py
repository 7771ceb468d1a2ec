"""The block table beside an engine's block pool: what a gateway predicts from the deltas against what the pool has."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import pytest

from tests.model.block_pair import Mirror
from tests.model.block_pool import BlockPool, Event, Running
from xinf._fast.prefix import hash_bytes
from xinf._fast.residency import BlockTable

BLOCK_TOKENS = 8
CHUNK_BYTES = 8


def even(token: int) -> int:
    """Bytes of a token's text: chunks end with tokens, and some with blocks."""
    return 2


def uneven(token: int) -> int:
    """Chunks end inside tokens, tokens of one chunk are in several blocks."""
    return 1 + token % 4


def chunks_of(tokens: list[int], size_of: Callable[[int], int]) -> tuple[array[int], array[int]]:
    """The chain of a text in which a token is a run of equal bytes; how many tokens are whole at each chunk's end."""
    text, chain, positions = b"".join(bytes([token]) * size_of(token) for token in tokens), array("Q"), array("I")
    ends = [0, *accumulate(map(size_of, tokens))]
    n_whole = 0
    for end in [*range(CHUNK_BYTES, len(text), CHUNK_BYTES), len(text)]:
        while n_whole < len(tokens) and ends[n_whole + 1] <= end:
            n_whole += 1
        chain.append(hash_bytes(text[:end]))
        positions.append(n_whole)
    return chain, positions


@dataclass
class Open:
    handle: int
    prompt: list[int]
    running: Running | None = None
    chat: int = 0


@dataclass
class World:
    """One engine, the table beside it, and a gateway that is told."""

    n_blocks: int
    size_of: Callable[[int], int]
    capacity_blocks: int | None = None
    errors: Counter[int] = field(default_factory=Counter)  # predicted - cached, in blocks

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.n_blocks, BLOCK_TOKENS)
        self.table = BlockTable(BLOCK_TOKENS, capacity_blocks=self.capacity_blocks)
        self.mirror = Mirror()
        self.late: list[Event] = []

    def predicted(self, prompt: list[int]) -> int:
        """Blocks, by the furthest chunk held."""
        self.mirror.follow(self.table)
        chain, _ = chunks_of(prompt, self.size_of)
        held = [self.mirror.held[name] for name in chain if name in self.mirror.held]
        return min(held[-1] if held else 0, len(prompt) - 1) // BLOCK_TOKENS

    def start(self, prompt: list[int]) -> Open | None:
        n_predicted, n_cached = self.predicted(prompt), len(self.pool.cached(prompt))
        if (started := self.pool.start(prompt)) is None:
            return None
        if not self.late:
            self.errors[n_predicted - n_cached] += 1
        assert n_predicted <= n_cached or self.capacity_blocks is not None
        self.hear(started[1])
        return Open(self.table.register(array("I", prompt), *chunks_of(prompt, self.size_of)), prompt, started[0])

    def finish(self, request: Open, answer: list[int]) -> None:
        """The last token of an answer is never computed."""
        assert request.running is not None
        self.hear(self.pool.grow(request.running, answer[:-1]))
        whole = request.prompt + answer[:-1]
        self.table.extend(request.handle, array("I", whole), *chunks_of(whole, self.size_of))
        self.pool.finish(request.running)
        self.table.release(request.handle)

    def hear(self, events: list[Event]) -> None:
        """Removals come at once: nobody can know of those on their way. Stored ones wait for `catch_up`."""
        if self.capacity_blocks is not None:
            return
        for event in events:
            if event[0] == "removed":
                # A block is stored before it is removed, so what is late comes first.
                self.catch_up()
                assert self.table.removed(array("Q", event[1])) == 1
            else:
                self.late.append(event)

    def catch_up(self) -> None:
        for _, hashes, parent, tokens in self.late:
            assert self.table.stored(array("Q", hashes), parent, array("I", tokens)) == 0
        self.late.clear()


def prompts(rng: random.Random, chats: dict[int, list[int]]) -> Iterator[tuple[int, list[int]]]:
    """Chats on a few system prompts: the next turn of one, a new one, the same once more, or one that is cut."""
    systems = [[rng.randrange(1, 50) for _ in range(rng.randrange(5, 60))] for _ in range(4)]
    for number in range(10**9):
        kind = rng.random()
        if kind < 0.3 or not chats:
            chats[number] = systems[rng.randrange(4)] + [rng.randrange(1, 50) for _ in range(rng.randrange(1, 30))]
            yield number, chats[number]
        elif kind < 0.8:
            chat = rng.choice(sorted(chats))
            chats[chat] = chats[chat] + [rng.randrange(1, 50) for _ in range(rng.randrange(1, 20))]
            yield chat, chats[chat]
        else:
            prompt = chats[rng.choice(sorted(chats))]
            yield -1, prompt[: rng.randrange(1, len(prompt) + 1)]


def play(world: World, rng: random.Random, n_requests: int, n_open: int, lag: float) -> None:
    """Run requests, several at once; `lag`: the share of steps at which the Stored events do not come yet."""
    chats: dict[int, list[int]] = {}
    source = prompts(rng, chats)
    running: list[Open] = []
    for _ in range(n_requests):
        chat, prompt = next(source)
        request = world.start(prompt) if len(prompt) < 150 else None
        if request is None:
            chats.pop(chat, None)
        else:
            request.chat = chat
            running.append(request)
        while len(running) >= n_open or (running and rng.random() < 0.3):
            done = running.pop(rng.randrange(len(running)))
            answer = [rng.randrange(1, 50) for _ in range(min(rng.randrange(1, 40), 8 * len(world.pool.free)))]
            if not answer:
                answer = [1]  # none of it is computed
            world.finish(done, answer)
            if chats.get(done.chat) == done.prompt:
                chats[done.chat] = done.prompt + answer
        if rng.random() >= lag:
            world.catch_up()
        world.table.collect(_ / 10)
    world.catch_up()
    world.table._check()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n_open", "lag"), [(1, 0.0), (1, 0.5), (4, 0.0), (4, 0.5)])
def test_a_prediction_is_exact_where_chunks_end_with_blocks(seed: int, n_open: int, lag: float) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    world = World(n_blocks=rng.choice([60, 90, 150]), size_of=even)
    play(world, rng, 400, n_open, lag)
    assert world.errors.keys() == {0}, world.errors
    assert world.errors[0] > 100
    assert world.pool.n_evicted > 300
    assert world.table.orphans == world.table.refused == 0
    assert world.table.resident == len(set(world.pool.hash_of.values()))
    assert world.table.duplicates == world.pool.n_copies


@pytest.mark.parametrize(("n_open", "lag"), [(1, 0.0), (1, 0.5), (4, 0.0), (4, 0.5)])
def test_a_prediction_never_passes_the_pool_and_is_within_a_block(n_open: int, lag: float) -> None:
    """Two blocks short is a prompt that leaves another inside the chunk at the end of their last common block."""
    errors: Counter[int] = Counter()
    for seed in range(6):
        rng = random.Random(seed)
        world = World(n_blocks=rng.choice([60, 90, 150]), size_of=uneven)
        play(world, rng, 400, n_open, lag)
        errors += world.errors
    assert set(errors) <= {0, -1, -2}, errors
    assert errors[-2] <= sum(errors.values()) // 200, errors
    assert errors[0] > errors[-1] > 0, errors


@pytest.mark.parametrize("n_open", [1, 4])
def test_a_simulated_engine_holds_nearly_what_the_pool_does(n_open: int) -> None:
    """Without a single event. It does not see the room that blocks which are not full take, or second copies."""
    errors: Counter[int] = Counter()
    for seed in range(6):
        rng = random.Random(seed)
        n_blocks = rng.choice([60, 90, 150])
        world = World(n_blocks=n_blocks, size_of=even, capacity_blocks=n_blocks)
        play(world, rng, 400, n_open, 0.0)
        assert world.table.capacity_blocks == n_blocks >= world.table.resident
        errors += world.errors
    assert errors[0] >= 0.93 * sum(errors.values()), errors
    assert errors[-1] + errors[0] + errors[1] >= 0.95 * sum(errors.values()), errors
