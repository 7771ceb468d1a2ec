"""`xinf worker`: the agent of this host."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from xinf.cli.failure import print_error
from xinf.cli.options import ConfigFile, DataDir, Server, Settings
from xinf.cli.session import Session, open_session, run
from xinf.core.errors import Unavailable, XinfError

if TYPE_CHECKING:
    from xinf.agent import Agent
    from xinf.meta import MetaClient
    from xinf.serve import Interrupts

CONTROL_WAIT_S = 10.0  # for a control process that is being started in the next terminal
SECOND_INTERRUPT_S = 3.0
_POLL_S = 0.1


def worker(
    node: Annotated[
        str | None, typer.Option("--node", metavar="NAME", help="Name of this node (default: the host's).")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", metavar="ADDRESS", help="Address that other hosts reach this one by.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="KEY=VALUE,...", help="Labels of this node, several with commas.")
    ] = None,
    engines_dir: Annotated[
        str | None, typer.Option("--engines-dir", metavar="DIR", help="Where the engine environments are.")
    ] = None,
    stop_engines: Annotated[
        bool | None, typer.Option("--stop-engines", help="Stop the engines when this worker stops.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
    ] = None,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Run the agent of this host: it starts, watches and stops engines.

    Ctrl-C or TERM leave the engines running for the next agent; a second Ctrl-C stops them too.
    """
    from xinf.core import log

    flags = {
        "agent.node": node,
        "agent.address": address,
        "agent.labels": labels,
        "agent.engines_dir": engines_dir,
        "agent.stop_engines": stop_engines,
        "log_level": log_level,
    }
    session = open_session(config, data_dir, server, settings=settings, flags=flags)
    log.configure("agent", level=session.config.log_level)
    run(run_agent(session, _say))


async def run_agent(session: Session, say: Callable[[str], None]) -> None:
    """Run the agent until INT or TERM. `say` takes what a person at a terminal wants to know.

    Raises: Unavailable when no control process comes, Conflict when another agent runs this node.
    """
    from xinf.agent import Agent, describe_node
    from xinf.serve import Interrupts

    interrupts = Interrupts()
    node = await describe_node(session.config)
    devices = ", ".join(device.selector for device in node.devices) or "none"
    engines = ", ".join(f"{e.name} ({'/'.join(e.engines)})" for e in node.environments)
    say(f"node {node.name}: devices {devices}; engine environments {engines}")
    store = await interrupts.cut(_connect(session, say))
    if store is None:
        return
    try:
        agent = Agent(store, session.config, node)
        running = asyncio.create_task(agent.run())
        registered = asyncio.create_task(_announce(agent, node.name, say))
        interrupted = asyncio.create_task(interrupts.first.wait())
        await asyncio.wait({running, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        registered.cancel()
        interrupted.cancel()
        if not running.done():
            await agent.stop(stop_engines=await _wants_engines_stopped(session, agent, interrupts))
        await asyncio.wait({running})
        if not running.cancelled():
            running.result()
    finally:
        await store.close()


async def _connect(session: Session, say: Callable[[str], None]) -> MetaClient:
    from xinf.meta import connect

    deadline_s = time.monotonic() + CONTROL_WAIT_S
    is_told = False
    while True:
        try:
            return connect(session.config.paths, session.server)
        except Unavailable:
            if time.monotonic() > deadline_s:
                raise
        if not is_told:
            is_told = True
            say(f"waiting for the control process of {session.config.paths.data_dir} (`xinf serve`)")
        await asyncio.sleep(_POLL_S)


async def _announce(agent: Agent, name: str, say: Callable[[str], None]) -> None:
    await agent.is_ready.wait()
    say(f"node {name} is connected")


async def _wants_engines_stopped(session: Session, agent: Agent, interrupts: Interrupts) -> bool:
    if session.config.agent.stop_engines:
        return True
    if interrupts.signal is not signal.SIGINT or not agent.has_engines:
        return False
    _say(f"engines go on; Ctrl-C again within {SECOND_INTERRUPT_S:g} s stops them too")
    try:
        async with asyncio.timeout(SECOND_INTERRUPT_S):
            await interrupts.again.wait()
    except TimeoutError:
        return False
    _say("stopping the engines")
    return True


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """The agent as a child of `xinf up`, which hands the whole configuration over."""
    from xinf.core import log
    from xinf.core.config import from_environ

    config = from_environ(os.environ["XINF_EFFECTIVE_CONFIG"])
    log.configure("agent", level=config.log_level)
    try:
        run(run_agent(Session(config), lambda _: None))
    except XinfError as error:
        print_error(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
