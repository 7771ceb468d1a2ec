"""Engines that die, clients that vanish or dawdle: what everybody else sees."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest

from tests.gateway.gateway_stack import DEADLINE_S, Engine, GatewayStack, wait_for
from tests.gateway.raw_http import chat, post, read_all, read_until
from xinf._pb import engine_service_pb2 as pb
from xinf._pb import engine_service_pb2_grpc as pb_grpc
from xinf.core.records import Phase

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def stack() -> Iterator[GatewayStack]:
    with GatewayStack(overrides={"gateway.stream_buffer_bytes": 65536, "gateway.request_read_timeout": 0.5}) as made:
        yield made


def busy(stack: GatewayStack, engines: list[Engine]) -> Engine:
    """Wait until exactly one request is on one of these and say on which."""

    def found() -> Engine | None:
        loaded = [engine for engine in engines if stack.engine_load(engine)]
        return loaded[0] if len(loaded) == 1 else None

    engine: Engine = wait_for(found, what="a request on an engine")
    return engine


def inflight(engine: Engine) -> int:
    """What the engine itself says it works on."""
    with grpc.insecure_channel(engine.record.address or "") as channel:
        answer = pb_grpc.EngineServiceStub(channel).Health(pb.HealthRequest(), timeout=DEADLINE_S)
    return int(answer.inflight)


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


@pytest.mark.parametrize("is_stream", [False, True])
def test_client_that_vanishes_is_cancelled_at_the_engine(stack: GatewayStack, is_stream: bool) -> None:
    name = f"gone-{is_stream}".lower()
    engine = stack.deploy(name, step_ms=50)[0]
    raw = stack.connect()
    raw.sendall(post("/v1/chat/completions", chat(name, max_tokens=20000, stream=is_stream)))
    wait_for(lambda: inflight(engine) == 1, what="the request at the engine")
    raw.close()
    wait_for(lambda: inflight(engine) == 0, what="the cancel at the engine")
    assert stack.metric("xinf_requests_total", model=name, code="499") == 1
    assert stack.metric("xinf_requests_in_flight", model=name) == 0


def test_client_that_vanishes_while_it_waits_leaves_the_room(stack: GatewayStack) -> None:
    stack.deploy("nobody", replicas=0)
    raw = stack.connect()
    raw.sendall(post("/v1/chat/completions", chat("nobody")))
    wait_for(lambda: stack.metric("xinf_requests_waiting", model="nobody") == 1, what="a waiting request")
    raw.close()
    wait_for(lambda: stack.metric("xinf_requests_waiting", model="nobody") == 0, what="an empty room")


def test_client_that_does_not_read_is_cancelled(stack: GatewayStack) -> None:
    engine = stack.deploy("flood", kv_blocks=65536)[0]
    raw = stack.connect(receive_buffer_bytes=4096)
    raw.sendall(post("/v1/chat/completions", chat("flood", max_tokens=32000, n=4, stream=True), "connection: close"))
    wait_for(lambda: inflight(engine) == 1, what="the request at the engine")
    wait_for(lambda: inflight(engine) == 0, what="the end at the engine")
    data = read_all(raw)
    raw.close()
    wait_for(lambda: stack.metric("xinf_slow_readers_total", model="flood") == 1, what="the slow reader counted")
    assert b"request_timeout" in data
    # Of 25 MB that were asked for: what kernel, server and relay hold, and the frame that broke the bound.
    assert len(data) < 12 << 20
    assert data.rstrip().endswith(b"data: [DONE]\n\n\r\n0")


def test_slow_sender_is_told_so(stack: GatewayStack) -> None:
    raw = stack.connect()
    raw.sendall(post("/v1/chat/completions", b'{"model":', length=1000))
    answer = read_until(raw, b"}}")
    raw.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer


def test_truncated_body_ends_nothing_but_itself(stack: GatewayStack) -> None:
    for cut in (b"", b'{"model"'):
        raw = stack.connect()
        raw.sendall(post("/v1/chat/completions", cut, length=1000))
        raw.shutdown(socket.SHUT_WR)
        raw.close()
    assert stack.client.get("/healthz").status_code == 200


def test_restarted_engine_is_used_again(stack: GatewayStack) -> None:
    engine = stack.deploy("again")[0]
    body = {"model": "again", "messages": MESSAGES, "max_tokens": 1}
    engine.kill()
    stack.set_phase(engine, phase=Phase.FAILED)
    restarted = stack.restart_engine(engine)
    answer = stack.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert restarted.id == engine.id
