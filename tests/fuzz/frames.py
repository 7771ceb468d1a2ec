"""The Link's codec against protobuf: damaged messages are read alike or refused, and what was read is written alike."""

from __future__ import annotations

import random
import zlib

from google.protobuf.message import DecodeError

from tests.fast.test_frame import DECODERS, STRICTER, pb_submit, random_message, residency_of, submit_of
from tests.fuzz.target import expect, same
from xinf._fast import framewriter
from xinf._fast.frame import WireError, decode_engine_frame, decode_gateway_frame, decode_submit
from xinf._fast.framewriter import EngineFrameWriter, GatewayFrameWriter, encode_head, encode_headers, encode_submit
from xinf._pb import engine_service_pb2 as pb

KINDS = tuple(DECODERS)
# Tags, lengths and varints at their edges, which land where they mean something often enough.
PIECES = [
    b"\x00", b"\x7f", b"\x80", b"\xff", b"\x80\x00", b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01", b"\xff" * 10,
    b"\x80" * 9 + b"\x01", b"\x0a\x00", b"\x12\x00", b"\x1a\x02\x08\x01", b"\x22\x00", b"\x2a\x00", b"\x32\x00",
    b"\x09" + bytes(8), b"\x0d" + bytes(4), b"\x45\x00\x00\xc0\x7f", b"\x0b\x0c", b"\xed\xa0\x80", b"\xc3\x28",
]  # fmt: skip


class WireTarget:
    """The first byte of a case picks the message, the others are it."""

    name = "wire"

    def __init__(self) -> None:
        self.n_rejected = 0

    def make(self, rng: random.Random) -> bytes:
        kind = rng.randrange(len(KINDS))
        if rng.random() < 0.1:
            return bytes([kind]) + rng.randbytes(rng.randrange(80))
        data = random_message(KINDS[kind], rng).SerializeToString()[: rng.choice([40, 400, 30_000])]
        for _ in range(rng.choice([0, 1, 1, 2, 8])):
            at = rng.randrange(len(data) + 1)
            pick = rng.randrange(5)
            if pick == 0:
                data = data[:at] + rng.choice(PIECES) + data[at:]
            elif pick == 1:
                data = data[:at] + data[at + rng.choice([1, 1, 4]) :]
            elif pick == 2:
                data = data[:at] + rng.randbytes(1) + data[at + 1 :]
            elif pick == 3:
                source = rng.randrange(len(data) + 1)
                data = data[:at] + data[source : source + rng.randrange(40)] + data[at:]
            else:
                data += random_message(KINDS[kind], rng).SerializeToString()[:400]  # merged
        return bytes([kind]) + data

    def check(self, case: bytes) -> None:
        kind, data = KINDS[case[0] % len(KINDS)] if case else KINDS[0], bytes(case[1:])
        if not self.agree(kind, data):
            self.n_rejected += 1
            return
        self.check_failures(kind, data)
        self.check_writing(kind, data)

    def exercise(self, case: bytes) -> None:
        self.check(case)

    def agree(self, kind: str, data: bytes) -> bool:
        """Decode both ways and compare. Returns whether both took it."""
        ours, theirs = DECODERS[kind]
        refusal: Exception | None = None
        found = expected = None
        try:
            found = ours(data)
        except (WireError, DecodeError) as error:  # DecodeError: of EngineInfo, which is not looked into
            refusal = error
        try:
            expected = theirs(data)
        except DecodeError:
            expect(refusal is not None, "protobuf refuses it, we read", found)
            return False
        if refusal is None:
            same(found, expected, f"{kind} message")
            return True
        expect(isinstance(refusal, WireError) and refusal.reason in STRICTER, "we refuse it:", refusal)
        return False

    def check_failures(self, kind: str, data: bytes) -> None:
        ours, _ = DECODERS[kind]
        expected = ours(data)
        framewriter._fail_allocation(1 + zlib.crc32(data) % 3)
        try:
            got = ours(data)
        except MemoryError:
            got = expected
        finally:
            framewriter._fail_allocation(0)
        same(got, expected, "message while an allocation failed")
        same(ours(data), expected, "message after an allocation failed")

    def check_writing(self, kind: str, data: bytes) -> None:
        """Write what was read, and read it again with protobuf."""
        if kind == "submit":
            fields = decode_submit(data)
            written = encode_submit(fields[0], encode_head(*fields[1:4]), *fields[4:])
            same(written, pb_submit(fields).SerializeToString(), "submit written")
        elif kind == "gateway":
            frame = decode_gateway_frame(data)
            gateway = GatewayFrameWriter()
            if frame.hello is not None:
                gateway.hello(*frame.hello)
            for fields in frame.submits:
                gateway.submit(fields[0], encode_head(*fields[1:4]), *fields[4:])
            if frame.resync:
                gateway.resync()
            written_frame = pb.GatewayFrame.FromString(gateway.take(1 << 40))
            submits = [submit_of(submit) for submit in written_frame.submits]
            same(submits, frame.submits, "submits written")
            same(written_frame.resync, frame.resync, "resync written")
            same(len(gateway), 0, "items left")
        elif kind == "engine":
            self.check_engine_writing(data)

    def check_engine_writing(self, data: bytes) -> None:
        frame = decode_engine_frame(data)
        engine = EngineFrameWriter()
        for number, status, headers in frame.starts:
            engine.start(number, status, encode_headers(headers))
        for number, chunk in frame.chunks:
            engine.chunk(number, chunk)
        for end in frame.ends:
            engine.end(*end)
        if frame.residency is not None and 2 * len(frame.residency[3]) == len(frame.residency[2]):
            engine.residency(*frame.residency)
        n_bytes = engine.n_bytes
        written = engine.take()
        same(n_bytes, len(written), "n_bytes")
        again = pb.EngineFrame.FromString(written)
        same([(chunk.id, chunk.data) for chunk in again.chunks], frame.chunks, "chunks written")
        same([end.id for end in again.ends], [end[0] for end in frame.ends], "ends written")
        same([start.status for start in again.starts], [start[1] for start in frame.starts], "starts written")
        if again.HasField("residency"):
            same(residency_of(again.residency), frame.residency, "residency written")
