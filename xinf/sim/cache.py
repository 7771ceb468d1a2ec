"""The paged KV cache of the simulated engine: blocks with prefix hashes, reference counts and LRU eviction.

    kv_blocks = blank + private + cached
                          │        ├── used:  some sequence holds it (count > 0), cannot be evicted
                          │        └── idle:  nobody does; evicted oldest first when no blank block is left
                          └── of one sequence: not full yet, or a second copy of a block that is cached already

A block's hash covers its tokens and everything before it, so equal hashes mean equal prefixes. A block becomes findable
when the step that fills it is scheduled, and a sequence lets go of its blocks last one first, so that the tail of a
prefix is evicted before its head. Source: vLLM 0.32, v1/core/block_pool.py and kv_cache_manager.py (which differ in one
thing: there a second copy of a block is findable too).

Each operation is O(1) per block touched; a match touches O(log blocks).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence


class BlockCache:
    """Counts blocks and knows which prefixes they hold; the contents themselves do not exist."""

    def __init__(self, kv_blocks: int) -> None:
        self.kv_blocks = kv_blocks
        self.on_removed: Callable[[list[int]], None] | None = None  # told the hashes of blocks that are found no more
        self._blank = kv_blocks
        self._users: dict[int, int] = {}  # hash -> sequences that hold the cached block
        self._idle: OrderedDict[int, None] = OrderedDict()  # cached and held by none, oldest first

    def __contains__(self, block_hash: int) -> bool:
        return block_hash in self._users

    @property
    def free_blocks(self) -> int:
        """Blocks that an allocation could get: blank ones and evictable ones."""
        return self._blank + len(self._idle)

    @property
    def used_blocks(self) -> int:
        """Blocks that some sequence holds."""
        return self.kv_blocks - self._blank - len(self._idle)

    @property
    def cached_blocks(self) -> int:
        """Blocks that can be found by hash, used or idle."""
        return len(self._users)

    def match(self, hashes: Sequence[int]) -> int:
        """Count the leading blocks that are cached.

        O(log blocks): whoever holds or leaves a cached block does so with all blocks before it, and those are evicted
        later, so a cached block's prefix is cached too.
        """
        users = self._users
        if not hashes or hashes[0] not in users:
            return 0
        n_hit, n_miss = 1, len(hashes) + 1  # so many are cached, so many are not
        while n_miss - n_hit > 1:
            middle = (n_hit + n_miss) // 2
            if hashes[middle - 1] in users:
                n_hit = middle
            else:
                n_miss = middle
        return n_hit

    def admit(self, hashes: Sequence[int], n_private: int) -> bool:
        """Take the cached blocks `hashes` and `n_private` more, all or nothing. False when there is no room."""
        idle = self._idle
        n_idle_hits = sum([block_hash in idle for block_hash in hashes])
        if n_private > self.free_blocks - n_idle_hits:
            return False
        users = self._users
        for block_hash in hashes:
            users[block_hash] += 1
            idle.pop(block_hash, None)
        return self.allocate(n_private)

    def allocate(self, n_blocks: int) -> bool:
        """Take blank blocks, evicting idle ones as needed, all or nothing. False when there is no room."""
        n_evicted = n_blocks - self._blank
        if n_evicted > 0:
            if n_evicted > len(self._idle):
                return False
            pop, users = self._idle.popitem, self._users
            evicted = [pop(last=False)[0] for _ in range(n_evicted)]
            for block_hash in evicted:
                del users[block_hash]
            self._blank = n_blocks
            if self.on_removed is not None:
                self.on_removed(evicted)
        self._blank -= n_blocks
        return True

    def commit(self, hashes: Sequence[int]) -> int:
        """Make full private blocks findable, in prefix order. Returns how many: up to one that is cached already.

        That one, and what follows it, stays private.
        """
        users = self._users
        for n_new, block_hash in enumerate(hashes):
            if block_hash in users:
                return n_new
            users[block_hash] = 1
        return len(hashes)

    def release(self, hashes: Sequence[int], n_private: int) -> None:
        """Let go of cached blocks (given in prefix order) and of private ones, which become blank."""
        users, idle = self._users, self._idle
        for block_hash in reversed(hashes):
            if (n_users := users[block_hash]) == 1:
                idle[block_hash] = None
            users[block_hash] = n_users - 1
        self._blank += n_private

    def clear(self) -> None:
        """Forget all idle blocks, as a reset of the prefix cache does; used ones stay findable until released."""
        for block_hash in self._idle:
            del self._users[block_hash]
        if self.on_removed is not None and self._idle:
            self.on_removed(list(self._idle))
        self._blank += len(self._idle)
        self._idle.clear()
