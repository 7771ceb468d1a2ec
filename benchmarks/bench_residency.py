"""What does it cost to route by what a thousand engines say they hold, and to take in what they say?

Ten million chunks over 1,000 replicas, one for each block of 16 tokens, and a system prompt that all of them hold.
"""

from __future__ import annotations

import os
import random
import time
from array import array
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from xinf._fast.prefix import PrefixIndex
from xinf._fast.scan import Scan, scan
from xinf.core.records import RoutingPolicy
from xinf.router import LoadView, ResidencyUpdate, Router, RouterSettings

MODEL = "m"
SEED = 1
CHUNK_BYTES = 64
BLOCK_TOKENS = 16
N_FULL = 1000  # replicas
N_CHUNKS = 10_000_000
SYSTEM = "You are a helpful assistant. " * 71  # 2 KB
WORDS = [f"{n:x}" for n in random.Random(1).sample(range(10**6), 5000)]


def body_of(n_bytes: int, seed: int) -> bytes:
    text = " ".join(random.Random(seed).choices(WORDS, k=n_bytes // 5))[:n_bytes]
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return orjson.dumps({"model": MODEL, "messages": messages})


def told(body: Scan, part: float = 1.0) -> ResidencyUpdate:
    """A replica holds a beginning of a prompt, four bytes a token, one chunk a block."""
    chain, ends = body.chain_with_ends(SEED, 0, CHUNK_BYTES)
    hashes, n_blocks = array("Q", chain), 0
    added, tokens = array("Q"), array("I")
    for chunk, end in zip(hashes, array("I", ends), strict=True):
        if end // 4 // BLOCK_TOKENS > n_blocks:
            n_blocks = end // 4 // BLOCK_TOKENS
            added.append(chunk)
            tokens.append(end // 4)
    kept = int(len(added) * part)
    return ResidencyUpdate(added=added[:kept].tobytes(), tokens=tokens[:kept].tobytes())


@pytest.fixture(scope="module")
def router(is_full: bool) -> Router:
    """Every replica holds the system prompt, and a piece of a thousandth of all that is held."""
    made = Router(RouterSettings(exact_index_max_bytes=1 << 30), turn=0)
    n_replicas = N_FULL if is_full else 20
    n_each = (N_CHUNKS if is_full else 20_000) // n_replicas
    system = told(scan(body_of(0, 0)))
    for number in range(n_replicas):
        name = f"r{number}"
        made.set_replica(name, model=MODEL, policy=RoutingPolicy.AUTO, block_tokens=BLOCK_TOKENS, is_ready=True)
        made.on_load(name, LoadView(running=number % 7, kv_blocks_total=20_000))
        made.on_residency(name, ResidencyUpdate(cleared=True, state="exact"))
        made.on_residency(name, system)
        tokens = array("I", range(1, n_each + 1)).tobytes()
        made.on_residency(name, ResidencyUpdate(added=os.urandom(8 * n_each), tokens=tokens))
    return made


@pytest.mark.parametrize("n_bytes", [2_000, 16_000, 128_000])
def test_decide(
    router: Router, n_bytes: int, compare: Callable[..., Any], is_full: bool, benchmark: BenchmarkFixture
) -> None:
    """New prompts (nobody holds more than the system prompt), and ones that a few replicas hold parts of.

    128 KB are 32,000 tokens. A decision is scan, chain, match, cost of each replica, reservation, and its release.
    """
    n_bodies = 64 if is_full else 2
    fresh = [body_of(n_bytes, 1 + n) for n in range(n_bodies)]
    held = [body_of(n_bytes, 10_001 + n) for n in range(n_bodies)]
    replicas = [view.replica_id for view in router.snapshot().replicas]
    for number, body in enumerate(held):
        for k, part in enumerate((1.0, 0.7, 0.2)):
            router.on_residency(replicas[(3 * number + k) % len(replicas)], told(scan(body), part))
    turn = 0

    def decide(bodies: list[bytes]) -> None:
        nonlocal turn
        turn += 1
        choice = router.choose(MODEL, scan(bodies[turn % n_bodies]), seed=SEED)
        assert choice is not None
        router.finished(choice, prompt_tokens=0, cached_tokens=0, completion_tokens=0, is_ok=False)

    def hash_only(bodies: list[bytes]) -> None:
        nonlocal turn
        turn += 1
        scan(bodies[turn % n_bodies]).chain(SEED, 0, CHUNK_BYTES)

    compare(
        f"decide, {n_bytes // 1000} KB, {len(replicas)} replicas",
        {
            "scan and chain alone": lambda: hash_only(fresh),
            "new prompts": lambda: decide(fresh),
            "prompts that are held": lambda: decide(held),
        },
    )
    benchmark(decide, held)


def test_look_up(compare: Callable[..., Any], is_full: bool, benchmark: BenchmarkFixture) -> None:
    """The match alone, chunk by chunk from the end and by halves, of 2,000 chunks among many."""
    index, n_each = PrefixIndex(1 << 30), 1000 if is_full else 100
    kept = []
    for number in range((N_CHUNKS if is_full else 10_000) // n_each):
        chain = os.urandom(8 * n_each)
        index.insert(number % N_FULL, chain)
        if number % 50 == 0:
            kept.append(chain)
    n, lengths, turn = 2000, array("I", bytes(4 * N_FULL)), 0
    ends = array("I", range(CHUNK_BYTES, CHUNK_BYTES * (n + 1), CHUNK_BYTES))
    fresh = [os.urandom(8 * n) for _ in kept]
    half = [chain + other[: 8 * (n - n_each)] for chain, other in zip(kept, fresh, strict=True)]

    def of(chains: list[bytes], is_far: bool) -> None:
        nonlocal turn
        turn += 1
        chain = chains[turn % len(chains)]
        if is_far:
            index.match_far(chain, ends, 3 * 64, lengths)
        else:
            index.match(chain, lengths)

    compare(
        f"2,000 chunks among {len(index):,}",
        {
            "all, not held": lambda: of(fresh, False),
            "halves, not held": lambda: of(fresh, True),
            "all, half of it held": lambda: of(half, False),
            "halves, half of it held": lambda: of(half, True),
        },
    )
    benchmark(of, half, True)


def test_take_in(note: Callable[..., None], is_full: bool, benchmark: BenchmarkFixture) -> None:
    """A snapshot and what changes, and the memory for each chunk that is held."""
    n_chunks, n_replicas = (1_000_000, 64) if is_full else (1000, 4)
    index = PrefixIndex(1 << 30)
    empty_bytes, rates, removals = index.nbytes, [], []
    pieces = [(number % n_replicas, os.urandom(8 * 1000)) for number in range(max(1, n_chunks // 1000))]
    tokens = array("I", range(1000)).tobytes()
    for _ in range(5 if is_full else 1):
        started = time.process_time()
        for replica, chunks in pieces:
            index.insert(replica, chunks, tokens)
        rates.append((time.process_time() - started) / (1000 * len(pieces)) * 1e9)
        per_chunk = (index.nbytes - empty_bytes) / len(index)
        started = time.process_time()
        for replica, chunks in pieces:
            index.remove(replica, chunks)
        removals.append((time.process_time() - started) / (1000 * len(pieces)) * 1e9)
    note("take in", "add", "ns per chunk", rates)
    note("take in", "remove", "ns per chunk", removals)
    note("memory", "held by one replica", "bytes per chunk", [per_chunk])
    benchmark(index.insert, 0, pieces[0][1], tokens)
