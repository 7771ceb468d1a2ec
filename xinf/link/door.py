"""One address for everything: streams that have their connection for themselves are served here, all else behind.

    connection ─▶ Arrival: reads the opening ─┬─ one stream of `path` ──▶ ServerStream, a listener of the owner's
                   (OPENING_S, 64 KiB)        └─ anything else ──▶ Relay ──▶ the server on the Unix socket `behind`

A connection that sends nothing is closed after OPENING_S; one that has sent SETTINGS and no request is one of gRPC's
idle channels, and is passed on.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

from xinf.link import h2frames as h2
from xinf.link.address import bind
from xinf.link.opening import Carries, Opening, SettingsAck
from xinf.link.relay import relay
from xinf.link.server import ServerListener, ServerStream

OPENING_S = 10.0
# At the end, for what is being sent and for clients to close; they do at once unless they hang.
_GRACE_S = 0.5


class Door:
    """Listens on one address."""

    def __init__(
        self,
        *,
        path: str,
        make_listener: Callable[[ServerStream], ServerListener],
        behind: Path,
        max_message_bytes: int,
    ) -> None:
        """`path`: "/package.Service/Method" of the streams served here. `behind`: the other server's socket."""
        self.path = path
        self._make_listener = make_listener
        self._behind = behind
        self._max_message_bytes = max_message_bytes
        self._sockets: list[socket.socket] = []
        self._unix_path: Path | None = None
        self._servers: list[asyncio.Server] = []
        self._transports: set[asyncio.Transport] = set()
        self._passing: set[asyncio.Task[None]] = set()
        self._emptied: asyncio.Future[None] | None = None  # set once it is closing

    @property
    def port(self) -> int | None:
        """The port that it listens on, None on a Unix socket."""
        return None if self._unix_path is not None else int(self._sockets[0].getsockname()[1])

    def bind(self, address: str) -> None:
        """Have the address. Raises: OSError when it cannot be had, ValueError when it is none."""
        self._sockets = bind(address)
        if address.startswith("unix:"):
            self._unix_path = Path(address.removeprefix("unix:"))

    async def open(self) -> None:
        """Accept connections."""
        loop = asyncio.get_running_loop()
        for bound in self._sockets:
            if bound.family == socket.AF_UNIX:
                self._servers.append(await loop.create_unix_server(lambda: Arrival(self), sock=bound))
            else:
                self._servers.append(await loop.create_server(lambda: Arrival(self), sock=bound))

    async def close(self) -> None:
        """Listen no more, let connections end for a moment, then cut them. No socket file is left behind."""
        for server in self._servers:
            server.close()
        for bound in self._sockets:
            bound.close()
        if self._unix_path is not None:
            self._unix_path.unlink(missing_ok=True)
        self._emptied = asyncio.get_running_loop().create_future()
        if self._transports:
            await asyncio.wait({self._emptied}, timeout=_GRACE_S)
        for transport in list(self._transports):
            transport.abort()
        for task in self._passing:
            task.cancel()

    def add(self, transport: asyncio.Transport) -> None:
        """A connection has come."""
        self._transports.add(transport)
        if self._emptied is not None:
            transport.abort()

    def forget(self, transport: asyncio.Transport) -> None:
        """A connection is gone."""
        self._transports.discard(transport)
        if self._emptied is not None and not self._transports and not self._emptied.done():
            self._emptied.set_result(None)

    def serve(self, transport: asyncio.Transport, received: bytes) -> None:
        """Serve its one stream."""
        stream = ServerStream(
            self._make_listener,
            max_message_bytes=self._max_message_bytes,
            on_gone=partial(self.forget, transport),
        )
        transport.set_protocol(cast(asyncio.Protocol, stream))
        stream.connection_made(transport)
        stream.data_received(received[len(h2.PREFACE) :])

    def pass_on(self, transport: asyncio.Transport, received: bytes, ack: SettingsAck | None) -> None:
        """Leave it to the server behind."""
        passing = relay(transport, received, self._behind, ack, partial(self.forget, transport))
        task = asyncio.get_running_loop().create_task(passing)
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)


class Arrival(asyncio.Protocol):
    """A connection of which it is not known yet what it carries."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._opening = Opening(door.path)
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle
        self._has_greeted = False
        self._is_known = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._timer = asyncio.get_running_loop().call_later(OPENING_S, self._time_is_up)
        self._door.add(self._transport)

    def data_received(self, data: bytes) -> None:
        if self._is_known:
            return
        carries = self._opening.feed(data)
        if carries is Carries.ONE_STREAM:
            self._leave()
            self._door.serve(self._transport, bytes(self._opening.received))
        elif carries is Carries.ANYTHING:
            self._pass_on()
        elif self._opening.has_settings and not self._has_greeted:
            self._has_greeted = True
            self._transport.write(h2.settings({}))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._timer.cancel()
        self._door.forget(self._transport)

    def _time_is_up(self) -> None:
        if self._opening.has_settings:
            self._pass_on()
        else:
            self._transport.abort()

    def _pass_on(self) -> None:
        self._leave()
        if self._transport.is_closing():
            return
        # At once: the relay begins in a turn of its own, and there is nowhere to put more.
        self._transport.pause_reading()
        self._door.pass_on(self._transport, bytes(self._opening.received), SettingsAck() if self._has_greeted else None)

    def _leave(self) -> None:
        self._is_known = True
        self._timer.cancel()
