"""A connection passed on to a server behind: bytes both ways, half-closes too, held up where the other side is.

Memory: what a transport's buffer takes before it asks for a pause (64 KiB), and one read. Once one side has ended, the
other has LINGER_S.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

from xinf.link.opening import SettingsAck

LINGER_S = 30.0

_log = logging.getLogger(__name__)


class Relay(asyncio.Protocol):
    """One side of it."""

    def __init__(self, ack: SettingsAck | None = None, on_gone: Callable[[], None] = lambda: None) -> None:
        """`ack`: to be taken out of what comes on this side."""
        self.other: Relay
        self.transport: asyncio.Transport | None = None
        self._ack = ack
        self._on_gone = on_gone
        self.is_full = False  # what is written to this side
        self._has_ended = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._ack is not None:
            data = self._ack.without(data)
            if self._ack.is_done:
                self._ack = None
        if (out := self.other.open_transport()) is not None:
            out.write(data)

    def eof_received(self) -> bool:
        self._has_ended = True
        if self.other._has_ended:
            self._close_both()
        elif (out := self.other.open_transport()) is not None:
            try:
                out.write_eof()
            except OSError:  # asyncio's: the connection has been reset, which has not been read yet
                out.abort()
            self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._abort_both)
        return True  # it can still be written to

    def pause_writing(self) -> None:
        self.is_full = True
        if (source := self.other.open_transport()) is not None:
            source.pause_reading()

    def resume_writing(self) -> None:
        self.is_full = False
        if (source := self.other.open_transport()) is not None:
            source.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if (out := self.other.open_transport()) is not None:
            out.close() if exc is None else out.abort()
        self._on_gone()

    def open_transport(self) -> asyncio.Transport | None:
        """The transport, while it can be used."""
        return None if self.transport is None or self.transport.is_closing() else self.transport

    def _close_both(self) -> None:
        for transport in (self.open_transport(), self.other.open_transport()):
            if transport is not None:
                transport.close()

    def _abort_both(self) -> None:
        for transport in (self.transport, self.other.transport):
            if transport is not None:
                transport.abort()


async def relay(
    transport: asyncio.Transport, received: bytes, behind: Path, ack: SettingsAck | None, on_gone: Callable[[], None]
) -> None:
    """Pass a connection, the reading of which is paused, on to the Unix socket `behind`. Returns once that is done.

    `received`: what has been read of it.
    """
    front, back = Relay(ack, on_gone), Relay()
    front.other, back.other = back, front
    front.transport = transport
    transport.set_protocol(front)
    try:
        await asyncio.get_running_loop().create_unix_connection(lambda: back, str(behind))
    except OSError as error:
        _log.warning("a connection cannot be passed on: %s", error)
        transport.abort()
        return
    if front.open_transport() is None:
        assert back.transport is not None
        back.transport.abort()
        return
    front.data_received(received)
    if not back.is_full:
        transport.resume_reading()
