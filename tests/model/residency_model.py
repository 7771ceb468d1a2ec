"""The block table naively: whole prefixes instead of keys, all that is wanted worked out anew on each question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

GRACE_S = 2.0

Prefix = tuple[int, ...]  # the salt, and then all tokens up to a block's end
Chunks = Sequence[tuple[int, int]]  # hash and position


class ResidencyModel:
    def __init__(self, block_tokens: int, capacity_blocks: int | None = None) -> None:
        self.block_tokens = block_tokens
        self.capacity_blocks = capacity_blocks
        self.engine: dict[int, tuple[Prefix, int]] = {}  # the engine's hash -> what it stands for, copies
        self.requests: dict[int, tuple[int, list[Prefix]]] = {}  # handle -> salt, blocks
        self.bound: dict[Prefix, tuple[int, int]] = {}  # -> chunk hash, tokens
        self.left: dict[Prefix, float | None] = {}  # bound, not resident: since when, if a collect saw it; oldest first
        self.lru: list[Prefix] = []
        self.announced: dict[int, int] = {}
        self.orphans = self.duplicates = 0

    def prefixes(self, tokens: Sequence[int], start: Prefix) -> list[Prefix]:
        ends = range(self.block_tokens, len(tokens) + 1, self.block_tokens)
        return [start + tuple(tokens[:end]) for end in ends]

    def resident(self) -> set[Prefix]:
        held = {prefix for _, blocks in self.requests.values() for prefix in blocks}
        return held | {prefix for prefix, _ in self.engine.values()} | set(self.lru)

    def wanted(self) -> dict[int, int]:
        resident = self.resident()
        return {name: tokens for prefix, (name, tokens) in self.bound.items() if prefix in resident}

    def settle(self, before: list[Prefix]) -> None:
        """`before`: what was resident, in the order in which it leaves."""
        resident = self.resident()
        for prefix in before:
            if prefix not in resident and prefix in self.bound:
                self.left.setdefault(prefix, None)
        self.left = {prefix: s for prefix, s in self.left.items() if prefix not in resident and prefix in self.bound}

    # ---- requests

    def register(self, handle: int, tokens: Sequence[int], chunks: Chunks, salt: int) -> None:
        before = sorted(self.resident())
        self.requests[handle] = salt, self.prefixes(tokens, (salt,))
        self.touch(handle)
        self.bind(handle, chunks)
        self.evict()
        self.settle(before)

    def extend(self, handle: int, tokens: Sequence[int], chunks: Chunks) -> None:
        salt, old = self.requests[handle]
        before = old[::-1]
        self.requests[handle] = salt, self.prefixes(tokens, (salt,))
        self.touch(handle)
        self.bind(handle, chunks)
        self.idle(old)
        self.settle(before + self.evict())

    def release(self, handle: int) -> None:
        _, old = self.requests.pop(handle)
        self.idle(old)
        self.settle(old[::-1] + self.evict())

    def bind(self, handle: int, chunks: Chunks) -> None:
        blocks = self.requests[handle][1]
        for number, prefix in enumerate(blocks, 1):
            first = next((chunk for chunk in chunks if chunk[1] // self.block_tokens >= number), None)
            if first is None or first[1] // self.block_tokens != number:
                continue
            for other in [other for other, (name, _) in self.bound.items() if name == first[0]]:
                del self.bound[other]
            self.bound[prefix] = first

    def touch(self, handle: int) -> None:
        self.lru = [prefix for prefix in self.lru if prefix not in self.requests[handle][1]]

    def idle(self, blocks: list[Prefix]) -> None:
        if self.capacity_blocks is not None:
            held = {prefix for _, others in self.requests.values() for prefix in others}
            self.lru += [prefix for prefix in reversed(blocks) if prefix not in held]

    def evict(self) -> list[Prefix]:
        gone = []
        while self.capacity_blocks is not None and self.lru and len(self.resident()) > self.capacity_blocks:
            gone.append(self.lru.pop(0))
        for prefix in gone:
            if prefix in self.bound:
                self.left[prefix] = None
        return gone

    # ---- events

    def stored(self, hashes: Sequence[int], parent: int | None, tokens: Sequence[int], salt: int) -> int:
        n_orphans = self.orphans
        known: Prefix | None = (salt,)
        if parent is not None:
            known = self.engine[parent][0] if parent in self.engine else None
        for i, name in enumerate(hashes):
            block = tuple(tokens[i * self.block_tokens : (i + 1) * self.block_tokens])
            prefix, copies = self.engine.get(name, (None, 0))
            known = prefix if known is None else known + block
            if known is None or prefix not in (None, known):
                self.orphans += 1
                continue
            self.duplicates += copies > 0
            self.engine[name] = known, copies + 1
        self.settle([])
        return self.orphans - n_orphans

    def removed(self, hashes: Sequence[int]) -> int:
        n_known = 0
        for name in hashes:
            if name not in self.engine:
                continue
            n_known += 1
            prefix, copies = self.engine.pop(name)
            if copies > 1:
                self.engine[name] = prefix, copies - 1
            self.settle([prefix])
        return n_known

    def clear(self) -> None:
        before = sorted(self.resident())
        self.engine.clear()
        self.lru.clear()
        self.settle(before)
        self.announced.clear()

    # ---- what it says

    def take(self) -> tuple[dict[int, int], set[int]]:
        wanted = self.wanted()
        added = {name: tokens for name, tokens in wanted.items() if self.announced.get(name) != tokens}
        removed = self.announced.keys() - wanted.keys()
        self.announced = wanted
        return added, removed

    def collect(self, now_s: float) -> int:
        seen = {prefix: now_s if left_s is None else left_s for prefix, left_s in self.left.items()}
        gone = [prefix for prefix, left_s in seen.items() if now_s - left_s > GRACE_S]
        self.left = {prefix: left_s for prefix, left_s in seen.items() if prefix not in gone}
        for prefix in gone:
            del self.bound[prefix]
        return len(gone)

    def copies(self) -> Counter[Prefix]:
        """Copies of each block that the engine, or the simulated one, holds and no request needs to."""
        total: Counter[Prefix] = Counter(self.lru)
        for prefix, copies in self.engine.values():
            total[prefix] += copies
        return total

    def overlay(self) -> Counter[Prefix]:
        return Counter(prefix for _, blocks in self.requests.values() for prefix in blocks)

    def __len__(self) -> int:
        return len(self.resident() | self.bound.keys())
