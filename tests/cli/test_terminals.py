"""The three terminals, as their users type it: serve, worker, launch; then everything that is done from a fourth."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from openai import OpenAI

from tests.serve.processes import XINF, Place, wait_for

pytestmark = pytest.mark.e2e

LAUNCH = ("launch", "--model", "demo", "--engine", "sim", "--device", "cpu", "--engine-arg", "step_ms=1")


def phase_of(place: Place, name: str = "demo") -> list[str]:
    return [r["phase"] for r in json.loads(place.ok("describe", name, "--json"))["replicas"]]


def test_three_terminals(place: Place) -> None:
    place.serve()
    place.start("worker")
    said = place.ok(*LAUNCH)
    titles = [line[9:21].strip() for line in said.splitlines()]
    for title in ("placed", "starting", "ready"):
        assert title in titles
    assert place.chat("demo").json()["usage"]["completion_tokens"] == 4
    with OpenAI(base_url=f"{place.url}/v1", api_key="unused", max_retries=0) as client:
        chunks = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "hello"}], max_tokens=4, stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    assert "1/1" in place.ok("ps")
    assert "like this already" in place.ok(*LAUNCH)
    assert place.ok("chat", "demo", "-m", "hello", "--max-tokens", "4").strip()
    answer = json.loads(place.ok("chat", "demo", "-m", "hello", "--json"))
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert "phase ready" in place.ok("logs", "demo")

    place.ok("scale", "demo", "2")
    assert phase_of(place) == ["ready", "ready"]
    place.ok("stop", "demo")
    assert json.loads(place.ok("ps", "--json"))["replicas"] == []
    assert [name for name in place.sockets() if name.startswith("demo")] == []
    unknown = place.run("chat", "demo", "-m", "hello")
    assert unknown.returncode == 1
    assert "404" in unknown.stderr


def test_changed_spec_replaces_the_engine(place: Place) -> None:
    place.serve()
    place.start("worker")
    place.ok(*LAUNCH)
    before = json.loads(place.ok("describe", "demo", "--json"))["replicas"][0]["id"]
    said = place.ok(*LAUNCH, "--max-model-len", "512")
    assert "generation 2" in said
    wait_for(lambda: len(phase_of(place)) == 1, what="the end of the old engine")
    (replica,) = json.loads(place.ok("describe", "demo", "--json"))["replicas"]
    assert replica["id"] != before
    assert replica["spec"]["max_model_len"] == 512
    assert place.chat("demo").status_code == 200


def test_launch_before_the_worker_says_so_and_goes_on(place: Place) -> None:
    place.serve()
    launch = place.start(*LAUNCH)
    wait_for(lambda: "xinf worker" in place.log("launch"), what="the advice")
    place.start("worker")
    assert launch.wait(30) == 0
    assert "ready" in place.log("launch")


def test_interrupted_launch_leaves_the_deployment(place: Place) -> None:
    place.serve()
    launch = place.start(*LAUNCH)
    wait_for(lambda: "xinf worker" in place.log("launch"), what="the wait")
    launch.send_signal(signal.SIGINT)
    assert launch.wait(30) == 130
    assert "the deployment stays" in place.log("launch")
    assert "Traceback" not in place.log("launch")
    assert [d["name"] for d in json.loads(place.ok("ps", "--json"))["deployments"]] == ["demo"]


def test_engine_argument_that_is_wrong_is_explained(place: Place) -> None:
    place.serve()
    place.start("worker")
    done = place.run(*LAUNCH, "--engine-arg", "no_such_argument=1")
    assert done.returncode == 1
    assert "bad_arguments" in done.stderr
    assert "no_such_argument" in done.stderr
    assert "restarts" in place.ok("describe", "demo")


def test_worker_leaves_engines_to_the_next_one(place: Place) -> None:
    place.serve()
    worker = place.start("worker")
    place.ok(*LAUNCH)
    before = json.loads(place.ok("describe", "demo", "--json"))["replicas"][0]["pid"]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert place.chat("demo").status_code == 200
    place.start("worker")
    wait_for(lambda: place.log("worker").count("is connected") == 2, what="the next worker")
    (replica,) = json.loads(place.ok("describe", "demo", "--json"))["replicas"]
    assert (replica["phase"], replica["pid"]) == ("ready", before)


def test_second_interrupt_of_the_worker_stops_its_engines(place: Place) -> None:
    place.serve()
    worker = place.start("worker")
    place.ok(*LAUNCH)
    worker.send_signal(signal.SIGINT)
    wait_for(lambda: "Ctrl-C again" in place.log("worker"), what="the word about it")
    worker.send_signal(signal.SIGINT)
    assert worker.wait(30) == 0
    assert not [command for command in place.commands() if "xinf.engine" in command]


def test_worker_without_a_control_process_waits_and_then_finds_it(place: Place) -> None:
    worker = place.start("worker")
    wait_for(lambda: "waiting for the control process" in place.log("worker"), what="the word about it")
    place.serve()
    place.await_line(worker, "worker", "is connected")


def test_second_worker_of_a_node_is_refused(place: Place) -> None:
    place.serve()
    worker = place.start("worker")
    place.await_line(worker, "worker", "is connected")
    second = place.run("worker", timeout_s=60)
    assert second.returncode == 1
    assert str(worker.pid) in second.stderr
    assert "Traceback" not in second.stderr


def test_chat_keeps_what_was_said(place: Place) -> None:
    place.serve()
    place.start("worker")
    place.ok(*LAUNCH)
    done = subprocess.run(
        [*XINF, "chat", "demo", "--max-tokens", "4"],
        env=place.environ,
        input="hello\nand again\n/reset\nhello\n\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [line for line in done.stdout.replace("> ", "\n").splitlines() if line]
    assert len(answers) == 3
    # The answer is a function of the prompt: the same one after /reset, another one with the history before it.
    assert answers[0] == answers[2]
    assert answers[0] != answers[1]


def test_gateway_that_is_away_is_a_sentence(place: Place) -> None:
    done = place.run("chat", "demo", "-m", "hello", "--url", place.url)
    assert done.returncode == 1
    assert f"the gateway at {place.url} gave no answer" in done.stderr
