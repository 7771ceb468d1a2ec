"""A gateway that stops, or loses a worker, under load: no request is half answered, none that was begun is lost."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from tests.gateway.gateway_stack import GatewayStack, wait_for
from tests.gateway.raw_http import AnswerReader, chat, post, read_all
from xinf.core.ids import KeyId
from xinf.core.records import KeyRecord

CHAT = "/v1/chat/completions"
BODY = chat("m", max_tokens=10, stream=True)


@dataclass
class Tally:
    """What became of a client's requests."""

    whole: int = 0
    refused: int = 0  # not a byte came: the connection was refused, or closed before the request was looked at
    other: list[str] = field(default_factory=list)


def keep_asking(stack: GatewayStack, is_over: Callable[[], bool], tally: Tally) -> Tally:
    """Ask in a closed loop over kept connections, a new one when the server closes one."""
    while not is_over():
        try:
            raw = socket.create_connection(("127.0.0.1", stack.port), timeout=30)
        except ConnectionError:
            tally.refused += 1
            time.sleep(0.01)  # nobody listens; not a wait for anything
            continue
        with raw:
            _ask_on(raw, is_over, tally)
    return tally


def _ask_on(raw: socket.socket, is_over: Callable[[], bool], tally: Tally) -> None:
    while not is_over():
        try:
            raw.sendall(post(CHAT, BODY))
            if not raw.recv(1, socket.MSG_PEEK):
                tally.refused += 1
                return
        except ConnectionError:
            tally.refused += 1
            return
        try:
            answer = AnswerReader(raw).answer()
        except (AssertionError, ConnectionError) as error:
            tally.other.append(str(error))
            return
        if answer.status != 200 or not answer.body.endswith(b"data: [DONE]\n\n") or b'"error"' in answer.body:
            tally.other.append(f"{answer.status} {answer.body[-300:]!r}")
            return
        tally.whole += 1
        if answer.headers.get("connection") == "close":
            return


@pytest.mark.parametrize("workers", [1, 2])
def test_term_under_load_answers_what_it_has_begun(front: str, workers: int) -> None:
    with GatewayStack(front=front, workers=workers) as stack, ThreadPoolExecutor(8) as pool:
        stack.deploy("m", step_ms=5)
        tallies = [Tally() for _ in range(8)]
        pending = [
            pool.submit(keep_asking, stack, lambda: stack.gateway.poll() is not None, tally) for tally in tallies
        ]
        wait_for(lambda: all(tally.whole >= 3 for tally in tallies), what="load")
        assert [tally.refused for tally in tallies] == [0] * 8
        stack.gateway.send_signal(signal.SIGTERM)
        assert stack.gateway.wait(30) == 0
        for future in pending:
            future.result(30)
        assert [tally.other for tally in tallies] == [[]] * 8
        assert "Traceback" not in stack.log()


def test_worker_killed_under_load_is_replaced_and_cuts_only_its_own(front: str) -> None:
    with GatewayStack(front=front, workers=2) as stack, ThreadPoolExecutor(8) as pool:
        stack.deploy("m", step_ms=5)
        is_over = False
        tallies = [Tally() for _ in range(8)]
        pending = [pool.submit(keep_asking, stack, lambda: is_over, tally) for tally in tallies]
        try:
            wait_for(lambda: all(tally.whole >= 3 for tally in tallies), what="load")
            victim = stack.workers()[0].pid
            os.kill(victim, signal.SIGKILL)
            wait_for(
                lambda: victim not in {p.pid for p in stack.workers()} and len(stack.workers()) == 2, what="a new one"
            )
            n_whole = [tally.whole for tally in tallies]
            wait_for(lambda: all(t.whole > n + 3 for t, n in zip(tallies, n_whole, strict=True)), what="answers again")
        finally:
            is_over = True
        for future in pending:
            future.result(30)
        # Each client had one request open, so at most one was cut; a cut one is seen as cut.
        others = [tally.other for tally in tallies]
        assert all(len(other) <= 1 for other in others), others
        assert all("closed in the middle" in text or "reset" in text for other in others for text in other), others


def test_key_is_refused_before_the_body_is_read(front: str) -> None:
    key = "sk-xinf-test"
    record = KeyRecord(id=KeyId("k1"), sha256=hashlib.sha256(key.encode()).hexdigest(), created_s=time.time())
    with GatewayStack(front=front) as stack:
        stack.deploy("m")
        stack.store.call(stack.store.records.create(KeyRecord, "k1", record))
        wait_for(lambda: stack.client.get("/v1/models").status_code == 401, what="the key taking effect")
        for header in ("x-none: 1", "authorization: Bearer sk-wrong", "authorization: Basic abc", "authorization:"):
            raw = stack.connect()
            raw.sendall(post(CHAT, b"", header, length=100_000))  # and not a byte of it
            answer = AnswerReader(raw).answer()
            raw.close()
            assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="xinf"')
        # What was not read must not be taken for the next request.
        raw = stack.connect()
        raw.sendall(post(CHAT, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"))
        raw.sendall(b"GET /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answers = read_all(raw)
        raw.close()
        assert answers.startswith(b"HTTP/1.1 401 ")
        assert b'"status":"ok"' not in answers
        raw = stack.connect()
        raw.sendall(post(CHAT, chat("m", max_tokens=1), f"Authorization: Bearer {key}"))
        assert AnswerReader(raw).answer().status == 200
        raw.close()
