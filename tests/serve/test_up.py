"""`xinf up` with the simulated engine: one tree from nothing to an answer and back to nothing."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI

from tests.serve.processes import Place, wait_for

pytestmark = pytest.mark.e2e


def up(place: Place, model: str, *args: str) -> subprocess.Popen[bytes]:
    n_before = place.log("up").count("it answered")
    process = place.start("up", model, "--engine", "sim", *args)
    place.await_line(process, "up", "it answered", n_before + 1)
    return process


def test_up_serves_says_how_and_ends_without_a_trace(place: Place) -> None:
    process = up(place, "demo")
    said = place.log("up")
    assert f"ready: {place.url}" in said.splitlines()
    assert f"curl {place.url}/v1/chat/completions" in said
    assert "from openai import OpenAI" in said
    with OpenAI(base_url=f"{place.url}/v1", api_key="unused", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "hello"}], max_tokens=4
        )
        assert answer.choices[0].message.content
    assert json.loads(place.ok("ps", "--json"))["deployments"][0]["owner"] == "up"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert place.processes() == []
    assert place.sockets() == []
    assert "Traceback" not in place.log("up")


def test_up_drains_what_is_open_at_its_end(place: Place) -> None:
    process = up(place, "demo", "--engine-arg", "step_ms=20")
    body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 60, "stream": True}
    with httpx.stream("POST", f"{place.url}/v1/chat/completions", json=body, timeout=30, trust_env=False) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert not any('"error"' in line for line in rest)
    assert process.wait(30) == 0
    assert place.processes() == []


def test_second_interrupt_waits_for_nothing_and_leaves_nothing(place: Place) -> None:
    process = up(place, "demo", "--engine-arg", "step_ms=100", "--set", "agent.drain_timeout=1h")
    body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2000, "stream": True}
    with httpx.stream("POST", f"{place.url}/v1/chat/completions", json=body, timeout=30, trust_env=False) as answer:
        lines = answer.iter_lines()  # kept: the response is closed with its iterator
        next(lines)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: place.ok("ps", "--json").count('"draining"'), what="the drain")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert place.processes() == []
    assert place.sockets() == []


def test_up_of_an_engine_that_cannot_start_says_why_and_ends(place: Place) -> None:
    done = place.run("up", "demo", "--engine", "sim", "--engine-arg", "no_such_argument=1")
    assert done.returncode == 1
    assert "bad_arguments" in done.stderr
    assert "no_such_argument" in done.stderr
    assert "ready:" not in done.stdout
    assert place.processes() == []
    assert place.sockets() == []


@pytest.fixture
def heard_hangups() -> Iterator[None]:
    """Children hear HUP, whatever we were started with: under `nohup` they would inherit that it is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heard_hangups")
def test_closed_terminal_ends_it_like_an_interrupt(place: Place) -> None:
    process = up(place, "demo")
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 0
    assert place.processes() == []


def test_second_up_with_another_model_serves_just_that(place: Place) -> None:
    first = up(place, "first")
    first.kill()
    first.wait(30)
    # Engines outlive a supervisor that is killed; the deployment is still in the store.
    wait_for(lambda: all("xinf.engine" in command for command in place.commands()), what="only engines left")
    up(place, "second")
    assert "removed deployment first" in place.log("up")
    models = httpx.get(f"{place.url}/v1/models", timeout=5, trust_env=False).json()["data"]
    assert [model["id"] for model in models] == ["second"]
    wait_for(
        lambda: [r["deployment"] for r in json.loads(place.ok("ps", "--json"))["replicas"]] == ["second"],
        what="the end of the first one's engine",
    )


def test_up_keeps_the_deployment_when_told_to(place: Place) -> None:
    process = up(place, "demo", "--keep")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert place.processes() == []
    place.serve()
    assert [d["name"] for d in json.loads(place.ok("ps", "--json"))["deployments"]] == ["demo"]


def test_up_of_an_engine_that_is_not_installed_says_so_and_ends(place: Place) -> None:
    done = place.run("up", "demo/model", "--engine", "vllm", "--device", "cpu")
    assert done.returncode == 1
    assert "has no environment for vllm on cpu" in done.stderr
    assert place.processes() == []
    assert place.sockets() == []


def test_up_shows_a_reply_where_keys_exist_and_leaves_no_key_behind(place: Place) -> None:
    key = place.ok("key", "create").strip()
    up(place, "demo")
    assert "authorization: Bearer KEY" in place.log("up")
    assert len(json.loads(place.ok("key", "ls", "--json"))) == 1
    assert place.chat("demo").status_code == 401
    assert place.ok("chat", "demo", "-m", "hello", XINF_API_KEY=key).strip()


def test_interrupt_while_it_starts_ends_it_too(place: Place) -> None:
    process = place.start("up", "demo", "--engine", "sim")
    wait_for(lambda: place.processes(), what="its first process")
    wait_for(lambda: (place.runtime_dir / "control.json").exists(), what="the control process")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert place.processes() == []
    assert place.sockets() == []
