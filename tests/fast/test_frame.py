"""The codec of the Link against protobuf's own: bytes written, messages read, and what is refused."""

from __future__ import annotations

import random
import struct
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xinf._fast import framewriter
from xinf._fast.frame import (
    EngineFrame,
    GatewayFrame,
    WireError,
    decode_engine_frame,
    decode_gateway_frame,
    decode_generate_event,
    decode_submit,
)
from xinf._fast.framewriter import EngineFrameWriter, GatewayFrameWriter, encode_head, encode_headers, encode_submit
from xinf._pb import engine_service_pb2 as pb

MAX_64 = 2**64 - 1
# What we refuse and protobuf lets pass; everything else that we refuse, it refuses as well.
STRICTER = {"wrong wire type", "unknown wire type", "varint too long"}
HEADERS = [(b"content-type", b"application/json"), (b"x", b""), (b"", b"")]


# ---- messages of protobuf in our shapes ------------------------------------------------------------------------------


def headers_of(message: Any) -> list[tuple[bytes, bytes]]:
    return [(header.name, header.value) for header in message.headers]


def submit_of(s: pb.Submit) -> tuple[Any, ...]:
    head = (s.id, s.method, s.path, headers_of(s), s.body)
    return (*head, s.priority, s.timeout_ms, s.trace, s.request_id)


def start_of(start: pb.Start) -> tuple[Any, ...]:
    return start.id, start.status, headers_of(start)


def end_of(end: pb.End) -> tuple[Any, ...]:
    # repr: a NaN equals itself, -0.0 does not equal 0.0
    tokens = (end.prompt_tokens, end.cached_tokens, end.completion_tokens)
    return (end.id, *tokens, end.error, end.message, end.retryable, repr(end.queued_s))


def residency_of(r: pb.Residency) -> tuple[Any, ...]:
    arrays = (array("Q", r.added).tobytes(), array("I", r.tokens).tobytes(), array("Q", r.removed).tobytes())
    return (r.sequence, r.cleared, *arrays, r.state, r.is_partial)


def protobuf_engine_frame(data: bytes) -> tuple[Any, ...]:
    frame = pb.EngineFrame.FromString(data)
    load = frame.load
    return (
        frame.hello if frame.HasField("hello") else None,
        [start_of(start) for start in frame.starts],
        [(chunk.id, chunk.data) for chunk in frame.chunks],
        [end_of(end) for end in frame.ends],
        tuple(getattr(load, field.name) for field in load.DESCRIPTOR.fields) if frame.HasField("load") else None,
        residency_of(frame.residency) if frame.HasField("residency") else None,
        frame.following if frame.HasField("following") else None,
    )


def fields_of(frame: EngineFrame) -> tuple[Any, ...]:
    return (
        None if frame.hello is None else pb.EngineInfo.FromString(frame.hello),
        frame.starts,
        frame.chunks,
        [(*end[:7], repr(end[7])) for end in frame.ends],
        frame.load,
        frame.residency,
        None if frame.following is None else pb.Following.FromString(frame.following),
    )


def our_engine_frame(data: bytes) -> tuple[Any, ...]:
    return fields_of(decode_engine_frame(data))


def protobuf_event(data: bytes) -> tuple[Any, ...]:
    event = pb.GenerateEvent.FromString(data)
    kind = event.WhichOneof("kind")
    starts = [start_of(event.start)] if kind == "start" else []
    ends = [end_of(event.end)] if kind == "end" else []
    return None, starts, [(0, event.chunk)] if kind == "chunk" else [], ends, None, None, None


def our_event(data: bytes) -> tuple[Any, ...]:
    return fields_of(decode_generate_event(data))


def protobuf_gateway_frame(data: bytes) -> tuple[Any, ...]:
    frame = pb.GatewayFrame.FromString(data)
    hello = frame.hello
    return (
        (hello.gateway, hello.version, hello.wants_residency) if frame.HasField("hello") else None,
        [submit_of(submit) for submit in frame.submits],
        list(frame.cancels),
        frame.resync,
    )


def our_gateway_frame(data: bytes) -> tuple[Any, ...]:
    frame: GatewayFrame = decode_gateway_frame(data)
    return frame.hello, frame.submits, frame.cancels, frame.resync


def protobuf_submit(data: bytes) -> tuple[Any, ...]:
    return submit_of(pb.Submit.FromString(data))


Decoder = Callable[[bytes], tuple[Any, ...]]
DECODERS: dict[str, tuple[Decoder, Decoder]] = {
    "engine": (our_engine_frame, protobuf_engine_frame),
    "event": (our_event, protobuf_event),
    "gateway": (our_gateway_frame, protobuf_gateway_frame),
    "submit": (decode_submit, protobuf_submit),
}


def agree(kind: str, data: bytes) -> bool:
    """Decode both ways and compare. Returns whether both took it."""
    ours, theirs = DECODERS[kind]
    try:
        expected = theirs(data)
    except DecodeError:
        # EngineInfo is not looked into here, so it may be what protobuf minds.
        with pytest.raises((WireError, DecodeError)):
            ours(data)
        return False
    try:
        found = ours(data)
    except WireError as error:
        refusal = error
    else:
        assert found == expected, data.hex()
        return True
    assert refusal.reason in STRICTER, (refusal, data.hex())
    assert 0 <= refusal.offset <= len(data)
    return False


# ---- random messages -------------------------------------------------------------------------------------------------


def random_number(rng: random.Random, most: int) -> int:
    return rng.choice([0, 1, 127, 128, most, rng.randrange(most + 1), rng.randrange(300)])


def random_bytes(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice([0, 1, 3, 127, 128, 129, 500, 20_000 if rng.random() < 0.1 else 5]))


def random_text(rng: random.Random) -> str:
    return rng.choice(["", "POST", "/v1/chat/completions?x=1", "grüße", "💥 \0", "x" * rng.randrange(300)])


def random_headers(rng: random.Random) -> list[tuple[bytes, bytes]]:
    if rng.random() < 0.4:
        return HEADERS
    return [(random_bytes(rng), random_bytes(rng)) for _ in range(rng.randrange(4))]


def random_submit(rng: random.Random) -> tuple[Any, ...]:
    return (
        random_number(rng, MAX_64),
        random_text(rng),
        random_text(rng),
        random_headers(rng),
        random_bytes(rng),
        rng.choice([0, 1, -1, 2**31 - 1, -(2**31)]),
        random_number(rng, 2**32 - 1),
        random_text(rng),
        random_text(rng),
    )


def random_end(rng: random.Random) -> tuple[Any, ...]:
    tokens = [random_number(rng, 2**32 - 1) for _ in range(3)]
    seconds = rng.choice([0.0, -0.0, 0.5, float("inf"), float("nan"), 1e300, rng.random()])
    number = random_number(rng, MAX_64)
    return (number, *tokens, random_text(rng), random_text(rng), rng.random() < 0.5, seconds)


def random_load(rng: random.Random) -> tuple[int, ...]:
    small = [random_number(rng, 2**32 - 1) for _ in range(2)]
    return (*small, *(random_number(rng, MAX_64) for _ in range(4)))


def random_info(rng: random.Random) -> pb.EngineInfo:
    return pb.EngineInfo(replica=random_text(rng), served_names=["a", "b"], kv_blocks=random_number(rng, MAX_64))


def random_following(rng: random.Random) -> pb.Following:
    return pb.Following(events=random_number(rng, MAX_64), lag_max_s=rng.choice([0.0, 0.5]), unbound=rng.randrange(3))


def random_residency(rng: random.Random) -> pb.Residency:
    n_added, n_removed = rng.choice([0, 1, 2, 40]), rng.choice([0, 1, 2, 40])
    return pb.Residency(
        sequence=random_number(rng, MAX_64),
        cleared=rng.random() < 0.3,
        added=[random_number(rng, MAX_64) for _ in range(n_added)],
        tokens=[random_number(rng, 2**32 - 1) for _ in range(n_added)],
        removed=[random_number(rng, MAX_64) for _ in range(n_removed)],
        state=rng.choice(["", "exact", "approx", "off", "später"]),
        is_partial=rng.random() < 0.3,
    )


def pb_headers(headers: list[tuple[bytes, bytes]]) -> list[pb.Header]:
    return [pb.Header(name=name, value=value) for name, value in headers]


def pb_submit(fields: tuple[Any, ...]) -> pb.Submit:
    number, method, path, headers, body, priority, timeout_ms, trace, request_id = fields
    return pb.Submit(
        id=number,
        method=method,
        path=path,
        headers=pb_headers(headers),
        body=body,
        priority=priority,
        timeout_ms=timeout_ms,
        trace=trace,
        request_id=request_id,
    )


def pb_end(fields: tuple[Any, ...]) -> pb.End:
    number, prompt, cached, completion, error, message, retryable, queued_s = fields
    return pb.End(
        id=number,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=completion,
        error=error,
        message=message,
        retryable=retryable,
        queued_s=queued_s,
    )


def pb_load(fields: tuple[int, ...]) -> pb.Load:
    names = [field.name for field in pb.Load.DESCRIPTOR.fields]
    return pb.Load(**dict(zip(names, fields, strict=True)))


def random_message(kind: str, rng: random.Random) -> Any:
    if kind == "submit":
        return pb_submit(random_submit(rng))
    if kind == "gateway":
        frame = pb.GatewayFrame(
            submits=[pb_submit(random_submit(rng)) for _ in range(rng.randrange(4))],
            cancels=[random_number(rng, MAX_64) for _ in range(rng.randrange(4))],
            resync=rng.random() < 0.3,
        )
        if rng.random() < 0.3:
            frame.hello.CopyFrom(pb.GatewayHello(gateway=random_text(rng), version=rng.randrange(3)))
        return frame
    start = pb.Start(id=random_number(rng, MAX_64), status=rng.randrange(600), headers=pb_headers(random_headers(rng)))
    end = pb_end(random_end(rng))
    if kind == "event":
        choice = rng.randrange(4)
        if choice == 0:
            return pb.GenerateEvent(start=start)
        if choice == 1:
            return pb.GenerateEvent(end=end)
        return pb.GenerateEvent(chunk=random_bytes(rng)) if choice == 2 else pb.GenerateEvent()
    chunks = [pb.Chunk(id=random_number(rng, MAX_64), data=random_bytes(rng)) for _ in range(rng.randrange(5))]
    engine = pb.EngineFrame(starts=[start] * rng.randrange(3), chunks=chunks, ends=[end] * rng.randrange(3))
    if rng.random() < 0.5:
        engine.load.CopyFrom(pb_load(random_load(rng)))
    if rng.random() < 0.3:
        engine.hello.CopyFrom(random_info(rng))
    if rng.random() < 0.3:
        engine.residency.CopyFrom(random_residency(rng))
    if rng.random() < 0.3:
        engine.following.CopyFrom(random_following(rng))
    return engine


def pieces_of(data: bytes) -> list[bytes]:
    """The top-level fields of a serialized message, each with its tag."""
    found, at = [], 0
    while at < len(data):
        start, tag = at, data[at]
        at += 1
        if tag & 7 in (0, 2):
            n = shift = 0
            while True:
                n |= (data[at] & 127) << shift
                shift += 7
                at += 1
                if data[at - 1] < 128:
                    break
            at += n if tag & 7 == 2 else 0
        else:
            at += 8 if tag & 7 == 1 else 4
        found.append(data[start:at])
    return found


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def payload_of(piece: bytes) -> bytes:
    """What a length-delimited field with a one-byte tag holds."""
    return next(piece[1 + k :] for k in range(1, 6) if len(varint(len(piece) - 1 - k)) == k)


def message(tag: bytes, data: bytes) -> bytes:
    return tag + varint(len(data)) + data


START = b"\x12"  # EngineFrame.starts
END = b"\x22"  # EngineFrame.ends
RESIDENCY = b"\x32"  # EngineFrame.residency
PACKED_CANCELS = ("gateway", 0x1A)
UNKNOWN = [
    varint(100 << 3 | 0) + varint(2**63),
    varint(100 << 3 | 1) + bytes(8),
    varint(2**28 << 3 | 2) + varint(3) + b"abc",
    varint(16 << 3 | 5) + bytes(4),
]


# ---- the two of them agree -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(DECODERS))
@pytest.mark.parametrize("seed", range(60))
def test_a_message_of_protobuf_is_read(kind: str, seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(5):
        assert agree(kind, random_message(kind, rng).SerializeToString())


@pytest.mark.parametrize("kind", list(DECODERS))
@pytest.mark.parametrize("seed", range(60))
def test_fields_in_any_order_repeated_and_unknown_are_read(kind: str, seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    whole = b"".join(random_message(kind, rng).SerializeToString() for _ in range(2))
    for _ in range(5):
        pieces = pieces_of(whole) + rng.sample(UNKNOWN, rng.randrange(5))
        rng.shuffle(pieces)
        assert agree(kind, b"".join(pieces))


@pytest.mark.parametrize("kind", ["engine", "gateway"])
def test_fields_of_inner_messages_in_any_order_are_read(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(100):
        pieces = []
        for piece in pieces_of(random_message(kind, rng).SerializeToString()):
            if piece[0] & 7 == 2 and (kind, piece[0]) != PACKED_CANCELS:
                inner = pieces_of(payload_of(piece)) + rng.sample(UNKNOWN, 2)
                rng.shuffle(inner)
                piece = message(piece[:1], b"".join(inner))
            pieces.append(piece)
        assert agree(kind, b"".join(pieces))


@pytest.mark.parametrize("seed", range(60))
def test_a_gateway_frame_is_written_as_protobuf_does(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    writer = GatewayFrameWriter()
    for _ in range(3):
        expected = pb.GatewayFrame()
        if rng.random() < 0.4:
            expected.hello.CopyFrom(pb.GatewayHello(gateway=random_text(rng), version=rng.randrange(3)))
            expected.hello.wants_residency = rng.random() < 0.5
            writer.hello(expected.hello.gateway, expected.hello.version, expected.hello.wants_residency)
        for number in range(rng.randrange(40)):
            fields = (number, *random_submit(rng)[1:])
            expected.submits.append(pb_submit(fields))
            writer.submit(number, encode_head(*fields[1:4]), *fields[4:])
        for _ in range(rng.randrange(40)):
            expected.cancels.append(100 + random_number(rng, MAX_64 - 100))
            writer.cancel(expected.cancels[-1])
        if rng.random() < 0.3:
            expected.resync = True
            writer.resync()
            writer.resync()
        n_items = len(expected.submits) + len(expected.cancels) + expected.HasField("hello") + expected.resync
        assert len(writer) == n_items
        assert writer.take(1 << 40) == expected.SerializeToString()
        assert len(writer) == 0
        assert writer.take(1 << 40) == b""


@pytest.mark.parametrize("seed", range(30))
def test_a_submit_is_written_as_protobuf_does(seed: int) -> None:
    print("seed", seed)
    fields = random_submit(random.Random(seed))
    data = encode_submit(fields[0], encode_head(*fields[1:4]), *fields[4:])
    assert data == pb_submit(fields).SerializeToString()
    assert decode_submit(data) == fields


@pytest.mark.parametrize("seed", range(60))
def test_an_engine_frame_is_written_as_protobuf_does(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    writer = EngineFrameWriter()
    for _ in range(3):
        expected = pb.EngineFrame()
        if rng.random() < 0.4:
            expected.hello.CopyFrom(random_info(rng))
            writer.hello(expected.hello.SerializeToString())
        n_items = int(expected.HasField("hello"))
        for _ in range(rng.randrange(40)):
            n_items += 1
            number = random_number(rng, MAX_64)
            kind = rng.randrange(3)
            if kind == 0:
                status, headers = rng.choice([0, 200, 2**32 - 1]), random_headers(rng)
                expected.starts.append(pb.Start(id=number, status=status, headers=pb_headers(headers)))
                writer.start(number, status, encode_headers(headers))
            elif kind == 1:
                expected.chunks.append(pb.Chunk(id=number, data=random_bytes(rng)))
                writer.chunk(number, expected.chunks[-1].data)
            else:
                fields = random_end(rng)
                expected.ends.append(pb_end(fields))
                writer.end(*fields)
        if rng.random() < 0.5:
            load = random_load(rng)
            writer.load(1, 2, 3, 4, 5, 6)
            writer.load(*load)
            expected.load.CopyFrom(pb_load(load))
            n_items += 1
        if rng.random() < 0.5:
            expected.residency.CopyFrom(random_residency(rng))
            writer.residency(*residency_of(expected.residency))
            n_items += 1
        if rng.random() < 0.5:
            expected.following.CopyFrom(random_following(rng))
            writer.following(b"replaced")
            writer.following(expected.following.SerializeToString())
            n_items += 1
        data = expected.SerializeToString()
        assert len(writer) == n_items
        assert writer.n_bytes == len(data)
        assert writer.take() == data
        assert len(writer) == writer.n_bytes == 0
        assert writer.take() == b""


def test_flags_are_booleans() -> None:
    engine, gateway = EngineFrameWriter(), GatewayFrameWriter()
    engine.end(1, 0, 0, 0, "", "", True, 0.0)
    gateway.hello("g", 1, True)
    hello = decode_gateway_frame(gateway.take(0)).hello
    assert hello is not None
    assert decode_engine_frame(engine.take()).ends[0][6] is True
    assert hello[2] is True


# ---- bytes that are no message ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(DECODERS))
def test_truncated_messages_are_refused_where_protobuf_refuses(kind: str) -> None:
    rng = random.Random(kind)
    refused = 0
    for _ in range(40):
        data = random_message(kind, rng).SerializeToString()[:400]
        refused += sum(not agree(kind, data[:n]) for n in range(len(data)))
    assert refused > 1000


@pytest.mark.parametrize("kind", list(DECODERS))
def test_mutated_messages_are_refused_where_protobuf_refuses(kind: str) -> None:
    """Differential fuzzing for half a second each."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    until = time.monotonic() + 0.5
    outcomes = set()
    while time.monotonic() < until:
        data = bytearray(random_message(kind, rng).SerializeToString()[:3000])
        for _ in range(20):
            for _ in range(rng.choice([1, 1, 1, 2, 8])):
                if data and rng.random() < 0.7:
                    data[rng.randrange(len(data))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
                elif data and rng.random() < 0.5:
                    del data[rng.randrange(len(data))]
                else:
                    data.insert(rng.randrange(len(data) + 1), rng.randrange(256))
            outcomes.add(agree(kind, bytes(data)))
    assert outcomes == {True, False}


@pytest.mark.parametrize("kind", list(DECODERS))
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=60))
@example(data=b"\x0a\x80\x00")
@example(data=b"\x92\x00\x04\x9a\x00\x00")
def test_any_bytes_are_read_or_refused(kind: str, data: bytes) -> None:
    agree(kind, data)


@pytest.mark.parametrize(
    ("data", "reason", "offset"),
    [
        (b"\x12", "varint beyond the end", 1),
        (b"\x12\x05\x09", "length beyond the end", 2),
        (b"\x12\x80\x80\x80\x80\x80\x01", "varint too long", 1),
        (b"\x12\xff\xff\xff\xff\x0f", "length beyond the end", 6),
        (message(START, b"\x10" + b"\xff" * 9 + b"\x7f"), "varint too long", 3),
        (message(START, b"\x10" + b"\x80" * 9 + b"\x02"), "varint too long", 3),
        (message(START, b"\x10" + b"\x80" * 11), "varint too long", 3),
        (message(START, b"\x09\x00"), "number beyond the end", 3),
        (message(START, b"\x08\x01"), "wrong wire type", 3),
        (message(START, b"\x1a\x04\x0a\x02x"), "length beyond the end", 4),
        (message(START, b"\x1a\x04\x0a\x03xy"), "length beyond the end", 6),
        (message(END, b"\x45\x00"), "number beyond the end", 3),
        (message(END, b"\x2a\x01\xff"), "text that is not UTF-8", 5),
        (message(END, b"\x2a\x03\xed\xa0\x80"), "text that is not UTF-8", 7),
        (message(END, b"\x32\x01\xff\x32\x00"), "text that is not UTF-8", 5),
        (message(END, b"\x48\x80"), "varint beyond the end", 3),
        (message(RESIDENCY, b"\x2a\x09" + bytes(9)), "number beyond the end", 13),
        (message(RESIDENCY, b"\x32\x02" + bytes(2)), "number beyond the end", 6),
        (message(RESIDENCY, b"\x35" + bytes(3)), "number beyond the end", 3),
        (message(RESIDENCY, b"\x31" + bytes(8)), "wrong wire type", 3),
        (message(RESIDENCY, b"\x2d" + bytes(4)), "wrong wire type", 3),
        (message(RESIDENCY, b"\x42\x01\xff\x42\x00"), "text that is not UTF-8", 5),
        (b"\x10\x01", "wrong wire type", 1),
        (b"\x43\x44", "unknown wire type", 1),
        (b"\x46", "unknown wire type", 1),
        (b"\x00\x00", "field number out of range", 1),
        (b"\xff\xff\xff\xff\x7f", "field number out of range", 5),
    ],
)
def test_an_error_says_what_is_wrong_and_where(data: bytes, reason: str, offset: int) -> None:
    with pytest.raises(WireError) as caught:
        decode_engine_frame(data)
    assert (caught.value.reason, caught.value.offset) == (reason, offset)
    assert str(caught.value) == f"{reason} at byte {offset}"


def test_cancels_are_read_packed_and_not() -> None:
    packed = message(b"\x1a", struct.pack("<2Q", 1, MAX_64))
    assert decode_gateway_frame(packed + b"\x19" + struct.pack("<Q", 7)).cancels == [1, MAX_64, 7]
    with pytest.raises(WireError, match="number beyond the end"):
        decode_gateway_frame(message(b"\x1a", bytes(9)))


def test_arrays_of_a_residency_are_read_packed_and_not() -> None:
    packed = b"\x2a\x10" + struct.pack("<2Q", 1, MAX_64) + b"\x32\x04" + struct.pack("<I", 5)
    loose = b"\x29" + struct.pack("<Q", 7) + b"\x35" + struct.pack("<I", 2**32 - 1) + b"\x39" + struct.pack("<Q", 9)
    expected = struct.pack("<3Q", 1, MAX_64, 7), struct.pack("<2I", 5, 2**32 - 1), struct.pack("<Q", 9)
    assert agree("engine", message(RESIDENCY, packed + loose))
    found = decode_engine_frame(message(RESIDENCY, packed + loose)).residency
    assert found == (0, False, *expected, "", False)
    # In two messages, and with fields that were something else once.
    old = b"\x1a\x02ab" + b"\x20\x05"
    twice = message(RESIDENCY, packed + b"\x08\x03") + message(RESIDENCY, old + loose + b"\x10\x01")
    assert agree("engine", twice)
    assert decode_engine_frame(twice).residency == (3, True, *expected, "", False)


def test_a_residency_in_many_pieces_costs_no_more_than_its_bytes() -> None:
    """Each piece is copied once, not with all those before it."""
    n = 20_000
    piece = message(RESIDENCY, b"\x2a\x80\x01" + bytes(128))
    started_s = time.process_time()
    found = decode_engine_frame(piece * n).residency
    assert found is not None
    assert len(found[2]) == 128 * n
    assert time.process_time() - started_s < 0.5  # some ms; copied anew for each, it is 25 GB


# ---- header blocks ---------------------------------------------------------------------------------------------------


def test_identical_header_blocks_share_one_list() -> None:
    writer = EngineFrameWriter()
    for number in range(3):
        writer.start(number, 200, encode_headers(HEADERS if number else [(b"a", b"b")]))
    one, two, three = (start[2] for start in decode_engine_frame(writer.take()).starts)
    assert one == [(b"a", b"b")]
    assert two == HEADERS
    assert two is three


def test_header_blocks_are_told_apart_however_many_there_are() -> None:
    writer = EngineFrameWriter()
    expected = [[(b"n", b"%d" % (number % 300))] for number in range(2000)]
    for number, headers in enumerate(expected):
        writer.start(number, 200, encode_headers(headers))
    assert [start[2] for start in decode_engine_frame(writer.take()).starts] == expected


def test_a_split_header_block_leaves_the_shared_lists_alone() -> None:
    first, second = encode_headers([(b"split", b"1")]), encode_headers([(b"split", b"2")])
    whole = decode_engine_frame(message(START, first))
    split = decode_engine_frame(message(START, first + b"\x10\x05" + second + b"\x10\x06" + first))
    both = [(b"split", b"1"), (b"split", b"2"), (b"split", b"1")]
    assert split.starts == [(0, 6, both)]
    assert whole.starts == decode_engine_frame(message(START, first)).starts == [(0, 0, both[:1])]


# ---- the writers -----------------------------------------------------------------------------------------------------


def submit(writer: GatewayFrameWriter, number: int, body: bytes = b"") -> None:
    writer.submit(number, b"", body, 0, 0, "", "")


def taken(writer: GatewayFrameWriter, max_bytes: int) -> tuple[list[int], list[int]]:
    frame = decode_gateway_frame(writer.take(max_bytes))
    return [fields[0] for fields in frame.submits], frame.cancels


def test_take_stops_at_the_bytes_allowed_but_takes_one() -> None:
    writer = GatewayFrameWriter()
    for number, size in enumerate([50, 60, 40, 200, 1], start=1):
        submit(writer, number, bytes(size))
    writer.cancel(77)
    assert taken(writer, 0) == ([1], [77])
    assert taken(writer, 100) == ([2, 3], [])
    assert len(writer) == 2
    assert taken(writer, 100) == ([4], [])
    submit(writer, 6)
    assert taken(writer, 100) == ([5, 6], [])


def test_a_cancel_of_what_still_waits_drops_it() -> None:
    writer = GatewayFrameWriter()
    for number in range(1, 6):
        submit(writer, number, bytes(10))
    for number in (3, 1, 5, 3):
        writer.cancel(number)
    assert len(writer) == 3
    assert taken(writer, 1 << 20) == ([2, 4], [3])


def test_clear_forgets_everything() -> None:
    writer = GatewayFrameWriter()
    writer.hello("g", 1, True)
    submit(writer, 1)
    writer.cancel(9)
    writer.resync()
    writer.clear()
    assert len(writer) == 0
    assert writer.take(100) == b""


def test_a_frame_carries_one_residency() -> None:
    writer = EngineFrameWriter()
    writer.residency(1, True, bytes(8), bytes(4), b"", "exact", False)
    with pytest.raises(ValueError, match="one Residency"):
        writer.residency(2, False, b"", b"", b"", "", False)
    assert decode_engine_frame(writer.take()).residency == (1, True, bytes(8), bytes(4), b"", "exact", False)
    writer.residency(2, False, b"", b"", b"", "", False)
    assert decode_engine_frame(writer.take()).residency == (2, False, b"", b"", b"", "", False)


def test_an_engine_may_introduce_itself_again() -> None:
    writer = EngineFrameWriter()
    for name in ("one", "two"):
        writer.hello(pb.EngineInfo(replica=name).SerializeToString())
        hello = decode_engine_frame(writer.take()).hello
        assert hello is not None
        assert pb.EngineInfo.FromString(hello).replica == name


def test_writers_keep_what_they_were_given_and_let_it_go() -> None:
    body = bytes(1000)
    before = sys.getrefcount(body)
    gateway, engine = GatewayFrameWriter(), EngineFrameWriter()
    for number in range(100):
        submit(gateway, number, body)
        engine.chunk(number, body)
    assert sys.getrefcount(body) == before + 200
    gateway.cancel(5)
    gateway.take(10_000)
    engine.take()
    assert sys.getrefcount(body) == before + 89
    gateway.clear()
    assert sys.getrefcount(body) == before
    submit(gateway, 1, body)
    engine.chunk(1, body)
    del gateway, engine
    assert sys.getrefcount(body) == before


@pytest.mark.parametrize(
    "call",
    [
        lambda: encode_head("\ud800", "", []),
        lambda: GatewayFrameWriter().hello("\ud800", 1, False),
        lambda: GatewayFrameWriter().submit(1, b"", b"", 0, 0, "", "\ud800"),
        lambda: EngineFrameWriter().end(1, 0, 0, 0, "", "\ud800", False, 0.0),
        lambda: EngineFrameWriter().end(1, -1, 0, 0, "", "", False, 0.0),
        lambda: EngineFrameWriter().start(2**64, 200, b""),
        lambda: encode_submit(1, b"", b"", 2**31, 0, "", ""),
        lambda: encode_headers([(b"a", None)]),  # type: ignore[list-item]
        lambda: encode_headers([("a", b"")]),  # type: ignore[list-item]
        lambda: encode_submit(1, b"", None, 0, 0, "", ""),  # type: ignore[arg-type]
        lambda: EngineFrameWriter().residency(1, False, bytes(8), bytes(8), b"", "", False),
        lambda: EngineFrameWriter().residency(1, False, bytes(12), bytes(6), b"", "", False),
        lambda: EngineFrameWriter().residency(1, False, b"", b"", bytes(7), "", False),
        lambda: EngineFrameWriter().residency(1, False, b"", b"", b"", "\ud800", False),
        lambda: EngineFrameWriter().residency(-1, False, b"", b"", b"", "", False),
        lambda: decode_engine_frame(bytearray()),  # type: ignore[arg-type]
        lambda: decode_engine_frame(None),  # type: ignore[arg-type]
    ],
)
def test_values_that_no_field_holds_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises((ValueError, OverflowError, TypeError)):
        call()


def test_a_refused_value_leaves_the_writer_as_it_was() -> None:
    gateway, engine = GatewayFrameWriter(), EngineFrameWriter()
    with pytest.raises(ValueError, match="surrogates"):
        gateway.submit(1, b"", b"", 0, 0, "\ud800", "")
    with pytest.raises(OverflowError):
        engine.end(1, 2**32, 0, 0, "", "", False, 0.0)
    assert len(gateway) == len(engine) == engine.n_bytes == 0
    assert gateway.take(1) == engine.take() == b""


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fail_allocation() -> Iterator[Callable[[int], None]]:
    yield framewriter._fail_allocation
    framewriter._fail_allocation(0)


@pytest.mark.parametrize("k", range(1, 7))
def test_failed_allocations_leave_a_gateway_writer_whole(k: int, fail_allocation: Callable[[int], None]) -> None:
    writer = GatewayFrameWriter()
    fail_allocation(k)
    submits, cancels, failures = [], [], 0
    for number in range(60):
        try:
            submit(writer, number)
            submits.append(number)
            writer.cancel(1000 + number)
            cancels.append(1000 + number)
        except MemoryError:
            failures += 1
    assert failures == 1
    assert taken(writer, 100) == (submits, cancels)


@pytest.mark.parametrize("k", range(1, 10))
def test_failed_allocations_leave_an_engine_writer_whole(k: int, fail_allocation: Callable[[int], None]) -> None:
    writer = EngineFrameWriter()
    block = encode_headers(HEADERS)
    fail_allocation(k)
    done: list[list[int]] = [[], [], []]
    failures = 0
    for number in range(60):
        calls: list[Callable[[], None]] = [
            lambda number=number: writer.start(number, 200, block),
            lambda number=number: writer.chunk(number, b"x"),
            lambda number=number: writer.end(number, 1, 2, 3, "code", "some message", True, 0.5),
        ]
        for kind, call in enumerate(calls):
            try:
                call()
                done[kind].append(number)
            except MemoryError:
                failures += 1
    assert failures == 1
    assert len(writer) == sum(map(len, done))
    frame = decode_engine_frame(writer.take())
    assert [[item[0] for item in items] for items in (frame.starts, frame.chunks, frame.ends)] == done


def test_bytes_that_cannot_be_had_leave_everything_waiting() -> None:
    testcapi = pytest.importorskip("_testcapi")
    writer, engine = GatewayFrameWriter(), EngineFrameWriter()
    submit(writer, 1, bytes(5000))
    writer.hello("g", 1, False)
    engine.chunk(1, bytes(5000))
    data = encode_submit(1, encode_head("POST", "/", HEADERS), bytes(600), 0, 0, "", "")
    calls: list[Callable[[], object]] = [lambda: writer.take(1), engine.take, lambda: decode_submit(data)]
    n_failures = 0
    for call in calls:
        for start in range(1, 40):
            testcapi.set_nomemory(start, start + 1)
            try:
                call()
            except MemoryError:
                n_failures += 1
            else:
                break
            finally:
                testcapi.remove_mem_hooks()
    assert n_failures >= len(calls)
    assert len(writer) == len(engine) == 0
