"""A stand-in for `xinf sim --http`: the same routes, whole and streamed answers at a fixed step, and no cache model.

It exists so that the harness works where this version of xinf has no `xinf sim --http`; results say which one ran.
`python -m benchmarks.stand_in PORT STEP_MS`
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from typing import Any, cast

import httptools
import uvloop

MODEL = "sim"
PATHS_200 = {"/health", "/healthz", "/health_generate", "/readiness"}
EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"sim","choices":[{"index":0,'
    b'"delta":{"content":"word"},"logprobs":null,"finish_reason":null}]}\n\n'
)
WHOLE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": MODEL,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "word"}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101},
}
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def answer(content: Any, status: bytes = b"200 OK") -> bytes:
    body = json.dumps(content).encode()
    return b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


CHUNK = chunk(EVENT)
END = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
WHOLE_ANSWER = answer(WHOLE)


class Steps:
    """One timer for all streams: every step each of them gets a chunk, as an engine's batch does."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._streams: list[tuple[Connection, int]] = []
        self._is_armed = False

    def add(self, connection: Connection, n_tokens: int) -> None:
        self._streams.append((connection, n_tokens))
        if not self._is_armed:
            self._is_armed = True
            asyncio.get_running_loop().call_later(self._step_s, self._step)

    def _step(self) -> None:
        left = []
        for connection, n_tokens in self._streams:
            if connection.transport.is_closing():
                continue
            if n_tokens > 1:
                connection.transport.write(CHUNK)
                left.append((connection, n_tokens - 1))
            else:
                connection.transport.write(CHUNK + END)
                connection.next()
        self._streams = left
        self._is_armed = bool(left)
        if left:
            asyncio.get_running_loop().call_later(self._step_s, self._step)


class Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._is_busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_url(self, url: bytes) -> None:
        self._url = url
        self._body = []

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._waiting.append((self._url, b"".join(self._body)))
        if not self._is_busy:
            self.next()

    def next(self) -> None:
        self._is_busy = False
        while self._waiting and not self._is_busy:
            self._answer(*self._waiting.popleft())

    def _answer(self, url: bytes, body: bytes) -> None:
        path = url.partition(b"?")[0].decode()
        if path == "/v1/chat/completions":
            request = json.loads(body)
            if request.get("stream"):
                self._is_busy = True
                self.transport.write(STREAM_HEAD)
                # sglang-router rewrites the one into the other.
                self._steps.add(self, request.get("max_completion_tokens") or request.get("max_tokens") or 1)
            else:
                self.transport.write(WHOLE_ANSWER)
        elif path in PATHS_200:
            self.transport.write(answer({}))
        elif path == "/v1/models":
            self.transport.write(answer({"object": "list", "data": [{"id": MODEL, "object": "model"}]}))
        elif path == "/tokenize":
            text = json.dumps(json.loads(body).get("messages") or json.loads(body).get("prompt"))
            tokens = list(range(len(text) // 4))
            self.transport.write(answer({"count": len(tokens), "max_model_len": 32768, "tokens": tokens}))
        else:
            self.transport.write(answer({"error": f"no route {path}"}, b"404 Not Found"))


async def main(port: int, step_ms: float) -> None:
    steps = Steps(step_ms / 1e3)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(steps), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
