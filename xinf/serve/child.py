"""One process of the tree: how it is started, kept running and ended.

    start ─▶ runs ─▶ ends ─▶ back-off ─▶ start ...          until `stop`: TERM, wait, KILL to its whole group

The first start must succeed; a child that was ready once is restarted for ever, because a gateway or a store that keeps
trying is better than one that gave up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Literal

import msgspec

from xinf.core.errors import Unavailable, XinfError
from xinf.serve.report import VARIABLE, read_report

logger = logging.getLogger("xinf.serve")

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 10.0
STEADY_S = 10.0  # a child that lived this long starts with the first back-off again


class ChildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `death_signal`: what it gets when the supervisor is gone."""

    name: str  # for people: "control process"
    module: str
    arguments: tuple[str, ...] = ()
    first_arguments: tuple[str, ...] = ()  # on the first start only
    environ: Mapping[str, str]
    death_signal: Literal["TERM", "KILL"] = "TERM"
    stop_timeout_s: float
    hurry_timeout_s: float = 1.0  # what is left of the stop timeout once somebody is in a hurry
    has_report: bool = False


def next_backoff_s(last_s: float, lived_s: float) -> float:
    """How long to wait before the next start of a child that lived for `lived_s` after a wait of `last_s`."""
    if lived_s >= STEADY_S or last_s == 0:
        return BACKOFF_FIRST_S
    return min(last_s * 2, BACKOFF_MAX_S)


class Child:
    """Keeps one process running; all methods belong to one event loop."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.restarts = 0
        self.is_stopping = False
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._reports: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int | None:
        """Of the running process, None between two."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self, timeout_s: float) -> None:
        """Start it for the first time, wait for its report if it makes one, then keep it running.

        Raises: what it reports; Unavailable when it ends or says nothing.
        """
        report = await self._spawn(self.spec.first_arguments)
        if report is not None:
            await self._await_report(report, timeout_s)
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.spec.name}")

    async def stop(self, hurry: asyncio.Event) -> None:
        """TERM it and wait; KILL what is left of its group after the stop timeout, the shorter one in a `hurry`."""
        self.is_stopping = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        process = self._process
        if process is None:
            return
        _signal_group(process.pid, signal.SIGTERM, leader_only=True)
        ended = asyncio.ensure_future(process.wait())
        hurried = asyncio.ensure_future(hurry.wait())
        await asyncio.wait({ended, hurried}, timeout=self.spec.stop_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if hurry.is_set():
            await asyncio.wait({ended}, timeout=self.spec.hurry_timeout_s)
        if not ended.done():
            logger.warning("%s did not end and is killed", self.spec.name, extra={"kv": {"pid": process.pid}})
        # Its own children end with it; whatever does not is in its group.
        _signal_group(process.pid, signal.SIGKILL)
        await ended

    async def _keep(self) -> None:
        backoff_s = 0.0
        while True:
            process = self._process
            assert process is not None
            since_s = time.monotonic()
            status = await process.wait()
            _signal_group(process.pid, signal.SIGKILL)
            backoff_s = next_backoff_s(backoff_s, time.monotonic() - since_s)
            how = f"signal {-status}" if status < 0 else f"status {status}"
            logger.warning(
                "%s ended with %s and is started again", self.spec.name, how, extra={"kv": {"in_s": backoff_s}}
            )
            await asyncio.sleep(backoff_s)
            self.restarts += 1
            try:
                report = await self._spawn(())
            except OSError as error:  # no memory, no processes: try again later
                logger.error("%s cannot be started: %s", self.spec.name, error)
                continue
            if report is not None:
                task = asyncio.create_task(self._log_report(report))
                self._reports.add(task)
                task.add_done_callback(self._reports.discard)

    async def _spawn(self, more: tuple[str, ...]) -> int | None:
        """Start a process; give the reading end of its report pipe."""
        spec = self.spec
        environ = dict(spec.environ)
        read_fd: int | None = None
        pass_fds: tuple[int, ...] = ()
        if spec.has_report:
            read_fd, write_fd = os.pipe()
            pass_fds = (write_fd,)
            environ[VARIABLE] = str(write_fd)
        tether = (sys.executable, "-P", "-m", "xinf.serve.tether", spec.death_signal, str(os.getpid()))
        try:
            self._process = await asyncio.create_subprocess_exec(
                *tether,
                *(spec.module, *spec.arguments, *more),
                stdin=asyncio.subprocess.DEVNULL,
                env=environ,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        except BaseException:
            if read_fd is not None:
                os.close(read_fd)
            raise
        finally:
            for fd in pass_fds:
                os.close(fd)
        return read_fd

    async def _await_report(self, fd: int, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                is_ready = await read_report(fd)
        except TimeoutError:
            raise Unavailable(f"the {self.spec.name} was not ready within {timeout_s:g} s") from None
        if not is_ready:
            assert self._process is not None
            status = await self._process.wait()
            raise Unavailable(
                f"the {self.spec.name} ended with status {status} before it was ready", remedy="its output is above"
            )

    async def _log_report(self, fd: int) -> None:
        try:
            if await read_report(fd):
                logger.info("%s is back", self.spec.name, extra={"kv": {"restarts": self.restarts}})
        except XinfError as error:
            logger.error("%s cannot start: %s", self.spec.name, error)


def _signal_group(leader: int, signal_: signal.Signals, *, leader_only: bool = False) -> None:
    """Signal a process that is (or was) a leader of its own group; a group keeps its number while it has members."""
    try:
        if leader_only:
            os.kill(leader, signal_)
        else:
            os.killpg(leader, signal_)
    except (ProcessLookupError, PermissionError):
        pass
