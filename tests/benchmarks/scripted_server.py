"""A tiny HTTP server whose answers are scripted byte for byte.

It proves what a client makes of given bytes, in given pieces. It cannot prove anything about speed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Pieces = list[bytes]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: "


def whole(body: bytes, status: bytes = b"200 OK", extra: bytes = b"") -> Pieces:
    """A complete answer with content-length."""
    return [b"HTTP/1.1 %s\r\ncontent-length: %d\r\n%s\r\n%s" % (status, len(body), extra, body)]


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(number: int) -> bytes:
    """One server-sent event with a little JSON."""
    return b'data: {"choices":[{"index":0,"delta":{"content":"w%d"}}]}\n\n' % number


STREAM_HEAD = HEAD + b"text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
LAST = b"0\r\n\r\n"


class ScriptedServer:
    """`answer(number)` gives the pieces of the number-th answer (from 0); a None at their end closes the connection."""

    def __init__(self, answer: Callable[[int], list[bytes | None]]) -> None:
        self._answer = answer
        self.port = 0
        self.bodies: list[bytes] = []
        self.n_connections = 0

    async def serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        """Accept until `stop`."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.partition(b":")[2])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                )
                self.bodies.append(await reader.readexactly(length))
                for piece in self._answer(len(self.bodies) - 1):
                    if piece is None:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)  # the next piece is a write of its own
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@contextmanager
def serving(answer: Callable[[int], list[bytes | None]]) -> Iterator[ScriptedServer]:
    """Run a server in a thread of its own for as long as the block."""
    server = ScriptedServer(answer)
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve(started, stop),))
    thread.start()
    try:
        assert started.wait(10)
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
