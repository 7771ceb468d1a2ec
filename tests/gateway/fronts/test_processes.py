"""The master and its workers: sums over them, replacement, draining, TLS."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.gateway.gateway_stack import GatewayStack, wait_for
from tests.gateway.raw_http import chat, post, read_until

_EARLY = "connections are taken before the store has been read"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def pair(front: str) -> Iterator[GatewayStack]:
    """A gateway with two workers."""
    with GatewayStack(front=front, workers=2) as made:
        made.deploy("m", step_ms=5)
        yield made


def workers(stack: GatewayStack) -> set[int]:
    return {process.pid for process in stack.workers()}


def ask(stack: GatewayStack) -> httpx.Response:
    """One request on a connection of its own, so that either worker may get it."""
    body = {"model": "m", "messages": MESSAGES, "max_tokens": 1}
    return httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=30)


def test_one_scraped_worker_sums_all(pair: GatewayStack) -> None:
    before = pair.metric("xinf_requests_total", model="m")
    ids = {ask(pair).headers["x-request-id"].split("-")[1] for _ in range(30)}
    assert ids == {"0", "1"}  # both served, and a request id says which
    for _ in range(6):
        with httpx.Client(base_url=pair.url) as fresh:
            stack_client, pair.client = pair.client, fresh
            try:
                assert pair.metric("xinf_requests_total", model="m") == before + 30
            finally:
                pair.client = stack_client
    assert pair.metric("xinf_store_read") == 2


def test_dead_workers_are_replaced_again_and_again(pair: GatewayStack) -> None:
    # Granian's own rule ends the server when two die within seconds.
    for _ in range(3):
        before = workers(pair)
        assert len(before) == 2
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda gone=victim: gone not in workers(pair) and len(workers(pair)) == 2, what="a new worker")
    wait_for(lambda: _metric_or_zero(pair, "xinf_link_up") == 2, what="links of both workers")
    assert all(ask(pair).status_code == 200 for _ in range(10))


def test_worker_answers_where_the_store_does_not_and_says_so(front: str) -> None:
    with GatewayStack(front=front) as stack:
        stack.deploy("m")
        stack.store.close()
        before, n_told = workers(stack), stack.log().count(_EARLY)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not before & workers(stack), what="the end of the worker")
        assert wait_for(lambda: _status_or_none(stack), what="an answer") == 503
        assert stack.log().count(_EARLY) > n_told
        stack.reopen_store()
        wait_for(lambda: _status_or_none(stack) == 200, what="the store to be read")


def test_first_answer_of_a_worker_knows_the_store(front: str) -> None:
    with GatewayStack(front=front) as stack:
        stack.deploy("m")
        for _ in range(3):
            before = workers(stack)
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda gone=before: not gone & workers(stack), what="the end of the worker")
            # Refused or reset while nobody listens; the first answer there is comes from one that has read the store.
            status = wait_for(lambda: _status_or_none(stack), what="an answer")
            assert status == 200 or _EARLY in stack.log(), "unless that took it too long, and it says so"


def _status_or_none(stack: GatewayStack) -> int | None:
    try:
        return ask(stack).status_code
    except httpx.TransportError:
        return None


def _metric_or_zero(stack: GatewayStack, name: str) -> float:
    """A worker that was killed takes its kept-alive connections with it."""
    try:
        return stack.metric(name)
    except httpx.TransportError:
        return 0.0


def test_killed_master_takes_its_workers_along(front: str) -> None:
    with GatewayStack(front=front, workers=2) as stack:
        children = workers(stack)
        stack.gateway.kill()
        stack.gateway.wait(30)
        wait_for(lambda: not [pid for pid in children if _is_running(pid)], what="the end of the workers")


def _is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_term_lets_open_requests_end(front: str) -> None:
    with GatewayStack(front=front) as stack, ThreadPoolExecutor(4) as pool:
        stack.deploy("m", step_ms=20)
        body = {"model": "m", "messages": MESSAGES, "max_tokens": 60, "stream": True}
        pending = [pool.submit(httpx.post, f"{stack.url}/v1/chat/completions", json=body, timeout=30) for _ in range(4)]
        wait_for(lambda: stack.metric("xinf_replica_in_flight") == 4, what="requests in flight")
        stack.client.close()  # an idle connection must not hold it up, nor must its end
        stack.gateway.send_signal(signal.SIGTERM)
        answers = [future.result(30) for future in pending]
        assert all(answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text for answer in answers)
        assert stack.gateway.wait(30) == 0
        assert "Traceback" not in stack.log()
        assert not list(stack.config.paths.runtime_dir.glob("gw*.sock"))


def test_term_while_workers_start_is_not_lost(front: str) -> None:
    with GatewayStack(front=front, workers=2) as stack:
        for _ in range(5):
            stack.gateway.terminate()
            assert stack.gateway.wait(30) == 0
            stack.start_process()
            wait_for(lambda: len(workers(stack)) == 2, what="workers forked")
        stack.gateway.terminate()
        assert stack.gateway.wait(30) == 0
        assert "Killing worker" not in stack.log()


def test_drain_timeout_ends_what_takes_too_long_with_an_error(front: str) -> None:
    with GatewayStack(front=front, overrides={"gateway.drain_timeout": 0.3}) as stack:
        stack.deploy("m", step_ms=50)
        raw = stack.connect()
        raw.sendall(post("/v1/chat/completions", chat("m", max_tokens=2000, stream=True)))
        head = read_until(raw, b"data: ")
        stack.gateway.send_signal(signal.SIGTERM)
        text = head + read_until(raw, b"[DONE]")
        raw.close()
        assert text.count(b'"error"') == 1
        assert b'"code":"unavailable"' in text
        assert stack.gateway.wait(30) == 0


def test_drain_timeout_answers_who_still_waits_for_a_place(front: str) -> None:
    limits: dict[str, object] = {"gateway.drain_timeout": 0.3, "gateway.max_inflight_per_replica": 1}
    with GatewayStack(front=front, overrides=limits) as stack:
        stack.deploy("m", step_ms=50)
        running, waiting = stack.connect(), stack.connect()
        running.sendall(post("/v1/chat/completions", chat("m", max_tokens=2000, stream=True)))
        read_until(running, b"data: ")
        waiting.sendall(post("/v1/chat/completions", chat("m")))
        wait_for(lambda: stack.metric("xinf_requests_waiting") == 1, what="a waiting request")
        stack.gateway.send_signal(signal.SIGTERM)
        text = read_until(waiting, b'"code":"unavailable"')
        assert b" 503 " in text.splitlines()[0]
        running.close()
        waiting.close()
        assert stack.gateway.wait(30) == 0


def test_tls(front: str, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    asked = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=x -keyout {key} -out {cert}"
    made = subprocess.run(
        [*asked.split(), "-addext", "subjectAltName=IP:127.0.0.1"], capture_output=True, timeout=60, check=False
    )
    assert made.returncode == 0, made.stderr
    with GatewayStack(front=front, overrides={"gateway.tls_cert": str(cert), "gateway.tls_key": str(key)}) as stack:
        context = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(verify=context) as client:
            assert client.get(f"https://127.0.0.1:{stack.port}/healthz").json() == {"status": "ok"}
