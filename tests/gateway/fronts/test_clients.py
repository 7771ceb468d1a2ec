"""Clients that vanish at every point of a request, send slowly or do not read: the engine hears it, others do not."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.gateway.fronts.scripted_replica import PIECE, ScriptedReplica
from tests.gateway.gateway_stack import GatewayStack, wait_for
from tests.gateway.raw_http import AnswerReader, chat, post, read_all, read_until, reset, scripted_chat

pytestmark = pytest.mark.usefixtures("unharmed")

CHAT = "/v1/chat/completions"
LEAVE: dict[str, Callable[[socket.socket], None]] = {"closed": socket.socket.close, "reset": reset}


@pytest.fixture(params=list(LEAVE))
def leave(request: pytest.FixtureRequest) -> Callable[[socket.socket], None]:
    return LEAVE[request.param]


Leave = Callable[[socket.socket], None]


# ---- vanishing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_vanishing_within_the_headers(stack: GatewayStack, leave: Leave, share: float) -> None:
    request = post(CHAT, b"", length=10)
    raw = stack.connect()
    raw.sendall(request[: int(len(request) * share)])
    leave(raw)


@pytest.mark.parametrize("n_sent", [0, 1, 50, 200_000])
def test_vanishing_within_the_body(stack: GatewayStack, leave: Leave, n_sent: int) -> None:
    raw = stack.connect()
    raw.sendall(post(CHAT, chat("m", filler="x" * 300_000)[:n_sent], length=300_100))
    leave(raw)


def test_vanishing_within_a_chunked_body(stack: GatewayStack, leave: Leave) -> None:
    raw = stack.connect()
    raw.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{{".encode())
    leave(raw)


def test_vanishing_from_the_waiting_room(stack: GatewayStack, leave: Leave) -> None:
    if not stack.has("nobody"):
        stack.deploy("nobody", replicas=0)
    raw = stack.connect()
    raw.sendall(post(CHAT, chat("nobody")))
    wait_for(lambda: stack.metric("xinf_requests_waiting", model="nobody") == 1, what="a waiting request")
    before = stack.metric("xinf_requests_total", model="nobody", code="499")
    leave(raw)
    wait_for(lambda: stack.metric("xinf_requests_waiting", model="nobody") == 0, what="an empty room")
    wait_for(lambda: stack.metric("xinf_requests_total", model="nobody", code="499") == before + 1, what="a 499")


@pytest.mark.parametrize("is_stream", [False, True])
def test_vanishing_before_the_first_byte(
    stack: GatewayStack, scripted: ScriptedReplica, leave: Leave, is_stream: bool
) -> None:
    raw = stack.connect()
    raw.sendall(post(CHAT, scripted_chat("hang", stream=is_stream)))
    wait_for(lambda: scripted.n_open == 1, what="the request at the engine")
    leave(raw)
    wait_for(lambda: scripted.n_open == 0, what="the cancel at the engine")


def test_vanishing_at_once_after_the_request(stack: GatewayStack, scripted: ScriptedReplica, leave: Leave) -> None:
    n_before = len(scripted.submits)
    for _ in range(20):
        raw = stack.connect()
        raw.sendall(post(CHAT, scripted_chat("hang")))
        leave(raw)
    # Those that the gateway has read reach the engine and are cancelled there (see `unharmed`); others never come.
    wait_for(lambda: scripted.n_open == 0, what="the cancels at the engine")
    assert len(scripted.submits) - n_before <= 20


def test_vanishing_in_mid_stream(stack: GatewayStack, scripted: ScriptedReplica, leave: Leave) -> None:
    raw = stack.connect()
    raw.sendall(post(CHAT, scripted_chat("open")))
    read_until(raw, b'{"n":0}')
    leave(raw)
    wait_for(lambda: scripted.n_open == 0, what="the cancel at the engine")


def test_vanishing_in_mid_flood(stack: GatewayStack, scripted: ScriptedReplica, leave: Leave) -> None:
    raw = stack.connect(receive_buffer_bytes=4096)
    raw.sendall(post(CHAT, scripted_chat(f"flood {4 << 20}")))
    read_until(raw, b"data: ")
    leave(raw)
    wait_for(lambda: stack.metric("xinf_requests_in_flight", model="scripted") == 0, what="the end of the request")


def test_vanishing_after_the_last_byte(stack: GatewayStack, leave: Leave) -> None:
    before = stack.metric("xinf_requests_total", model="m", code="2xx")
    for is_stream in (False, True):
        raw = stack.connect()
        raw.sendall(post(CHAT, chat("m", max_tokens=2, stream=is_stream)))
        assert AnswerReader(raw).answer().status == 200
        leave(raw)
    wait_for(lambda: stack.metric("xinf_requests_total", model="m", code="2xx") == before + 2, what="both counted")


def test_vanishing_behind_pipelined_requests(stack: GatewayStack, leave: Leave) -> None:
    # A server that has unread requests in its buffer need not read on, so it may see the end only when it writes.
    endless = post(CHAT, chat("m", max_tokens=20_000, stream=True))
    raw = stack.connect()
    raw.sendall(endless * 5)
    read_until(raw, b"data: ")
    leave(raw)
    wait_for(lambda: stack.metric("xinf_requests_in_flight", model="m") == 0, what="nothing in flight")


def test_vanishing_at_random_points(stack: GatewayStack) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    request = post(CHAT, chat("m", max_tokens=200, stream=True))
    for _ in range(60):
        raw = stack.connect()
        raw.sendall(request[: chance.randrange(len(request) + 1)])
        if chance.random() < 0.3:
            raw.settimeout(chance.uniform(0.001, 0.05))
            try:
                raw.recv(chance.randrange(1, 4000))
            except TimeoutError:
                pass
        chance.choice([reset, socket.socket.close])(raw)


# ---- dawdling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b'{"model":'])
def test_slow_sender_of_a_body_is_told_408(stack: GatewayStack, body: bytes) -> None:
    raw = stack.connect()
    raw.sendall(post(CHAT, body, length=1000))
    reader = AnswerReader(raw)
    answer = reader.answer()
    assert (answer.status, answer.json["error"]["code"]) == (408, "request_timeout")
    assert reader.is_closed()
    raw.close()


def test_slow_senders_are_all_closed_at_once(stack: GatewayStack) -> None:
    # A server closes when nothing reads the body any more; an error that keeps its frames alive holds it open.
    senders = [stack.connect() for _ in range(30)]
    for raw in senders:
        raw.sendall(post(CHAT, b'{"model":', length=1000))
    readers = [AnswerReader(raw) for raw in senders]
    assert {reader.answer().status for reader in readers} == {408}
    for raw in senders:
        raw.settimeout(5.0)
    assert all(reader.is_closed() for reader in readers)
    for raw in senders:
        raw.close()


def test_sender_that_drips_is_told_408_all_the_same(stack: GatewayStack) -> None:
    raw = stack.connect()
    raw.sendall(post(CHAT, b"", length=100_000))
    raw.settimeout(0.05)
    data = b""
    for _ in range(400):  # up to 20 s, at a limit of 1
        try:
            raw.sendall(b" ")
            data = raw.recv(4096)
            break
        except TimeoutError:
            continue
    raw.close()
    assert data.startswith(b"HTTP/1.1 408 ")


def test_client_that_does_not_read_is_cancelled_and_costs_a_bounded_memory(
    stack: GatewayStack, scripted: ScriptedReplica
) -> None:
    counted = stack.metric("xinf_slow_readers_total", model="scripted")
    n_cancels = len(scripted.cancels)
    before = stack.worker_bytes()
    raw = stack.connect(receive_buffer_bytes=4096)
    # The stream has no end of its own: only a cancel ends it at the engine.
    raw.sendall(post(CHAT, scripted_chat(f"drip {96 << 20}"), "connection: close"))
    wait_for(lambda: len(scripted.cancels) == n_cancels + 1, what="the cancel at the engine")
    most = 0
    while scripted.n_queued:
        most = max(most, stack.worker_bytes())
    assert most < before + (24 << 20)
    data = read_all(raw)
    raw.close()
    wait_for(lambda: stack.metric("xinf_slow_readers_total", model="scripted") == counted + 1, what="the count")
    assert b"request_timeout" in data
    # What kernel, server and relay held.
    assert len(data) < 12 << 20
    assert data.rstrip().endswith(b"data: [DONE]\n\n\r\n0")


def test_others_get_their_answers_beside_a_client_that_does_not_read(
    stack: GatewayStack, scripted: ScriptedReplica
) -> None:
    stuck = [stack.connect(receive_buffer_bytes=4096) for _ in range(5)]
    for raw in stuck:
        raw.sendall(post(CHAT, scripted_chat(f"flood {8 << 20}")))

    def one(_: int) -> bytes:
        raw = stack.connect()
        raw.sendall(post(CHAT, scripted_chat("events 100")))
        body = AnswerReader(raw).answer().body
        raw.close()
        return body

    with ThreadPoolExecutor(4) as pool:
        bodies = list(pool.map(one, range(20)))
    assert set(bodies) == {b"".join(b'data: {"n":%d}\n\n' % n for n in range(100)) + b"data: [DONE]\n\n"}
    for raw in stuck:
        raw.close()


def test_reader_that_pauses_below_its_buffer_gets_everything(stack: GatewayStack, scripted: ScriptedReplica) -> None:
    n_pieces = 3  # 48 KiB, the buffer is 64 KiB
    raw = stack.connect(receive_buffer_bytes=4096)
    raw.sendall(post(CHAT, scripted_chat(f"flood {n_pieces * len(PIECE)}"), "connection: close"))
    stack.client.get("/healthz")
    wait_for(lambda: len(raw.recv(1, socket.MSG_PEEK)) == 1, what="the answer's first byte")
    assert AnswerReader(raw).answer().body == PIECE * n_pieces + b"data: [DONE]\n\n"
    raw.close()
