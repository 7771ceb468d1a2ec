"""Follows one generation of a deployment from the wish until it serves, as steps for people.

`Progress` is pure: it is shown the records as they are and says what is new. `Follower` keeps it fed from the store.

    0.0s  waiting      no worker is connected
    0.8s  placed       qwen-x7k2p on host: cpu
    0.9s  starting     qwen-x7k2p
    2.4s  loading      qwen-x7k2p
    9.1s  warming up   qwen-x7k2p
    9.6s  ready        qwen-x7k2p (starting 1.5s, loading 6.7s, warming up 0.5s)
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import msgspec

from xinf.core.errors import DeadlineExceeded, EngineStartFailed, NotFound, PlacementFailed
from xinf.core.ids import NodeName, ReplicaId
from xinf.core.records import (
    DEPLOYMENTS,
    MEASURED,
    NODES,
    REPLICAS,
    DeploymentRecord,
    MeasuredRecord,
    NodeRecord,
    Phase,
    ReplicaFailure,
    ReplicaRecord,
)
from xinf.core.units import format_seconds
from xinf.meta import Mirror, Store
from xinf.scheduler import NO_NODES, Measured, Refusal, Rules, could_fit

PHASE_NAMES: dict[Phase, str] = {Phase.WARMING: "warming up"}
_SHOWN = (Phase.PLACED, Phase.STARTING, Phase.LOADING, Phase.WARMING, Phase.READY)
LOG_LINES = 20
TICK_S = 0.5


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Something new. `at_s`: seconds since the wish."""

    at_s: float
    title: str  # "placed", "warming up", ...
    text: str = ""
    replica: ReplicaId | None = None


class Progress:
    """What has been seen of a deployment's generation so far."""

    def __init__(
        self,
        deployment: DeploymentRecord,
        replicas: Iterable[ReplicaRecord],
        since_s: float,
        *,
        rules: Rules | None = None,
    ) -> None:
        """`replicas`: those that are there already; what is not told is how one came to serve before `since_s`.

        Unix seconds: one that was made and ready between the wish and the first look is told of like any other.
        """
        self._deployment = deployment
        self._rules = rules
        self._since_s = since_s
        self._told: set[tuple[str, int, str]] = set()
        self._waiting_for: str | None = None
        self._failed_at_s: dict[str, float] = {}
        self.is_ready = False
        self.phase: str = "waiting"  # of the replica that is furthest behind, for a status line
        for replica in self._mine(replicas):
            if replica.phase is Phase.READY and replica.phase_since_s.get(Phase.READY, 0.0) < since_s:
                self._told |= {(replica.id, replica.restarts, phase) for phase in _SHOWN}
            if replica.failure is not None and replica.phase is not Phase.FAILED:
                self._failed_at_s[replica.id] = replica.failure.at_s

    def update(
        self,
        replicas: Iterable[ReplicaRecord],
        nodes: Mapping[NodeName, NodeRecord],
        now_s: float,
        *,
        measured: Measured | None = None,
    ) -> list[Step]:
        """Take the records as they are and return what is new.

        Raises: EngineStartFailed when a replica failed, PlacementFailed when no node that is there could ever take one.
        """
        mine = self._mine(replicas)
        steps: list[Step] = []
        for replica in mine:
            steps += self._new_phases(replica)
            self._check_failure(replica)
        steps += self._new_wait(mine, nodes, measured, now_s)
        n_ready = sum(replica.phase is Phase.READY for replica in mine)
        self.is_ready = n_ready >= self._deployment.replicas
        behind = [replica for replica in mine if replica.phase in _SHOWN and replica.phase is not Phase.READY]
        last = min(behind, key=lambda replica: _SHOWN.index(replica.phase), default=None)
        self.phase = "waiting"
        if last is not None:
            self.phase = _named(last.phase) + (f": {last.detail}" if last.detail is not None else "")
        return steps

    def _mine(self, replicas: Iterable[ReplicaRecord]) -> list[ReplicaRecord]:
        name, generation = self._deployment.name, self._deployment.generation
        mine = [r for r in replicas if r.deployment == name and r.generation == generation and r.target == "run"]
        return sorted(mine, key=lambda replica: (replica.created_s, replica.id))

    def _new_phases(self, replica: ReplicaRecord) -> list[Step]:
        steps = []
        for phase in _SHOWN:
            key = (replica.id, replica.restarts, phase)
            if phase not in replica.phase_since_s or key in self._told:
                continue
            self._told.add(key)
            text = ""
            if phase is Phase.PLACED:
                text = f"on {replica.node}: {', '.join(replica.devices)}"
            elif phase is Phase.READY:
                text = f"({describe_timings(replica)})"
            at_s = max(0.0, replica.phase_since_s[phase] - self._since_s)
            steps.append(Step(at_s=at_s, title=_named(phase), text=text, replica=replica.id))
        return steps

    def _check_failure(self, replica: ReplicaRecord) -> None:
        failure = replica.failure
        if failure is None or self._failed_at_s.get(replica.id) == failure.at_s:
            return
        raise start_failed(replica, failure)

    def _new_wait(
        self,
        mine: list[ReplicaRecord],
        nodes: Mapping[NodeName, NodeRecord],
        measured: Measured | None,
        now_s: float,
    ) -> list[Step]:
        pending = next((replica for replica in mine if replica.node is None), None)
        reason: str | None = None
        if not nodes:
            reason = "no worker is connected: start one with `xinf worker`"
        elif pending is not None:
            # The note was written for the nodes of a moment ago; whether anything could ever fit is asked now.
            found = could_fit(self._deployment, nodes, self._rules, measured=measured)
            if isinstance(found, Refusal):
                raise PlacementFailed(
                    f"{self._deployment.name} cannot be placed: {found.note}",
                    remedy=f"{found.remedy}; the deployment stays until `xinf stop {self._deployment.name}`",
                    deployment=self._deployment.name,
                    what_to_do=found.remedy,
                )
            # One from before the first worker came is answered by the next plan.
            is_outdated = pending.placement_note == NO_NODES
            reason = None if is_outdated else pending.placement_note
        if reason is None or reason == self._waiting_for:
            return []
        self._waiting_for = reason
        return [Step(at_s=max(0.0, now_s - self._since_s), title="waiting", text=reason)]


def describe_timings(replica: ReplicaRecord) -> str:
    """How long each phase of the last start took: `starting 1.5s, loading 6.7s`."""
    reached = [(phase, replica.phase_since_s[phase]) for phase in _SHOWN if phase in replica.phase_since_s]
    return ", ".join(
        f"{_named(phase)} {format_seconds(max(0.0, until_s - since_s))}"
        for (phase, since_s), (_, until_s) in pairwise(reached)
        if phase is not Phase.PLACED
    )


def start_failed(replica: ReplicaRecord, failure: ReplicaFailure) -> EngineStartFailed:
    """The failure of a replica as an error; `fields["log_tail"]` holds the engine's last lines."""
    return EngineStartFailed(
        f"{replica.id} failed ({failure.cause}): {failure.message}",
        remedy=failure.remedy or None,
        cause=failure.cause,
        replica=replica.id,
        deployment=replica.deployment,
        log_tail="\n".join(failure.log_tail[-LOG_LINES:]),
        log_path=replica.log_path,
    )


class Follower:
    """Watches a deployment in the store. Use as `async with`; belongs to one event loop."""

    def __init__(
        self, store: Store, deployment: DeploymentRecord, *, since_s: float, rules: Rules | None = None
    ) -> None:
        """`rules`: by which the control process places, as far as is known here."""
        self._deployment = deployment
        self._rules = rules
        self._since_s = since_s
        self._deployments = Mirror(store, DEPLOYMENTS, DeploymentRecord)
        self._replicas = Mirror(store, REPLICAS, ReplicaRecord)
        self._nodes = Mirror(store, NODES, NodeRecord)
        self._measured = Mirror(store, MEASURED, MeasuredRecord)
        self._changed = asyncio.Event()
        self._progress: Progress | None = None

    async def __aenter__(self) -> Follower:
        for mirror in self._mirrors:
            mirror.listen(lambda _: self._changed.set())
            await mirror.start()
        self._progress = Progress(self._deployment, self.replicas, self._since_s, rules=self._rules)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for mirror in self._mirrors:
            await mirror.stop()

    @property
    def _mirrors(self) -> tuple[Mirror[Any], ...]:
        return (self._deployments, self._replicas, self._nodes, self._measured)

    @property
    def replicas(self) -> list[ReplicaRecord]:
        """All of this deployment, of every generation."""
        return [r for r, _ in self._replicas.items.values() if r.deployment == self._deployment.name]

    @property
    def has_nodes(self) -> bool:
        """Whether any worker is connected."""
        return bool(self._nodes.items)

    @property
    def phase(self) -> str:
        """Where the slowest replica stands, in a word or two."""
        return self._progress.phase if self._progress is not None else "waiting"

    async def changed(self) -> None:
        """Wait for the next change of any record that matters here."""
        await self._changed.wait()
        self._changed.clear()

    async def until_ready(
        self, timeout_s: float | None, on_tick: Callable[[str], None] = lambda _: None
    ) -> AsyncIterator[Step]:
        """Yield what happens, and end when all wished-for replicas of the generation are ready.

        `on_tick` hears twice a second how long the present phase takes: `loading, 12s`.

        Raises: EngineStartFailed, PlacementFailed, DeadlineExceeded, NotFound when the deployment was removed.
        """
        assert self._progress is not None, "entered"
        loop = asyncio.get_running_loop()
        deadline_s = math.inf if timeout_s is None else loop.time() + timeout_s
        told_s = loop.time()
        while True:
            for step in self._look():
                told_s = loop.time()
                yield step
            if self._progress.is_ready:
                return
            if loop.time() >= deadline_s:
                raise DeadlineExceeded(
                    f"{self._deployment.name} was not ready within {timeout_s:g} s; it is {self.phase}",
                    remedy=f"it goes on starting: see `xinf describe {self._deployment.name}`",
                )
            on_tick(f"{self.phase}, {loop.time() - told_s:.0f}s")
            try:
                async with asyncio.timeout_at(min(deadline_s, loop.time() + TICK_S)):
                    await self.changed()
            except TimeoutError:
                continue

    def _look(self) -> list[Step]:
        assert self._progress is not None
        if self._deployment.name not in self._deployments.items:
            raise NotFound(f"deployment {self._deployment.name} was removed while it was starting")
        nodes = {NodeName(name): record for name, (record, _) in self._nodes.items.items()}
        measured = {fingerprint: record for fingerprint, (record, _) in self._measured.items.items()}
        return self._progress.update(self.replicas, nodes, time.time(), measured=measured)

    async def until_gone(self, timeout_s: float) -> AsyncIterator[ReplicaRecord]:
        """Wait until no replica of the deployment is left; yield each whose phase is new.

        Raises: DeadlineExceeded naming those that are left.
        """
        told: dict[str, Phase] = {}
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while left := self.replicas:
            for replica in left:
                if told.get(replica.id) is not replica.phase:
                    told[replica.id] = replica.phase
                    yield replica
            try:
                async with asyncio.timeout_at(deadline_s):
                    await self.changed()
            except TimeoutError:
                names = ", ".join(replica.id for replica in self.replicas)
                raise DeadlineExceeded(
                    f"{names} did not stop within {timeout_s:g} s", remedy="is its worker running? see `xinf ps`"
                ) from None


def _named(phase: Phase) -> str:
    return PHASE_NAMES.get(phase, phase.value)
