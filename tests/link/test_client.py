"""The stream against gRPC's own server (messages, flow control, endings) and a scripted one (everything else)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import hpack
import pytest
import uvloop

from tests.engine.link_client import RunningShim, running_shim, shim_spec, until
from tests.link.h2_server import (
    PATH,
    ScriptedServer,
    begin,
    data,
    echo,
    frame,
    grpc_server,
    headers,
    message,
    scripted_server,
)
from xinf._fast.frame import decode_engine_frame
from xinf._fast.framewriter import GatewayFrameWriter, encode_head
from xinf._pb import engine_service_pb2 as pb
from xinf.core.records import Phase
from xinf.link import h2frames as h2
from xinf.link.client import PACE_S, ClientStream, open_stream
from xinf.link.h2stream import MAX_FRAME_BYTES, WINDOW_BYTES


class Owner:
    """A listener that writes what `send` was given and keeps what came."""

    def __init__(self) -> None:
        self.outgoing: list[bytes] = []
        self.messages: list[bytes] = []
        self.lost: list[str] = []
        self.n_taken = 0
        self.stream: ClientStream

    def is_worthwhile(self) -> bool:
        return True

    def take(self) -> bytes:
        if not self.outgoing:
            return b""
        self.n_taken += 1
        if len(self.outgoing) > 1:
            self.stream.wake()
        return self.outgoing.pop(0)

    def on_message(self, data: bytes) -> None:
        self.messages.append(data)

    def on_lost(self, reason: str) -> None:
        self.lost.append(reason)

    def send(self, *messages: bytes) -> None:
        self.outgoing += messages
        self.stream.wake()

    async def open(self, target: str, path: str = PATH, **limits: int) -> None:
        self.stream = await open_stream(target, path, self, **limits)

    async def wait_messages(self, count: int) -> list[bytes]:
        await until(lambda: len(self.messages) >= count or self.lost, f"message {count}")
        assert not self.lost, self.lost
        return self.messages

    async def wait_lost(self) -> str:
        await until(lambda: self.lost, "the loss of the stream")
        assert len(self.lost) == 1
        return self.lost[0]


@pytest.fixture
async def owner() -> AsyncIterator[Owner]:
    owner = Owner()
    yield owner
    if hasattr(owner, "stream"):
        owner.stream.close()


@pytest.fixture
async def script(short_dir: Path) -> AsyncIterator[ScriptedServer]:
    async with scripted_server(short_dir) as server:
        yield server


# ---- with gRPC's own server ----------------------------------------------------------------------------------------


async def test_messages_come_back_in_order_and_whole(short_dir: Path, owner: Owner) -> None:
    rng = random.Random(7)
    sent = [rng.randbytes(rng.choice([1, 20, 16_378, 16_379, 16_380, 65_530, 65_531, 300_000])) for _ in range(60)]
    async with grpc_server(short_dir, echo) as (_, target):
        await owner.open(target)
        owner.send(*sent)
        assert await owner.wait_messages(len(sent)) == sent


async def test_tcp_works_as_well(owner: Owner) -> None:
    async with grpc_server(None, echo) as (_, target):
        await owner.open(target)
        owner.send(bytes(100_000))
        assert await owner.wait_messages(1) == [bytes(100_000)]


async def test_messages_larger_than_every_window_go_both_ways(short_dir: Path, owner: Owner) -> None:
    sent = [os.urandom(39 << 20), b"after it"]
    async with grpc_server(short_dir, echo) as (_, target):
        await owner.open(target)
        owner.send(*sent)
        assert await owner.wait_messages(2) == sent


async def test_a_message_over_the_limit_ends_the_stream(short_dir: Path, owner: Owner) -> None:
    async with grpc_server(short_dir, echo) as (_, target):
        await owner.open(target, max_message_bytes=1000)
        owner.send(bytes(1000), bytes(1001))
        reason = await owner.wait_lost()
    assert reason == "resource_exhausted: a message of 1001 bytes came, at most 1000 are taken"
    assert owner.messages == [bytes(1000)]


async def test_an_engine_that_does_not_read_stops_the_writing(short_dir: Path, owner: Owner) -> None:
    may_read = asyncio.Event()

    async def slow(context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.write(b"here")
        await may_read.wait()
        await echo(context)

    async with grpc_server(short_dir, slow) as (_, target):
        await owner.open(target)
        await owner.wait_messages(1)
        sent = [bytes([n]) * (4 << 20) for n in range(20)]
        owner.send(*sent)
        await until(lambda: owner.stream._unsent is not None, "a full window")
        n_taken = owner.n_taken
        assert n_taken < 20
        for _ in range(50):
            owner.stream.wake()
            await asyncio.sleep(0)
        assert owner.n_taken == n_taken
        may_read.set()
        assert (await owner.wait_messages(21))[1:] == sent


async def test_an_engine_may_send_more_than_the_window_while_nobody_reads(short_dir: Path, owner: Owner) -> None:
    """Our loop is busy meanwhile; what came is renewed afterwards, nothing is lost."""
    count = 3 * WINDOW_BYTES // (1 << 20)

    async def flood(context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        for n in range(count):
            await context.write(n.to_bytes(4, "big") + bytes(1 << 20))

    async with grpc_server(short_dir, flood) as (_, target):
        await owner.open(target)
        await until(lambda: owner.lost, "the end of the stream")
    assert [int.from_bytes(data[:4], "big") for data in owner.messages] == list(range(count))
    assert owner.lost == ["the stream ended"]


async def collect(call: Any) -> list[bytes]:
    return [message async for message in call]


Talk = Callable[[grpc.aio.ServicerContext[bytes, bytes]], Any]


async def abort(context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "größer als 50 %: \n no")


async def abort_later(context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
    await context.write(b"x")
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the gateway does not read")


async def fail(context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
    raise KeyError("a bug")


@pytest.mark.parametrize(
    ("talk", "path"), [(abort, PATH), (abort_later, PATH), (fail, PATH), (echo, "/test.Service/Missing")]
)
async def test_a_status_reads_as_grpc_words_it(talk: Talk, path: str, short_dir: Path, owner: Owner) -> None:
    async with grpc_server(short_dir, talk) as (_, target):
        async with grpc.aio.insecure_channel(target) as channel:
            call = channel.stream_stream(path)()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await collect(call)
        await owner.open(target, path)
        reason = await owner.wait_lost()
    assert reason == f"{caught.value.code().name.lower()}: {caught.value.details()}"


async def test_a_server_that_stops_ends_the_stream(short_dir: Path, owner: Owner) -> None:
    async with grpc_server(short_dir, echo) as (server, target):
        await owner.open(target)
        owner.send(b"one")
        await owner.wait_messages(1)
        await server.stop(0.05)
        reason = await owner.wait_lost()
    assert reason.partition(":")[0] in ("cancelled", "unavailable"), reason


async def test_close_cancels_the_call_and_says_nothing(short_dir: Path, owner: Owner) -> None:
    ended: list[str] = []

    async def watch(context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        try:
            await echo(context)
        finally:
            ended.append("over")

    async with grpc_server(short_dir, watch) as (_, target):
        await owner.open(target)
        owner.send(b"one")
        await owner.wait_messages(1)
        owner.stream.close()
        owner.send(b"two")
        await until(lambda: ended, "the end of the call at the server")
    assert owner.lost == []
    assert owner.messages == [b"one"]


@pytest.mark.parametrize("target", ["unix:/nowhere/x.sock", "127.0.0.1:1"])
async def test_no_connection_is_an_os_error(target: str, owner: Owner) -> None:
    with pytest.raises(OSError, match=r"."):
        await owner.open(target)


@pytest.mark.parametrize("target", ["", "host", "host:", "host:http", "dns:///host"])
async def test_other_targets_are_refused(target: str, owner: Owner) -> None:
    with pytest.raises(ValueError, match="must be unix:PATH or HOST:PORT"):
        await owner.open(target)


# ---- with a real shim ----------------------------------------------------------------------------------------------


def test_a_link_to_a_shim_carries_requests_until_it_is_killed(short_dir: Path) -> None:
    """On uvloop, as in production."""
    with running_shim(shim_spec(short_dir, step_ms=1)) as shim:
        uvloop.run(use_link(shim))


async def use_link(shim: RunningShim) -> None:
    status = await shim.wait_phase(Phase.READY)
    owner, writer = Owner(), GatewayFrameWriter()
    writer.hello("test/1/0", 1, False)
    await owner.open(shim.spec.listen, "/xinf.engine.v1.EngineService/Link")
    owner.send(writer.take(0))
    info = decode_engine_frame((await owner.wait_messages(1))[0]).hello
    assert info is not None
    assert pb.EngineInfo.FromString(info).replica == "r-1"
    head = encode_head("POST", "/v1/completions", [(b"content-type", b"application/json")])
    prompt = b"x" * (2 << 20)
    for number in range(1, 40):
        body = b'{"model":"sim","max_tokens":3,"prompt":"' + (prompt if number == 20 else b"hi") + b'"}'
        writer.submit(number, head, body, 0, 0, "", "")
    owner.send(writer.take(1 << 30))

    def ends() -> dict[int, Any]:
        return {end[0]: end for data in owner.messages for end in decode_engine_frame(data).ends}

    await until(lambda: len(ends()) == 39 or owner.lost, "the ends")
    statuses = {start[0]: start[1] for data in owner.messages for start in decode_engine_frame(data).starts}
    assert [statuses[number] for number in range(1, 40) if number != 20] == [200] * 38
    assert sum(end[3] for end in ends().values()) >= 38 * 3
    os.kill(status.pid, signal.SIGKILL)
    assert (await owner.wait_lost()).startswith("unavailable: the connection ")


# ---- with a scripted server ----------------------------------------------------------------------------------------


async def begun(script: ScriptedServer, owner: Owner) -> None:
    await owner.open(script.target)
    await script.accept()
    script.send(begin())
    assert (await script.read_frame())[:2] == (h2.SETTINGS, h2.ACK)


async def kinds_until_ping(script: ScriptedServer) -> list[int]:
    """The types of the frames that the client sends before it has read what the server sent so far."""
    script.send(frame(h2.PING, bytes(8)))
    kinds = []
    while (kind := (await script.read_frame())[0]) != h2.PING:
        kinds.append(kind)
    return kinds


async def test_the_request_is_what_grpc_asks_for(script: ScriptedServer, owner: Owner) -> None:
    await begun(script, owner)
    assert script.request == {
        ":method": "POST",
        ":scheme": "http",
        ":path": PATH,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "xinf-gateway",
        "xinf-dedicated": "1",
    }
    owner.send(b"hello")
    assert await script.read_frame() == (h2.DATA, 0, 1, message(b"hello"))


async def test_frames_and_messages_may_be_cut_anywhere(script: ScriptedServer, owner: Owner) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    sent = [rng.randbytes(rng.choice([0, 1, 4, 5, 6, 50])) for _ in range(60)]
    stream = b"".join(map(message, sent))
    raw = begin()
    while stream:
        n = rng.choice([0, 1, 2, 3, 5, 9, 40])
        padding = rng.randrange(3)
        if padding:
            raw += data(bytes([padding]) + stream[:n] + bytes(padding), flags=h2.PADDED)
        else:
            raw += data(stream[:n])
        stream = stream[n:]
        raw += rng.choice([b"", frame(0x20, b"unknown", stream=3), frame(h2.PING, b"12345678"), h2.settings({})])
    raw += headers({"grpc-status": "0"}, is_last=True)
    await owner.open(script.target)
    await script.accept()
    # Straight into the protocol, so that the cuts are ours and not the kernel's.
    while raw:
        n = rng.choice([1, 1, 2, 9, 30])
        owner.stream.data_received(raw[:n])
        raw = raw[n:]
    assert owner.messages == sent
    assert owner.lost == ["the stream ended"]


async def test_pings_and_settings_are_acknowledged(script: ScriptedServer, owner: Owner) -> None:
    await begun(script, owner)
    script.send(frame(h2.PING, b"abcdefgh"), frame(h2.PING, b"87654321", flags=h2.ACK))
    assert await script.read_frame_of(h2.PING) == (h2.PING, h2.ACK, 0, b"abcdefgh")
    script.send(h2.settings({99: 1}))
    assert await script.read_frame() == (h2.SETTINGS, h2.ACK, 0, b"")


async def test_the_windows_of_the_server_are_kept(script: ScriptedServer, owner: Owner) -> None:
    await begun(script, owner)
    owner.send(bytes(100_000))
    received = 0
    while received < h2.INITIAL_WINDOW_BYTES:
        payload = (await script.read_frame_of(h2.DATA))[3]
        assert len(payload) <= h2.MIN_MAX_FRAME_BYTES
        received += len(payload)
    assert received == h2.INITIAL_WINDOW_BYTES
    # The stream's window grows by SETTINGS, the connection's does not: nothing more may come.
    script.send(h2.settings({h2.SETTING_INITIAL_WINDOW_SIZE: 100_000, h2.SETTING_MAX_FRAME_SIZE: 50_000}))
    assert await kinds_until_ping(script) == [h2.SETTINGS]
    script.send(h2.window_update(0, 34_000))
    assert len((await script.read_frame())[3]) == 34_000
    # A smaller initial window makes the stream's negative; it has to grow past that first.
    script.send(h2.settings({h2.SETTING_INITIAL_WINDOW_SIZE: 90_000}), h2.window_update(0, 10_000))
    script.send(h2.window_update(1, 9_535))
    assert await kinds_until_ping(script) == [h2.SETTINGS]
    script.send(h2.window_update(1, 10_000))
    assert len((await script.read_frame())[3]) == 100_005 - 65_535 - 34_000


async def test_our_windows_are_renewed_together_and_seldom(script: ScriptedServer, owner: Owner) -> None:
    await begun(script, owner)
    piece = data(message(bytes(MAX_FRAME_BYTES - 5)))
    for _ in range(WINDOW_BYTES // MAX_FRAME_BYTES // 2):
        script.send(piece)
    renewals = [await script.read_frame_of(h2.WINDOW_UPDATE) for _ in range(2)]
    assert [renewal[2] for renewal in renewals] == [0, 1]
    amounts = {int.from_bytes(renewal[3], "big") for renewal in renewals}
    assert len(amounts) == 1
    assert amounts.pop() >= WINDOW_BYTES // 2


BAD = b"\xff" * 40


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(40), "a frame of type 80 has 4740180 bytes"),
        (BAD, "a frame of type 255 has 16777215 bytes"),
        (frame(h2.HEADERS, BAD, flags=h2.END_HEADERS, stream=1), "a header block cannot be read"),
        (frame(h2.HEADERS, b"", flags=h2.END_HEADERS, stream=3), "a frame of type 1 is on stream 3"),
        (frame(h2.SETTINGS, b"", stream=1), "a frame of type 4 is on stream 1"),
        (frame(h2.SETTINGS, b"12345"), "a SETTINGS frame has 5 bytes"),
        (h2.settings({h2.SETTING_MAX_FRAME_SIZE: 100}), "the largest frame is 100"),
        (h2.settings({h2.SETTING_INITIAL_WINDOW_SIZE: 1 << 31}), "the initial window is 2147483648"),
        (frame(h2.PING, b"short"), "a PING has 5 bytes, not 8"),
        (frame(h2.RST_STREAM, b"", stream=1), "a RST_STREAM has 0 bytes, not 4"),
        (frame(h2.WINDOW_UPDATE, bytes(4)), "a window was enlarged by 0"),
        (h2.window_update(0, h2.MAX_WINDOW_BYTES), "a window was enlarged by 2147483647"),
        (frame(h2.GOAWAY, b"1234567"), "a GOAWAY has 7 bytes"),
        (frame(h2.PUSH_PROMISE, bytes(4), stream=1), "a PUSH_PROMISE came"),
        (frame(h2.CONTINUATION, b"", stream=1), "a CONTINUATION continues nothing"),
        (data(b"x"), "DATA on stream 1 is out of place"),
        (frame(h2.DATA, b"x", stream=3), "DATA on stream 3 is out of place"),
        (frame(h2.HEADERS, b"", stream=1) + frame(h2.PING, bytes(8)), "a frame of type 6 stands inside a header block"),
        (
            frame(h2.HEADERS, b"", stream=1) + frame(h2.CONTINUATION, b"", stream=1) * 2000,
            "a header block is longer than 65536 bytes",
        ),
        (begin() + data(b"\x05abc", flags=h2.PADDED), "the padding is longer than its frame"),
        (begin() + h2.header(MAX_FRAME_BYTES + 1, h2.DATA, 0, 1), "a DATA frame has 1048577 bytes"),
    ],
)
async def test_what_breaks_http2_ends_the_stream(raw: bytes, reason: str, script: ScriptedServer, owner: Owner) -> None:
    await owner.open(script.target)
    await script.accept()
    script.send(raw)
    lost = await owner.wait_lost()
    assert lost.startswith(f"internal: the engine broke HTTP/2: {reason}"), lost
    assert h2.header(4, h2.RST_STREAM, 0, 1) in await script.read_to_end()
    assert owner.messages == []


def trailers(status: str, text: str = "") -> bytes:
    return headers({"grpc-status": status, **({"grpc-message": text} if text else {})}, is_last=True)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (begin() + trailers("0"), "the stream ended"),
        (begin() + trailers("9", "wrong%20version %e2%82%ac %zz"), "failed_precondition: wrong version € %zz"),
        (begin() + trailers("99", "new"), "unknown: new"),
        (begin() + trailers("one"), "unknown: "),
        (headers({":status": "200", "grpc-status": "12", "grpc-message": "no"}, is_last=True), "unimplemented: no"),
        (headers({":status": "503"}), "unavailable: the engine answered HTTP 503"),
        (headers({":status": "302"}, is_last=True), "unknown: the engine answered HTTP 302"),
        (headers({":status": "100"}) + begin() + trailers("0"), "the stream ended"),
        (headers({":status": "200", "content-type": "text/html"}), "unknown: the content type is 'text/html'"),
        (begin() + data(message(b"x"), flags=h2.END_STREAM), "unknown: the stream ended without a status"),
        (begin() + data(b"", flags=h2.END_STREAM), "unknown: the stream ended without a status"),
        (begin() + headers({"x": "y"}, is_last=True), "unknown: the stream ended without a status"),
        (begin() + h2.rst_stream(1, h2.CANCEL), "cancelled: the stream was reset (CANCEL)"),
        (begin() + h2.rst_stream(1, h2.REFUSED_STREAM), "unavailable: the stream was reset (REFUSED_STREAM)"),
        (begin() + h2.rst_stream(1, 77), "internal: the stream was reset (error 77)"),
        (begin() + data(b"\x01\0\0\0\x01x"), "unimplemented: the engine compressed a message"),
        (begin() + data(b"\0\xff\xff\xff\xff"), "resource_exhausted: a message of 4294967295 bytes came"),
        (begin() + h2.goaway(0), "unavailable: the connection ends after GOAWAY (NO_ERROR)"),
        (
            begin() + frame(h2.GOAWAY, b"\0\0\0\x01\0\0\0\x0btoo_many_pings"),
            "unavailable: the connection ends after GOAWAY (ENHANCE_YOUR_CALM: too_many_pings)",
        ),
    ],
)
async def test_every_ending_says_why(raw: bytes, reason: str, script: ScriptedServer, owner: Owner) -> None:
    await owner.open(script.target)
    await script.accept()
    script.send(raw)
    assert (await owner.wait_lost()).startswith(reason)


async def test_a_graceful_goaway_lets_the_stream_go_on(script: ScriptedServer, owner: Owner) -> None:
    await begun(script, owner)
    script.send(frame(h2.GOAWAY, h2.MAX_WINDOW_BYTES.to_bytes(4, "big") + bytes(4)), data(message(b"last words")))
    assert await owner.wait_messages(1) == [b"last words"]
    script.writer.close()
    assert await owner.wait_lost() == "unavailable: the connection was closed after GOAWAY (NO_ERROR)"


@pytest.mark.parametrize("cut", [3, 12, 16])
async def test_a_death_in_the_middle_of_a_frame_is_told(cut: int, script: ScriptedServer, owner: Owner) -> None:
    await begun(script, owner)
    script.send(data(message(b"whole")), data(message(b"half a message"))[:cut])
    script.writer.close()
    assert await owner.wait_lost() == "unavailable: the connection was closed in the middle of a frame"
    assert owner.messages == [b"whole"]


async def test_random_bytes_end_the_stream_or_leave_it_as_it_is(script: ScriptedServer, owner: Owner) -> None:
    """Whatever arrives, data_received raises nothing and on_lost comes once."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    await owner.open(script.target)
    await script.accept()
    transport = owner.stream._transport
    healthy = begin() + data(message(b"abc")) + h2.settings({4: 70_000}) + frame(h2.PING, bytes(8)) + trailers("5", "x")
    outcomes = set()
    for _ in range(2000):
        other = Owner()
        other.stream = ClientStream(PATH, "localhost", other, 1000)
        other.stream.connection_made(QuietTransport())
        raw = bytearray(healthy)
        for _ in range(rng.randrange(4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        for at in range(0, len(raw), 50):
            other.stream.data_received(bytes(raw[at : at + 50]))
        other.stream.connection_lost(None)
        assert len(other.lost) == 1
        outcomes.add(other.lost[0].partition(":")[0])
    assert {"not_found", "internal", "unavailable"} <= outcomes
    assert not transport.is_closing()


class QuietTransport(asyncio.Transport):
    """Takes everything and does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False

    def write(self, data: object) -> None: ...

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None: ...


async def test_a_listener_that_raises_loses_the_stream_only(script: ScriptedServer, owner: Owner) -> None:
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    def broken(data: bytes) -> None:
        raise RuntimeError("a bug")

    owner.on_message = broken  # type: ignore[method-assign]
    await begun(script, owner)
    script.send(data(message(b"x")))
    assert (await owner.wait_lost()).startswith("unavailable: the connection broke: ")
    assert reported


async def test_closing_from_within_a_message_stops_the_reading(script: ScriptedServer, owner: Owner) -> None:
    await begun(script, owner)
    owner.on_message = lambda _: (owner.messages.append(b"one"), owner.stream.close())  # type: ignore[method-assign]
    script.send(data(message(b"one") + message(b"two")), data(message(b"three")), trailers("0"))
    await script.read_to_end()
    assert owner.messages == [b"one"]
    assert owner.lost == []


# ---- pacing --------------------------------------------------------------------------------------------------------


async def turns(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def test_what_waits_in_one_turn_is_taken_in_one_turn(script: ScriptedServer, owner: Owner) -> None:
    await begun(script, owner)
    owner.outgoing = [b"1"]
    owner.stream.wake()
    owner.stream.wake()
    assert owner.n_taken == 0
    await turns(3)
    assert owner.n_taken == 1


async def test_the_next_message_waits_for_the_engine(
    script: ScriptedServer, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xinf.link.client.PACE_S", 1000.0)
    await begun(script, owner)
    owner.send(b"1")
    await turns(3)
    owner.send(b"2")
    await turns(50)
    assert owner.n_taken == 1
    script.send(data(message(b"answer")))
    await owner.wait_messages(1)
    await turns(3)
    assert owner.n_taken == 2


async def test_the_next_message_does_not_wait_for_ever(script: ScriptedServer, owner: Owner) -> None:
    await begun(script, owner)
    begun_s = asyncio.get_running_loop().time()
    owner.send(b"1", b"2", b"3")
    await until(lambda: owner.n_taken == 3, "the third message")
    assert asyncio.get_running_loop().time() - begun_s >= PACE_S  # libuv rounds each to 0 to 1 ms
    assert [(await script.read_frame_of(h2.DATA))[3] for _ in range(3)] == list(map(message, [b"1", b"2", b"3"]))


async def test_an_empty_take_leaves_the_gate_open(script: ScriptedServer, owner: Owner) -> None:
    await begun(script, owner)
    owner.stream.wake()
    await turns(3)
    owner.send(b"1")
    await turns(3)
    assert owner.n_taken == 1


def test_hpack_is_what_we_think_it_is() -> None:
    assert issubclass(hpack.OversizedHeaderListError, hpack.HPACKError)
