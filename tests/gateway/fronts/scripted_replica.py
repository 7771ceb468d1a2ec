"""A scripted engine behind a real gateway process: the last message of a chat says what becomes of the request.

    "hang"         nothing at all                 "open"          a stream with one event and no end
    "mirror"       the request's own body         "flood N"       a stream of N bytes, as fast as the Link takes them
    "start X: Y"   an answer with this header     "events N"      a stream of N events, then [DONE]
    "drip N"       N bytes of a stream and no end, in step with the other drips and as fast as the Link takes them

Proves what a front does with answers that no sim engine gives; that engines behave so is not claimed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.gateway.scripted_engine import JSON_START, SSE_START, ScriptedEngine, eventually
from xinf._pb import engine_service_pb2 as pb

PIECE = b"data: " + b"x" * 16378 + b"\n\n"
DRIPS_PER_FRAME = 32
DONE = b"data: [DONE]\n\n"


class ScriptedReplica(ScriptedEngine):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._open: set[int] = set()
        self._drips: dict[int, int] = {}  # pieces left

    @property
    def n_open(self) -> int:
        """Requests that were neither answered nor cancelled."""
        return len(self._open - set(self.cancels))

    @property
    def n_queued(self) -> int:
        """Frames that the Link has not taken yet."""
        return self._out.qsize()

    def end_open(self) -> None:
        """End every open stream well. Called from any thread."""
        self._loop.call_soon_threadsafe(self._end_open)

    def _end_open(self) -> None:
        self._drips.clear()
        for i in sorted(self._open - set(self.cancels)):
            self.push(chunks=[pb.Chunk(id=i, data=DONE)], ends=[pb.End(id=i, prompt_tokens=1)])
        self._open.clear()

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await super().start()

    def _act(self, submit: Any) -> None:
        i = submit.id
        word, _, rest = str(json.loads(submit.body)["messages"][-1]["content"]).partition(" ")
        if word == "mirror":
            self._answer(i, JSON_START, submit.body)
        elif word == "start":
            name, _, value = rest.partition(":")
            header = pb.Header(name=name.encode("latin-1"), value=value.encode("latin-1"))
            self._answer(i, [*JSON_START, header], b"{}")
        elif word == "events":
            self.push(starts=[pb.Start(id=i, status=200, headers=SSE_START)])
            for n in range(int(rest)):
                self.push(chunks=[pb.Chunk(id=i, data=b'data: {"n":%d}\n\n' % n)])
            self.push(chunks=[pb.Chunk(id=i, data=DONE)], ends=[pb.End(id=i, prompt_tokens=1)])
        elif word == "flood":
            self.push(starts=[pb.Start(id=i, status=200, headers=SSE_START)])
            for _ in range(int(rest) // len(PIECE)):
                self.push(chunks=[pb.Chunk(id=i, data=PIECE)])
            self.push(chunks=[pb.Chunk(id=i, data=DONE)], ends=[pb.End(id=i, prompt_tokens=1)])
        elif word == "drip":
            self._open.add(i)
            self.push(starts=[pb.Start(id=i, status=200, headers=SSE_START)])
            self._drips[i] = int(rest) // len(PIECE)
            if len(self._drips) == 1:
                self._dripping = asyncio.create_task(self._drip())
        elif word == "open":
            self._open.add(i)
            self.push(starts=[pb.Start(id=i, status=200, headers=SSE_START)])
            self.push(chunks=[pb.Chunk(id=i, data=b'data: {"n":0}\n\n')])
        else:
            assert word == "hang", word
            self._open.add(i)

    async def _drip(self) -> None:
        while self._drips:
            cancelled = set(self.cancels)
            ids = [i for i in self._drips if i not in cancelled]
            for at in range(0, len(ids), DRIPS_PER_FRAME):
                self.push(chunks=[pb.Chunk(id=i, data=PIECE) for i in ids[at : at + DRIPS_PER_FRAME]])
            self._drips = {i: self._drips[i] - 1 for i in ids if self._drips[i] > 1}
            await eventually(lambda: self.n_queued < 4, deadline_s=60.0)

    async def Generate(self, submit: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Bodies too long for the Link come here; always a mirror."""
        yield pb.GenerateEvent(start=pb.Start(status=200, headers=JSON_START))
        yield pb.GenerateEvent(chunk=submit.body)
        yield pb.GenerateEvent(end=pb.End(prompt_tokens=1))

    def _answer(self, i: int, headers: list[Any], body: bytes) -> None:
        self.push(
            starts=[pb.Start(id=i, status=200, headers=headers)],
            chunks=[pb.Chunk(id=i, data=body)],
            ends=[pb.End(id=i, prompt_tokens=1)],
        )
