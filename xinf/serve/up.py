"""`xinf up`: supervisor, agent and one deployment in one process tree, from nothing to an answer and back to nothing.

    control ▸ gateway ▸ agent ▸ deployment ▸ ready ▸ one real reply ▸ status line        Ctrl-C:
    control ◂ gateway ◂ agent ◂ deployment drained ◂────────────────────────────────────────┘

The deployment carries the mark `owner = up`. Whoever comes next removes what carries it, so that an `up` that was
killed leaves nothing that a later one would serve by surprise.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

import msgspec

from xinf.core.config import Config
from xinf.core.errors import PlacementFailed, XinfError
from xinf.core.records import DeploymentRecord, Phase, ReplicaRecord
from xinf.core.units import format_seconds
from xinf.meta import MetaClient, Records
from xinf.scheduler import rules_of
from xinf.serve.deployment import UP_OWNER, Applied, apply_deployment, names_of
from xinf.serve.interrupts import Interrupts
from xinf.serve.process import kill_group
from xinf.serve.progress import Follower, Step
from xinf.serve.supervisor import Supervisor
from xinf.serve.trial import Numbers, Trial, read_numbers, try_model

logger = logging.getLogger("xinf.serve")

STATUS_INTERVAL_S = 2.0
_STOP_MARGIN_S = 15.0


class Voice(Protocol):
    """Who tells the user; the command line prints, tests listen."""

    def line(self, text: str) -> None:
        """Say something that stays."""

    def applied(self, applied: Applied) -> None:
        """The deployment was written."""

    def step(self, step: Step) -> None:
        """The deployment came a step closer to ready."""

    def status(self, text: str) -> None:
        """What is going on now; replaces the last status where that is possible."""

    def ready(self, url: str, model: str, trial: Trial) -> None:
        """Everything serves."""


class Up:
    """One run of `xinf up`. `agent_module`: what to run as the agent; it finds the control process by itself."""

    def __init__(self, config: Config, wish: DeploymentRecord, voice: Voice, *, agent_module: str, keep: bool) -> None:
        self._wish = msgspec.structs.replace(wish, owner=None if keep else UP_OWNER)
        self._voice = voice
        self._agent_module = agent_module
        self._supervisor = Supervisor(config)
        self._store: MetaClient | None = None
        self._verify = not config.gateway.tls_cert  # our own gateway; its certificate may be made out to another name

    async def run(self, timeout_s: float | None) -> None:
        """Serve until INT or TERM, then stop everything that was started, engines too.

        Raises: what went wrong on the way up, after everything is stopped again.
        """
        interrupts = Interrupts()
        try:
            await interrupts.cut(self._work(timeout_s))
        finally:
            await self._stop(interrupts.again)

    async def _work(self, timeout_s: float | None) -> None:
        since_s = time.time()
        self._voice.status("starting the gateway and the control process")
        await self._supervisor.start()
        self._store = MetaClient(self._supervisor.meta_target)
        records = Records(self._store)
        await self._remove_leftovers(records)
        await self._supervisor.start_agent(self._agent_module)
        applied = await apply_deployment(records, self._wish, time.time())
        self._voice.applied(applied)
        rules = rules_of(self._supervisor.config)
        async with Follower(self._store, applied.record, since_s=since_s, rules=rules) as follower:
            self._voice.status("waiting for the agent")
            await self._show_steps(follower, timeout_s)
            model = names_of(applied.record)[0]
            self._voice.status("asking it something")
            trial = await try_model(self._supervisor.url, model, records, verify=self._verify)
            self._voice.status("")
            self._voice.ready(self._supervisor.url, model, trial)
            await self._show_status(follower, applied.record)

    async def _show_steps(self, follower: Follower, timeout_s: float | None) -> None:
        try:
            async for step in follower.until_ready(timeout_s, self._voice.status):
                # The agent is on its way; to ask for one would be wrong.
                if step.title != "waiting" or follower.has_nodes:
                    self._voice.step(step)
        except PlacementFailed as error:
            # The deployment ends with us: nothing stays that could be placed later.
            error.remedy = "change --device, or install the engine with `xinf engine install`"
            raise

    async def _show_status(self, follower: Follower, deployment: DeploymentRecord) -> None:
        since_s = time.monotonic()
        while True:
            numbers = await read_numbers(self._supervisor.url, verify=self._verify)
            self._voice.status(describe(follower, deployment, numbers, time.monotonic() - since_s))
            await asyncio.sleep(STATUS_INTERVAL_S)

    async def _remove_leftovers(self, records: Records) -> None:
        for other, _ in await records.list(DeploymentRecord):
            if other.owner == UP_OWNER and other.name != self._wish.name:
                await records.delete(DeploymentRecord, other.name)
                self._voice.line(f"removed deployment {other.name}, which an earlier `xinf up` left")

    async def _stop(self, hurry: asyncio.Event) -> None:
        self._voice.status("stopping: open requests may end; Ctrl-C again to stop at once")
        killer: asyncio.Task[None] | None = None
        try:
            if self._store is not None:
                killer = asyncio.create_task(_kill_engines(self._store, hurry))
                await self._take_down(self._store, hurry)
        except (XinfError, TimeoutError) as error:
            # The agent ends its engines all the same, and the mark lets the next `up` remove the record.
            self._voice.line(f"the deployment could not be removed in order: {error}")
        finally:
            await self._supervisor.stop(hurry)
            if killer is not None:
                killer.cancel()
                await asyncio.wait({killer})
            if self._store is not None:
                await self._store.close()
        self._voice.status("")

    async def _take_down(self, store: MetaClient, hurry: asyncio.Event) -> None:
        records = Records(store)
        found = await records.get(DeploymentRecord, self._wish.name)
        if found is None or found[0].owner != UP_OWNER:
            return
        await records.delete(DeploymentRecord, self._wish.name)
        gone = asyncio.ensure_future(self._wait_until_gone(store, found[0]))
        hurried = asyncio.ensure_future(hurry.wait())
        await asyncio.wait({gone, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not gone.done():
            gone.cancel()
            await asyncio.wait({gone})
            return
        gone.result()

    async def _wait_until_gone(self, store: MetaClient, deployment: DeploymentRecord) -> None:
        timeout_s = self._supervisor.config.agent.drain_timeout + _STOP_MARGIN_S
        async with Follower(store, deployment, since_s=time.time()) as follower:
            async for replica in follower.until_gone(timeout_s):
                self._voice.status(f"stopping: {replica.id} is {replica.phase}")


async def _kill_engines(store: MetaClient, hurry: asyncio.Event) -> None:
    """Once somebody is in a hurry, do not wait for drains. The agent cleans up behind it."""
    await hurry.wait()
    try:
        replicas = await Records(store).list(ReplicaRecord)
    except XinfError as error:
        logger.warning("engines cannot be killed: %s", error)
        return
    for replica, _ in replicas:
        if replica.pid is not None and replica.pid_start_ticks is not None:
            kill_group(replica.pid, replica.pid_start_ticks)


def describe(follower: Follower, deployment: DeploymentRecord, numbers: Numbers | None, up_s: float) -> str:
    """The status line."""
    n_ready = sum(replica.phase is Phase.READY for replica in follower.replicas)
    parts = [f"{deployment.name}: {n_ready} of {deployment.replicas} ready"]
    if numbers is not None:
        requests = f"{numbers.requests} request{'s' * (numbers.requests != 1)}"
        parts.append(f"{requests}, {numbers.in_flight} open, {numbers.completion_tokens} tokens made")
    failure = next((r.failure for r in follower.replicas if r.failure and r.phase is not Phase.READY), None)
    if failure is not None:
        parts.append(f"{failure.cause}: {failure.message[:80]}")
    return " · ".join([*parts, f"up {format_seconds(up_s)}"])
