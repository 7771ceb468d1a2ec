"""The whole gateway under Granian against sim shims: what a well-behaved client sees."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tests.gateway.gateway_stack import GatewayStack, wait_for
from xinf.core.ids import KeyId
from xinf.core.records import DeploymentRecord, KeyRecord, Phase, RoutingPolicy
from xinf.gateway.metrics import family_of


@pytest.fixture(scope="module")
def stack() -> Iterator[GatewayStack]:
    with GatewayStack(overrides={"gateway.cors_origins": "https://app.example"}) as made:
        made.deploy("fast", replicas=2)
        yield made


@pytest.fixture(scope="module")
def client(stack: GatewayStack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as made:
        yield made


MESSAGES = [{"role": "user", "content": "hi"}]


def ask(stack: GatewayStack, model: str = "fast", **headers: str) -> httpx.Response:
    body = {"model": model, "messages": MESSAGES, "max_tokens": 4}
    return stack.client.post("/v1/chat/completions", json=body, headers=headers)


def test_chat_completion(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fast", messages=MESSAGES, max_tokens=5)  # type: ignore[arg-type]
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_stream_is_the_same_text(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="fast", messages=MESSAGES, max_tokens=9)  # type: ignore[arg-type]
    deltas = client.chat.completions.create(model="fast", messages=MESSAGES, max_tokens=9, stream=True)  # type: ignore[call-overload]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in deltas if chunk.choices)
    assert text == whole.choices[0].message.content


def test_completions_and_embeddings(client: openai.OpenAI) -> None:
    assert client.completions.create(model="fast", prompt="x", max_tokens=3).choices[0].text
    assert client.embeddings.create(model="fast", input=["a", "b"]).data[1].embedding


def test_large_body_arrives_whole(stack: GatewayStack) -> None:
    inputs = ["x" * 1000] * 600  # 600 KB: read in several receives, sent in a call of its own
    answer = stack.client.post("/v1/embeddings", json={"model": "fast", "input": inputs})
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 600


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fast"]
    assert client.models.retrieve("fast").owned_by == "xinf"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("slow")


def test_model_may_be_named_by_path_or_header(stack: GatewayStack) -> None:
    body = {"messages": MESSAGES, "max_tokens": 1}
    assert stack.client.post("/models/fast/v1/chat/completions", json=body).status_code == 200
    by_header = stack.client.post("/v1/chat/completions", json=body, headers={"x-xinf-model": "fast"})
    assert by_header.status_code == 200
    missing = stack.client.post("/v1/chat/completions", json=body)
    assert missing.status_code == 400
    assert "these exist: fast" in missing.json()["error"]["message"]


def test_query_reaches_the_engine_with_the_path(stack: GatewayStack) -> None:
    assert stack.client.post("/tokenize?x=%C3%A9", json={"model": "fast", "prompt": "abcd"}).status_code == 200


def test_engine_error_passes_through(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(model="fast", messages=MESSAGES, max_tokens=10**7)  # type: ignore[arg-type]


def test_unknown_model_names_those_that_exist(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)  # type: ignore[arg-type]
    assert caught.value.code == "model_not_found"
    assert "these do: fast" in str(caught.value)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/chat/completions", 404, "not_found"),
        ("DELETE", "/v1/models/fast", 404, "not_found"),
        ("POST", "/v1/models", 404, "not_found"),
        ("POST", "/sleep", 403, "permission_denied"),
        ("POST", "/models/fast/v1/load_lora_adapter", 403, "permission_denied"),
        ("POST", "/v1/audio/transcriptions", 400, "invalid_request"),
    ],
)
def test_other_routes_are_closed(stack: GatewayStack, method: str, path: str, status: int, code: str) -> None:
    answer = stack.client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code


def test_request_id_is_kept_or_made(stack: GatewayStack) -> None:
    given = ask(stack, **{"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    assert given.json()["id"].endswith("mine-1")
    made = ask(stack, **{"x-request-id": "not valid"})
    assert made.headers["x-request-id"].startswith("req-0-")
    assert stack.client.get("/nothing").headers["x-request-id"] != made.headers["x-request-id"]


def test_decision_is_shown_when_asked_for(stack: GatewayStack) -> None:
    assert "x-xinf-decision" not in ask(stack).headers
    shown = ask(stack, **{"x-xinf-decision": "1"}).headers["x-xinf-decision"]
    assert shown.startswith("replica=fast-")
    assert "reason=" in shown
    assert ";state=exact;" in shown  # a simulated engine tells what it holds
    assert shown.count("state=") == 1


def test_cors_answers_known_origins_only(stack: GatewayStack) -> None:
    asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
    preflight = stack.client.options("/v1/chat/completions", headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert ask(stack, origin="https://app.example").headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-origin" not in ask(stack, origin="https://evil.example").headers


def test_identical_simultaneous_requests_spread(stack: GatewayStack) -> None:
    """Within one, had they come at once (tests/router); a report that tells of one as waiting shifts the next."""
    stack.deploy("even", replicas=3, step_ms=20)
    body = {"model": "even", "messages": MESSAGES, "max_tokens": 30}

    def one(_: int) -> str:
        answer = httpx.post(f"{stack.url}/v1/chat/completions", json=body, headers={"x-xinf-decision": "1"}, timeout=30)
        return answer.headers["x-xinf-decision"].partition(";")[0]

    with ThreadPoolExecutor(10) as pool:
        chosen = list(pool.map(one, range(10)))
    counts = [chosen.count(replica) for replica in set(chosen)]
    assert len(counts) == 3
    assert max(counts) - min(counts) <= 2


def test_session_header_keeps_a_session_on_one_replica(stack: GatewayStack) -> None:
    stack.deploy("chatty", replicas=3)
    stack.set_policy("chatty", RoutingPolicy.SESSION)

    def replica(session: str) -> str:
        headers = {"x-xinf-decision": "1", "x-session-id": session}
        return ask(stack, "chatty", **headers).headers["x-xinf-decision"]

    wait_for(lambda: "reason=session" in replica("s"), what="the policy taking effect")
    by_session = {session: {replica(session).partition(";")[0] for _ in range(5)} for session in "abcdefgh"}
    assert all(len(replicas) == 1 for replicas in by_session.values())
    assert len(set.union(*by_session.values())) > 1


def test_model_without_a_replica_waits_then_says_why(stack: GatewayStack) -> None:
    stack.deploy("empty", replicas=0)
    answer = ask(stack, "empty", **{"x-request-timeout": "0.2"})
    assert answer.status_code == 503
    assert "empty is scaled to 0 replicas" in answer.json()["error"]["message"]
    ready = stack.client.get("/readyz/empty")
    assert ready.status_code == 503
    assert "scaled to 0" in ready.json()["error"]["message"]
    stack.store.call(stack.store.records.delete(DeploymentRecord, "empty"))
    wait_for(lambda: stack.client.get("/readyz/empty").status_code == 404, what="the deployment forgotten")


def test_request_waits_for_a_replica_that_becomes_ready(stack: GatewayStack) -> None:
    stack.deploy("late", replicas=0)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(ask, stack, "late")
        wait_for(lambda: stack.metric("xinf_requests_waiting", model="late") == 1, what="a waiting request")
        stack.add_engine("late")
        assert pending.result(30).status_code == 200


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_timeout_header_must_be_a_time(stack: GatewayStack, text: str) -> None:
    answer = ask(stack, **{"x-request-timeout": text})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-request-timeout"


def test_deadline_ends_an_answer_and_a_stream(stack: GatewayStack) -> None:
    stack.deploy("slow", step_ms=50)
    headers = {"x-request-timeout": "0.4"}
    body = {"model": "slow", "messages": MESSAGES, "max_tokens": 500}
    whole = stack.client.post("/v1/chat/completions", json=body, headers=headers)
    assert whole.status_code == 504
    assert whole.json()["error"]["code"] == "deadline_exceeded"
    stream = stack.client.post("/v1/chat/completions", json={**body, "stream": True}, headers=headers)
    assert stream.status_code == 200
    events = stream.text.strip().split("\n\n")
    assert "deadline_exceeded" in events[-2]
    assert events[-1] == "data: [DONE]"
    assert sum('"error"' in event for event in events) == 1
    assert stack.metric("xinf_replica_in_flight", replica="slow-0") == 0


def test_drained_replica_loses_nothing(stack: GatewayStack) -> None:
    engines = stack.deploy("drain", replicas=2, step_ms=20)
    body = {"model": "drain", "messages": MESSAGES, "max_tokens": 50, "stream": True}

    def one(_: int) -> str:
        return httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=30).text

    with ThreadPoolExecutor(8) as pool:
        pending = [pool.submit(one, n) for n in range(8)]
        wait_for(lambda: stack.engine_load(engines[0]) >= 3, what="requests on the first replica")
        stack.set_phase(engines[0], target="stop", phase=Phase.DRAINING)
        engines[0].process.terminate()
        texts = [future.result(30) for future in pending]
        answers = [one(n) for n in range(2)]
    assert all(text.endswith("data: [DONE]\n\n") and '"error"' not in text for text in texts + answers)
    assert engines[0].process.wait(30) == 0


def test_metrics_are_all_documented_and_count(stack: GatewayStack) -> None:
    before = stack.metric("xinf_requests_total", model="fast", code="2xx")
    ask(stack)
    assert stack.metric("xinf_requests_total", model="fast", code="2xx") == before + 1
    assert stack.metric("xinf_completion_tokens_total", model="fast") >= 4
    assert stack.metric("xinf_time_to_first_byte_seconds_count", model="fast") >= before
    for line in stack.client.get("/metrics").text.splitlines():
        if not line.startswith("#"):
            family_of(line.rpartition(" ")[0])


def test_readiness_covers_every_deployment(stack: GatewayStack) -> None:
    assert stack.client.get("/healthz").json() == {"status": "ok"}
    assert stack.client.get("/readyz/fast").json() == {"status": "ready", "replicas": {"fast": 2}}


def test_keys_are_needed_once_one_exists() -> None:
    key = "sk-xinf-test"
    record = KeyRecord(
        id=KeyId("k1"), sha256=hashlib.sha256(key.encode()).hexdigest(), models=("a",), created_s=time.time()
    )
    with GatewayStack() as stack:
        stack.deploy("a")
        stack.deploy("b", replicas=0)
        assert ask(stack, "a").status_code == 200
        stack.store.call(stack.store.records.create(KeyRecord, "k1", record))
        wait_for(lambda: ask(stack, "a").status_code == 401, what="the key taking effect")
        # Refused before the body is looked at.
        assert stack.client.post("/v1/chat/completions", content=b"{").status_code == 401
        with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=key, max_retries=0) as client:
            assert client.chat.completions.create(model="a", messages=MESSAGES, max_tokens=1)  # type: ignore[arg-type]
            assert [model.id for model in client.models.list()] == ["a"]
            with pytest.raises(openai.PermissionDeniedError):
                client.chat.completions.create(model="b", messages=MESSAGES)  # type: ignore[arg-type]
        assert stack.client.get("/healthz").status_code == 200
        probe = stack.client.get("/readyz")
        assert probe.status_code == 503
        assert probe.json()["error"]["message"] == "not ready"
        assert stack.client.get("/v1/models").status_code == 401


def test_access_log_tells_the_request_and_not_the_prompt() -> None:
    with GatewayStack(overrides={"gateway.access_log_sample": 1.0}) as stack:
        stack.deploy("m")
        body = {"model": "m", "messages": [{"role": "user", "content": "my secret"}], "max_tokens": 3}
        answer = stack.client.post("/v1/chat/completions", json=body, headers={"x-request-id": "logged-1"})
        assert answer.status_code == 200
        line = wait_for(lambda: [e for e in stack.log().splitlines() if "id=logged-1" in e], what="the log line")[0]
        assert "model=m replica=m-0 status=200" in line
        assert "completion_tokens=3" in line
        assert "secret" not in stack.log()
        assert answer.json()["choices"][0]["message"]["content"].split()[0] not in line


def test_gateway_goes_on_while_the_store_is_away() -> None:
    with GatewayStack() as stack:
        stack.deploy("m")
        stack.store.close()
        assert [ask(stack, "m").status_code for _ in range(3)] == [200, 200, 200]
        stack.reopen_store()
        stack.deploy("n")
        assert ask(stack, "n").status_code == 200


def test_gateway_without_a_store_refuses_until_there_is_one() -> None:
    with GatewayStack() as stack:
        stack.deploy("m")
        stack.gateway.terminate()
        stack.gateway.wait(30)
        stack.store.close()
        stack.start_gateway()
        refused = ask(stack, "m")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "unavailable"
        stack.reopen_store()
        wait_for(lambda: ask(stack, "m").status_code == 200, what="the store read")


def test_full_house_is_429_with_a_time_to_come_back() -> None:
    limits: dict[str, object] = {"gateway.max_inflight_per_replica": 1, "gateway.max_waiting": 2}
    with GatewayStack(overrides=limits) as stack, ThreadPoolExecutor(3) as pool:
        stack.deploy("tight", step_ms=20)
        body = {"model": "tight", "messages": MESSAGES, "max_tokens": 60}

        def one() -> int:
            return httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=30).status_code

        pending = [pool.submit(one) for _ in range(3)]
        wait_for(lambda: stack.metric("xinf_requests_waiting") == 2, what="a full waiting room")
        refused = ask(stack, "tight")
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.json()["error"]["code"] == "no_capacity"
        assert [future.result(30) for future in pending] == [200, 200, 200]
        assert stack.metric("xinf_requests_waiting") == 0
