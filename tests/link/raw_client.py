"""A client of a gRPC stream that says what a test wants; proves what the server makes of it, not that one says it."""

from __future__ import annotations

import asyncio

import hpack

from tests.engine.link_client import DEADLINE_S
from tests.link.h2_server import PATH, frame
from xinf.link import h2frames as h2

REQUEST = {
    ":method": "POST",
    ":scheme": "http",
    ":path": PATH,
    ":authority": "localhost",
    "te": "trailers",
    "content-type": "application/grpc",
    "xinf-dedicated": "1",
}


def request(*, stream: int = 1, flags: int = 0, **changes: str | None) -> bytes:
    """The HEADERS of a request; `changes`: header fields by name with "_" for "-", None to leave one out."""
    fields = {**REQUEST, **{name.replace("_", "-"): value for name, value in changes.items()}}
    block = hpack.Encoder().encode([(name, value) for name, value in fields.items() if value is not None])
    return frame(h2.HEADERS, block, flags=h2.END_HEADERS | flags, stream=stream)


def opening(**changes: str | None) -> bytes:
    """What a client says first."""
    return h2.PREFACE + h2.settings({}) + request(**changes)


class RawClient:
    """A connection."""

    def __init__(self) -> None:
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter
        self._decoder = hpack.Decoder()

    @classmethod
    async def connect(cls, target: str) -> RawClient:
        client = cls()
        if target.startswith("unix:"):
            opened = await asyncio.open_unix_connection(target.removeprefix("unix:"))
        else:
            opened = await asyncio.open_connection(*target.split(":"))
        client.reader, client.writer = opened
        return client

    def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def read_frame(self) -> tuple[int, int, int, bytes]:
        """Type, flags, stream and payload."""
        async with asyncio.timeout(DEADLINE_S):
            header = await self.reader.readexactly(h2.HEADER_BYTES)
            payload = await self.reader.readexactly(int.from_bytes(header[:3], "big"))
        return header[3], header[4], int.from_bytes(header[5:], "big"), payload

    async def read_frame_of(self, kind: int) -> tuple[int, int, int, bytes]:
        """The next frame of a type; others are passed over."""
        while (found := await self.read_frame())[0] != kind:
            pass
        return found

    async def read_headers(self) -> dict[str, str]:
        return dict(self._decoder.decode((await self.read_frame_of(h2.HEADERS))[3]))

    async def read_to_end(self) -> list[tuple[int, int, int, bytes]]:
        """The frames that come until the server ends the connection."""
        found = []
        try:
            while True:
                found.append(await self.read_frame())
        except (asyncio.IncompleteReadError, ConnectionError):
            return found

    def close(self) -> None:
        self.writer.close()
