"""What the user sees when engines die: two real vLLM replicas, killed with -9 before the first byte and mid-stream."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from typing import Any

import httpx
import psutil
import pytest

from tests.children import command_of, living_children
from tests.e2e.conftest import MODEL
from tests.e2e.stack import Stack, is_alive, wait_until
from xinf.registry import scripted

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.crash, pytest.mark.timeout(400)]

N_TOKENS = 4000  # some seconds of work: the kill must come before the end
FOREVER: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "go forever"}],
    "max_tokens": N_TOKENS,
    "ignore_eos": True,
}


def ready_replicas(stack: Stack) -> list[dict[str, Any]]:
    return [replica for replica in stack.replicas(MODEL) if replica["phase"] == "ready"]


def wait_for_pair(stack: Stack) -> list[dict[str, Any]]:
    wait_until(lambda: len(ready_replicas(stack)) == 2, deadline_s=150, what="two ready replicas")
    return ready_replicas(stack)


def tree_of(replica: dict[str, Any]) -> list[psutil.Process]:
    return [psutil.Process(replica["pid"]), *living_children(replica["pid"], recursive=True)]


def busy_replica(stack: Stack) -> dict[str, Any]:
    """The replica that the one open request is on, by the gateway's own metrics."""

    def find() -> dict[str, Any] | None:
        page = httpx.get(f"{stack.url}/metrics", timeout=30).text
        busy = re.findall(r'^xinf_replica_in_flight\{replica="([^"]+)"\} 1$', page, re.MULTILINE)
        return next((replica for replica in ready_replicas(stack) if [replica["id"]] == busy), None)

    found: dict[str, Any] = wait_until(find, deadline_s=30, what="one busy replica")
    return found


def kill_shim(replica: dict[str, Any]) -> list[int]:
    """Kill -9 the shim, the guard's child; return the pids of everything that must be gone then."""
    pids = [process.pid for process in tree_of(replica)]
    shim = living_children(replica["pid"])[0]
    os.kill(shim.pid, signal.SIGKILL)
    return pids


def kill_engine_core(replica: dict[str, Any]) -> list[int]:
    """Kill -9 vLLM's own process alone; return the pids of everything that must be gone then."""
    pids = [process.pid for process in tree_of(replica)]
    next(process for process in tree_of(replica) if "EngineCor" in process.name()).kill()
    return pids


def test_engine_core_killed_in_mid_stream_gives_one_error_event_and_done(vllm_stack: Stack) -> None:
    wait_for_pair(vllm_stack)
    events: list[str] = []
    with httpx.stream(
        "POST", f"{vllm_stack.url}/v1/chat/completions", json={**FOREVER, "stream": True}, timeout=60
    ) as answer:
        assert answer.status_code == 200
        gone: list[int] = []
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
            if len(events) == 5 and not gone:
                gone = kill_engine_core(busy_replica(vllm_stack))
    assert events[-1] == "[DONE]"
    errors = [event for event in events[:-1] if "error" in json.loads(event)]
    assert len(errors) == 1
    assert json.loads(errors[0])["error"]["code"] == "engine_died"
    wait_until(lambda: not any(is_alive(pid) for pid in gone), deadline_s=20, what="the end of the engine's processes")


def test_engine_killed_before_the_first_byte_is_answered_by_the_other(vllm_stack: Stack) -> None:
    wait_for_pair(vllm_stack)
    answers: list[httpx.Response] = []

    def ask() -> None:
        # Not streaming: the first byte is the last, so a kill at any time is before it.
        answers.append(httpx.post(f"{vllm_stack.url}/v1/chat/completions", json=FOREVER, timeout=150))

    thread = threading.Thread(target=ask)
    thread.start()
    kill_shim(busy_replica(vllm_stack))
    thread.join(160)
    assert [answer.status_code for answer in answers] == [200]
    assert answers[0].json()["usage"]["completion_tokens"] == N_TOKENS


def test_killed_engine_comes_back_with_its_failure_kept(vllm_stack: Stack) -> None:
    replicas = wait_for_pair(vllm_stack)
    restarted = [replica for replica in replicas if replica.get("restarts", 0) > 0]
    assert restarted
    assert {replica["failure"]["cause"] for replica in restarted} <= {"killed", "engine_died"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    for _ in range(4):
        answer = httpx.post(f"{vllm_stack.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.json()["choices"][0]["message"]["content"] == scripted.ANSWER


def test_agent_killed_and_started_again_adopts_the_engines(vllm_stack: Stack) -> None:
    before = {replica["id"]: replica["pid"] for replica in wait_for_pair(vllm_stack)}
    worker = vllm_stack.process("worker")
    worker.kill()
    worker.wait(30)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    assert httpx.post(f"{vllm_stack.url}/v1/chat/completions", json=body, timeout=60).status_code == 200
    vllm_stack.start("worker", "worker")
    wait_until(lambda: vllm_stack.json("ps")["nodes"], deadline_s=30, what="the node's return")
    assert {replica["id"]: replica["pid"] for replica in wait_for_pair(vllm_stack)} == before


def test_control_process_killed_loses_no_request(vllm_stack: Stack) -> None:
    wait_for_pair(vllm_stack)
    serve = living_children(vllm_stack.process("serve").pid)
    control = next(child for child in serve if "xinf.serve.control" in command_of(child))
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    control.kill()
    for _ in range(20):
        assert httpx.post(f"{vllm_stack.url}/v1/chat/completions", json=body, timeout=60).status_code == 200
    wait_until(
        lambda: vllm_stack.run("ps", check=False).returncode == 0,
        deadline_s=20,
        what="the return of the control process",
    )
    assert len(ready_replicas(vllm_stack)) == 2
