"""Affinity against load, on simulated engines in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest

from tests.router.fleet import Fleet, Outcome
from xinf.core.records import RoutingPolicy
from xinf.sim.settings import SimSettings

ENGINES = SimSettings(prefill_tokens_per_s=20_000.0, step_ms=10.0, kv_blocks=1536, block_tokens=64, max_running=16)
HOT = "the one system prompt that nearly everybody sends. " * 120  # about 1,500 tokens


def one_hot_prefix(rng: random.Random) -> str:
    return (HOT if rng.random() < 0.8 else "") + "".join(chr(rng.randrange(97, 123)) for _ in range(400))


def many_documents() -> Callable[[random.Random], str]:
    documents = [f"document {i} " + "".join(random.Random(i).choices("abcdefgh ", k=8000)) for i in range(60)]
    return lambda rng: rng.choice(documents) + "".join(chr(rng.randrange(97, 123)) for _ in range(200))


def run(policy: RoutingPolicy, make_prompt: Callable[[random.Random], str], *, per_s: float) -> Outcome:
    return Fleet(policy, ENGINES, 8).run(n_requests=1200, per_s=per_s, make_prompt=make_prompt, n_answer=40, seed=11)


@pytest.fixture(scope="module")
def hot() -> dict[RoutingPolicy, Outcome]:
    policies = (RoutingPolicy.AUTO, RoutingPolicy.LEAST_LOAD, RoutingPolicy.ROUND_ROBIN, RoutingPolicy.PREFIX)
    return {policy: run(policy, one_hot_prefix, per_s=150.0) for policy in policies}


def test_a_hot_prefix_does_not_overload_anybody(hot: dict[RoutingPolicy, Outcome]) -> None:
    auto, least = hot[RoutingPolicy.AUTO], hot[RoutingPolicy.LEAST_LOAD]
    print({policy: (o.ttft_mean_s, o.ttft_pct(99), o.imbalance, o.hit_rate) for policy, o in hot.items()})
    assert auto.imbalance < 1.6
    assert auto.ttft_mean_s < 1.1 * least.ttft_mean_s
    assert auto.ttft_pct(99) < 1.25 * least.ttft_pct(99)


def test_affinity_alone_does_overload_somebody(hot: dict[RoutingPolicy, Outcome]) -> None:
    """The danger is real, or the test above shows nothing."""
    assert hot[RoutingPolicy.PREFIX].imbalance > 2
    assert hot[RoutingPolicy.PREFIX].ttft_mean_s > 3 * hot[RoutingPolicy.AUTO].ttft_mean_s


def test_round_robin_is_even(hot: dict[RoutingPolicy, Outcome]) -> None:
    assert set(hot[RoutingPolicy.ROUND_ROBIN].by_replica.values()) == {150}


def test_affinity_wins_where_prefixes_are_many_and_caches_small() -> None:
    make_prompt = many_documents()
    auto = run(RoutingPolicy.AUTO, make_prompt, per_s=60.0)
    least = run(RoutingPolicy.LEAST_LOAD, make_prompt, per_s=60.0)
    print([(o.ttft_mean_s, o.ttft_pct(99), o.imbalance, o.hit_rate) for o in (auto, least)])
    assert auto.hit_rate > least.hit_rate + 0.1
    assert auto.ttft_mean_s < 0.7 * least.ttft_mean_s


@pytest.mark.parametrize("slower", [1.0, 0.25])
@pytest.mark.parametrize("prefill_tokens_per_s", [500.0, 2000.0, 20_000.0])
def test_a_cold_replica_does_not_get_every_miss(prefill_tokens_per_s: float, slower: float) -> None:
    """Its queue is empty and nobody knows yet how fast it is: some, not all, and it is tried."""
    settings = msgspec.structs.replace(ENGINES, prefill_tokens_per_s=prefill_tokens_per_s, kv_blocks=4096)
    per_s = prefill_tokens_per_s / 140  # nine tenths of what eight can do with 1,000 tokens each
    fleet = Fleet(RoutingPolicy.AUTO, settings, 8)

    def unlike_any(rng: random.Random) -> str:
        return "".join(rng.choices("abcdefgh ", k=4000))

    def run_for(seconds: float) -> None:
        until_s = fleet.clock.now_s() + seconds
        fleet.run(n_requests=10_000, per_s=per_s, make_prompt=unlike_any, n_answer=4, seed=5, until_s=until_s)

    run_for(80 / per_s)
    cold = msgspec.structs.replace(settings, prefill_tokens_per_s=prefill_tokens_per_s * slower)
    fleet.add("cold", cold)
    fleet.outcome.by_replica.clear()
    run_for(24 / per_s)
    shares = fleet.outcome.by_replica
    print(shares)
    assert shares["cold"] <= shares.total() / 4  # without a bound: two thirds
    run_for(100 / per_s)
    assert 1 <= shares["cold"] <= shares.total() / 5
