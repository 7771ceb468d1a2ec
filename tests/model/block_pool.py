"""An engine's block pool that can be read in one go: copies of blocks, LRU eviction with tails first, and events.

A second copy of a block is findable as well, and removed on its own: as vLLM 0.32 has it, v1/core/block_pool.py. What
it cannot show: steps, preemption, and events that are late, which the tests make of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Event = tuple[str, tuple[int, ...], int | None, tuple[int, ...]]  # "stored" or "removed", hashes, parent, tokens


@dataclass
class Running:
    tokens: list[int]
    blocks: list[int] = field(default_factory=list)  # of the pool
    hashes: list[int] = field(default_factory=list)  # of those that are full


class BlockPool:
    def __init__(self, n_blocks: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.free = list(range(n_blocks))  # the next to be used first
        self.hash_of: dict[int, int] = {}  # block -> hash, of those that can be found
        self.running: list[Running] = []
        self.n_evicted = self.n_copies = 0

    def find(self, name: int) -> int | None:
        return next((block for block, other in self.hash_of.items() if other == name), None)

    def hashes(self, tokens: list[int]) -> list[int]:
        ends = range(self.block_tokens, len(tokens) + 1, self.block_tokens)
        return [hash(tuple(tokens[:end])) % (1 << 64) for end in ends]

    def cached(self, tokens: list[int]) -> list[int]:
        """The blocks that a prompt would find: never that of its last token."""
        found: list[int] = []
        for one in self.hashes(tokens[:-1]):
            if (block := self.find(one)) is None:
                break
            found.append(block)
        return found

    def start(self, tokens: list[int]) -> tuple[Running, list[Event]] | None:
        """Take a request's blocks, as far as cached, and compute the others. None: there are not enough."""
        found = self.cached(tokens)
        n_new = -(-len(tokens) // self.block_tokens) - len(found)
        if n_new > len([block for block in self.free if block not in found]):
            return None
        self.free = [block for block in self.free if block not in found]
        running = Running([], found, self.hashes(tokens)[: len(found)])
        self.running.append(running)
        return running, self.grow(running, tokens)

    def grow(self, running: Running, tokens: list[int]) -> list[Event]:
        """Compute tokens of a request. Its blocks that are full become findable."""
        running.tokens += tokens
        events: list[Event] = []
        while len(running.blocks) * self.block_tokens < len(running.tokens):
            block = self.free.pop(0)
            running.blocks.append(block)
            if block in self.hash_of:
                self.n_evicted += 1
                events.append(("removed", (self.hash_of.pop(block),), None, ()))
        first = len(running.hashes)
        hashes = self.hashes(running.tokens)
        if len(hashes) > first:
            self.n_copies += sum(self.find(name) is not None for name in hashes[first:])
            self.hash_of |= dict(zip(running.blocks[first:], hashes[first:], strict=False))
            parent = hashes[first - 1] if first else None
            part = running.tokens[first * self.block_tokens : len(hashes) * self.block_tokens]
            events.append(("stored", tuple(hashes[first:]), parent, tuple(part)))
            running.hashes = hashes
        return events

    def finish(self, running: Running) -> None:
        """Let go of a request's blocks, the last one first."""
        held = {block for other in self.running if other is not running for block in other.blocks}
        self.running.remove(running)
        self.free += [block for block in reversed(running.blocks) if block not in held]
