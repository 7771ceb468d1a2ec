"""`xinf why` and `xinf route` against a whole installation: serve, worker, two sim replicas, two gateway processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serve.processes import Place, made_place, wait_for

SYSTEM = "You are a careful assistant of the ACME support team. " * 40


@pytest.fixture(scope="module")
def installed() -> Iterator[Place]:
    for place in made_place():
        place.environ["XINF_GATEWAY_WORKERS"] = "2"
        place.serve()
        place.start("worker")
        place.ok(
            "launch", "--model", "sim/demo", "--engine", "sim", "--device", "cpu", "--name", "demo", "--replicas", "2"
        )
        yield place


def body(question: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"model": "demo", "messages": messages, "max_tokens": 4}


def ask(place: Place, client: httpx.Client, question: str) -> httpx.Response:
    answer = client.post("/v1/chat/completions", json=body(question), headers={"x-xinf-decision": "1"})
    assert answer.status_code == 200
    return answer


def test_account_of_a_request_agrees_with_its_answer(installed: Place) -> None:
    with httpx.Client(base_url=installed.url, timeout=30) as client:  # one connection: one gateway process
        ask(installed, client, "Where is it?")
        answer = ask(installed, client, "Where is my parcel?")
    request_id = answer.headers["x-request-id"]
    header = dict(pair.split("=") for pair in answer.headers["x-xinf-decision"].split(";"))
    text = installed.ok("why", request_id)
    assert f"  replica    {header['replica']}, chosen after" in text
    assert "with part of the prompt in its cache (prefix)" in text
    assert f"predicted  {header['predicted_cached_tokens']} of" in text
    assert f"{header['runner_up']} comes second," in text
    assert "as predicted" in text or "than predicted" in text
    (decision,) = json.loads(installed.ok("why", request_id, "--json"))["decisions"]
    cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert decision["usage"]["cached_tokens"] == cached > 500
    assert {one["replica"] for one in decision["candidates"]} == {header["replica"], header["runner_up"]}
    assert f"\n{request_id} " in installed.ok("why")
    # Every text of the request, and no more than is typed here, stays out of what is told.
    everything = installed.ok("why", "--json") + text
    assert "ACME" not in everything
    assert "parcel" not in everything


def test_dry_run_names_the_replica_that_then_gets_it(installed: Place) -> None:
    question = "What does it cost? " * 20
    served: set[str] = set()

    def both_served() -> bool:
        """Each process knows what it routed itself."""
        with httpx.Client(base_url=installed.url, timeout=30) as client:
            served.add(ask(installed, client, question).headers["x-request-id"].split("-")[1])
        return served == {"0", "1"}

    wait_for(both_served, what="an answer of both gateway processes")
    file = installed.dir / "request.json"
    file.write_text(json.dumps(body(question + "And why?")))
    text = installed.ok("route", "--explain", str(file))
    told = json.loads(installed.ok("route", "--explain", str(file), "--json"))
    (picked,) = [one["replica"] for one in told["candidates"] if one["picked"]]
    assert len(told["candidates"]) == 2
    assert f"{picked} " in text
    assert "What does it cost? " in text.splitlines()[-1]
    with httpx.Client(base_url=installed.url, timeout=30) as client:
        answer = ask(installed, client, question + "And why?")
    assert answer.headers["x-xinf-decision"].startswith(f"replica={picked};reason=prefix;")


def test_unknown_id_says_how_far_back_is_known(installed: Place) -> None:
    done = installed.run("why", "req-0-000000-1")
    assert done.returncode == 1
    assert "no decision for 'req-0-000000-1' is kept" in done.stderr
    assert "4096" in done.stderr


def test_ps_says_how_well_the_gateway_knows_each_cache(installed: Place) -> None:
    def caches() -> dict[str, dict[str, int]]:
        told: dict[str, dict[str, int]] = json.loads(installed.ok("ps", "--json"))["caches"]
        return told

    wait_for(
        lambda: list(caches().values()) == [{"exact": 2}, {"exact": 2}],
        what="both gateway processes told by both engines what they hold",
    )
    names = set(caches())

    def column() -> dict[str, str]:
        rows = [line.split() for line in installed.ok("ps", "-r").splitlines() if line.startswith("demo-")]
        return {row[0]: row[4] for row in rows}

    # A busy machine may need more than the second that a list waits for the gateway.
    wait_for(lambda: column() == dict.fromkeys(names, "exact"), what="the column saying so")
