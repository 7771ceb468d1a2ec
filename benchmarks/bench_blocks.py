"""What does the block table cost: a request, an event, what it says, in memory, and with 100,000 blocks in it?

Prompts are like those that the residency design was measured on: 1,240 tokens, 4.6 KB in 74 chunks, blocks of 32.
"""

from __future__ import annotations

import os
import random
import time
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from xinf._fast.residency import BlockTable

BLOCK_TOKENS = 32
N_TOKENS = 1240
N_CHUNKS = 74
N_BLOCKS = N_TOKENS // BLOCK_TOKENS
POSITIONS = array("I", [(i + 1) * N_TOKENS // N_CHUNKS for i in range(N_CHUNKS)])
N_RING = 512  # prompts that take turns


class Prompt:
    """Random tokens and hashes."""

    def __init__(self) -> None:
        self.tokens = array("I", os.urandom(4 * N_TOKENS))
        self.chain = os.urandom(8 * N_CHUNKS)
        self.blocks = self.tokens[: N_BLOCKS * BLOCK_TOKENS]
        self.hashes = os.urandom(8 * N_BLOCKS)


def filled(n_blocks: int) -> tuple[BlockTable, list[Prompt]]:
    """A table of so many resident blocks, each stored and registered; and some of its prompts."""
    table, kept = BlockTable(BLOCK_TOKENS), []
    n_prompts = -(-n_blocks // N_BLOCKS)
    for number in range(n_prompts):
        prompt = Prompt()
        handle = table.register(prompt.tokens, prompt.chain, POSITIONS)
        table.stored(prompt.hashes, None, prompt.blocks)
        table.release(handle)
        if number % max(1, n_prompts // N_RING) == 0:
            kept.append(prompt)
    table.take()
    assert table.resident == len(table) == n_prompts * N_BLOCKS
    random.Random(1).shuffle(kept)
    return table, kept


@pytest.fixture(scope="module", params=[1_000, 100_000])
def case(request: pytest.FixtureRequest, is_full: bool) -> tuple[str, BlockTable, list[Prompt]]:
    n_blocks = request.param if is_full else request.param // 100
    table, kept = filled(n_blocks)
    return f"{n_blocks:,} blocks", table, kept


def test_request(
    case: tuple[str, BlockTable, list[Prompt]], compare: Callable[..., Any], benchmark: BenchmarkFixture
) -> None:
    """In turns over many prompts, so that a table of 100,000 blocks is not in the cache."""
    name, table, kept = case
    turn = 0

    def known() -> None:
        nonlocal turn
        turn += 1
        prompt = kept[turn % len(kept)]
        table.release(table.register(prompt.tokens, prompt.chain, POSITIONS))

    def extended() -> None:
        nonlocal turn
        turn += 1
        prompt = kept[turn % len(kept)]
        handle = table.register(prompt.tokens, prompt.chain, POSITIONS)
        table.extend(handle, prompt.tokens, prompt.chain, POSITIONS)
        table.release(handle)

    fresh = [Prompt() for _ in range(N_RING)]

    def life() -> None:
        """Of a prompt that nobody knows, with its events, and what is said of it."""
        nonlocal turn
        turn += 1
        prompt = fresh[turn % N_RING]
        handle = table.register(prompt.tokens, prompt.chain, POSITIONS)
        table.take()
        table.stored(prompt.hashes, None, prompt.blocks)
        table.release(handle)
        table.removed(prompt.hashes)
        table.take()
        table.collect(float(turn))

    compare(
        f"1,240 tokens, {name}",
        {"register + release, all known": known, "with extend": extended, "unknown, from register to removed": life},
    )
    table.collect(turn + 10.0)
    table.collect(turn + 20.0)
    table.take()
    benchmark(known)


def test_events(
    case: tuple[str, BlockTable, list[Prompt]], compare: Callable[..., Any], benchmark: BenchmarkFixture
) -> None:
    """Copies of what is there, so that the table stays what it is; per block."""
    name, table, kept = case
    n_blocks, n_copies, turn = table.resident, table.duplicates, 0

    def stored_and_removed() -> None:
        nonlocal turn
        turn += 1
        prompt = kept[turn % len(kept)]
        table.stored(prompt.hashes, None, prompt.blocks)
        table.removed(prompt.hashes)

    compare(f"events, {name}", {"stored + removed": stored_and_removed}, unit="us per block", scale=1e6 / N_BLOCKS)
    benchmark(stored_and_removed)
    assert table.duplicates == n_copies + turn * N_BLOCKS
    assert table.resident == n_blocks


def test_whole(
    case: tuple[str, BlockTable, list[Prompt]], compare: Callable[..., Any], benchmark: BenchmarkFixture
) -> None:
    name, table, _ = case
    compare(f"all of it, {name}", {"snapshot": table.snapshot})
    benchmark(table.snapshot)


@pytest.mark.parametrize("n_blocks", [10_000, 100_000, 1_000_000])
def test_memory(n_blocks: int, note: Callable[..., None], is_full: bool, benchmark: BenchmarkFixture) -> None:
    """Bytes allocated per block that is resident, bound and announced, the empty table's apart."""
    n_blocks = n_blocks if is_full else n_blocks // 100
    empty_bytes = BlockTable(BLOCK_TOKENS).nbytes
    table, _ = filled(n_blocks)
    note(f"memory, {n_blocks:,} blocks", "table", "bytes per block", [(table.nbytes - empty_bytes) / len(table)])
    note(f"memory, {n_blocks:,} blocks", "table", "MiB", [table.nbytes / (1 << 20)])
    benchmark(lambda: table.nbytes)


def test_clear(note: Callable[..., None], is_full: bool, benchmark: BenchmarkFixture) -> None:
    """A reset is rare, but nothing else runs meanwhile."""
    n_blocks, seconds = 100_000 if is_full else 1_000, []
    for _ in range(3 if is_full else 1):
        table, _ = filled(n_blocks)
        began_s = time.process_time()
        table.clear()
        seconds.append(1e3 * (time.process_time() - began_s))
        assert table.snapshot() == (b"", b"")
    note(f"all of it, {n_blocks:,} blocks", "clear", "ms", seconds)
    benchmark(lambda: table.nbytes)
