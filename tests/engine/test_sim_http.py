"""A simulated engine on plain HTTP: a real process, raw sockets, httpx and the openai client."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.engine.link_client import CHECKOUT, DEADLINE_S, until
from xinf.engine import sim_connection
from xinf.engine.sim_http import EXIT_BAD_USAGE, EXIT_ENGINE_LOST, EXIT_START_FAILED, EXIT_STOPPED

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


class Sim:
    """One `xinf sim --http` of a test."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def connect(self) -> Raw:
        return Raw(socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S))

    def running(self) -> int:
        """How many requests the engine works on."""
        return int(httpx.get(f"{self.url}/load").json()["server_load"])

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Signal it; gives its exit status and what it said on standard error."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, errors


class Raw:
    """A client that reads answers by their framing and nothing more."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.file = connection.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> tuple[int, dict[str, str], bytes]:
        """Read one answer: status, headers, body."""
        status = int(self.file.readline().split()[1])
        headers: dict[str, str] = {}
        while (line := self.file.readline().decode().strip()) != "":
            name, _, value = line.partition(": ")
            headers[name] = value
        if headers.get("transfer-encoding") == "chunked":
            return status, headers, b"".join(self.chunks())
        if "content-length" not in headers:
            return status, headers, self.file.read()
        return status, headers, self.file.read(int(headers["content-length"]))

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.file.readline(), 16):
            yield self.file.read(size)
            assert self.file.read(2) == b"\r\n"
        assert self.file.readline() == b"\r\n"

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def post(path: str, body: Any, *, version: str = "1.1", extra: bytes = b"") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/{version}\r\nhost: x\r\ncontent-length: {len(data)}\r\n".encode()
    return head + extra + b"\r\n" + data


def prompt(text: str = "hello", max_tokens: int = 3, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": text, "max_tokens": max_tokens, **fields}


Start = Callable[..., Sim]


@contextlib.contextmanager
def running_sim(**engine_args: Any) -> Iterator[Sim]:
    arguments = [word for key, value in engine_args.items() for word in ("--engine-arg", f"{key}={value}")]
    process = subprocess.Popen(
        [sys.executable, "-m", "xinf.cli", "sim", "--http", "--port", "0", "--model", "m", *arguments],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        found = re.fullmatch(r"ready: http://127\.0\.0\.1:(\d+)\n", ready)
        assert found is not None, (ready, process.communicate(timeout=DEADLINE_S))
        yield Sim(process, int(found[1]))
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def sim() -> Iterator[Sim]:
    """One engine for the tests that do it no harm."""
    with running_sim(step_ms=1) as started:
        yield started


@pytest.fixture
def raw(sim: Sim) -> Iterator[Raw]:
    connection = sim.connect()
    yield connection
    connection.close()


def test_openai_client_gets_whole_and_streamed_answers(sim: Sim) -> None:
    with openai.OpenAI(base_url=f"{sim.url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["m"]
        messages: Any = [{"role": "user", "content": "hello"}]
        whole = client.chat.completions.create(model="m", messages=messages, max_tokens=20)
        stream = client.chat.completions.create(model="m", messages=messages, max_tokens=20, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == whole.choices[0].message.content
        assert len(text) == 80
        with pytest.raises(openai.NotFoundError, match="no model 'other'"):
            client.chat.completions.create(model="other", messages=messages)


def test_connection_is_kept_and_pipelined_requests_are_answered_in_order(raw: Raw) -> None:
    lengths = [5, 1, 9, 2]
    streams = [False, True, False, True]
    raw.send(
        b"".join(
            post(COMPLETIONS, prompt(max_tokens=n, stream=stream)) for n, stream in zip(lengths, streams, strict=True)
        )
        + b"GET /health HTTP/1.1\r\n\r\n"
    )
    for n_tokens, is_stream in zip(lengths, streams, strict=True):
        status, headers, body = raw.read()
        assert status == 200
        if is_stream:
            assert body.count(b"data: ") == n_tokens + 1
            assert body.endswith(b"data: [DONE]\n\n")
        else:
            assert headers["content-type"] == "application/json"
            assert json.loads(body)["usage"]["completion_tokens"] == n_tokens
    assert raw.read() == (200, {"content-length": "0"}, b"")


def test_more_pipelined_requests_than_are_read_ahead_are_all_answered(raw: Raw) -> None:
    n_requests = 4 * sim_connection.PIPELINED_REQUESTS
    request = post(COMPLETIONS, prompt("x" * 8000, max_tokens=2))
    sender = threading.Thread(target=raw.send, args=(request * n_requests,))
    sender.start()
    assert [raw.read()[0] for _ in range(n_requests)] == [200] * n_requests
    sender.join()


def test_request_may_come_in_any_pieces(raw: Raw) -> None:
    data = post(COMPLETIONS, prompt("pieces" * 50))
    raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(0, len(data), 7):
        raw.send(data[at : at + 7])
    assert raw.read()[0] == 200
    raw.send(b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
    body = json.dumps(prompt()).encode()
    for at in range(0, len(body), 11):
        raw.send(b"%x\r\n%b\r\n" % (len(body[at : at + 11]), body[at : at + 11]))
    raw.send(b"0\r\n\r\n")
    assert raw.read()[0] == 200


def test_expect_is_answered_before_the_body(raw: Raw) -> None:
    request = post(COMPLETIONS, prompt(), extra=b"Expect: 100-continue\r\n")
    head, _, body = request.partition(b"\r\n\r\n")
    raw.send(head + b"\r\n\r\n")
    assert [raw.file.readline() for _ in range(2)] == [b"HTTP/1.1 100 Continue\r\n", b"\r\n"]
    raw.send(body)
    assert raw.read()[0] == 200


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("version", "extra"), [("1.1", b"connection: close\r\n"), ("1.0", b"")])
def test_last_request_of_a_connection_ends_it(raw: Raw, version: str, extra: bytes, is_stream: bool) -> None:
    raw.send(post(COMPLETIONS, prompt(stream=is_stream), version=version, extra=extra))
    status, headers, body = raw.read()
    assert (status, headers["connection"]) == (200, "close")
    assert body.endswith(b"[DONE]\n\n" if is_stream else b"}")
    assert raw.file.read() == b""


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * (16 * sim_connection.HEAD_BYTES), 431),
    ],
)
def test_bad_http_is_answered_and_ends_the_connection(raw: Raw, data: bytes, status: int) -> None:
    raw.send(post(COMPLETIONS, prompt(max_tokens=2)))
    raw.send(data)
    assert raw.read()[0] == 200
    answered, headers, body = raw.read()
    assert (answered, headers["connection"]) == (status, "close")
    assert json.loads(body)["error"]["code"] == "invalid_request"
    raw.socket.shutdown(socket.SHUT_WR)
    assert raw.file.read() == b""


def test_too_large_body_is_refused_while_it_comes(raw: Raw) -> None:
    size = sim_connection.BODY_BYTES + 1
    raw.send(b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (2 * size))
    raw.send(bytes(size))
    status, _, body = raw.read()
    assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("request_data", "status"),
    [
        (post(CHAT, b"{"), 400),
        (post("/nowhere", b"{}"), 404),
        (b"GET /v1/chat/completions HTTP/1.1\r\n\r\n", 400),
        (b"PUT /health HTTP/1.1\r\ncontent-length: 0\r\n\r\n", 404),
    ],
)
def test_what_the_engine_refuses_leaves_the_connection_open(raw: Raw, request_data: bytes, status: int) -> None:
    raw.send(request_data)
    answered, headers, body = raw.read()
    assert (answered, headers["content-type"]) == (status, "application/json")
    assert json.loads(body)["error"]["message"]
    raw.send(b"GET /health HTTP/1.1\r\n\r\n")
    assert raw.read()[0] == 200


def test_head_has_no_body(raw: Raw) -> None:
    raw.send(b"HEAD /version HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\n\r\n")
    assert raw.file.readline() == b"HTTP/1.1 200 OK\r\n"
    head = b"".join(iter(raw.file.readline, b"\r\n"))
    assert int(re.findall(rb"content-length: (\d+)", head)[0]) > 0
    assert raw.read()[0] == 200


def test_routers_learn_what_they_ask(sim: Sim) -> None:
    def get(path: str) -> Any:
        return httpx.get(f"{sim.url}{path}").raise_for_status()

    for path in ("/health", "/health_generate", "/ping"):
        assert get(path).content == b""
    for path in ("/get_model_info", "/model_info"):
        assert (get(path).json()["model_path"], get(path).json()["is_generation"]) == ("m", True)
    for path in ("/get_server_info", "/server_info"):
        info = get(path).json()
        assert (info["served_model_name"], info["dp_size"], info["max_total_num_tokens"]) == ("m", 1, 8192 * 16)
    assert get("/version").json()["version"]
    assert get("/get_load").json() == [{"dp_rank": 0, "num_reqs": 0, "num_waiting_reqs": 0, "num_tokens": 0}]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_client_that_leaves_cancels_its_request(sim: Sim, is_stream: bool) -> None:
    raw = sim.connect()
    raw.send(post(COMPLETIONS, prompt(max_tokens=30_000, stream=is_stream)))
    await until(lambda: sim.running() == 1, "the request")
    raw.close()
    await until(lambda: sim.running() == 0, "the end of the request")


def test_chunks_leave_as_they_are_made() -> None:
    with running_sim(step_ms=200) as sim:
        raw = sim.connect()
        raw.send(post(COMPLETIONS, prompt(max_tokens=4, stream=True)))
        while raw.file.readline() != b"\r\n":
            pass
        assert b"data: " in next(raw.chunks())
        assert sim.running() == 1  # while the rest of the answer is still to come
        raw.close()


def test_many_streams_at_once_are_each_complete(sim: Sim) -> None:
    def stream(number: int) -> str:
        body = prompt(f"prompt {number}", max_tokens=30, stream=True)
        lines = httpx.post(sim.url + COMPLETIONS, json=body, timeout=DEADLINE_S).text.split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-2])

    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(stream, range(48)))
    assert {len(text) for text in texts} == {120}
    assert len(set(texts)) == 48


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_it_cleanly(number: signal.Signals) -> None:
    with running_sim(step_ms=10) as sim:
        raw = sim.connect()
        raw.send(post(COMPLETIONS, prompt(max_tokens=1000, stream=True)))
        await until(lambda: sim.running() == 1, "the request")
        assert sim.end(number) == (EXIT_STOPPED, "")
        raw.close()


def test_engine_that_dies_says_so_and_ends_the_process() -> None:
    with running_sim(die_after_tokens=5) as sim:
        answer = httpx.post(sim.url + COMPLETIONS, json=prompt(max_tokens=100))
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_died")
        assert sim.process.wait(DEADLINE_S) == EXIT_ENGINE_LOST


def test_stream_of_an_engine_that_dies_is_cut() -> None:
    with running_sim(die_after_tokens=5) as sim:
        raw = sim.connect()
        raw.send(post(COMPLETIONS, prompt(max_tokens=100, stream=True)))
        with pytest.raises((ConnectionResetError, ValueError)):  # no last chunk
            raw.read()
        raw.close()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--engine-arg", "step_mss=1"], EXIT_START_FAILED, "did you mean step_ms?"),
        (["--engine-arg", "step_ms"], EXIT_START_FAILED, "KEY=VALUE"),
        (["--host", "192.0.2.1"], EXIT_START_FAILED, "cannot listen on 192.0.2.1:0"),
    ],
)
def test_wrong_start_is_a_sentence(arguments: list[str], status: int, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xinf.cli", "sim", "--port", "0", *arguments],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_modules_of_the_working_directory_are_not_ours(tmp_path: Path) -> None:
    for name in ("queue", "msgspec"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user was imported')\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "xinf.cli", "sim", "--port", "0", "--engine-arg", "step_mss=1"],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, "did you mean step_ms?" in done.stderr) == (EXIT_START_FAILED, True), done.stderr


def test_module_says_how_it_is_used() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xinf.engine.sim_http", "127.0.0.1"],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == EXIT_BAD_USAGE
    assert done.stderr.startswith("usage: ")
