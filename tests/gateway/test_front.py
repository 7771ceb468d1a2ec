"""The master and its workers: sums over them, replacement, draining, TLS."""

from __future__ import annotations

import os
import resource
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.children import living_children
from tests.gateway.gateway_stack import GatewayStack, wait_for
from tests.gateway.raw_http import chat, post, read_until

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def stack() -> Iterator[GatewayStack]:
    with GatewayStack(workers=2) as made:
        made.deploy("m", step_ms=5)
        yield made


def workers(stack: GatewayStack) -> set[int]:
    return {child.pid for child in living_children(stack.gateway.pid)}


def ask(stack: GatewayStack) -> httpx.Response:
    """One request on a connection of its own, so that either worker may get it."""
    body = {"model": "m", "messages": MESSAGES, "max_tokens": 1}
    return httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=30)


def test_master_imports_neither_grpc_nor_the_application() -> None:
    code = (
        "import sys, xinf.gateway, xinf.gateway.front, xinf.gateway.__main__;"
        "heavy = ('grpc', 'xinf.gateway.app', 'xinf.gateway.link', 'lmdb', 'xinf.router');"
        "print(*[m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_one_scraped_worker_sums_all(stack: GatewayStack) -> None:
    before = stack.metric("xinf_requests_total", model="m")
    ids = {ask(stack).headers["x-request-id"].split("-")[1] for _ in range(30)}
    assert ids == {"0", "1"}  # both served, and a request id says which
    for _ in range(6):
        with httpx.Client(base_url=stack.url) as fresh:
            stack_client, stack.client = stack.client, fresh
            try:
                assert stack.metric("xinf_requests_total", model="m") == before + 30
            finally:
                stack.client = stack_client
    assert stack.metric("xinf_store_read") == 2


def test_dead_workers_are_replaced_again_and_again(stack: GatewayStack) -> None:
    # Granian's own rule ends the server when two die within seconds.
    for _ in range(3):
        before = workers(stack)
        assert len(before) == 2
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda gone=victim: gone not in workers(stack) and len(workers(stack)) == 2, what="a new worker")
    wait_for(lambda: _metric_or_zero(stack, "xinf_link_up") == 2, what="links of both workers")
    assert all(ask(stack).status_code == 200 for _ in range(10))


def _metric_or_zero(stack: GatewayStack, name: str) -> float:
    """A worker that was killed takes its kept-alive connections with it."""
    try:
        return stack.metric(name)
    except httpx.TransportError:
        return 0.0


def test_killed_master_takes_its_workers_along() -> None:
    with GatewayStack(workers=2) as stack:
        children = workers(stack)
        stack.gateway.kill()
        stack.gateway.wait(10)
        wait_for(lambda: not [pid for pid in children if _is_running(pid)], what="the end of the workers")


def _is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_term_lets_open_requests_end() -> None:
    with GatewayStack() as stack, ThreadPoolExecutor(4) as pool:
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


def test_term_while_workers_start_is_not_lost() -> None:
    with GatewayStack(workers=2) as stack:
        for _ in range(5):
            stack.gateway.terminate()
            assert stack.gateway.wait(30) == 0
            stack.start_process()
            wait_for(lambda: len(workers(stack)) == 2, what="workers forked")
        stack.gateway.terminate()
        assert stack.gateway.wait(30) == 0
        assert "Killing worker" not in stack.log()


def test_drain_timeout_ends_what_takes_too_long_with_an_error() -> None:
    with GatewayStack(overrides={"gateway.drain_timeout": 0.3}) as stack:
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


def test_thousands_of_idle_connections_do_not_keep_others_out() -> None:
    n_idle = 3000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, n_idle + 2000), hard))
    try:
        with GatewayStack() as stack:
            stack.deploy("m")
            idle = [stack.connect() for _ in range(n_idle)]
            for raw in idle[::10]:
                raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")  # and never the rest
            assert all(ask(stack).status_code == 200 for _ in range(20))
            idle[5].sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"200 OK" in idle[5].recv(4096)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_tls(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    asked = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=x -keyout {key} -out {cert}"
    made = subprocess.run(
        [*asked.split(), "-addext", "subjectAltName=IP:127.0.0.1"], capture_output=True, timeout=60, check=False
    )
    assert made.returncode == 0, made.stderr
    with GatewayStack(overrides={"gateway.tls_cert": str(cert), "gateway.tls_key": str(key)}) as stack:
        context = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(verify=context) as client:
            assert client.get(f"https://127.0.0.1:{stack.port}/healthz").json() == {"status": "ok"}
