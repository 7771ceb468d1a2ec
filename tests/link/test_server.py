"""The server's end against ours of a client (messages, flow control, endings), and a raw one (everything else).

What gRPC's own client makes of it is in tests/engine/test_link.py.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import hpack
import pytest

from tests.engine.link_client import until
from tests.link.h2_server import data, frame, message
from tests.link.link_server import Served, Talker, served
from tests.link.raw_client import RawClient, opening, request
from tests.link.test_client import Owner, QuietTransport
from xinf.link import ServerStream, grpcstatus, h2stream
from xinf.link import h2frames as h2
from xinf.link import server as server_module
from xinf.link.h2stream import MAX_FRAME_BYTES, MAX_IDLE_FRAMES, WINDOW_BYTES


@pytest.fixture(params=["unix", "tcp"])
async def at(request: pytest.FixtureRequest, short_dir: Path) -> AsyncIterator[Served]:
    async with served(short_dir, is_tcp=request.param == "tcp") as found:
        yield found


@pytest.fixture
async def door(short_dir: Path) -> AsyncIterator[Served]:
    async with served(short_dir, max_message_bytes=1 << 20) as found:
        yield found


@pytest.fixture
async def owner() -> AsyncIterator[Owner]:
    owner = Owner()
    yield owner
    if hasattr(owner, "stream"):
        owner.stream.close()


@pytest.fixture
async def raw(door: Served) -> AsyncIterator[RawClient]:
    client = await RawClient.connect(door.target)
    yield client
    client.close()


# ---- with our own client -------------------------------------------------------------------------------------------


async def test_messages_come_back_in_order_and_whole(at: Served, owner: Owner) -> None:
    rng = random.Random(7)
    sent = [rng.randbytes(rng.choice([1, 20, 16_379, 65_530, 65_531, 300_000, 2 << 20])) for _ in range(60)]
    await owner.open(at.target)
    owner.send(*sent)
    assert await owner.wait_messages(len(sent)) == sent
    assert (await at.talker()).messages == sent


async def test_messages_larger_than_every_window_go_both_ways(at: Served, owner: Owner) -> None:
    sent = [os.urandom(30 << 20), b"after it"]
    await owner.open(at.target)
    owner.send(*sent)
    (await at.talker()).send(bytes(30 << 20))  # both directions at once
    got = await owner.wait_messages(3)
    assert sorted(map(len, got)) == [8, 30 << 20, 30 << 20]
    assert [one for one in got if any(one)] == sent


@pytest.mark.parametrize(("status", "text"), [("failed_precondition", "größer als 50 %: \n no\ud800"), ("ok", "")])
async def test_a_status_reaches_the_client_behind_everything_sent(
    status: str, text: str, at: Served, owner: Owner
) -> None:
    await owner.open(at.target)
    talker = await at.talker()
    talker.send(bytes(1 << 20))
    await until(lambda: not talker.outgoing, "the message")
    talker.stream.finish(status, text)
    talker.stream.finish("internal", "a second one")
    talker.send(b"never")
    reason = await owner.wait_lost()
    assert reason == ("the stream ended" if status == "ok" else f"{status}: {text}".replace("\ud800", "?"))
    assert owner.messages == [bytes(1 << 20)]
    assert await talker.wait_lost() == "the stream ended"


async def test_a_client_that_closes_is_heard(at: Served, owner: Owner) -> None:
    await owner.open(at.target)
    talker = await at.talker()
    owner.stream.close()
    assert await talker.wait_lost() == "cancelled: the stream was reset (CANCEL)"
    talker.send(b"to nobody")


async def test_a_client_that_is_killed_is_heard(at: Served, owner: Owner) -> None:
    await owner.open(at.target)
    talker = await at.talker()
    owner.stream._transport.abort()
    assert (await talker.wait_lost()).startswith("unavailable: the connection ")


async def test_a_client_that_does_not_read_stops_the_writing(at: Served, owner: Owner) -> None:
    await owner.open(at.target)
    talker = await at.talker()
    owner.stream._transport.pause_reading()
    talker.send(*(bytes(4 << 20) for _ in range(20)))
    await until(lambda: talker.stream._unsent is not None, "a full window")
    await turns(20)
    n_left = len(talker.outgoing)
    assert n_left > 10
    for _ in range(50):
        talker.stream.wake()
        await asyncio.sleep(0)
    assert len(talker.outgoing) == n_left
    owner.stream._transport.resume_reading()
    assert sum(map(len, await owner.wait_messages(20))) == 80 << 20


async def test_a_status_does_not_wait_for_a_client_that_does_not_read(
    at: Served, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LAST_WRITE_S", 0.05)
    await owner.open(at.target)
    talker = await at.talker()
    owner.stream._transport.pause_reading()
    talker.send(bytes(60 << 20))
    await until(lambda: talker.stream._unsent is not None, "a full window")
    talker.stream.finish("resource_exhausted", "no")
    assert await talker.wait_lost() == "the stream ended"


async def turns(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def test_what_waits_in_two_turns_goes_into_one_message(door: Served, owner: Owner) -> None:
    await owner.open(door.target)
    talker = await door.talker()
    await turns(5)
    n_takes = []
    take = talker.take
    talker.take = lambda: (n_takes.append(1), take())[1]  # type: ignore[method-assign]
    talker.stream.wake()
    talker.stream.wake()
    await turns(1)
    talker.stream.wake()
    assert not n_takes
    await turns(5)
    assert len(n_takes) == 1


async def test_a_message_over_the_limit_ends_the_stream(door: Served, owner: Owner) -> None:
    await owner.open(door.target)
    owner.send(bytes(1 << 20), bytes((1 << 20) + 1))
    reason = await owner.wait_lost()
    assert reason == "resource_exhausted: a message of 1048577 bytes came, at most 1048576 are taken"
    assert (await door.talker()).messages == [bytes(1 << 20)]


# ---- with a raw client ---------------------------------------------------------------------------------------------


async def test_the_answer_is_what_grpc_asks_for(door: Served, raw: RawClient) -> None:
    raw.send(opening(), data(message(b"hello")))
    assert (await raw.read_frame())[0] == h2.SETTINGS
    assert await raw.read_headers() == {":status": "200", "content-type": "application/grpc"}
    assert await raw.read_frame() == (h2.DATA, 0, 1, message(b"hello"))
    raw.send(data(b"", flags=h2.END_STREAM))
    assert await raw.read_headers() == {"grpc-status": "0"}
    ends = await raw.read_to_end()
    assert [kind for kind, *_ in ends] == [h2.GOAWAY]
    assert ends[0][3] == b"\0\0\0\1\0\0\0\0"


async def test_trailers_of_a_client_end_its_side_too(door: Served, raw: RawClient) -> None:
    raw.send(opening(), request(flags=h2.END_STREAM))
    await raw.read_headers()
    assert await raw.read_headers() == {"grpc-status": "0"}


async def test_a_client_without_a_table_is_sent_none(door: Served, raw: RawClient) -> None:
    raw._decoder = hpack.Decoder()
    raw._decoder.max_allowed_table_size = 0
    raw.send(h2.PREFACE, h2.settings({h2.SETTING_HEADER_TABLE_SIZE: 0}), request())
    assert (await raw.read_headers())[":status"] == "200"


async def test_pings_and_settings_are_acknowledged(door: Served, raw: RawClient) -> None:
    raw.send(opening(), frame(h2.PING, b"abcdefgh"), frame(h2.PING, b"87654321", flags=h2.ACK))
    assert (await raw.read_frame())[1] == 0
    assert await raw.read_frame_of(h2.SETTINGS) == (h2.SETTINGS, h2.ACK, 0, b"")
    assert await raw.read_frame_of(h2.PING) == (h2.PING, h2.ACK, 0, b"abcdefgh")
    raw.send(h2.settings({99: 1}))
    assert await raw.read_frame() == (h2.SETTINGS, h2.ACK, 0, b"")


async def test_the_windows_of_the_client_are_kept(door: Served, raw: RawClient) -> None:
    raw.send(opening())
    (await door.talker()).send(bytes(100_000))
    received = 0
    while received < h2.INITIAL_WINDOW_BYTES:
        payload = (await raw.read_frame_of(h2.DATA))[3]
        assert len(payload) <= h2.MIN_MAX_FRAME_BYTES
        received += len(payload)
    raw.send(h2.settings({h2.SETTING_INITIAL_WINDOW_SIZE: 100_000}), h2.window_update(0, 10_000))
    assert (await raw.read_frame())[0] == h2.SETTINGS
    assert len((await raw.read_frame())[3]) == 10_000
    raw.send(h2.window_update(1, 5), h2.window_update(0, 1 << 20))
    assert (len((await raw.read_frame())[3]), len((await raw.read_frame())[3])) == (16_384, 100_005 - 91_919)


async def test_a_second_stream_is_refused_and_the_first_goes_on(door: Served, raw: RawClient) -> None:
    raw.send(opening(), request(stream=3), frame(h2.DATA, message(b"lost"), stream=3, flags=h2.END_STREAM))
    raw.send(h2.window_update(3, 100), h2.rst_stream(3, h2.CANCEL), data(message(b"kept")))
    assert await raw.read_frame_of(h2.RST_STREAM) == (h2.RST_STREAM, 0, 3, h2.REFUSED_STREAM.to_bytes(4, "big"))
    assert (await raw.read_frame_of(h2.DATA))[3] == message(b"kept")
    talker = await door.talker()
    assert (talker.messages, talker.is_closed) == ([b"kept"], False)


async def test_streams_without_end_end_the_connection(door: Served, raw: RawClient) -> None:
    raw.send(opening(), *(request(stream=3 + 2 * n) for n in range(200)))
    ends = await raw.read_to_end()
    assert ends[-1][0] == h2.GOAWAY
    assert ends[-1][3][4:] == h2.ENHANCE_YOUR_CALM.to_bytes(4, "big")


BAD = b"\xff" * 40


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (BAD, "a frame of type 255 has 16777215 bytes"),
        (frame(h2.HEADERS, BAD, flags=h2.END_HEADERS, stream=3), "a header block cannot be read"),
        (frame(h2.HEADERS, b"", flags=h2.END_HEADERS, stream=2), "a frame of type 1 is on stream 2"),
        (request(), "trailers do not end the stream"),
        (frame(h2.SETTINGS, b"12345"), "a SETTINGS frame has 5 bytes"),
        (h2.settings({h2.SETTING_MAX_FRAME_SIZE: 100}), "the largest frame is 100"),
        (h2.settings({h2.SETTING_INITIAL_WINDOW_SIZE: 1 << 31}), "the initial window is 2147483648"),
        (frame(h2.PING, b"short"), "a PING has 5 bytes, not 8"),
        (h2.window_update(0, h2.MAX_WINDOW_BYTES), "a window was enlarged by 2147483647"),
        (frame(h2.GOAWAY, b"1234567"), "a GOAWAY has 7 bytes"),
        (frame(h2.PUSH_PROMISE, bytes(4), stream=1), "a PUSH_PROMISE came"),
        (frame(h2.CONTINUATION, b"", stream=1), "a CONTINUATION continues nothing"),
        (frame(h2.DATA, b"x", stream=3), "DATA on stream 3 is out of place"),
        (h2.header(MAX_FRAME_BYTES + 1, h2.DATA, 0, 1), "a DATA frame has 1048577 bytes"),
        (frame(h2.HEADERS, b"", stream=3) + frame(h2.PING, bytes(8)), "a frame of type 6 stands inside"),
        (
            frame(h2.HEADERS, b"", stream=3) + frame(h2.CONTINUATION, b"", stream=3) * 2000,
            "a header block is longer than 65536 bytes",
        ),
        (frame(h2.PING, bytes(8), flags=h2.ACK) * (MAX_IDLE_FRAMES + 1), f"{MAX_IDLE_FRAMES} frames came without"),
        (h2.settings({}) * (MAX_IDLE_FRAMES + 1), "1000"),  # frames, or acknowledgements that are not read
        (data(b"") * (MAX_IDLE_FRAMES + 1), f"{MAX_IDLE_FRAMES} frames came without"),
        (h2.window_update(1, 1) * (MAX_IDLE_FRAMES + 1), f"{MAX_IDLE_FRAMES} frames came without"),
    ],
)
async def test_what_breaks_http2_ends_the_connection(sent: bytes, reason: str, door: Served, raw: RawClient) -> None:
    raw.send(opening())
    talker = await door.talker()
    raw.send(sent)
    lost = await talker.wait_lost()
    assert lost.startswith(f"internal: the client broke HTTP/2: {reason}"), lost
    assert (await raw.read_to_end())[-1][0] == h2.GOAWAY


async def test_pings_that_are_not_read_end_the_connection(door: Served, raw: RawClient) -> None:
    """Each with a message, so that they are no idle frames."""
    raw.send(opening())
    talker = await door.talker()
    talker.is_echo = False
    raw.reader._transport.pause_reading()  # type: ignore[attr-defined]
    one = (frame(h2.PING, bytes(8)) + data(message(b""))) * 1000
    for _ in range(200):
        raw.send(one)
        await asyncio.sleep(0)
    assert (
        await talker.wait_lost() == f"internal: the client broke HTTP/2: {h2stream.MAX_REPLIES} replies wait to be read"
    )


async def test_more_than_the_window_ends_the_connection(door: Served) -> None:
    """Straight into the protocol: from a socket our windows are renewed in time."""
    stream, talker = quiet_stream()
    piece = data(message(bytes(MAX_FRAME_BYTES - 5)))
    stream.data_received(request() + piece * (WINDOW_BYTES // MAX_FRAME_BYTES) + data(b"x"))
    assert "more than 16777216 bytes came" in talker.lost[0]


@pytest.mark.parametrize("cut", [3, 12, 16])
async def test_a_death_in_the_middle_of_a_frame_is_told(cut: int, door: Served, raw: RawClient) -> None:
    raw.send(opening(), data(message(b"whole")), data(message(b"half a message"))[:cut])
    raw.writer.write_eof()
    talker = await door.talker()
    assert await talker.wait_lost() == "unavailable: the connection was closed in the middle of a frame"
    assert talker.messages == [b"whole"]


async def test_compressed_messages_are_refused(door: Served, raw: RawClient) -> None:
    raw.send(opening(), data(b"\x01\0\0\0\x01x"))
    await raw.read_headers()
    assert await raw.read_headers() == {"grpc-status": "12", "grpc-message": "the client compressed a message"}


async def test_a_goaway_lets_the_stream_go_on(door: Served, raw: RawClient) -> None:
    raw.send(opening(), h2.goaway(0), data(message(b"last words")))
    assert (await raw.read_frame_of(h2.DATA))[3] == message(b"last words")


async def test_finishing_from_within_a_message_stops_the_reading(short_dir: Path) -> None:
    class Quitter(Talker):
        def on_message(self, data: bytes) -> None:
            self.messages.append(data)
            self.stream.finish("aborted", "enough")

    async with served(short_dir, make=Quitter) as door:
        client = await RawClient.connect(door.target)
        client.send(opening(), data(message(b"one") + message(b"two")), data(message(b"three")))
        await client.read_headers()
        assert await client.read_headers() == {"grpc-status": "10", "grpc-message": "enough"}
        assert door.talkers[0].messages == [b"one"]
        client.close()


async def test_a_client_that_never_closes_is_cut(door: Served, raw: RawClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CLOSE_S", 0.05)
    raw.send(opening())
    (await door.talker()).stream.finish("ok", "")
    await until(lambda: not door.door._transports, "the end of the connection")


def quiet_stream() -> tuple[ServerStream, Talker]:
    talkers: list[Talker] = []

    def make(stream: ServerStream) -> Talker:
        talkers.append(Talker(stream))
        return talkers[-1]

    stream = ServerStream(make, max_message_bytes=1 << 20)
    stream.connection_made(HalfClosing())
    stream.data_received(h2.settings({}))
    talker = Talker(stream)
    stream._make_listener = lambda _: talker
    return stream, talker


class HalfClosing(QuietTransport):
    def write_eof(self) -> None: ...

    def writelines(self, pieces: Any) -> None: ...


async def test_random_bytes_end_the_stream_or_leave_it_as_it_is() -> None:
    """Whatever arrives, data_received raises nothing and on_lost comes once, if there was a stream."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    healthy = request() + data(message(b"abc")) + h2.settings({4: 70_000, 1: 0}) + frame(h2.PING, bytes(8))
    healthy += request(stream=3) + frame(h2.DATA, b"", stream=3) + h2.window_update(0, 9)
    healthy += data(message(bytes(200)), flags=h2.END_STREAM)
    outcomes = set()
    for _ in range(3000):
        stream, talker = quiet_stream()
        raw = bytearray(healthy)
        for _ in range(rng.randrange(4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        for at in range(0, len(raw), 50):
            stream.data_received(bytes(raw[at : at + 50]))
        stream.connection_lost(None)
        assert len(talker.lost) == stream._has_headers
        outcomes.update(reason.partition(":")[0] for reason in talker.lost)
    assert {"the stream ended", "internal", "unavailable"} <= outcomes


def cut_anywhere(raw: bytes) -> Callable[[int], tuple[bytes, bytes]]:
    return lambda at: (raw[:at], raw[at:])


async def test_a_stream_cut_at_every_byte_says_the_same() -> None:
    raw = request() + data(message(b"abc")) + frame(h2.PING, bytes(8)) + data(message(bytes(20)), flags=h2.END_STREAM)
    for at in range(len(raw)):
        stream, talker = quiet_stream()
        for part in cut_anywhere(raw)(at):
            stream.data_received(part)
        assert (talker.messages, talker.lost) == ([b"abc", bytes(20)], ["the stream ended"])


async def test_a_loss_at_every_byte_is_told_once() -> None:
    raw = request() + data(message(b"abc")) + frame(h2.PING, bytes(8)) + data(message(bytes(20)))
    for at in range(len(raw)):
        stream, talker = quiet_stream()
        stream.data_received(raw[:at])
        stream.connection_lost(None if at % 2 else OSError("broken"))
        assert len(talker.lost) == (at >= len(request()))


@pytest.mark.parametrize("text", ["", "plain", "50 % größer\n", "\x00\x7f~ !", "x" * 5000, "💥" * 2000])
def test_trailers_say_what_the_client_reads(text: str) -> None:
    fields = dict(grpcstatus.trailers("aborted", text))
    assert fields.get("grpc-message", "").isascii()
    assert len(fields.get("grpc-message", "")) < h2.MIN_MAX_FRAME_BYTES
    assert grpcstatus.reason_of_headers(fields, is_first=False, is_last=True) == f"aborted: {text[:1000]}"
    assert grpcstatus.trailers("no such status", "")[0] == ("grpc-status", "2")
