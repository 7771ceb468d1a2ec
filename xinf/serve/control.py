"""python -m xinf.serve.control: the control process. Owns the store, serves it, runs the scheduler.

    LmdbStore ── MetaServer ── unix:<runtime>/control.sock, and `control.listen` for other hosts
        └─────── SchedulerLoop

Started and restarted by the supervisor. Nothing of the data path goes through it: while it is away gateways and agents
go on with what they know.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import sys
import time

import xinf
from xinf.core import log
from xinf.core.config import Config, from_environ
from xinf.core.errors import ConfigError, StoreError, XinfError
from xinf.core.records import KEYS
from xinf.gateway import check_exposure
from xinf.meta import Discovery, LmdbStore, MetaServer, Store, remove_discovery, write_discovery
from xinf.scheduler import SchedulerLoop
from xinf.serve.address import gateway_url
from xinf.serve.process import start_ticks
from xinf.serve.report import Report

logger = logging.getLogger("xinf.serve")

STOP_GRACE_S = 1.0


async def run_control(config: Config, report: Report, *, is_first_start: bool) -> None:
    """Serve until TERM or INT. `is_first_start`: nothing serves yet, so an unsafe wish can still be refused.

    Raises: StoreHeld naming who has the data directory, ConfigError, StoreError.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_, stopping.set)
    paths = config.paths
    paths.make_runtime_dir()
    _check_listen(config)
    settings = config.store
    store = LmdbStore.open(
        paths.meta_dir,
        max_bytes=settings.max_bytes,
        history_revisions=settings.history_revisions,
        history_age_s=settings.history_age,
        no_sync=settings.no_sync,
    )
    try:
        if is_first_start:
            check_exposure(config.gateway, has_keys=bool((await store.list(KEYS)).items))
        await _serve_store(config, store, report, stopping)
    finally:
        await store.close()


async def _serve_store(config: Config, store: Store, report: Report, stopping: asyncio.Event) -> None:
    paths = config.paths
    # We hold the store, so a socket that lies there was left by a process that was killed.
    paths.control_socket.unlink(missing_ok=True)
    server = MetaServer(store, gateway_url=gateway_url(config.gateway))
    targets = [f"unix:{paths.control_socket}", *([config.control.listen] if config.control.listen else [])]
    await server.start(targets)
    scheduler = asyncio.create_task(SchedulerLoop(store, config).run(), name="scheduler")
    stopped = asyncio.create_task(stopping.wait())
    try:
        write_discovery(paths, _describe(config))
        report.ready()
        logger.info("serving", extra={"kv": {"store": str(paths.meta_dir), "targets": " ".join(targets)}})
        await asyncio.wait({scheduler, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if scheduler.done():
            scheduler.result()
            raise StoreError("the scheduler ended by itself")
    finally:
        remove_discovery(paths, os.getpid())
        for task in (scheduler, stopped):
            task.cancel()
        await asyncio.wait({scheduler, stopped})
        await server.stop(STOP_GRACE_S)


def _describe(config: Config) -> Discovery:
    return Discovery(
        pid=os.getpid(),
        pid_start_ticks=start_ticks(os.getpid()),
        target=f"unix:{config.paths.control_socket}",
        gateway_url=gateway_url(config.gateway),
        data_dir=str(config.paths.data_dir),
        version=xinf.__version__,
        started_s=time.time(),
    )


def _check_listen(config: Config) -> None:
    """The store has no authentication of its own yet: refuse to show it to other hosts unless that was said aloud."""
    listen = config.control.listen
    if not listen:
        return
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal():
        raise ConfigError(
            f"control.listen = {listen!r} is not HOST:PORT", remedy="write 127.0.0.1:7000", key="control.listen"
        )
    if config.gateway.insecure:
        return
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if not is_local:
        raise ConfigError(
            f"control.listen = {listen!r} would give the store to everyone who can reach it",
            remedy="listen on 127.0.0.1, or say --insecure on a network that you trust",
            key="control.listen",
        )


def main() -> int:
    text = os.environ.get("XINF_EFFECTIVE_CONFIG")
    if not text:
        print("xinf.serve.control: XINF_EFFECTIVE_CONFIG is not set; use `xinf serve`", file=sys.stderr)  # noqa: T201
        return 2
    config = from_environ(text)
    log.configure("control", level=config.log_level)
    report = Report()
    is_first_start = "--first" in sys.argv[1:]
    try:
        asyncio.run(run_control(config, report, is_first_start=is_first_start))
    except XinfError as error:
        if report.is_heard:
            report.fail(error)
        else:
            logger.error(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
