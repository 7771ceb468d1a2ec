"""Granian in front of the application: the master process of the gateway.

The master forks its workers, so it imports neither gRPC nor the application. A worker that dies is replaced, for ever
and with a back-off of its own: Granian's rule gives up when two die within seconds, and a gateway without workers is
worse than one that keeps trying.

    TERM ──▶ USR1 to every worker (not ready any more; what is open has drain_timeout to end)
         ──▶ TERM: no new connections, open requests end, lifespan shutdown ──▶ exit
"""

from __future__ import annotations

import logging
import os
import signal
import time
from multiprocessing import connection
from pathlib import Path
from typing import Any

from granian.constants import HTTPModes, Interfaces, Loops, SSLProtocols
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.mp import MPServer

from xinf.core.config import Config
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

# front -> what Granian calls in each worker, and how
TARGETS = {
    "granian": ("xinf.gateway.app:create", Interfaces.ASGI),
    "granian-rsgi": ("xinf.gateway.rsgi:create", Interfaces.RSGI),
}
# Bounds a request's headers (431 beyond) and how much of a body one receive() can carry: one hop for 64 KiB bodies.
READ_BUFFER_BYTES = 128 << 10


class Front(MPServer):
    """Granian's server with our own rule for workers that die."""

    def __init__(self, *args: Any, drain_timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.interrupt_children: list[int] = []
        self._backoffs = [Backoff() for _ in range(self.workers)]
        self._kill_after_s = drain_timeout_s + KILL_AFTER_DRAIN_S

    def _spawn_workers(self, spawn_target: Any, target_loader: Any) -> None:
        for idx in range(self.workers):
            self.wrks.append(self._start_worker(idx, spawn_target, target_loader))

    def _start_worker(self, idx: int, spawn_target: Any, target_loader: Any) -> Any:
        worker: Any = self._spawn_worker(idx=idx, target=spawn_target, callback_loader=target_loader)
        # The worker inherits the mask and lifts it when it serves (core.py); until then what comes waits for it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            worker.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return worker

    def _serve_loop(self, spawn_target: Any, target_loader: Any) -> None:
        due: dict[int, float] = {}
        while True:
            now_s = time.monotonic()
            timeout_s = max(0.0, min(due.values()) - now_s) if due else None
            self.main_loop_interrupt.wait(timeout_s)
            if self.interrupt_signal:
                # Those of `interrupt_children` have been replaced or will not be; none of it is a failure of ours.
                self.interrupt_children.clear()
                return
            self.main_loop_interrupt.clear()
            self.reload_signal = False
            now_s = time.monotonic()
            dead, self.interrupt_children = list(self.interrupt_children), []
            for idx in dead:
                due.setdefault(idx, now_s + self._next_backoff(idx, now_s))
            for idx in [idx for idx, at_s in due.items() if at_s <= now_s]:
                del due[idx]
                self.wrks[idx] = self._start_worker(idx, spawn_target, target_loader)

    def _next_backoff(self, idx: int, now_s: float) -> float:
        lived_s = now_s - self.wrks[idx].birth
        wait_s = self._backoffs[idx].next_s(lived_s)
        logger.error(
            "a worker died",
            extra={"kv": {"worker": idx, "status": self.wrks[idx].inner.exitcode, "next_s": wait_s}},
        )
        return wait_s

    def _stop_workers(self) -> None:
        workers: list[Any] = self.wrks
        for worker in workers:
            if worker.is_alive():
                os.kill(worker.inner.pid, signal.SIGUSR1)
        for worker in workers:
            worker.terminate()
        until_s = time.monotonic() + self._kill_after_s
        for worker in workers:
            await_end(worker, until_s)
        self.workers_kill_timeout = 1  # they have had their time
        super()._stop_workers()  # type: ignore[no-untyped-call]


def await_end(worker: Any, until_s: float) -> None:
    """Wait until a worker of Granian has ended and says so, or until `until_s` by the monotonic clock.

    Its own join ends when the process does, but the thread that waits for the process may have yet to note that. Asked
    in between, as happens on a busy machine, Granian says that it kills a worker which is gone.
    Source: granian 2.8.9, server/common.py, AbstractServer._stop_workers; CPython's multiprocessing/popen_fork.py.
    """
    if connection.wait([worker.inner.sentinel], max(0.0, until_s - time.monotonic())):
        while worker.is_alive():
            time.sleep(0.001)


def serve(config: Config, meta_target: str) -> None:
    """Serve until TERM or INT. Sets the environment that the workers read. `meta_target`: gRPC target of the store."""
    gateway = config.gateway
    prepare(config, meta_target)
    target, interface = TARGETS[gateway.front]
    Front(
        target=target,
        factory=True,
        address=gateway.host,
        port=gateway.port,
        interface=interface,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        websockets=False,
        workers=worker_count(gateway.workers),
        backlog=gateway.backlog,
        # Granian stops accepting above it.
        backpressure=MAX_CONNECTIONS,
        # pipeline_flush stays off: with it hyper buffers without bound for a client that does not read.
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_TIMEOUT_S * 1000, max_buffer_size=READ_BUFFER_BYTES),
        ssl_cert=Path(gateway.tls_cert) if gateway.tls_cert else None,
        ssl_key=Path(gateway.tls_key) if gateway.tls_key else None,
        ssl_protocol_min=SSLProtocols.tls12,
        # A disconnect is an "ASGI transport error" at level info.
        log_level=LogLevels.warning,
        drain_timeout_s=gateway.drain_timeout,
    ).serve()
