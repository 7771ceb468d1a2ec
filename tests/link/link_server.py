"""A Door with gRPC's own server behind it, in the process of the test: echo on both, so that a client sees which."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from tests.engine.link_client import until
from tests.link.h2_server import PATH, echo, grpc_server
from xinf.link import Door, ServerStream


class Talker:
    """A listener that keeps what came and sends what it is given; with `is_echo`, what came."""

    is_echo = True

    def __init__(self, stream: ServerStream) -> None:
        self.stream = stream
        self.outgoing: deque[bytes] = deque()
        self.messages: list[bytes] = []
        self.is_closed = False  # by the client
        self.lost: list[str] = []

    def take(self) -> bytes:
        if not self.outgoing:
            return b""
        if len(self.outgoing) > 1:
            self.stream.wake()
        return self.outgoing.popleft()

    def on_message(self, data: bytes) -> None:
        self.messages.append(data)
        if self.is_echo:
            self.send(data)

    def on_closed(self) -> None:
        self.is_closed = True
        self.stream.finish("ok", "")

    def on_lost(self, reason: str) -> None:
        self.lost.append(reason)

    def send(self, *messages: bytes) -> None:
        self.outgoing += messages
        self.stream.wake()

    async def wait_lost(self) -> str:
        await until(lambda: self.lost, "the loss of the stream")
        assert len(self.lost) == 1
        return self.lost[0]


class Served:
    """An open door."""

    def __init__(self, door: Door, target: str) -> None:
        self.door = door
        self.target = target
        self.talkers: list[Talker] = []

    async def talker(self, n: int = 1) -> Talker:
        """The listener of the n-th stream."""
        await until(lambda: len(self.talkers) >= n, f"stream {n}")
        return self.talkers[n - 1]


@contextlib.asynccontextmanager
async def served(
    directory: Path,
    *,
    is_tcp: bool = False,
    max_message_bytes: int = 64 << 20,
    make: Callable[[ServerStream], Talker] = Talker,
) -> AsyncIterator[Served]:
    """gRPC's server has a socket file of its own in `directory`."""

    def make_listener(stream: ServerStream) -> Talker:
        talker = make(stream)
        found.talkers.append(talker)
        return talker

    async with grpc_server(directory, echo) as (_, behind):
        door = Door(
            path=PATH,
            make_listener=make_listener,
            behind=Path(behind.removeprefix("unix:")),
            max_message_bytes=max_message_bytes,
        )
        door.bind("127.0.0.1:0" if is_tcp else f"unix:{directory}/d.sock")
        found = Served(door, f"127.0.0.1:{door.port}" if is_tcp else f"unix:{directory}/d.sock")
        await door.open()
        try:
            yield found
        finally:
            await door.close()
