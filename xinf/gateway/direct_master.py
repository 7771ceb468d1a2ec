"""The master of the front `direct`: forks workers, replaces dead ones, stops them.

It imports neither gRPC nor the application: both are for after the fork.

The port is bound once by the master, alone, so that a busy one is an error told once, and by each worker again
(SO_REUSEPORT), so that the kernel spreads connections over them. The master's socket does not listen: while no worker
lives, connections are refused, and nobody else can take the port.

    TERM ──▶ USR1 to every worker (not ready any more; what is open has drain_timeout to end)
         ──▶ TERM: no new connections, open requests end with `connection: close` ──▶ exit, or KILL after drain_timeout
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Protocol

import uvloop

from xinf.core.config import Config
from xinf.core.errors import ConfigError, XinfError
from xinf.gateway.asgi_call import AsgiApp
from xinf.gateway.direct import Core
from xinf.gateway.direct_server import DirectServer, Limits, make_tls
from xinf.gateway.workforce import (
    HEADER_TIMEOUT_S,
    HELD_BACK,
    KILL_AFTER_DRAIN_S,
    MAX_CONNECTIONS,
    Backoff,
    prepare,
    worker_count,
)

logger = logging.getLogger("xinf.gateway")

TARGET = "xinf.gateway.app:create"
_STOP = {signal.SIGTERM, signal.SIGINT}
_WAKES = _STOP | {signal.SIGCHLD}


class WorkerCore(Core, Protocol):
    """What a worker needs of `xinf.gateway.core.Core`."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def start_drain(self) -> bool: ...


class WorkerApplication(AsgiApp, Protocol):
    """What `target` makes: `xinf.gateway.app.Application`."""

    core: WorkerCore


class Port:
    """The address that all workers bind."""

    def __init__(self, host: str, port: int) -> None:
        """Reserve it. Raises: ConfigError when it is taken or cannot be had."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self._family, name = found[0][0], found[0][4]
            self._reserved = socket.socket(self._family, socket.SOCK_STREAM)
            # For connections of an earlier run that the kernel still remembers.
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                self._reserved.bind(name)
            except OSError:
                self._reserved.close()
                raise
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror}",
                key="gateway.port",
                remedy="stop what uses the port, or set gateway.port",
            ) from error
        # Set after bind(): had it been set before, a second gateway could have bound the same port. Without
        # SO_REUSEADDR nobody can bind it now but sockets of this user with SO_REUSEPORT.
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        self._name = self._reserved.getsockname()

    @property
    def number(self) -> int:
        return int(self._name[1])

    def bind(self) -> socket.socket:
        """Bind a worker's own socket, not listening yet."""
        made = socket.socket(self._family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(self._name)
        return made

    def release(self) -> None:
        """Close the master's socket; in a worker, too: it must not hold the port when the master is gone."""
        self._reserved.close()


class _Seat:
    """One worker's place: who sits there, and when the next may."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.born_s = 0.0
        self.due_s = 0.0  # monotonic, while nobody sits there
        self.backoff = Backoff()


class Master:
    """Keeps `n_workers` processes that run `work` until TERM or INT."""

    def __init__(self, work: Callable[[], int], n_workers: int, *, kill_after_s: float) -> None:
        self._work = work
        self._seats = [_Seat() for _ in range(n_workers)]
        self._kill_after_s = kill_after_s

    def serve(self) -> None:
        """Run until told to stop and all workers are gone."""
        for number in _WAKES:
            signal.signal(number, signal.SIG_DFL)  # a shell may have started us with INT ignored
        # Signals are waited for, never handled: nothing of ours runs in between.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAKES | HELD_BACK)
        try:
            self._keep()
            self._stop()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _keep(self) -> None:
        while True:
            now_s = time.monotonic()
            for index, seat in enumerate(self._seats):
                if seat.pid is None and seat.due_s <= now_s:
                    self._start(index, seat)
            waits_s = [seat.due_s - now_s for seat in self._seats if seat.pid is None]
            if self._wait(min(waits_s, default=None)) in _STOP:
                return
            self._bury()

    def _start(self, index: int, seat: _Seat) -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(self._run(index))
        seat.pid, seat.born_s = pid, time.monotonic()

    def _run(self, index: int) -> int:
        """The worker's life, in the worker."""
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            return self._work()
        except XinfError as error:
            logger.error(str(error), extra={"kv": {"worker": index}})
        except BaseException:
            # The edge of the process: nothing may return into the master's code.
            logger.exception("a worker failed", extra={"kv": {"worker": index}})
        return 1

    def _wait(self, timeout_s: float | None) -> int | None:
        """Wait for a signal; None when the time is over."""
        if timeout_s is None:
            return signal.sigwait(_WAKES)
        told = signal.sigtimedwait(_WAKES, max(0.0, timeout_s))
        return None if told is None else told.si_signo

    def _bury(self) -> None:
        """Note which workers have died and when their places may be taken."""
        now_s = time.monotonic()
        for index, seat in enumerate(self._seats):
            status = None if seat.pid is None else _status_of(seat.pid)
            if status is None:
                continue
            wait_s = seat.backoff.next_s(now_s - seat.born_s)
            seat.pid, seat.due_s = None, now_s + wait_s
            logger.error("a worker died", extra={"kv": {"worker": index, "status": status, "next_s": wait_s}})

    def _stop(self) -> None:
        self._tell(signal.SIGUSR1)
        self._tell(signal.SIGTERM)
        end_s = time.monotonic() + self._kill_after_s
        while any(seat.pid is not None for seat in self._seats):
            for seat in self._seats:
                if seat.pid is not None and _status_of(seat.pid) is not None:
                    seat.pid = None
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                logger.error("workers are killed: they did not stop in time")
                self._tell(signal.SIGKILL)
                end_s = float("inf")
                left_s = 1.0
            if any(seat.pid is not None for seat in self._seats):
                self._wait(min(left_s, 1.0))

    def _tell(self, number: signal.Signals) -> None:
        for seat in self._seats:
            if seat.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(seat.pid, number)


def _status_of(pid: int) -> int | None:
    """How a child ended, negative for a signal; None while it lives."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return None if found == 0 else os.waitstatus_to_exitcode(status)


def serve(config: Config, meta_target: str, *, target: str = TARGET) -> None:
    """Serve until TERM or INT. Sets the environment that the workers read.

    `meta_target`: gRPC target of the store; `target`: module and function that make the application of a worker.

    Raises: ConfigError when the address is taken or the certificate cannot be used.
    """
    gateway = config.gateway
    make_tls(gateway)  # an unusable certificate is told once, too; workers read it again, as it is by then
    prepare(config, meta_target)
    port = Port(gateway.host, gateway.port)

    def work() -> int:
        bound = port.bind()
        port.release()
        run_worker(config, bound, target)
        return 0

    logger.info("listening", extra={"kv": {"host": gateway.host, "port": port.number}})
    master = Master(work, worker_count(gateway.workers), kill_after_s=gateway.drain_timeout + KILL_AFTER_DRAIN_S)
    try:
        master.serve()
    finally:
        port.release()


def run_worker(config: Config, bound: socket.socket, target: str) -> None:
    """Serve on `bound` until TERM or INT, then drain. Raises: what the opening of the application raises."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, bound, target))


async def _serve(config: Config, bound: socket.socket, target: str) -> None:
    gateway = config.gateway
    loop = asyncio.get_running_loop()
    module, _, function = target.partition(":")
    application: WorkerApplication = getattr(importlib.import_module(module), function)()
    core = application.core
    stop = asyncio.Event()
    for number in _STOP:
        loop.add_signal_handler(number, stop.set)
    await core.open()
    try:
        limits = Limits(
            max_connections=MAX_CONNECTIONS,
            body_timeout_s=gateway.request_read_timeout,
            head_timeout_s=HEADER_TIMEOUT_S,
        )
        server = DirectServer(core, application, limits)
        await server.listen(bound, backlog=gateway.backlog, tls=make_tls(gateway))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
        await stop.wait()
        core.start_drain()  # it has begun with USR1, unless TERM came alone: the master vanished
        await server.drain(gateway.drain_timeout)
    finally:
        await core.close()
