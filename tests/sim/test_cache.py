from __future__ import annotations

import random

import pytest

from tests.model.naive_block_cache import NaiveBlockCache
from xinf.sim import BlockCache, SimEngine, SimSequence, SimSettings, TextSource


def held_blocks(cache: BlockCache, held: list[tuple[list[int], int]]) -> int:
    return len({h for hashes, _ in held for h in hashes}) + sum(n for _, n in held)


def test_match_counts_leading_blocks_only() -> None:
    cache = BlockCache(8)
    assert cache.allocate(3)
    assert cache.commit([1, 2, 4]) == 3
    assert cache.match([1, 2, 3, 4]) == 2
    assert cache.match([9, 1]) == 0
    assert cache.match([]) == 0


def test_second_copy_of_a_block_is_not_findable_twice() -> None:
    cache = BlockCache(4)
    assert cache.allocate(2)
    assert cache.commit([7]) == 1
    assert cache.commit([7, 8]) == 0
    cache.release([7], 1)
    assert (cache.used_blocks, cache.cached_blocks, cache.free_blocks) == (0, 1, 4)


def test_eviction_takes_the_oldest_tail_first() -> None:
    cache = BlockCache(4)
    cache.allocate(4)
    for block in (1, 2, 3, 4):
        cache.commit([block])
    cache.release([1, 2], 0)
    cache.release([3, 4], 0)
    assert cache.allocate(1)
    assert (2 in cache, 1 in cache, 3 in cache, 4 in cache) == (False, True, True, True)
    assert cache.allocate(2)
    assert [block in cache for block in (1, 3, 4)] == [False, True, False]


def test_used_blocks_are_never_evicted() -> None:
    cache = BlockCache(2)
    cache.allocate(1)
    cache.commit([1])
    assert not cache.allocate(2)
    assert not cache.admit([1], 2)
    assert cache.admit([1], 1)
    cache.release([1], 0)
    assert not cache.allocate(1)


def test_admit_that_does_not_fit_changes_nothing() -> None:
    cache = BlockCache(3)
    cache.allocate(2)
    cache.commit([1])
    cache.release([1], 0)
    assert not cache.admit([1], 2)
    assert (cache.used_blocks, cache.free_blocks, 1 in cache) == (1, 2, True)


def test_clear_forgets_idle_blocks_only() -> None:
    cache = BlockCache(3)
    cache.allocate(2)
    cache.commit([1])
    cache.commit([2])
    cache.release([2], 0)
    cache.clear()
    assert (1 in cache, 2 in cache, cache.free_blocks) == (True, False, 2)


@pytest.mark.parametrize("seed", range(5))
def test_random_operations_keep_the_books(seed: int) -> None:
    rng = random.Random(seed)
    cache = BlockCache(20)
    held: list[tuple[list[int], int]] = []
    for step in range(2000):
        where = f"seed {seed}, step {step}"
        if held and rng.random() < 0.5:
            cache.release(*held.pop(rng.randrange(len(held))))
        else:
            path = [rng.randrange(2) for _ in range(rng.randrange(8))]
            chain = [hash((*path[: depth + 1],)) for depth in range(len(path))]
            n_hit = cache.match(chain)
            extra = rng.randrange(4)
            fits = extra <= cache.free_blocks - sum(1 for h in chain[:n_hit] if not any(h in hs for hs, _ in held))
            assert cache.admit(chain[:n_hit], extra) == fits, where
            if fits:
                mine = chain[:n_hit]
                while extra and len(mine) < len(chain) and cache.commit([chain[len(mine)]]):
                    mine.append(chain[len(mine)])
                    extra -= 1
                held.append((mine, extra))
        assert cache.used_blocks == held_blocks(cache, held), where
        assert cache.used_blocks + cache.free_blocks == 20, where
        assert cache.cached_blocks <= 20, where


@pytest.mark.parametrize("seed", range(6))
def test_cached_tokens_agree_with_the_naive_model(seed: int) -> None:
    rng = random.Random(seed)
    block_tokens = rng.choice([1, 4, 16])
    kv_blocks = rng.choice([40, 100, 400]) * 16 // block_tokens
    engine = SimEngine(SimSettings(kv_blocks=kv_blocks, block_tokens=block_tokens, max_batched_tokens=100_000))
    naive = NaiveBlockCache(kv_blocks, block_tokens)
    text = TextSource(seed)
    chats = [bytes([65 + n]) * rng.randrange(1, 300) for n in range(6)]
    n_hits = 0
    for step in range(250):
        chat = rng.randrange(len(chats))
        prompt = chats[chat] + b"turn %d" % rng.randrange(3)
        if rng.random() < 0.1:
            prompt = rng.randbytes(rng.randrange(1, 400))
        answer = text.answer(prompt, rng.randrange(0, 40))
        sequence = SimSequence(prompt, answer, arrived_s=0.0)
        engine.submit(sequence, 0.0)
        while engine.due_s() is not None:
            engine.run_step()
        assert sequence.is_done
        assert sequence.cached_tokens == naive.serve(prompt, answer), f"seed {seed}, step {step}"
        n_hits += sequence.cached_tokens > 0
        chats[chat] = prompt + answer if len(prompt) < 900 else prompt[: rng.randrange(1, 400)]
    assert 30 < n_hits < 250
    assert engine.cache.used_blocks == 0
    assert engine.cache.cached_blocks == len(naive.idle)
