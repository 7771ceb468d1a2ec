"""Engines that die: what clients see."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.gateway.gateway_stack import Engine, GatewayStack, wait_for
from xinf.core.records import Phase

MESSAGES = [{"role": "user", "content": "hi"}]


pytestmark = pytest.mark.usefixtures("unharmed")


def busy(stack: GatewayStack, engines: list[Engine]) -> Engine:
    """Wait until exactly one request is on one of these and say on which."""

    def found() -> Engine | None:
        loaded = [engine for engine in engines if stack.engine_load(engine)]
        return loaded[0] if len(loaded) == 1 else None

    engine: Engine = wait_for(found, what="a request on an engine")
    return engine


@pytest.mark.parametrize("is_stream", [False, True])
def test_engine_killed_before_the_first_byte_moves_the_request(stack: GatewayStack, is_stream: bool) -> None:
    name = f"move-{is_stream}".lower()
    engines = stack.deploy(name, replicas=2, prefill_tokens_per_s=10)
    body = {"model": name, "messages": MESSAGES, "max_tokens": 3, "stream": is_stream}
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(
            httpx.post, f"{stack.url}/v1/chat/completions", json=body, headers={"x-xinf-decision": "1"}, timeout=30
        )
        victim = busy(stack, engines)
        victim.kill()
        answer = pending.result(30)
    other = next(engine for engine in engines if engine is not victim)
    assert answer.status_code == 200
    assert "error" not in answer.text
    assert f"replica={other.id};" in answer.headers["x-xinf-decision"]
    assert answer.headers["x-xinf-decision"].endswith("retries=1")
    assert stack.metric("xinf_retries_total", model=name) == 1


def test_engine_killed_mid_stream_ends_it_with_one_error_and_done(stack: GatewayStack) -> None:
    engines = stack.deploy("cut", replicas=2, step_ms=20)
    body = {"model": "cut", "messages": MESSAGES, "max_tokens": 1000, "stream": True}
    with httpx.stream("POST", f"{stack.url}/v1/chat/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        busy(stack, engines).kill()
        events = [line for line in [first, *lines] if line]
    assert answer.status_code == 200
    assert events[-1] == "data: [DONE]"
    errors = [event for event in events if '"error"' in event]
    assert errors == [events[-2]]
    assert json.loads(errors[0].removeprefix("data: "))["error"]["code"] == "engine_died"
    assert stack.metric("xinf_stream_errors_total", model="cut") == 1


def test_engine_killed_without_another_is_502(stack: GatewayStack) -> None:
    engines = stack.deploy("alone", step_ms=20)
    body = {"model": "alone", "messages": MESSAGES, "max_tokens": 1000}
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(httpx.post, f"{stack.url}/v1/chat/completions", json=body, timeout=30)
        busy(stack, engines).kill()
        answer = pending.result(30)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "engine_died"
    stack.set_phase(engines[0], phase=Phase.FAILED)
    answer = stack.client.post("/v1/chat/completions", json=body, headers={"x-request-timeout": "0.1"})
    assert answer.status_code == 503
    assert "alone-0 is failed" in answer.json()["error"]["message"]


def test_restarted_engine_is_used_again(stack: GatewayStack) -> None:
    engine = stack.deploy("again")[0]
    body = {"model": "again", "messages": MESSAGES, "max_tokens": 1}
    engine.kill()
    stack.set_phase(engine, phase=Phase.FAILED)
    restarted = stack.restart_engine(engine)
    answer = stack.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert restarted.id == engine.id
