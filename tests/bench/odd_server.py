"""An OpenAI-like server that misbehaves as the request's model says, in a thread of its own.

Proves what the client makes of bytes on a real socket. It has no parser worth the name and no engine: timing and
figures against a real gateway are in test_gateway.py.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from typing import Any

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TOKENS = 4
USAGE = {"prompt_tokens": 40, "completion_tokens": TOKENS, "prompt_tokens_details": {"cached_tokens": 10}}


def event(content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def whole(status: bytes, content: object, *headers: bytes) -> bytes:
    body = json.dumps(content).encode()
    lines = [b"HTTP/1.1 " + status, b"content-type: application/json", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


ROLE = event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
TOKEN = event({"choices": [{"delta": {"content": "wéll "}}]})
LAST = event({"choices": [], "usage": USAGE})
DONE = b"data: [DONE]\n\n"
ANSWER = {"choices": [{"message": {"role": "assistant", "content": "well"}}], "usage": USAGE}


FOR_EVER = b""  # in a script: nothing more is sent, the connection stays
STREAM = ROLE + TOKEN * TOKENS + LAST
GOOD = [STREAM_HEAD + chunk(STREAM + DONE) + chunk(b"")]
# What is sent for a request, packet by packet.
SCRIPTS: dict[str, list[bytes]] = {
    "crlf": [STREAM_HEAD + chunk((b": hello\n\n" + STREAM + DONE).replace(b"\n", b"\r\n")) + chunk(b"")],
    "no-usage": [STREAM_HEAD + chunk(ROLE + TOKEN * TOKENS + DONE) + chunk(b"")],
    "cut": [STREAM_HEAD + chunk(ROLE + TOKEN)],
    "no-done": [STREAM_HEAD + chunk(ROLE + TOKEN) + chunk(b"")],
    "error-event": [
        STREAM_HEAD + chunk(ROLE + TOKEN + event({"error": {"message": "engine died"}}) + DONE) + chunk(b"")
    ],
    "garbage-event": [STREAM_HEAD + chunk(ROLE + b"data: {nonsense\n\n" + DONE) + chunk(b"")],
    "after-done": [STREAM_HEAD + chunk(TOKEN + DONE + TOKEN) + chunk(b"")],
    "garbage-http": [b"SMTP ready\r\n\r\n"],
    "hang": [STREAM_HEAD + chunk(ROLE + TOKEN), FOR_EVER],
    "slow-head": [b"HTTP/1.1 200 OK\r\n", FOR_EVER],
    "429": [whole(b"429 Too Many Requests", {"error": {"message": "slow down", "code": "no_capacity"}})],
    "500": [b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\nconnection: close\r\n\r\noops"],
    "whole": [whole(b"200 OK", ANSWER)],
    "until-close": [b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + STREAM + DONE],
    "twice": [GOOD[0] + STREAM_HEAD + chunk(TOKEN)],  # and half of an answer that nobody asked for
    "continue": [b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD[0]],
    # One byte per packet, events over several chunks.
    "split": [
        bytes([byte])
        for byte in STREAM_HEAD
        + b"".join(chunk((STREAM + DONE)[at : at + 7]) for at in range(0, len(STREAM + DONE), 7))
        + chunk(b"")
    ],
}


def script(model: str, n_requests: int) -> list[bytes]:
    """The packets for a model's request; `every-other` fails for each second one."""
    if model == "every-other" and n_requests % 2:
        return [whole(b"503 Unavailable", {"detail": "not now"})]
    return SCRIPTS.get(model, GOOD)


CLOSES = {"cut", "until-close", "garbage-http", "500", "close-idle"}


class OddServer:
    """`with OddServer() as server:`; `requests` are the bodies that arrived."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.heads: list[bytes] = []
        self.n_connections = 0
        self._loop = asyncio.new_event_loop()
        self._never: asyncio.Future[None] = self._loop.create_future()  # kept, or its waiters are garbage
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> OddServer:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 22), self._loop
        ).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            writer.write(whole(b"200 OK", {"data": [{"id": "ok"}]}))
            return True
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        body = json.loads(await reader.readexactly(int(length[1])))
        self.requests.append(body)
        self.heads.append(head)
        model = body["model"]
        for piece in script(model, len(self.requests)):
            if piece == FOR_EVER:
                await self._never
            writer.write(piece)
            await writer.drain()
            if model == "split":
                await asyncio.sleep(0)
        return model not in CLOSES
