"""A pool of connections to one server.

A request takes the connection that was idle for the shortest time, else opens one, else waits until one is free. The
limit on connections bounds sockets and memory; a wait for one counts in the request's latency, as it would for a user.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
import time
from collections import deque

from xinf.bench.connection import Connection
from xinf.bench.exchange import Exchange
from xinf.bench.record import Failure
from xinf.bench.target import Target


class Client:
    """`timeout_s` is the time for one whole exchange, connecting included."""

    def __init__(self, target: Target, *, timeout_s: float, max_connections: int) -> None:
        self._target = target
        self._tls: ssl.SSLContext | None = target.tls()
        self._timeout_s = timeout_s
        self._max_connections = max_connections
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._n_opening = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.n_opened = 0
        self.n_waits = 0  # requests that found the limit reached

    async def open_connections(self, n: int) -> None:
        """Open connections ahead of time, so that the first requests do not pay for it. Raises: OSError."""
        n_more = min(n, self._max_connections) - len(self._open)
        self._idle += await asyncio.gather(*(self._connect(self._timeout_s) for _ in range(n_more)))

    async def send(self, request: bytes, exchange: Exchange) -> None:
        """Send a request and wait until its exchange has ended, well or not. Cancelled, it closes its connection."""
        deadline_s = time.monotonic() + self._timeout_s
        connection = await self._acquire(exchange, deadline_s)
        if connection is None:
            return
        if await self._exchange(connection, request, exchange, deadline_s):
            return
        # The server closed an idle connection just as we used it. Every client sends again; it is counted, not hidden.
        exchange.record.has_reconnected = True
        connection = await self._acquire(exchange, deadline_s, is_fresh=True)
        if connection is not None:
            await self._exchange(connection, request, exchange, deadline_s)

    async def _exchange(self, connection: Connection, request: bytes, exchange: Exchange, deadline_s: float) -> bool:
        """Do one try. False: it is as if it had not been sent, and the exchange is open again."""
        is_reused = connection.n_requests > 0
        timer = self._loop.call_later(
            max(0.0, deadline_s - time.monotonic()), functools.partial(self._expire, connection, exchange)
        )
        connection.send(request, exchange)
        try:
            await exchange.done
        except asyncio.CancelledError:
            connection.abort()
            raise
        finally:
            timer.cancel()
        record = exchange.record
        if record.failure is Failure.CLOSED and is_reused and not record.has_reconnected:
            record.failure = record.message = None
            exchange.done = self._loop.create_future()
            return False
        return True

    async def _acquire(self, exchange: Exchange, deadline_s: float, *, is_fresh: bool = False) -> Connection | None:
        """Give a connection; None when the exchange has failed for want of one."""
        has_waited = False
        while True:
            while self._idle and not is_fresh:
                connection = self._idle.pop()
                if not connection.is_closing:
                    return connection
            if len(self._open) + self._n_opening < self._max_connections:
                break
            if is_fresh and self._idle:
                self._idle.pop().abort()
            self.n_waits += not has_waited
            has_waited = True
            turn: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(turn)
            try:
                async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
                    await turn
            except TimeoutError:
                exchange.fail(Failure.TIMEOUT, f"no connection was free for {self._timeout_s:g} s", time.monotonic())
                return None
        try:
            return await self._connect(max(0.0, deadline_s - time.monotonic()))
        except TimeoutError:
            exchange.fail(Failure.TIMEOUT, f"no connection within {self._timeout_s:g} s", time.monotonic())
        except OSError as error:
            exchange.fail(Failure.CONNECT, _describe(error), time.monotonic())
        self._wake()
        return None

    async def _connect(self, timeout_s: float) -> Connection:
        target = self._target
        self._n_opening += 1
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self._on_idle, self._on_closed), target.host, target.port, ssl=self._tls
                )
        finally:
            self._n_opening -= 1
        self._open.add(connection)
        self.n_opened += 1
        return connection

    def _expire(self, connection: Connection, exchange: Exchange) -> None:
        connection.abort()
        exchange.fail(Failure.TIMEOUT, f"not answered in full within {self._timeout_s:g} s", time.monotonic())

    def _on_idle(self, connection: Connection) -> None:
        self._idle.append(connection)
        self._wake()

    def _on_closed(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    async def close(self) -> None:
        """Close all connections."""
        for connection in list(self._open):
            connection.abort()
        # The transports close in the loop's next turns.
        while self._open:
            await asyncio.sleep(0)


def _describe(error: OSError) -> str:
    return str(error) or type(error).__name__
