"""Crowds: thousands of slow, idle, short-lived and malformed connections cost a bounded memory and harm nobody.

Asserted are bounds of memory, and that every well-behaved request is answered; times are for benchmarks/soak_*.py.
"""

from __future__ import annotations

import random
import resource
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.gateway.fronts.scripted_replica import ScriptedReplica
from tests.gateway.gateway_stack import GatewayStack, wait_for
from tests.gateway.raw_http import AnswerReader, chat, post, read_all, read_until, reset, scripted_chat

CHAT = "/v1/chat/completions"
N_SLOW = 1000
N_IDLE = 2000
N_FLOOD = 5000
BUFFER_BYTES = 8192


@pytest.fixture(scope="module")
def crowd(front: str) -> Iterator[GatewayStack]:
    """A gateway with one worker and small buffers, and files enough for both sides of its connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 12_000), hard))
    limits: dict[str, object] = {
        "gateway.stream_buffer_bytes": BUFFER_BYTES,
        "gateway.request_read_timeout": 2.0,
        "gateway.max_inflight_per_replica": 4096,
    }
    try:
        with GatewayStack(front=front, overrides=limits) as made:
            made.deploy("m")
            yield made
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def engine(crowd: GatewayStack) -> Iterator[ScriptedReplica]:
    replica = ScriptedReplica(crowd.dir / "scripted.sock")
    crowd.store.call(replica.start())
    crowd.publish("scripted", replica.address)
    yield replica
    crowd.store.call(replica.stop())


class WellBehaved:
    """A client in a closed loop on one connection, until it is told to stop."""

    def __init__(self, stack: GatewayStack, pool: ThreadPoolExecutor) -> None:
        self._raw = stack.connect()
        self._is_over = False
        self._answers: Future[list[tuple[int, bytes]]] = pool.submit(self._run)

    def _run(self) -> list[tuple[int, bytes]]:
        reader = AnswerReader(self._raw)
        answers = []
        while not self._is_over:
            self._raw.sendall(post(CHAT, chat("m", max_tokens=8, stream=True)))
            answer = reader.answer()
            answers.append((answer.status, answer.body[-14:]))
        return answers

    def stop(self) -> list[tuple[int, bytes]]:
        self._is_over = True
        answers = self._answers.result(60)
        self._raw.close()
        return answers


@pytest.fixture
def others(crowd: GatewayStack) -> Iterator[None]:
    """Two well-behaved clients beside the test: each of their answers is whole. Then nothing is left open."""
    workers = {process.pid for process in crowd.workers()}
    with ThreadPoolExecutor(2) as pool:
        clients = [WellBehaved(crowd, pool) for _ in range(2)]
        try:
            yield
        finally:
            answers = [answer for client in clients for answer in client.stop()]
    assert len(answers) > 10
    assert set(answers) == {(200, b"data: [DONE]\n\n")}
    assert {process.pid for process in crowd.workers()} == workers
    wait_for(lambda: crowd.metric("xinf_requests_in_flight") == 0, what="nothing in flight")
    assert "Traceback" not in crowd.log()


# ---- what follows runs from small to large, because memory that a crowd needed once is given back slowly ---------


def files(stack: GatewayStack) -> int:
    return sum(process.num_fds() for process in stack.workers())


def _rubbish(chance: random.Random, good: bytes) -> bytes:
    data = bytearray(good)
    for _ in range(chance.randrange(1, 8)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def _one_of_each(stack: GatewayStack, chance: random.Random) -> None:
    """One client of each bad kind that is quick to play."""
    good = post(CHAT, chat("m", max_tokens=4, stream=True))
    whole = [
        _rubbish(chance, good),
        _rubbish(chance, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"),
        post(CHAT, b"[" * 2000),
        post(CHAT, b'{"model": "' + b"\xff" * 200),
        post(CHAT, chat(f"nobody-{chance.random()}")),
        post(f"/{chance.random()}", b"{}"),
        post(CHAT, b"", length=1 << 40),
        b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 20_000 + b"\r\n\r\n",
    ]
    for data in whole:
        raw = socket.create_connection(("127.0.0.1", stack.port), timeout=30)
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        read_all(raw)
        raw.close()
    raw = socket.create_connection(("127.0.0.1", stack.port), timeout=30)
    raw.sendall(post(CHAT, chat("m", max_tokens=400, stream=True)))
    read_until(raw, b"data: ")
    reset(raw)


@pytest.mark.usefixtures("others")
def test_memory_is_flat_over_a_run_of_bad_requests(crowd: GatewayStack) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    n_files = files(crowd)
    sizes = []
    for _ in range(4):
        for _ in range(60):
            _one_of_each(crowd, chance)
        sizes.append(crowd.worker_bytes())
    print("garbage, MiB:", [round(size / 2**20, 1) for size in sizes])
    # The first round warms caches and pools up; the other three are 1,600 requests.
    assert sizes[-1] - sizes[0] < 4 << 20
    wait_for(lambda: files(crowd) <= n_files + 10, what="every connection forgotten")


@pytest.mark.usefixtures("others")
def test_thousands_of_idle_connections_keep_nobody_out(crowd: GatewayStack) -> None:
    before, n_files = crowd.worker_bytes(), files(crowd)
    idle = [crowd.connect() for _ in range(N_IDLE)]
    for raw in idle[::4]:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")  # and never the rest
    for raw in idle[1::4]:
        raw.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    for raw in idle[1::4]:
        assert AnswerReader(raw).answer().status == 200
    wait_for(lambda: files(crowd) >= n_files + N_IDLE, what="every connection accepted")
    per_connection = (crowd.worker_bytes() - before) / N_IDLE
    print(f"idle: {per_connection / 1024:.1f} KiB a connection")
    assert per_connection < 32 * 1024
    idle[4].sendall(b"\r\n")
    idle[5].sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    assert AnswerReader(idle[5]).answer().status == 200
    for raw in idle:
        raw.close()
    wait_for(lambda: files(crowd) <= n_files + 10, what="every connection forgotten")


@pytest.mark.usefixtures("others")
def test_flood_of_connections_leaves_nothing(crowd: GatewayStack) -> None:
    n_files = files(crowd)
    sizes = []
    for _ in range(2):
        for n in range(N_FLOOD // 2):
            with socket.create_connection(("127.0.0.1", crowd.port), timeout=30) as raw:
                if n % 3 == 0:
                    raw.sendall(b"GET /healthz HTTP/1.1\r\n")
                elif n % 3 == 1:
                    reset(raw)
        wait_for(lambda: files(crowd) <= n_files + 10, what="every connection forgotten")
        sizes.append(crowd.worker_bytes())
    print(f"flood: {(sizes[1] - sizes[0]) / 2**20:.1f} MiB")
    assert sizes[1] - sizes[0] < 4 << 20


@pytest.mark.usefixtures("others")
def test_a_thousand_slow_senders_and_a_thousand_slow_readers_at_once(
    crowd: GatewayStack, engine: ScriptedReplica
) -> None:
    n_each = 4 << 20  # a gateway that buffers without bound would hold 4 GiB
    before = crowd.worker_bytes()
    senders = [crowd.connect() for _ in range(N_SLOW)]
    readers = [crowd.connect(receive_buffer_bytes=4096, segment_bytes=536) for _ in range(N_SLOW)]
    for raw in senders:
        raw.sendall(post(CHAT, b'{"model": "m", ', length=5000))
    for raw in readers:
        raw.sendall(post(CHAT, scripted_chat(f"drip {n_each}")))
    most = 0

    def are_cancelled() -> bool:
        nonlocal most
        most = max(most, crowd.worker_bytes())
        return len(engine.submits) >= N_SLOW and engine.n_open == 0

    wait_for(are_cancelled, what="every slow reader cancelled at the engine")
    assert [AnswerReader(raw).answer().status for raw in senders] == [408] * N_SLOW
    print(f"senders and readers: {(most - before) / 2**20:.0f} MiB at most")
    # What may wait for a reader are 8 buffers; Granian holds some pieces more, and hyper its buffer of 128 KiB.
    assert most - before < N_SLOW * 384 * 1024
    for raw in (*senders, *readers):
        raw.close()
