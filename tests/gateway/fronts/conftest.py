"""One gateway per front for the whole suite; after every test it must be unharmed."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.gateway.fronts.scripted_replica import ScriptedReplica
from tests.gateway.gateway_stack import FRONTS, GatewayStack, wait_for
from tests.gateway.raw_http import chat

LIMITS: dict[str, object] = {
    "gateway.max_body_bytes": 1 << 20,
    "gateway.max_json_depth": 64,
    "gateway.stream_buffer_bytes": 65536,
    "gateway.request_read_timeout": 1.0,
    "gateway.cors_origins": "https://app.example",
}
# What an exception looks like that reached an event loop, a server or a background task.
HARM = re.compile(r"Traceback|never retrieved|was destroyed but it is pending|\bERROR\b|panicked")


@pytest.fixture(scope="session", params=FRONTS)
def front(request: pytest.FixtureRequest) -> str:
    """Each front in turn; tests are grouped by it."""
    return str(request.param)


@pytest.fixture(scope="session")
def stack(front: str) -> Iterator[GatewayStack]:
    """A gateway with one worker, tight limits, and a sim deployment "m"."""
    with GatewayStack(front=front, overrides=LIMITS) as made:
        made.deploy("m", step_ms=5)
        yield made


@pytest.fixture(scope="session")
def scripted(stack: GatewayStack) -> Iterator[ScriptedReplica]:
    """A deployment "scripted" of the same gateway: see scripted_replica.py."""
    replica = ScriptedReplica(stack.dir / "scripted.sock")
    stack.store.call(replica.start())
    stack.publish("scripted", replica.address)
    yield replica
    stack.store.call(replica.stop())


@pytest.fixture
def unharmed(stack: GatewayStack, scripted: ScriptedReplica) -> Iterator[None]:
    """Afterwards: the same workers, serving, nothing left open, and no exception in the log."""
    before = {process.pid for process in stack.workers()}
    begin = len(stack.log())
    yield
    wait_for(lambda: scripted.n_open == 0, what="every request ended or cancelled at the scripted engine")
    answer = stack.client.post("/v1/chat/completions", content=chat("m", max_tokens=1))
    assert answer.status_code == 200
    assert {process.pid for process in stack.workers()} == before
    wait_for(
        lambda: stack.metric("xinf_requests_in_flight") == stack.metric("xinf_requests_waiting") == 0,
        what="nothing in flight",
    )
    wait_for(lambda: stack.metric("xinf_replica_in_flight") == 0, what="nothing at the engines")
    assert HARM.search(stack.log()[begin:]) is None, stack.log()[begin:]
