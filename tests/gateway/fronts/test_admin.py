"""The admin routes behind each front: what was decided, what would be, and that nothing else opens them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec
import pytest

from tests.gateway.gateway_stack import GatewayStack, wait_for
from xinf.core.decision import DryRun, Found

pytestmark = pytest.mark.usefixtures("unharmed")

LONG = "a long story about nothing in particular " * 60


def chat(stack: GatewayStack, text: str, **headers: str) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 2}
    return stack.client.post("/v1/chat/completions", json=body, headers=headers)


def decision_of(stack: GatewayStack, request_id: str) -> Any:
    answer = stack.admin(f"decisions/{request_id}")
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=Found).decisions[0]


def dry_run(stack: GatewayStack, body: Any, **headers: str) -> DryRun:
    answer = stack.client.post("/admin/route", json=body, headers={**stack.admin_headers, **headers})
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=DryRun)


def test_decision_of_a_request_is_told_by_its_id(stack: GatewayStack) -> None:
    chat(stack, LONG)
    answer = chat(stack, LONG, **{"x-xinf-decision": "1"})
    decision = decision_of(stack, answer.headers["x-request-id"])
    assert (decision.asked, decision.outcome, decision.status) == ("m", "done", 200)
    assert decision.usage.cached_tokens == answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    header = dict(pair.split("=") for pair in answer.headers["x-xinf-decision"].split(";"))
    assert header["replica"] == decision.chosen.replica == "m-0"
    assert header["reason"] == decision.chosen.reason == "prefix"
    assert header["state"] == decision.chosen.index_state == "exact"
    assert int(header["predicted_cached_tokens"]) == decision.chosen.predicted_cached_tokens
    assert float(header["cost_ms"]) == pytest.approx(decision.chosen.cost.total_s * 1000, abs=1e-3)
    assert decision.n_candidates == 1
    last = msgspec.json.decode(stack.admin("decisions?last=1").content, type=Found)
    assert [one.request_id for one in last.decisions] == [decision.request_id]


def test_client_ids_with_slashes_are_found(stack: GatewayStack) -> None:
    chat(stack, "hi", **{"x-request-id": "trace/7:a+b=@c"})
    assert decision_of(stack, "trace%2F7%3Aa%2Bb%3D%40c").request_id == "trace/7:a+b=@c"


def test_open_request_is_told_too(stack: GatewayStack) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 200}
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(
            httpx.post, f"{stack.url}/v1/chat/completions", json=body, headers={"x-request-id": "open-1"}, timeout=30
        )
        wait_for(lambda: stack.admin("decisions/open-1").status_code == 200, what="the open request told")
        assert decision_of(stack, "open-1").outcome == "open"
        assert pending.result(30).status_code == 200
    assert decision_of(stack, "open-1").outcome == "done"


def test_dry_run_names_who_would_get_it_and_changes_nothing(stack: GatewayStack) -> None:
    text = "once upon a time there was a router " * 60
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 2}
    for _ in range(2):  # the first one leaves nothing behind
        assert dry_run(stack, body).candidates[0].matched_bytes <= len("user")
    chat(stack, text)
    n_before = stack.metric("xinf_routing_decisions_total", model="m")
    told = dry_run(stack, body)
    assert (told.asked, told.deployment, told.policy) == ("m", "m", "auto")
    (only,) = told.candidates
    assert (only.replica, only.picked, only.closed) == ("m-0", "prefix", None)
    # The engine names a chunk for each of its blocks, so the match ends in the last whole one.
    assert told.text_bytes - 2 * told.chunk_bytes <= only.matched_bytes <= told.text_bytes + len("assistant")
    assert only.predicted_cached_tokens <= only.matched_tokens <= told.prompt_tokens
    assert stack.metric("xinf_routing_decisions_total", model="m") == n_before
    assert stack.metric("xinf_replica_in_flight") == 0
    usage = chat(stack, text).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == only.predicted_cached_tokens > 0


def test_dry_run_takes_bodies_as_large_as_requests_may_be(stack: GatewayStack) -> None:
    told = dry_run(stack, {"model": "m", "prompt": "z" * 900_000})
    assert told.text_bytes == 900_000
    answer = stack.client.post("/admin/route", content=b" " * (2 << 20), headers=stack.admin_headers)
    assert answer.status_code == 413


def test_dry_run_takes_the_model_by_header(stack: GatewayStack) -> None:
    told = dry_run(stack, {"model": "nobody", "prompt": "x"}, **{"x-xinf-model": "m"})
    assert told.deployment == "m"


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [(b"{", 400, "malformed_json"), (b'{"model": "gpt-9"}', 404, "model_not_found"), (b"[]", 400, "invalid_request")],
)
def test_dry_run_says_what_is_wrong(stack: GatewayStack, content: bytes, status: int, code: str) -> None:
    answer = stack.client.post("/admin/route", content=content, headers=stack.admin_headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "x-request-id" in answer.headers


@pytest.mark.parametrize("key", [None, "Bearer wrong", "Basic x", "Bearer"])
@pytest.mark.parametrize(("method", "path"), [("GET", "decisions"), ("GET", "decisions/x"), ("POST", "route")])
def test_nothing_but_the_admin_key_opens_them(stack: GatewayStack, method: str, path: str, key: str | None) -> None:
    headers = {} if key is None else {"authorization": key}
    answer = stack.client.request(
        method, f"/admin/{path}", headers=headers, content=b"{}" if method == "POST" else None
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("decisions/req-0-000000-1", 404, "keeps its last 4096"),
        ("decisions/nonsense", 404, "no decision for 'nonsense' is kept"),
        ("decisions?last=0", 400, "from 1 to 1000"),
        ("decisions?last=%FF", 400, "from 1 to 1000"),
        ("elsewhere", 404, "no route"),
    ],
)
def test_what_is_not_there_is_said(stack: GatewayStack, path: str, status: int, text: str) -> None:
    answer = stack.admin(path)
    assert answer.status_code == status
    assert text in answer.json()["error"]["message"]


def test_admin_key_is_no_key_for_requests_and_keys_open_no_admin_routes(stack: GatewayStack) -> None:
    assert stack.client.get("/admin/route", headers=stack.admin_headers).status_code == 404
    (file,) = stack.dir.glob("xinf-*/admin.key")
    assert file.stat().st_mode & 0o777 == 0o600
