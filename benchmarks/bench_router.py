"""What does routing a request cost with ever more replicas?

`choose` and `finished` on one router: chain, match, cost of each candidate, reservation, insert, release, learning.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.bench_scan import body_of
from xinf._fast.scan import scan
from xinf.core.records import RoutingPolicy
from xinf.router import LoadView, Router, RouterSettings

MODEL = "m"


def router_of(n_replicas: int, policy: RoutingPolicy) -> Router:
    router = Router(RouterSettings(index_max_bytes=256 << 20), turn=0)
    for number in range(n_replicas):
        router.set_replica(f"r{number}", model=MODEL, policy=policy, block_tokens=16, is_ready=True, max_running=64)
        router.on_load(f"r{number}", LoadView(running=number % 7, kv_blocks_total=9000))
    return router


@pytest.mark.parametrize("n_replicas", [1, 8, 64, 256, 1000])
def test_choose_and_finish(n_replicas: int, compare: Callable[..., Any], benchmark: BenchmarkFixture) -> None:
    scans = [scan(body_of("chat", 8192)), scan(body_of("escaped", 8192)), scan(body_of("tools", 8192))]
    scans.append(scan(body_of("non-ASCII", 8192)))
    subjects: dict[str, Callable[[], None]] = {}
    for policy in (RoutingPolicy.AUTO, RoutingPolicy.PREFIX, RoutingPolicy.SESSION, RoutingPolicy.ROUND_ROBIN):
        router = router_of(n_replicas, policy)

        def route(router: Router = router, turn: list[int] = [0]) -> None:  # noqa: B006
            turn[0] += 1
            choice = router.choose(MODEL, scans[turn[0] % len(scans)], seed=1, session=b"%d" % (turn[0] % 97))
            assert choice is not None
            router.submitted(choice, turn[0])
            router.finished(choice, prompt_tokens=2000, cached_tokens=1000, completion_tokens=1, is_ok=True)

        subjects[policy.value] = route
    compare(f"8 KB, {n_replicas} replicas", subjects)
    benchmark(subjects[RoutingPolicy.AUTO.value])


@pytest.mark.parametrize("n_bytes", [512, 8192, 65536])
def test_distinct_prompts(
    n_bytes: int, compare: Callable[..., Any], is_full: bool, benchmark: BenchmarkFixture
) -> None:
    """Prompts that nobody had before, in an index with room and in one that evicts."""
    text, n = "the quick brown fox jumps over the lazy dog " * (n_bytes // 44), 0
    subjects: dict[str, Callable[[], None]] = {}
    for name, index_max_bytes in {"with room": 1 << 30, "full": 64 << 20 if is_full else 1 << 17}.items():
        router = Router(RouterSettings(index_max_bytes=index_max_bytes), turn=0)
        for replica in ("r1", "r2"):
            router.set_replica(replica, model=MODEL, policy=RoutingPolicy.AUTO, block_tokens=16, is_ready=True)
        assert router.index is not None
        while name == "full" and router.index.evictions < router.index.n_chunks:
            router.index.insert(0, os.urandom(8000))

        def route(router: Router = router) -> None:
            nonlocal n
            n += 1
            body = orjson.dumps({"model": MODEL, "messages": [{"role": "user", "content": f"{n:016x} {text}"}]})
            choice = router.choose(MODEL, scan(body), seed=1)
            assert choice is not None
            router.finished(choice, prompt_tokens=n_bytes // 4, cached_tokens=0, completion_tokens=1, is_ok=True)

        subjects[name] = route
    compare(f"distinct prompts, {n_bytes} bytes, scanned", subjects)
    benchmark(subjects["full"])
