"""An EngineService that does what each request's body tells it, on a Unix socket in the test's own event loop.

Proves what the gateway does with every kind of frame, order and death; says nothing about a real shim (those are in
test_app.py). The body is a word: "echo", "stream", "hang", "refuse", "error", "silent".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from xinf._pb import engine_service_pb2 as pb
from xinf._pb import engine_service_pb2_grpc as pb_grpc

JSON_START = [pb.Header(name=b"content-type", value=b"application/json")]
SSE_START = [pb.Header(name=b"content-type", value=b"text/event-stream")]


class ScriptedEngine(pb_grpc.EngineServiceServicer):
    def __init__(self, path: Path) -> None:
        self.address = f"unix:{path}"
        self.submits: list[Any] = []
        self.generated: list[Any] = []
        self.cancels: list[int] = []
        self.frames = 0
        self.hellos: list[Any] = []
        self.resyncs = 0
        self.protocol = 1
        self._out: asyncio.Queue[Any] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None
        self._context: Any = None

    async def start(self) -> None:
        options = [("grpc.max_receive_message_length", 40 << 20), ("grpc.max_send_message_length", 40 << 20)]
        self._server = grpc.aio.server(options=options)
        pb_grpc.add_EngineServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        """End at once, as a killed process does."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def push(self, **fields: Any) -> None:
        """Send one frame."""
        self._out.put_nowait(pb.EngineFrame(**fields))

    async def Link(self, frames: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self._out = asyncio.Queue()
        self._context = context
        info = pb.EngineInfo(replica="r1", engine="scripted", protocol=self.protocol, block_tokens=16, max_running=8)
        yield pb.EngineFrame(hello=info, load=pb.Load(kv_blocks_total=100))
        reader = asyncio.ensure_future(self._read(frames))
        try:
            while True:
                yield await self._out.get()
        finally:
            reader.cancel()

    async def _read(self, frames: AsyncIterator[Any]) -> None:
        async for frame in frames:
            self.frames += 1
            if frame.HasField("hello"):
                self.hellos.append(frame.hello)
            self.cancels += frame.cancels
            self.resyncs += frame.resync
            for submit in frame.submits:
                self.submits.append(submit)
                self._act(submit)

    def _act(self, submit: Any) -> None:
        word = submit.body.decode()
        i = submit.id
        if word == "echo":
            self.push(
                starts=[pb.Start(id=i, status=200, headers=JSON_START)],
                chunks=[pb.Chunk(id=i, data=b'{"ok":'), pb.Chunk(id=i, data=b"true}")],
                ends=[pb.End(id=i, prompt_tokens=7, cached_tokens=3, completion_tokens=2)],
            )
        elif word == "stream":
            self.push(starts=[pb.Start(id=i, status=200, headers=SSE_START)])
            for n in range(3):
                self.push(chunks=[pb.Chunk(id=i, data=b"data: %d\n\n" % n)])
            self.push(chunks=[pb.Chunk(id=i, data=b"data: [DONE]\n\n")], ends=[pb.End(id=i, prompt_tokens=1)])
        elif word == "refuse":
            self.push(ends=[pb.End(id=i, error="unavailable", message="draining", retryable=True)])

    async def Generate(self, submit: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.generated.append(submit)
        yield pb.GenerateEvent(start=pb.Start(status=200, headers=JSON_START))
        yield pb.GenerateEvent(chunk=b'{"bytes":%d}' % len(submit.body))
        yield pb.GenerateEvent(end=pb.End(prompt_tokens=9))


async def eventually(condition: Any, *, deadline_s: float = 10.0) -> None:
    """Wait until `condition()` holds, turn by turn of the loop."""
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.005)
