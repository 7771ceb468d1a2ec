"""End to end: the real gateway in front of real shims with the simulated engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway.gateway_stack import GatewayStack
from xinf.bench import (
    ClosedLoop,
    Document,
    Endpoint,
    Load,
    OpenLoop,
    Settings,
    Summary,
    Target,
    WorkloadKind,
    WorkloadSettings,
    find_model,
    run_bench,
)
from xinf.bench.record import Failure
from xinf.core.errors import InvalidRequest, UnknownModel

STEP_S = 0.005


@pytest.fixture(scope="module")
def stack() -> Iterator[GatewayStack]:
    with GatewayStack() as made:
        made.deploy("bench", replicas=2, step_ms=STEP_S * 1e3, kv_blocks=100_000)
        yield made


def measure(stack: GatewayStack, load: Load, endpoint: Endpoint = Endpoint.CHAT, **wishes: Any) -> Document:
    given = {
        "workload": WorkloadSettings(input_tokens=200, output_tokens=10),
        "n_requests": 60,
        "duration_s": None,
        "model": "bench",
        "timeout_s": 30.0,
    }
    settings = Settings(url=stack.url, endpoint=endpoint, loads=(load,), **(given | wishes))
    return run_bench(settings, Target.parse(stack.url), lambda _progress: None)


def summary_of(stack: GatewayStack, load: Load, endpoint: Endpoint = Endpoint.CHAT, **wishes: Any) -> Summary:
    return measure(stack, load, endpoint, **wishes).results[0].summary


def test_stream_is_measured_as_the_engine_times_it(stack: GatewayStack) -> None:
    found = summary_of(stack, ClosedLoop(4))
    assert (found.n_good, found.errors) == (60, ())
    assert (found.output_tokens, found.output_tokens_from) == (600, "usage")
    assert found.input_tokens is not None
    assert 200 * 60 <= found.input_tokens <= 230 * 60  # the chat template adds some
    assert found.itl is not None
    assert found.itl.n == 9 * 60  # every event of the ten came apart from the others, or in one packet: a gap of 0
    assert found.tpot is not None
    assert found.ttft is not None
    assert found.e2e is not None
    # By the engine's clock: nine steps after the first token. One answer may be quicker, where the engine catches up on
    # steps that were late for those before it, or its first token was held up on the way and its last was not.
    assert found.e2e.mean >= 9 * STEP_S
    assert found.tpot.mean >= STEP_S / 2
    assert found.ttft.percentiles["p50"] < found.e2e.percentiles["p50"]


def test_open_loop_holds_its_rate(stack: GatewayStack) -> None:
    found = summary_of(stack, OpenLoop(rate=100.0, burstiness=None))
    assert found.n_good == 60
    assert found.window_s >= 59 / 100
    assert found.generator.lateness is not None


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_every_endpoint_is_answered(stack: GatewayStack, endpoint: Endpoint, is_stream: bool) -> None:
    found = summary_of(stack, ClosedLoop(4), endpoint, n_requests=8, is_stream=is_stream)
    assert (found.n_good, found.errors) == (8, ())
    assert (found.ttft is not None) == (is_stream and endpoint is not Endpoint.EMBEDDINGS)


def test_random_prompts_find_no_cache_and_conversations_do(stack: GatewayStack) -> None:
    assert summary_of(stack, ClosedLoop(4), seed=11).cache_hit_share == pytest.approx(0.0, abs=0.02)
    workload = WorkloadSettings(kind=WorkloadKind.CONVERSATION, n_turns=4, input_tokens=200, output_tokens=10)
    found = summary_of(stack, ClosedLoop(2), workload=workload, seed=12).cache_hit_share
    assert found is not None
    # Of turns of 1, 2, 3 and 4 parts the parts before the last are known: 6 of 10, less the ends of blocks.
    assert found > 0.5


def test_wrong_model_names_the_right_one(stack: GatewayStack) -> None:
    with pytest.raises(UnknownModel) as caught:
        measure(stack, ClosedLoop(1), model="nope")
    assert "its models are bench" in str(caught.value.remedy)
    assert find_model(Target.parse(stack.url)) == "bench"


def test_several_models_ask_for_a_choice(stack: GatewayStack) -> None:
    stack.deploy("other", replicas=0)
    with pytest.raises(InvalidRequest, match=r"several models: bench, other|several models: other, bench"):
        find_model(Target.parse(stack.url))


def test_engine_that_dies_is_errors_not_silence() -> None:
    with GatewayStack() as stack:
        stack.deploy("mortal", replicas=1, step_ms=1.0, die_after_tokens=100)
        found = summary_of(stack, ClosedLoop(4), model="mortal", n_warmup=0, n_requests=20, timeout_s=1.0)
    assert found.n_sent == 20
    assert found.n_good + found.n_failed == 20
    assert found.n_failed > 0
    assert {error.failure for error in found.errors} <= {Failure.ERROR_EVENT, Failure.STATUS, Failure.TIMEOUT}
