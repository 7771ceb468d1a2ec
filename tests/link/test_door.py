"""One address for our streams and for everything else: who is served where, the relay, and having the address."""

from __future__ import annotations

import asyncio
import random
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tests.engine.link_client import until
from tests.link.h2_server import PATH, data, frame, message
from tests.link.link_server import Served, served
from tests.link.raw_client import RawClient, opening, request
from tests.link.test_client import Owner
from xinf.link import address, relay
from xinf.link import door as door_module
from xinf.link import h2frames as h2
from xinf.link.opening import MAX_OPENING_BYTES, Carries, Opening, SettingsAck


@pytest.fixture
async def door(short_dir: Path) -> AsyncIterator[Served]:
    async with served(short_dir) as found:
        yield found


# ---- openings ------------------------------------------------------------------------------------------------------


def carries(raw: bytes) -> Carries:
    return Opening(PATH).feed(raw)


def test_an_opening_is_known_whichever_way_it_is_cut() -> None:
    raw = opening()
    for at in range(len(raw)):
        found = Opening(PATH)
        assert found.feed(raw[:at]) is Carries.UNKNOWN
        assert found.feed(raw[at:] + b"more") is Carries.ONE_STREAM
        assert found.received == raw + b"more"
    single = Opening(PATH)
    assert [single.feed(raw[n : n + 1]) for n in range(len(raw))][-2:] == [Carries.UNKNOWN, Carries.ONE_STREAM]


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n",
        b"PRI * HTTP/2.1",
        b"\x16\x03\x01",
        opening(xinf_dedicated=None),
        opening(xinf_dedicated="0"),
        opening(**{":path": "/other"}),
        opening(**{":method": "GET"}),
        opening(content_type="text/html"),
        opening(grpc_encoding="gzip"),
        opening(grpc_timeout="1S"),
        h2.PREFACE + h2.settings({}) + request(stream=3),
        h2.PREFACE + h2.settings({}) + request(flags=h2.END_STREAM),
        h2.PREFACE + request(),
        h2.PREFACE + h2.settings({}) + frame(h2.HEADERS, b"\xff" * 9, flags=h2.END_HEADERS, stream=1),
        h2.PREFACE + h2.settings({}) + frame(h2.HEADERS, b"", stream=1),
        h2.PREFACE + h2.settings({}) + frame(h2.DATA, b"", stream=1),
        h2.PREFACE + h2.settings({}) + h2.header(MAX_OPENING_BYTES, h2.PING, 0, 0),
        h2.PREFACE + h2.settings({}) * (MAX_OPENING_BYTES // 9),
    ],
)
def test_what_is_not_plainly_ours_is_left_to_grpc(raw: bytes) -> None:
    assert carries(raw) is Carries.ANYTHING


def test_random_openings_raise_nothing() -> None:
    rng = random.Random(3)
    raw = opening()
    for _ in range(3000):
        changed = bytearray(raw)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(raw))] = rng.randrange(256)
        carries(bytes(changed))


def test_the_first_acknowledgement_is_taken_out_whichever_way_it_is_cut() -> None:
    ack = frame(h2.SETTINGS, flags=h2.ACK)
    before = h2.PREFACE + h2.settings({1: 2}) + request(xinf_dedicated=None)
    after = ack + data(b"\0" * 30)
    for at in range(len(before + ack + after)):
        taker, raw = SettingsAck(), before + ack + after
        assert taker.without(raw[:at]) + taker.without(raw[at:]) == before + after
        assert taker.is_done


# ---- who is served where -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_tcp", [True, False])
async def test_an_opening_in_pieces_is_served(short_dir: Path, is_tcp: bool) -> None:
    async with served(short_dir, is_tcp=is_tcp) as door:
        for at in (1, 23, 24, 30, 33, 34, 50, len(opening()) - 1):
            client = await RawClient.connect(door.target)
            client.send(opening()[:at])
            await asyncio.sleep(0.01)
            client.send(opening()[at:], data(message(b"hello")))
            assert (await client.read_frame_of(h2.DATA))[3] == message(b"hello")
            client.close()
        assert len(door.talkers) == 8


async def collect(call: Any) -> list[bytes]:
    return [message async for message in call]


@pytest.mark.parametrize("metadata", [(), (("xinf-dedicated", "1"),)])
@pytest.mark.parametrize("is_tcp", [True, False])
async def test_grpc_clients_are_served(short_dir: Path, is_tcp: bool, metadata: tuple[tuple[str, str], ...]) -> None:
    """Its client waits for our SETTINGS before it says what it wants."""
    rng = random.Random(5)
    sent = [rng.randbytes(rng.choice([1, 16_379, 70_000, 3 << 20])) for _ in range(30)] + [bytes(30 << 20)]
    sizes = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    async with served(short_dir, is_tcp=is_tcp) as door:
        async with grpc.aio.insecure_channel(door.target, options=sizes) as channel:
            call = channel.stream_stream(PATH)(metadata=metadata)
            got = []
            for one in sent:
                await call.write(one)
                got.append(await call.read())
            assert got == sent
            await call.done_writing()
            if metadata:
                assert await call.code() == grpc.StatusCode.OK
        assert len(door.talkers) == bool(metadata)


async def test_many_calls_go_over_one_relayed_connection(door: Served) -> None:
    async with grpc.aio.insecure_channel(door.target) as channel:

        async def one(n: int) -> bool:
            call = channel.stream_stream(PATH)()
            for size in (1, 100_000, 10):
                await call.write(bytes([n]) * size)
                assert await call.read() == bytes([n]) * size
            await call.done_writing()
            return await call.read() is grpc.aio.EOF

        assert all(await asyncio.gather(*map(one, range(20))))
        assert len(door.door._transports) == 1
    await until(lambda: not door.door._transports, "the end of the connection")


async def test_garbage_is_answered_as_grpc_does(door: Served) -> None:
    client = await RawClient.connect(door.target)
    client.send(b"GET / HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(30):
        await client.reader.read()
    client.close()


async def test_a_silent_connection_is_closed(door: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "OPENING_S", 0.05)
    client = await RawClient.connect(door.target)
    client.send(h2.PREFACE[:10])
    assert await client.read_to_end() == []
    client.close()


async def test_an_idle_channel_is_passed_on(door: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "OPENING_S", 0.05)
    client = await RawClient.connect(door.target)
    client.send(h2.PREFACE, h2.settings({}))
    assert await client.read_frame() == (h2.SETTINGS, 0, 0, b"")  # the door's
    assert len((await client.read_frame_of(h2.SETTINGS))[3]) > 0  # gRPC's
    client.send(frame(h2.SETTINGS, flags=h2.ACK) * 2, request(xinf_dedicated=None), data(message(b"hello")))
    assert (await client.read_frame_of(h2.DATA))[3] == message(b"hello")
    client.close()


# ---- the relay -----------------------------------------------------------------------------------------------------


class Behind:
    """A server behind the door that says and reads what a test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer


@pytest.fixture
async def pair(short_dir: Path) -> AsyncIterator[tuple[RawClient, Behind, door_module.Door]]:
    """A client whose connection was passed on, the server's end of it, and the door."""
    connected: asyncio.Future[Behind] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_unix_server(
        lambda reader, writer: connected.set_result(Behind(reader, writer)), short_dir / "b"
    )
    door = door_module.Door(path=PATH, make_listener=pytest.fail, behind=short_dir / "b", max_message_bytes=1)  # type: ignore[arg-type]
    door.bind(f"unix:{short_dir}/d")
    await door.open()
    client = await RawClient.connect(f"unix:{short_dir}/d")
    client.send(b"not HTTP/2")
    behind = await asyncio.wait_for(connected, 30)
    assert await behind.reader.readexactly(10) == b"not HTTP/2"
    yield client, behind, door
    client.close()
    behind.writer.close()
    await door.close()
    server.close()


Pair = tuple[RawClient, Behind, door_module.Door]


async def test_a_half_closed_connection_still_brings_the_answer(pair: Pair) -> None:
    client, behind, door = pair
    client.writer.write_eof()
    assert await behind.reader.read() == b""
    behind.writer.write(b"answer")
    behind.writer.write_eof()
    assert await client.reader.read() == b"answer"
    await until(lambda: not door._transports, "the end of the connection")


@pytest.mark.parametrize("side", [0, 1])
async def test_a_side_that_is_lost_ends_the_other(pair: Pair, side: int) -> None:
    ends: list[Any] = [pair[0], pair[1]]
    ends[side].writer.transport.abort()
    async with asyncio.timeout(30):
        assert await ends[1 - side].reader.read() == b""
    ends[1 - side].writer.close()
    await until(lambda: not pair[2]._transports, "the end of the connection")


async def test_an_end_that_the_other_side_ignores_is_an_end(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    client, behind, door = pair
    monkeypatch.setattr(relay, "LINGER_S", 0.05)
    behind.writer.write_eof()
    assert await client.reader.read() == b""
    await until(lambda: not door._transports, "the end of the connection")


@pytest.mark.parametrize("is_downwards", [True, False])
async def test_a_side_that_does_not_read_holds_up_the_other(pair: Pair, is_downwards: bool) -> None:
    source, sink = (pair[1], pair[0]) if is_downwards else (pair[0], pair[1])
    rng = random.Random(1)
    pieces = [rng.randbytes(1 << 20) for _ in range(16)]
    sink.reader._transport.pause_reading()  # type: ignore[attr-defined]
    for piece in pieces:
        source.writer.write(piece)
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert source.writer.transport.get_write_buffer_size() > 10 << 20  # it is still with the one that sends
    sink.reader._transport.resume_reading()  # type: ignore[attr-defined]
    async with asyncio.timeout(30):
        assert await sink.reader.readexactly(16 << 20) == b"".join(pieces)


async def test_a_server_behind_that_is_gone_closes_the_connection(short_dir: Path) -> None:
    door = door_module.Door(path=PATH, make_listener=pytest.fail, behind=short_dir / "no", max_message_bytes=1)  # type: ignore[arg-type]
    door.bind(f"unix:{short_dir}/d")
    await door.open()
    client = await RawClient.connect(f"unix:{short_dir}/d")
    client.send(b"not HTTP/2")
    assert await client.read_to_end() == []
    client.close()
    await door.close()


# ---- the address ---------------------------------------------------------------------------------------------------


def test_a_unix_socket_of_a_dead_process_is_taken_over_and_a_live_one_is_not(short_dir: Path) -> None:
    (live,) = address.bind(f"unix:{short_dir}/s")
    with pytest.raises(OSError, match="in use"):
        address.bind(f"unix:{short_dir}/s")
    live.close()
    assert stat.S_ISSOCK((short_dir / "s").stat().st_mode)
    (second,) = address.bind(f"unix:{short_dir}/s")
    second.close()
    (short_dir / "f").write_text("not a socket")
    with pytest.raises(OSError, match="in use"):
        address.bind(f"unix:{short_dir}/f")


def test_a_port_is_not_shared() -> None:
    (bound,) = address.bind("127.0.0.1:0")
    with pytest.raises(OSError, match="in use"):
        address.bind(f"127.0.0.1:{bound.getsockname()[1]}")
    bound.close()


@pytest.mark.parametrize("wrong", ["", "host", "host:", ":1", "host:http"])
def test_other_addresses_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="must be unix:PATH or HOST:PORT"):
        address.bind(wrong)


async def test_connections_are_without_delay_and_watched() -> None:
    """What the listening socket has is inherited."""
    found: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

    class Looker(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            one = transport.get_extra_info("socket")
            found.set_result(
                [
                    one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
                    one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                    one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                ]
            )
            transport.close()

    (bound,) = address.bind("127.0.0.1:0")
    server = await asyncio.get_running_loop().create_server(Looker, sock=bound)
    _, writer = await asyncio.open_connection("127.0.0.1", bound.getsockname()[1])
    nodelay, keepalive, idle_s = await found
    writer.close()
    server.close()
    assert nodelay
    assert keepalive
    assert idle_s == 30


async def test_closing_cuts_what_does_not_end_and_leaves_no_file(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "_GRACE_S", 0.05)
    owner = Owner()
    async with served(short_dir) as door:
        await owner.open(door.target)
        await door.talker()
    assert (await owner.wait_lost()).startswith("unavailable: the connection ")
    assert not (short_dir / "d.sock").exists()
