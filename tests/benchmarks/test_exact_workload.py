"""The requests of the experiment on residency: the same for a seed, and as mixed as it is said."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from benchmarks.exact.workload import SHARES, Ask, Settings, Told, Workload

SETTINGS = Settings("exact", ("polite", "terse"), 5, thinks=False, calls_once=False)
N = 1500


def asked(seed: int, n_requests: int = N, settings: Settings = SETTINGS) -> list[Ask]:
    """All requests, each answered at once."""
    workload = Workload(settings, seed, n_requests)
    found = []
    while (request := workload.next()) is not None:
        found.append(request)
        workload.answered(request, Told(f"Answer {request.number}."))
    return found


@pytest.fixture(scope="module")
def requests() -> list[Ask]:
    return asked(1)


def test_same_seed_asks_the_same(requests: list[Ask]) -> None:
    assert asked(1) == requests
    assert asked(2) != requests


def test_kinds_have_their_shares(requests: list[Ask]) -> None:
    counts = Counter(request.kind for request in requests)
    for kind, share in SHARES.items():
        assert counts[kind] == pytest.approx(N * share / 100, abs=N * 0.01), kind


def test_chats_go_on_with_their_answers() -> None:
    workload = Workload(SETTINGS, 1, N)
    answers: dict[int, str] = {}
    n_followed = 0
    while (request := workload.next()) is not None:
        if request.kind == "next":
            assert request.chat is not None
            spoken = [message["content"] for message in request.body["messages"] if message["role"] == "assistant"]
            n_followed += answers[request.chat] in spoken
        answer = f"Answer {request.number}."
        if request.chat is not None:
            answers[request.chat] = answer
        workload.answered(request, Told(answer))
    assert n_followed == sum(kind == "next" for kind in _kinds(1))


def _kinds(seed: int) -> list[str]:
    return [request.kind for request in asked(seed)]


def test_calls_of_the_model_are_answered_with_results() -> None:
    workload = Workload(SETTINGS, 3, 400)
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    seen = 0
    while (request := workload.next()) is not None:
        if request.kind == "next":
            before, last = request.body["messages"][-2:]
            assert (before["tool_calls"], last["role"], last["tool_call_id"]) == ([call], "tool", "call_1")
            seen += 1
        workload.answered(request, Told(None, tool_calls=[call]))
    assert seen > 100


def test_a_chat_waits_for_its_answer() -> None:
    workload = Workload(SETTINGS, 1, 300)
    unanswered: list[Ask] = []
    for _ in range(12):
        request = workload.next()
        assert request is not None
        unanswered.append(request)
    while (request := workload.next()) is not None:
        unanswered.append(request)
        busy = [each.chat for each in unanswered if each.chat is not None]
        assert len(busy) == len(set(busy))
        done = unanswered.pop(0)
        workload.answered(done, Told("Yes."))


def test_it_has_what_makes_prompts_hard(requests: list[Ask]) -> None:
    bodies = [request.body for request in requests]
    n = len(bodies)
    begun = [request.body for request in requests if request.kind in ("new", "hot", "document", "completion")]
    assert sum("cache_salt" in body for body in begun) / len(begun) == pytest.approx(0.10, abs=0.03)
    assert sum(body["model"] != "exact" for body in begun) / len(begun) == pytest.approx(0.10, abs=0.03)
    assert sum(bool(body.get("stream")) for body in bodies) == pytest.approx(0.24 * n, abs=0.05 * n)
    foreign = sum(not json.dumps(body.get("messages", ""), ensure_ascii=False).isascii() for body in bodies)
    assert foreign / n == pytest.approx(0.12, abs=0.04)
    messages = [message for body in bodies for message in body.get("messages", ())]
    roles = {message["role"] for message in messages}
    assert roles == {"system", "developer", "user", "assistant", "tool"}
    assert any(isinstance(message["content"], list) for message in messages)
    assert any("tool_calls" in message for message in messages)


def test_prompts_are_of_the_promised_sizes(requests: list[Ask]) -> None:
    sizes = [len(json.dumps(request.body, ensure_ascii=False).encode()) for request in requests]
    assert 3000 < sum(sizes) / N < 6500
    hot = [request for request in requests if request.kind == "hot"]
    beginnings = Counter(request.body["messages"][0]["content"][:6000] for request in hot)
    assert len(beginnings) == 1
