"""The listener of the front `direct` in one worker: its connections, their limits, and how it stops.

One timer for all: every `sweep_s` the clock that connections read is set, the Date header is made anew, and every
connection looks at its own limit. A timer for each connection would be set and cancelled with every request.

    accept          O(1)
    sweep           O(connections), about 0.1 us each
    drain           O(connections), then as requests end
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from email.utils import formatdate
from pathlib import Path
from typing import cast

import msgspec

from xinf.core.config import GatewayConfig
from xinf.core.errors import ConfigError
from xinf.gateway.asgi_call import AsgiApp
from xinf.gateway.direct import Connection, Core, status_line
from xinf.gateway.direct_head import HeadReader

logger = logging.getLogger("xinf.gateway")

MAX_SWEEP_S = 1.0
# After the drain's own time the core ends what is open with an error, which needs a moment to go out.
ERRORS_OUT_S = 1.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection may take, in time and bytes."""

    max_connections: int
    body_timeout_s: float
    head_timeout_s: float = 15.0  # as Granian
    idle_timeout_s: float = 75.0
    # A complete answer, or the end of a connection, that the client does not take. The core watches over the others.
    stall_timeout_s: float = 75.0
    linger_s: float = 2.0
    # Above it a write is "not taken"; a client is asked to take everything before more is written.
    write_buffer_bytes: int = 64 << 10

    @property
    def sweep_s(self) -> float:
        """How often connections are looked at: once a second, or often enough for the shortest limit."""
        shortest_s = min(
            self.body_timeout_s, self.head_timeout_s, self.idle_timeout_s, self.stall_timeout_s, self.linger_s
        )
        return min(MAX_SWEEP_S, max(shortest_s / 4, 0.01))


class DirectServer:
    """Serves `core`, and `application` for what is no engine's, on one socket."""

    def __init__(self, core: Core, application: AsgiApp, limits: Limits) -> None:
        self.core = core
        self.application = application
        self.limits = limits
        self.heads = HeadReader()
        self.loop = asyncio.get_running_loop()
        self.now_s = self.loop.time()
        self.is_draining = False
        self.scheme = "http"
        self.address = ("", 0)
        self.lines: dict[int, bytes] = {}  # first line and Date by status; valid for a second
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Future[None] | None = None
        self._last_date_s = 0

    @property
    def n_connections(self) -> int:
        return len(self._connections)

    # ---- life --------------------------------------------------------------------------------------------------

    async def listen(self, bound: socket.socket, *, backlog: int, tls: ssl.SSLContext | None = None) -> None:
        """Accept connections on a socket that is bound; it is closed with the server."""
        name = bound.getsockname()
        self.address = (str(name[0]), int(name[1]))
        if tls is not None:
            self.scheme = "https"
        self._sweep()
        self._listener = await self.loop.create_server(
            lambda: cast(asyncio.Protocol, Connection(self)),
            sock=bound,
            backlog=backlog,
            ssl=tls,
            ssl_handshake_timeout=self.limits.head_timeout_s if tls is not None else None,
        )

    async def drain(self, timeout_s: float) -> None:
        """Accept nothing more, let open requests end, close. What is open after `timeout_s` is cut."""
        self.is_draining = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.close_if_idle()
        if self._connections:
            self._empty = self.loop.create_future()
            try:
                async with asyncio.timeout(timeout_s + ERRORS_OUT_S):
                    await self._empty
            except TimeoutError:
                logger.warning("connections are cut", extra={"kv": {"open": self.n_connections}})
        for connection in list(self._connections):
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()

    # ---- the connections' calls --------------------------------------------------------------------------------

    def add(self, connection: Connection) -> bool:
        """Count a new connection. False: there are too many, it must go."""
        if len(self._connections) >= self.limits.max_connections:
            self.core.n_turned_away += 1
            return False
        self._connections.add(connection)
        return True

    def discard(self, connection: Connection) -> None:
        """A connection has ended."""
        self._connections.discard(connection)
        if self._empty is not None and not self._connections and not self._empty.done():
            self._empty.set_result(None)

    def make_line(self, status: int) -> bytes:
        """The first line of an answer and its Date header."""
        line = self.lines[status] = b"%bdate: %b\r\n" % (status_line(status), formatdate(usegmt=True).encode("ascii"))
        return line

    def _sweep(self) -> None:
        now_s = self.now_s = self.loop.time()
        date_s = int(time.time())
        if date_s != self._last_date_s:
            self._last_date_s = date_s
            self.lines.clear()
        for connection in list(self._connections):
            connection.sweep(now_s)
        self._timer = self.loop.call_later(self.limits.sweep_s, self._sweep)


def make_tls(gateway: GatewayConfig) -> ssl.SSLContext | None:
    """The server's side of TLS as configured, None without a certificate. Raises: ConfigError."""
    if not gateway.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(Path(gateway.tls_cert), Path(gateway.tls_key))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the certificate {gateway.tls_cert} with the key {gateway.tls_key} cannot be used: {error}",
            key="gateway.tls_cert",
        ) from error
    return context
