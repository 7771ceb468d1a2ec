"""The life of a shim process: phases, the engine, the server, and every way it can end.

    starting ─ loading ─ warming ─ ready ─┬─ TERM, INT: draining, then exit 0
        └─────────┴─────────┴─────────────┴─ failed: status.json says why, exit 1 (start), 3 (engine dead or hung)

TERM while the engine is being built ends the process at once: no handler of ours could run inside the engine's code.
The process ends with os._exit: engines leave threads and exit handlers behind that can keep an interpreter for ever,
and the guard kills what is left of their processes.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from xinf.core import log
from xinf.core.errors import EngineDied, EngineStartFailed, Unavailable, XinfError
from xinf.core.records import Phase
from xinf.core.shim import ShimSpec, read_file
from xinf.engine.adapter import Adapter
from xinf.engine.failure import failure_of, failure_with
from xinf.engine.status import StatusFile
from xinf.engine.watchdog import Pulse, Watchdog

if TYPE_CHECKING:
    from xinf.engine.server import EngineServer

_log = logging.getLogger(__name__)

EXIT_STOPPED = 0
EXIT_START_FAILED = 1
EXIT_BAD_SPEC = 2
EXIT_ENGINE_LOST = 3

_FLUSH_S = 2.0
_CLOSE_S = 10.0
_HEARTBEAT_S = 0.25


def main(argv: list[str]) -> int:
    """Run the shim of one spec file. Returns the exit status."""
    if len(argv) != 1 or (spec := read_file(Path(argv[0]), ShimSpec)) is None:
        sys.stderr.write(f"usage: python -m xinf.engine SPEC.JSON  (got {argv}, which is not a readable spec)\n")
        return EXIT_BAD_SPEC
    # A shell may have started us with INT ignored, which children inherit.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    log.configure("shim", level=spec.log_level)
    status = StatusFile(spec)
    try:
        adapter = make_adapter(spec)
        status.enter(Phase.LOADING)
        adapter.build(status.detail)
    except (Exception, SystemExit) as error:
        # What we raised on purpose says all there is to say; its sentence is logged by `fail`.
        _log.error("the engine could not be built", exc_info=None if isinstance(error, XinfError) else error)
        status.fail(failure_of(error))
        return EXIT_START_FAILED
    return serve(spec, adapter, status)


def make_adapter(spec: ShimSpec) -> Adapter:
    """Make the adapter of the spec's engine. Raises: EngineStartFailed, ImportError."""
    if spec.engine.engine == "sim":
        from xinf.engine.sim_adapter import SimAdapter

        return SimAdapter(spec)
    if spec.engine.engine == "vllm":
        from xinf.engine.vllm_adapter import VllmAdapter

        return VllmAdapter(spec)
    raise EngineStartFailed(
        f"there is no engine {spec.engine.engine!r}", remedy="choose vllm or sim", cause="bad_arguments"
    )


def serve(spec: ShimSpec, adapter: Adapter, status: StatusFile) -> int:
    """Serve a built engine until told to stop or until it is lost. Returns the exit status."""
    import uvloop

    # Never closed: that would wait for every task, also for one that ignores its cancellation. The process ends anyway.
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        return runner.run(Shim(spec, adapter, status).run())
    except Exception as error:
        _log.exception("the shim failed")
        status.fail(failure_of(error))
        return EXIT_ENGINE_LOST


class Shim:
    """A built engine while it serves. Everything here runs on the event loop, except `_hung`."""

    def __init__(self, spec: ShimSpec, adapter: Adapter, status: StatusFile) -> None:
        # gRPC is imported after the engine was built: its threads do not survive a fork, and engines fork.
        from xinf.engine.intake import Intake

        self._spec = spec
        self._adapter = adapter
        self._status = status
        self._intake = Intake(adapter, self._check_alive)
        self._pulse = Pulse(time.monotonic())
        self._loop: asyncio.AbstractEventLoop
        self._stop = asyncio.Event()  # TERM, INT, or an engine that is lost
        self._stop_now = asyncio.Event()  # a second TERM or INT, or an engine that is lost
        self._has_ended = threading.Event()
        self._server: EngineServer
        self._exit_status = EXIT_STOPPED

    async def run(self) -> int:
        """Serve. Returns the exit status."""
        from xinf.engine.server import EngineServer
        from xinf.engine.service import EngineService, engine_info

        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, number)
        server: EngineServer | None = None  # once it listens
        try:
            description = await self._adapter.open()
            self._status.describe(description)
            info = engine_info(self._spec.replica, description)
            service = EngineService(info, self._adapter, self._intake, self._status, self._drain)
            self._server = EngineServer(
                service,
                listen=self._spec.listen,
                directory=Path(self._spec.directory),
                max_message_bytes=self._spec.max_message_bytes,
            )
            await self._server.start()
            server = self._server
            self._status.enter(Phase.WARMING)
            is_warm = await self._warm_up()
        except (Exception, SystemExit) as error:
            _log.error("the engine did not become ready", exc_info=error)
            cause = "warmup_failed" if self._status.phase is Phase.WARMING else "crashed"
            self._status.fail(failure_of(error, otherwise=cause))
            if server is not None:
                await server.stop(flush_s=0.0)
            await self._close_adapter()
            return EXIT_START_FAILED
        if is_warm:
            await self._serve_until_stopped()
        await self._server.stop(flush_s=_FLUSH_S)
        self._has_ended.set()
        await self._close_adapter()
        return self._exit_status

    async def _warm_up(self) -> bool:
        """Generate once before anybody else may. False: told to stop meanwhile. Raises: what the adapter raises."""
        warming = asyncio.ensure_future(self._adapter.warm_up())
        stopping = asyncio.ensure_future(self._stop.wait())
        timeout_s = self._spec.warmup_timeout_s
        done, _ = await asyncio.wait({warming, stopping}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if warming in done:
            await warming
            return True
        warming.cancel()
        if not done:
            raise EngineStartFailed(
                f"the engine was built but made no token within {timeout_s:g} s",
                remedy="see the engine's log; raise engine.warmup_timeout if it only needs longer",
                cause="warmup_failed",
            )
        return False

    async def _serve_until_stopped(self) -> None:
        watchdog = Watchdog(self._pulse, timeout_s=self._spec.watchdog_timeout_s, on_hung=self._hung)
        self._heartbeat()
        watchdog.start()
        gc.collect()
        gc.freeze()  # what was built stays: no later collection needs to look at it
        self._intake.open()
        await self._server.set_serving(True)
        self._status.enter(Phase.READY)
        await self._stop.wait()
        if not self._stop_now.is_set():
            await self._drain(self._spec.drain_timeout_s)
        await self._server.set_serving(False)
        failure = self._status.failure
        lost = EngineDied(failure.message, remedy=failure.remedy) if failure is not None else None
        unfinished = lost or Unavailable("the engine was stopped before the answer was complete")
        self._intake.refuse(unfinished)
        self._intake.fail_all(unfinished)
        # An engine that is lost need not answer the cancellations; one that is not gets the time to.
        await self._intake.wait_empty(0.0 if lost else _FLUSH_S)
        watchdog.stop()

    # ---- ways to end ----------------------------------------------------------------------------------------------

    def _on_signal(self, number: signal.Signals) -> None:
        _log.info("got %s", number.name)
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    async def _drain(self, timeout_s: float) -> int:
        """Refuse new requests, let open ones end; also the Drain call. Returns how many did not end in time."""
        self._status.enter(Phase.DRAINING)
        self._intake.refuse(Unavailable("the engine is draining"))
        await self._server.set_serving(False)
        emptying = asyncio.ensure_future(self._intake.wait_empty(timeout_s))
        hurry = asyncio.ensure_future(self._stop_now.wait())
        await asyncio.wait({emptying, hurry}, return_when=asyncio.FIRST_COMPLETED)
        emptying.cancel()
        hurry.cancel()
        return len(self._intake)

    def _heartbeat(self) -> None:
        self._pulse.beat(time.monotonic(), self._adapter.last_step_age_s())
        self._check_alive()
        self._loop.call_later(min(_HEARTBEAT_S, self._spec.watchdog_timeout_s / 8), self._heartbeat)

    def _check_alive(self) -> None:
        reason = self._adapter.dead_reason()
        if reason is not None:
            self._status.fail(failure_with("engine_died", reason))
            self._end_lost()

    def _end_lost(self) -> None:
        self._exit_status = EXIT_ENGINE_LOST
        self._stop_now.set()
        self._stop.set()

    def _hung(self, complaint: str) -> None:
        """The watchdog's thread: say so, give the loop a moment to tell the gateways, then end whatever it does."""
        self._status.fail(failure_with("hung", complaint))
        self._loop.call_soon_threadsafe(self._end_lost)
        self._has_ended.wait(2 * _FLUSH_S)
        exit_now(EXIT_ENGINE_LOST)

    async def _close_adapter(self) -> None:
        # Closing may block the loop as well; then this ends the process.
        backstop = threading.Timer(_CLOSE_S + 1.0, exit_now, [self._exit_status])
        backstop.daemon = True
        backstop.start()
        try:
            await asyncio.wait_for(self._adapter.close(), _CLOSE_S)
        except TimeoutError:
            _log.warning("the engine did not close within %.0f s", _CLOSE_S)
        except Exception:
            _log.exception("closing the engine failed")


def exit_now(status: int) -> None:
    """End the process without waiting for anybody's threads or exit handlers."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
