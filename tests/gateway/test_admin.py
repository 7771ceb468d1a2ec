"""Admin routes of a gateway of several processes: any of them answers for all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgspec
import pytest

from tests.gateway.gateway_stack import GatewayStack, wait_for
from xinf.core.decision import Decision, Found
from xinf.core.ids import KeyId
from xinf.core.paths import Paths
from xinf.core.records import KeyRecord
from xinf.gateway.admin import open_admin_key

N_WORKERS = 3
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


@pytest.fixture(scope="module")
def stack() -> Iterator[GatewayStack]:
    overrides: dict[str, object] = {"gateway.recent_decisions": 50, "gateway.candidates_every": 0}
    with GatewayStack(workers=N_WORKERS, overrides=overrides) as made:
        made.deploy("m", replicas=2)
        yield made


def ask(stack: GatewayStack, **headers: str) -> httpx.Response:
    """One request on a connection of its own, so that any worker may get it."""
    answer = httpx.post(f"{stack.url}/v1/chat/completions", json=BODY, headers=headers, timeout=30, verify=False)
    assert answer.status_code == 200
    return answer


def find(stack: GatewayStack, request_id: str) -> Decision:
    """Ask on a connection of its own, too."""
    answer = httpx.get(
        f"{stack.url}/admin/decisions/{request_id}", headers=stack.admin_headers, timeout=30, verify=False
    )
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=Found).decisions[0]


def ask_until_all_workers_served(stack: GatewayStack) -> dict[int, str]:
    """Ask until every worker made an id; one of each."""
    made: dict[int, str] = {}

    def all_served() -> bool:
        for _ in range(5):
            request_id = ask(stack).headers["x-request-id"]
            made[int(request_id.split("-")[1])] = request_id
        return len(made) == N_WORKERS

    wait_for(all_served, what="an answer of each worker")
    return made


def test_any_process_answers_for_all(stack: GatewayStack) -> None:
    made = ask_until_all_workers_served(stack)
    for worker, request_id in made.items():
        for _ in range(10):
            decision = find(stack, request_id)
            assert (decision.worker, decision.request_id) == (worker, request_id)


def test_ids_of_clients_are_found_wherever_they_went(stack: GatewayStack) -> None:
    # One looks like an id of a worker that is not there, one like that of another worker than the one that served it.
    for request_id in ("mine-1", "req-77-abcdef-1", "req-0-abcdef-1", "req-1-abcdef-1", "req-2-abcdef-1"):
        ask(stack, **{"x-request-id": request_id})
        assert find(stack, request_id).request_id == request_id


def test_last_decisions_are_those_of_all_processes_in_order(stack: GatewayStack) -> None:
    ids = [ask(stack).headers["x-request-id"] for _ in range(30)]
    answer = stack.admin("decisions?last=30")
    found = msgspec.json.decode(answer.content, type=Found)
    assert [decision.request_id for decision in found.decisions] == ids[::-1]
    assert len(found.reach) == N_WORKERS
    assert all(one.size == 50 for one in found.reach)


def test_too_old_a_request_is_told_how_far_back_is_known(stack: GatewayStack) -> None:
    first = ask(stack).headers["x-request-id"]

    def is_gone() -> bool:
        for _ in range(50):
            ask(stack)
        return stack.admin(f"decisions/{first}").status_code == 404

    wait_for(is_gone, what="the request forgotten")
    gone = stack.admin(f"decisions/{first}")
    assert "the last 50 of each process are, which goes back" in gone.json()["error"]["message"]


def test_retry_is_told_with_the_replica_before(stack: GatewayStack) -> None:
    engines = stack.deploy("mover", replicas=2, prefill_tokens_per_s=10)
    body = {**BODY, "model": "mover"}
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(
            httpx.post,
            f"{stack.url}/v1/chat/completions",
            json=body,
            headers={"x-request-id": "moves", "x-xinf-decision": "1"},
            timeout=30,
        )
        wait_for(lambda: any(map(stack.engine_load, engines)), what="a request on an engine")
        (victim,) = [engine for engine in engines if stack.engine_load(engine)]
        assert find(stack, "moves").outcome == "open"
        victim.kill()
        answer = pending.result(30)
    decision = find(stack, "moves")
    (attempt,) = decision.earlier
    assert (attempt.replica, attempt.error) == (victim.id, "engine_died")
    assert decision.chosen is not None
    assert decision.chosen.replica != victim.id
    assert decision.candidates is not None
    assert {one.replica: one.closed for one in decision.candidates} == {
        victim.id: "not_ready",
        decision.chosen.replica: None,
    }
    assert "runner_up" not in answer.headers["x-xinf-decision"]
    assert answer.headers["x-xinf-decision"].endswith(";retries=1")


def test_api_keys_do_not_open_admin_routes_and_the_admin_key_asks_no_engine(stack: GatewayStack) -> None:
    record = KeyRecord(id=KeyId("k1"), sha256=hashlib.sha256(b"sk-xinf-1").hexdigest())
    stack.store.call(stack.store.records.create(KeyRecord, record.id, record))
    wait_for(lambda: stack.client.get("/v1/models").status_code == 401, what="the key known")
    answer = stack.client.get("/admin/decisions", headers={"authorization": "Bearer sk-xinf-1"})
    assert answer.status_code == 401
    assert stack.admin("decisions").status_code == 200
    answer = stack.client.post("/v1/chat/completions", json=BODY, headers=stack.admin_headers)
    assert answer.status_code == 401


def test_admin_key_is_made_once_and_shared(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    paths = Paths(short_dir / "data")
    paths.make_runtime_dir()
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: open_admin_key(paths), range(32)))
    assert len(keys) == 1
    assert [file.name for file in paths.runtime_dir.iterdir()] == ["admin.key"]
