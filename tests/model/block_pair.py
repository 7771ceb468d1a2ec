"""A block table and its naive model side by side: each operation is done on both, and all of their state compared."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from typing import Any

from tests.model.chunk_hash import chunk_hash
from tests.model.residency_model import Prefix, ResidencyModel
from xinf._fast import residency
from xinf._fast.residency import MIN_BYTES, BlockTable

Operation = tuple[Any, ...]
Chunks = list[tuple[int, int]]


def q(values: Sequence[int]) -> array[int]:
    return array("Q", values)


def ids(values: Sequence[int]) -> array[int]:
    return array("I", values)


def pairs(hashes: bytes, tokens: bytes) -> dict[int, int]:
    """What `take` or `snapshot` says, as a dict. Raises: AssertionError if a hash comes twice."""
    keys, values = array("Q", hashes).tolist(), array("I", tokens).tolist()
    assert len(set(keys)) == len(keys) == len(values)
    return dict(zip(keys, values, strict=True))


class Mirror:
    """Who is told: forgets all when `n_clears` changes, then applies the deltas."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.n_clears = 0

    def follow(self, table: BlockTable) -> tuple[dict[int, int], set[int]] | None:
        self.forget(table)
        if (news := table.take()) is None:
            return None
        added, removed = pairs(news[0], news[1]), set(array("Q", news[2]))
        assert len(removed) * 8 == len(news[2]), "a hash comes once"
        assert not removed & added.keys(), "a hash comes once"
        assert removed <= self.held.keys(), "what is removed was held"
        assert all(self.held.get(name) != tokens for name, tokens in added.items()), "what is added is news"
        self.held = {name: tokens for name, tokens in self.held.items() if name not in removed} | added
        return added, removed

    def forget(self, table: BlockTable) -> None:
        if self.n_clears != table.n_clears:
            self.held, self.n_clears = {}, table.n_clears


class BlockPair:
    def __init__(self, block_tokens: int, max_bytes: int, capacity_blocks: int | None) -> None:
        self.table = BlockTable(block_tokens, max_bytes, capacity_blocks=capacity_blocks)
        self.model = ResidencyModel(block_tokens, capacity_blocks)
        self.mirror = Mirror()
        self.open: list[int] = []
        self.dead = [0, 1, 1 << 62]
        self.now_s = 50.0
        self.keys: dict[Prefix, int] = {}
        self.bindings: dict[int, set[tuple[Prefix, int]]] = {}  # chunk hash -> all that it ever stood for
        self.n_failed = 0
        self.is_clear_news = False

    def do(self, operation: Operation) -> None:
        """Run an operation on both. One that runs out of memory changes nothing."""
        try:
            getattr(self, operation[0])(*operation[1:])
        except MemoryError:
            self.n_failed += 1
        finally:
            if operation[0] != "fail":
                residency._fail_allocation(0)
        self.compare()

    def fail(self, k: int) -> None:
        residency._fail_allocation(k)

    def register(self, tokens: list[int], chunks: Chunks, salt: int) -> None:
        chain, positions = [chunk[0] for chunk in chunks], [chunk[1] for chunk in chunks]
        handle = self.table.register(ids(tokens), q(chain), ids(positions), salt=salt)
        if handle == residency.UNTRACKED:
            assert self.table.refused > 0 or not tokens
            return
        assert handle > 0
        assert handle not in self.open + self.dead
        self.open.append(handle)
        self.model.register(handle, tokens, chunks, salt)
        self.note(handle, chunks)

    def extend(self, index: int, tokens: list[int], chunks: Chunks) -> None:
        chain, positions = [chunk[0] for chunk in chunks], [chunk[1] for chunk in chunks]
        self.table.extend(self.dead[index % len(self.dead)], ids(tokens), q(chain), ids(positions))
        if self.open:
            handle = self.open[index % len(self.open)]
            n_refused = self.table.refused
            self.table.extend(handle, ids(tokens), q(chain), ids(positions))
            if self.table.refused == n_refused or self.table._state()[0]:
                self.model.extend(handle, tokens, chunks)
                self.note(handle, chunks)

    def note(self, handle: int, chunks: Chunks) -> None:
        blocks = self.model.requests[handle][1]
        for name, tokens in chunks:
            if tokens >= self.table.block_tokens:
                prefix = blocks[tokens // self.table.block_tokens - 1]
                self.bindings.setdefault(name, set()).add((prefix, tokens))

    def release(self, index: int) -> None:
        self.table.release(self.dead[index % len(self.dead)])
        if self.open:
            handle = self.open.pop(index % len(self.open))
            self.table.release(handle)
            self.model.release(handle)
            self.dead.append(handle)

    def stored(self, hashes: list[int], parent: int | None, tokens: list[int], salt: int) -> None:
        n_orphans = self.table.stored(q(hashes), parent, ids(tokens), salt=salt)
        expected = self.model.stored(hashes, parent, tokens, salt)
        assert n_orphans == expected or self.table.refused

    def removed(self, hashes: list[int]) -> None:
        n_known = self.table.removed(q(hashes).tobytes())
        expected = self.model.removed(hashes)
        assert n_known == expected or self.table.refused

    def clear(self) -> None:
        self.table.clear()
        self.model.clear()
        self.is_clear_news = True

    def collect(self, wait_s: float) -> None:
        self.now_s += wait_s
        n_freed = self.table.collect(self.now_s)
        expected = self.model.collect(self.now_s)
        assert n_freed == expected or self.table.refused

    def take(self) -> None:
        news, expected = self.mirror.follow(self.table), self.model.take()
        if self.table.refused == 0:
            assert (news or ({}, set())) == expected
            assert (news is None) == (not any(expected) and not self.is_clear_news)
        self.is_clear_news = False

    def compare(self) -> None:
        self.table._check()
        self.mirror.forget(self.table)
        assert self.mirror.held == pairs(*self.table.snapshot())
        if self.table.refused:
            self.compare_bounds()
        else:
            self.compare_all()

    def compare_all(self) -> None:
        model, table = self.model, self.table
        slots, engine, chunks, leaving, lru, _ = table._state()
        assert (table.orphans, table.duplicates, len(table)) == (model.orphans, model.duplicates, len(model))
        resident, copies, overlay = model.resident(), model.copies(), model.overlay()
        assert table.resident == len(resident)
        assert slots == {
            self.key(prefix): (copies[prefix], overlay[prefix], model.bound.get(prefix, (None,))[0])
            for prefix in resident | model.bound.keys()
        }
        assert engine == {name: (self.key(prefix), n) for name, (prefix, n) in model.engine.items()}
        bound = {name: (self.key(prefix), tokens) for prefix, (name, tokens) in model.bound.items()}
        assert {name: chunk[:2] for name, chunk in chunks.items() if chunk[0] is not None} == bound
        assert {name: chunk[2] for name, chunk in chunks.items() if chunk[2]} == model.announced == self.mirror.held
        assert sorted(leaving) == sorted(map(self.key, model.left))
        assert lru == [self.key(prefix) for prefix in model.lru]

    def compare_bounds(self) -> None:
        """A full table may know less, never more: what it wants said is bound to something that is resident."""
        slots, _, chunks, *_ = self.table._state()
        resident = self.model.resident()
        for name, (key, tokens, _) in chunks.items():
            if key is not None and any(slots[key][:2]):
                allowed = {self.key(prefix) for prefix, n in self.bindings[name] if n == tokens and prefix in resident}
                assert key in allowed
        assert self.table.nbytes <= self.table.max_bytes

    def key(self, prefix: Prefix) -> int:
        """The own key of a block, from its definition."""
        if len(prefix) == 1:
            return prefix[0]
        if prefix not in self.keys:
            before, block = prefix[: -self.table.block_tokens], prefix[-self.table.block_tokens :]
            self.keys[prefix] = chunk_hash(self.key(before), ids(block).tobytes(), 0)
        return self.keys[prefix]


def random_prompt(rng: random.Random, block_tokens: int, n_most: int) -> tuple[list[int], Chunks]:
    """Prompts of two token ids, so that they often share blocks; chunks that mean their text, or anything."""
    tokens = [rng.randrange(2) if rng.random() < 0.3 else 1 for _ in range(rng.randrange(n_most))]
    step, kind = rng.choice([1, 2, block_tokens, 3 * block_tokens]), rng.randrange(4)
    chunks, position = [], rng.randrange(step + 1)
    while position <= len(tokens):
        if kind == 3:  # hashes bound to other tokens all the time
            chunks.append((rng.randrange(12), position))
        else:  # kinds 0 to 2: other texts of the same tokens
            chunks.append((chunk_hash(kind, bytes(tokens[:position]), 1), position))
        position += rng.randrange(1 if kind == 3 else step, step + 1)
        if kind == 3 and len(chunks) > 40:
            break
    return tokens, chunks


def random_operation(rng: random.Random, block_tokens: int, n_most: int, takes_events: bool) -> Operation:
    tokens, chunks = random_prompt(rng, block_tokens, n_most)
    salt = rng.choice([0, 0, 7, (1 << 64) - 1])
    blocks = [tokens[:end] for end in range(block_tokens, len(tokens) + 1, block_tokens)]
    hashes = [chunk_hash(salt, bytes(block), 2) for block in blocks]
    first = rng.randrange(len(blocks) + 1)
    parent = hashes[first - 1] if first else None
    if rng.random() < 0.1:  # an engine that makes no sense
        hashes = [rng.randrange(8) for _ in hashes]
        parent = rng.choice([None, rng.randrange(8)])
    operations: list[tuple[float, Operation]] = [
        (6, ("register", tokens, chunks, salt)),
        (3, ("extend", rng.randrange(100), tokens, chunks)),
        (6, ("release", rng.randrange(100))),
        (0.3, ("clear",)),
        (2, ("collect", rng.choice([0.0, 0.5, 1.0, 2.5]))),
        (4, ("take",)),
        (1, ("fail", rng.randrange(1, 4))),
    ]
    if takes_events:
        operations += [
            (8, ("stored", hashes[first:], parent, tokens[first * block_tokens : len(blocks) * block_tokens], salt)),
            (6, ("removed", rng.sample(hashes, rng.randrange(len(hashes) + 1)) * rng.choice([1, 1, 2]))),
        ]
    return rng.choices([one for _, one in operations], [weight for weight, _ in operations])[0]


def random_case(rng: random.Random) -> list[Operation]:
    block_tokens = rng.choice([1, 2, 4, 16])
    capacity = rng.choice([None, None, 1, 5, 30])
    n_most = block_tokens * rng.choice([3, 8, 20])
    case: list[Operation] = [("table", block_tokens, MIN_BYTES << 2, capacity)]
    return case + [
        random_operation(rng, block_tokens, n_most, capacity is None) for _ in range(rng.choice([30, 150, 400]))
    ]


def run_case(case: Sequence[Operation]) -> BlockPair:
    """Run a case, or what is left of one: without its first operation, on a table of 4 tokens a block.

    Raises: AssertionError that names the operation after which table and model differ.
    """
    shape = next((operation[1:] for operation in case if operation[0] == "table"), (4, MIN_BYTES << 2, None))
    pair = BlockPair(*shape)
    try:
        for operation in case:
            if operation[0] != "table":
                pair.do(operation)
    except AssertionError as error:
        raise AssertionError(f"after {operation[0]}: {error}") from error
    finally:
        residency._fail_allocation(0)
    return pair
