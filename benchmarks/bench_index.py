"""What does the prefix index cost: to ask, to fill, in memory, when full, and with ten million chunks in it?

The data is residency.py's; bench_dynamo.py runs the same beside Dynamo's RadixTree.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.measure import ROOT
from benchmarks.residency import N_WORKERS, Residency, residency
from xinf._fast.prefix import PrefixIndex

BOUND = 1 << 30  # no eviction, unless that is the question
# In a process of its own, so that no memory of before is used again.
FILL = """
import os, sys
from benchmarks.measure import rss_bytes
from xinf._fast.prefix import PrefixIndex
before = rss_bytes()
index = PrefixIndex(1 << 30)
for number in range(max(1, int(sys.argv[1]) // 1000)):
    index.insert(number % 64, os.urandom(8000))
print(rss_bytes() - before)
"""


@pytest.fixture(scope="module")
def data(is_full: bool) -> Residency:
    return residency(1 if is_full else 50)


def filled(data: Residency) -> PrefixIndex:
    index = PrefixIndex(BOUND)
    for event in data.events:
        index.insert(event.worker, event.chain(), event.positions())
    assert len(index) == data.n_entries
    return index


def test_find(data: Residency, compare: Callable[..., Any], benchmark: BenchmarkFixture) -> None:
    index, lengths = filled(data), array("I", bytes(4 * N_WORKERS))
    for case, blocks in data.queries.items():
        chain = array("Q", blocks).tobytes()
        index.match(chain, lengths)
        assert {worker: n for worker, n in enumerate(lengths) if n} == data.expected[case]
        compare(f"find, {case}", {"match": lambda chain=chain: index.match(chain, lengths)})
    benchmark(index.match, array("Q", data.queries["1000 blocks, 64 match"]).tobytes(), lengths)


def test_apply(data: Residency, note: Callable[..., None], is_full: bool, benchmark: BenchmarkFixture) -> None:
    """From empty to full by events of 16 blocks each; then the same events taken back."""
    events = [(event.worker, event.chain(), event.positions()) for event in data.events]
    rates: dict[str, list[float]] = {"insert": [], "insert again": [], "remove": []}

    def rate_of(name: str, work: Callable[[], None]) -> None:
        started = time.process_time()
        work()
        rates[name].append(data.n_entries / (time.process_time() - started) / 1e6)

    for _ in range(5 if is_full else 1):
        index = PrefixIndex(BOUND)

        def insert(index: PrefixIndex = index) -> None:
            for worker, chain, positions in events:
                index.insert(worker, chain, positions)

        def remove(index: PrefixIndex = index) -> None:
            for worker, chain, _ in events:
                index.remove(worker, chain)

        rate_of("insert", insert)
        rate_of("insert again", insert)
        rate_of("remove", remove)
        assert len(index) == 0
    for name, values in rates.items():
        note("apply, events of 16 blocks", name, "M blocks/s", values)
    index = filled(data)
    worker, chain, positions = events[0]
    benchmark(index.insert, worker, chain, positions)


@pytest.mark.parametrize("n_chunks", [10_000, 100_000, 1_000_000])
def test_bytes_per_entry(n_chunks: int, note: Callable[..., None], is_full: bool, benchmark: BenchmarkFixture) -> None:
    """Every chunk held by all of 64 replicas, by 8, by 1: bytes allocated per (replica, chunk)."""
    n_chunks = n_chunks if is_full else n_chunks // 100
    for n_holders in (64, 8, 1):
        if n_chunks * n_holders > 10_000_000:
            continue
        index = PrefixIndex(BOUND)
        empty_bytes = index.nbytes
        for at in range(0, n_chunks, 1000):
            chain = os.urandom(8 * min(1000, n_chunks - at))
            for replica in range(n_holders):
                index.insert(replica, chain)
        assert len(index) == n_chunks * n_holders
        per_entry = (index.nbytes - empty_bytes) / len(index)
        note(f"memory, {n_chunks:,} chunks", f"held by {n_holders}", "bytes per held chunk", [per_entry])
    benchmark(lambda: index.nbytes)


def test_eviction(compare: Callable[..., Any], is_full: bool, benchmark: BenchmarkFixture) -> None:
    """Insert into a full index: each chunk costs another one its place."""
    n_chunks = 250
    for max_bytes in (8 << 20, 64 << 20) if is_full else (1 << 17,):
        index = PrefixIndex(max_bytes)
        while index.evictions < index.n_chunks:
            index.insert(0, os.urandom(8000))

        def insert_fresh(index: PrefixIndex = index) -> None:
            index.insert(1, os.urandom(8 * n_chunks))

        compare(
            f"eviction, full at {max_bytes / (1 << 20):g} MiB",
            {"insert of new chunks": insert_fresh, "random bytes alone": lambda: os.urandom(8 * n_chunks)},
            unit=f"us per {n_chunks} chunks",
        )
        assert index.nbytes <= max_bytes
    benchmark(insert_fresh)


@pytest.mark.parametrize("n_resident", [10_000, 100_000, 1_000_000, 10_000_000])
def test_flatness(
    n_resident: int, compare: Callable[..., Any], note: Callable[..., None], is_full: bool, benchmark: BenchmarkFixture
) -> None:
    """A prompt of 8 KB (128 chunks) among ever more chunks, over 64 replicas."""
    n_resident = n_resident if is_full else n_resident // 1000
    index, lengths = PrefixIndex(BOUND), array("I", bytes(4 * N_WORKERS))
    kept = []
    for number in range(max(1, n_resident // 1000)):
        chain = os.urandom(8000)
        index.insert(number % N_WORKERS, chain)
        if number % max(1, n_resident // 64_000) == 0:
            kept.append(chain[: 8 * 128])
    note(f"resident, {n_resident:,} chunks", "index", "MiB", [index.nbytes / (1 << 20)])
    grown = subprocess.run(
        [sys.executable, "-c", FILL, str(n_resident)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    note(f"resident, {n_resident:,} chunks", "process grew by", "MiB", [int(grown.stdout) / (1 << 20)])
    turn = 0

    def match_other() -> int:  # another one each time: nothing of it is in the caches
        nonlocal turn
        turn += 1
        return index.match(kept[turn % len(kept)], lengths)

    misses = [os.urandom(8 * 128) for _ in range(64)]

    def match_none() -> int:
        nonlocal turn
        turn += 1
        return index.match(misses[turn % 64], lengths)

    assert match_other() == 128
    assert match_none() == 0
    compare(
        f"flatness, {n_resident:,} chunks",
        {
            "match, held": match_other,
            "match, not held": match_none,
            "insert, held": lambda: index.insert(1, kept[turn % len(kept)]),
        },
    )
    benchmark(match_other)
