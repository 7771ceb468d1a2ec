"""The far end of a ClientStream, twice.

grpc_server      the real server of grpc.aio with raw bytes for messages: what production speaks with
ScriptedServer   a socket that says whatever a test wants; proves what the client makes of it, not that a server says it
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio
import hpack

from tests.engine.link_client import DEADLINE_S
from xinf.link import h2frames as h2

PATH = "/test.Service/Talk"
Handler = Callable[[grpc.aio.ServicerContext[bytes, bytes]], Awaitable[None]]


@contextlib.asynccontextmanager
async def grpc_server(directory: Path | None, handler: Handler) -> AsyncIterator[tuple[grpc.aio.Server, str]]:
    """A grpc.aio server with one bidirectional method, on TCP if there is no directory. Gives it and its target."""

    async def talk(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await handler(context)

    method = grpc.stream_stream_rpc_method_handler(talk)
    sizes = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
    server = grpc.aio.server(options=sizes)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Talk": method}),))
    target = "127.0.0.1:0" if directory is None else f"unix:{directory}/g.sock"
    port = server.add_insecure_port(target)
    if directory is None:
        target = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield server, target
    finally:
        await server.stop(0)


async def echo(context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
    """Send every message back."""
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(message)


class ScriptedServer:
    """Listens on a Unix socket; a test reads what came and writes raw bytes."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
            asyncio.get_running_loop().create_future()
        )

    async def accept(self) -> None:
        """Wait for the client and read its beginning, up to its headers."""
        self.reader, self.writer = await asyncio.wait_for(self._connected, DEADLINE_S)
        assert await self.reader.readexactly(len(h2.PREFACE)) == h2.PREFACE
        kinds = [await self.read_frame() for _ in range(3)]
        assert [kind for kind, _, _, _ in kinds] == [h2.SETTINGS, h2.WINDOW_UPDATE, h2.HEADERS]
        self.request = dict(hpack.Decoder().decode(kinds[2][3]))

    async def read_frame(self) -> tuple[int, int, int, bytes]:
        """Type, flags, stream and payload."""
        async with asyncio.timeout(DEADLINE_S):
            header = await self.reader.readexactly(h2.HEADER_BYTES)
            payload = await self.reader.readexactly(int.from_bytes(header[:3], "big"))
        return header[3], header[4], int.from_bytes(header[5:], "big"), payload

    async def read_frame_of(self, kind: int) -> tuple[int, int, int, bytes]:
        """The next frame of a type; others are passed over."""
        while (frame := await self.read_frame())[0] != kind:
            pass
        return frame

    def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def read_to_end(self) -> bytes:
        """Everything until the client closes."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.reader.read()


@contextlib.asynccontextmanager
async def scripted_server(directory: Path) -> AsyncIterator[ScriptedServer]:
    script = ScriptedServer(f"unix:{directory}/s.sock")

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script._connected.set_result((reader, writer))

    server = await asyncio.start_unix_server(connected, f"{directory}/s.sock")
    try:
        yield script
    finally:
        server.close()
        if script._connected.done():
            script.writer.close()


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return h2.header(len(payload), kind, flags, stream) + payload


def data(payload: bytes, *, flags: int = 0) -> bytes:
    return frame(h2.DATA, payload, flags=flags, stream=1)


def message(payload: bytes) -> bytes:
    """A gRPC message: what DATA carries."""
    return b"\0" + len(payload).to_bytes(4, "big") + payload


def headers(fields: dict[str, str], *, is_last: bool = False) -> bytes:
    block = hpack.Encoder().encode(list(fields.items()))
    return frame(h2.HEADERS, block, flags=h2.END_HEADERS | (h2.END_STREAM if is_last else 0), stream=1)


def begin() -> bytes:
    """What a healthy server says first."""
    return h2.settings({}) + headers({":status": "200", "content-type": "application/grpc"})
