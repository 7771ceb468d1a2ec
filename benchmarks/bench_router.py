"""What does routing a request cost with ever more replicas?

`choose` and `finished` on one router: chain, match, cost of each candidate, reservation, insert, release, learning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
