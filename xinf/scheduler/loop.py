"""Keeps planning: the level-triggered loop that applies what `plan` decides.

Changes only say which deployment to look at; what is done follows from the records as they are. After each write the
loop waits until its own mirrors show it, so that a plan never acts twice on one shortage. The view that plans look
things up in follows the mirrors record by record.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from xinf.core.clock import Clock, SystemClock
from xinf.core.config import Config
from xinf.core.errors import Conflict, DeadlineExceeded, Unavailable
from xinf.core.ids import DeploymentName, NodeName, ReplicaId, Revision, new_replica_id
from xinf.core.records import (
    CORDONS,
    DEPLOYMENTS,
    MEASURED,
    NODES,
    REPLICAS,
    CordonRecord,
    DeploymentRecord,
    MeasuredRecord,
    NodeRecord,
    ReplicaRecord,
    encode_record,
)
from xinf.meta import Compare, KeyQueue, Mirror, Put, Store
from xinf.meta import Delete as DeleteKey
from xinf.scheduler.actions import Action, Create, Delete, Note, Place, Placement, Stop, create, placed, stopped
from xinf.scheduler.chronicle import Chronicle
from xinf.scheduler.plan import plan_deployment
from xinf.scheduler.view import View
from xinf.scheduler.world import World, rules_of

logger = logging.getLogger(__name__)

_CATCH_UP_TIMEOUT_S = 10.0
_MEMORY_DELAY_S = 2.0  # how long a node's memory in use may change before plans are made for it


class SchedulerLoop:
    """Runs in the control process, one at a time per store."""

    def __init__(self, store: Store, config: Config, *, clock: Clock | None = None) -> None:
        self._store = store
        self._clock = clock or SystemClock()
        self._resync_interval_s = config.control.resync_interval
        self._deployments = Mirror(store, DEPLOYMENTS, DeploymentRecord)
        self._replicas = Mirror(store, REPLICAS, ReplicaRecord)
        self._nodes = Mirror(store, NODES, NodeRecord)
        self._cordons = Mirror(store, CORDONS, CordonRecord)
        self._measured = Mirror(store, MEASURED, MeasuredRecord)
        self._queue = KeyQueue(clock=self._clock)
        self._view = View(World(deployments={}, replicas={}, nodes={}), rules_of(config))
        self._chronicle = Chronicle(store, n_kept=config.control.events_kept)

    async def run(self) -> None:
        """Plan and apply until cancelled."""
        mirrors = (self._deployments, self._replicas, self._nodes, self._cordons, self._measured)
        try:
            for mirror in mirrors:
                await mirror.start()
            self._deployments.listen(self._on_deployment)
            self._replicas.listen(self._on_replica)
            self._nodes.listen(self._on_node)
            self._cordons.listen(self._on_cordon)
            self._measured.listen(self._on_measured)
            self._take_all()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._resync())
                tasks.create_task(self._work())
                tasks.create_task(self._chronicle.run())
        finally:
            for mirror in mirrors:
                await mirror.stop()

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self._resync_interval_s)
            self._add_all()
            self._chronicle.trim()

    async def _work(self) -> None:
        while True:
            name = await self._queue.get()
            try:
                await self._handle(DeploymentName(name))
            except (Conflict, DeadlineExceeded, Unavailable) as error:
                logger.info("deployment %s is planned again: %s", name, error)
                self._queue.retry(name)
            except Exception:
                logger.exception("deployment %s could not be planned", name)
                self._queue.retry(name)
            else:
                self._queue.forget(name)
            finally:
                self._queue.done(name)

    async def _handle(self, name: DeploymentName) -> None:
        now_s = self._clock.now_s()
        planned_for = self._deployments.items.get(name)
        for action in plan_deployment(name, self._view, now_s):
            await self._apply(action, planned_for, now_s)

    def _take_all(self) -> None:
        """Start with everything that the mirrors show; what changes from now on is heard."""
        journal = self._chronicle.journal
        for name, (deployment, _) in self._deployments.items.items():
            self._view.set_deployment(DeploymentName(name), deployment)
        for cordon, _ in self._cordons.items.values():
            self._view.set_cordon(cordon.node, cordon)
            journal.know_cordon(cordon)
        for name, (node, _) in self._nodes.items.items():
            self._view.set_node(NodeName(name), node)
            journal.know_node(NodeName(name))
        for fingerprint, (measured, _) in self._measured.items.items():
            self._view.set_measured(fingerprint, measured)
        for replica, _ in self._replicas.items.values():
            self._view.set_replica(replica.id, replica)
            journal.know_replica(replica)
        self._add_all()

    async def _apply(self, action: Action, planned_for: tuple[DeploymentRecord, Revision] | None, now_s: float) -> None:
        """Write one action, if what it was decided on still holds, and wait until the mirror shows it."""
        if isinstance(action, Create):
            assert planned_for is not None, "nothing is made for a deployment that is not there"
            await self._create(action, planned_for, now_s)
            return
        found = self._replicas.items.get(action.replica)
        if found is None:
            raise Conflict(f"replica {action.replica} went away while it was planned for")
        record, revision = found
        compare = Compare(REPLICAS + record.id, revision)
        match action:
            case Delete():
                await self._commit([compare], DeleteKey(compare.key))
            case Place():
                self._check_there(action.placement)
                assert planned_for is not None, "nothing is placed for a deployment that is not there"
                deployment, of_deployment = planned_for
                record = placed(record, action.placement, deployment, now_s)
                await self._commit([compare, Compare(DEPLOYMENTS + deployment.name, of_deployment)], _put(record))
            case Stop():
                record = stopped(record, action)
                await self._commit([compare], _put(record))
            case Note():
                record = msgspec.structs.replace(record, placement_note=action.note)
                await self._commit([compare], _put(record))
        self._tell(action, record, now_s)

    async def _create(self, action: Create, planned_for: tuple[DeploymentRecord, Revision], now_s: float) -> None:
        deployment, revision = planned_for
        if action.placement is not None:
            self._check_there(action.placement)
        record = create(deployment, new_replica_id(deployment.name), action, now_s)
        # The deployment is compared too: a replica of a generation that is no longer wished for is never made, and none
        # gets a place that was found for another need.
        compares = [Compare(DEPLOYMENTS + deployment.name, revision), Compare(REPLICAS + record.id, None)]
        await self._commit(compares, _put(record))
        self._tell(action, record, now_s)

    def _check_there(self, placement: Placement) -> None:
        """Earlier actions of the plan took their time. A node that goes from now on is replaced by the next plan."""
        if placement.node not in self._view.fleet.hosts:
            raise Conflict(f"node {placement.node} went away while it was planned for")

    async def _commit(self, compares: list[Compare], op: Put | DeleteKey) -> None:
        writing = asyncio.ensure_future(self._store.txn(compares, [op]))
        try:
            result = await asyncio.shield(writing)
        except asyncio.CancelledError:
            # A write on its way is let through before this scheduler ends, or the next one may not see it yet.
            await asyncio.wait([writing])
            raise
        if not result.succeeded:
            raise Conflict(f"{op.key} changed while it was planned for")
        await self._replicas.wait(lambda _: self._replicas.revision >= result.revision, _CATCH_UP_TIMEOUT_S)

    def _on_deployment(self, name: str) -> None:
        before = self._view.deployments.get(DeploymentName(name))
        now = self._deployments.get(name)
        self._view.set_deployment(DeploymentName(name), now)
        if before is not None and (now is None or now.priority != before.priority):
            self._add_all()  # places may have been kept for it
        self._queue.add(name)

    def _on_replica(self, id_: str) -> None:
        record = self._replicas.get(id_)
        had_waited = self._view.claims.is_pending(ReplicaId(id_))
        self._view.set_replica(ReplicaId(id_), record)
        self._chronicle.add(self._chronicle.journal.on_replica(ReplicaId(id_), record, self._clock.now_s()))
        if record is None:
            self._add_all()  # its devices may be what others wait for
            return
        self._queue.add(record.deployment)
        if had_waited and record.node is not None:
            self._add_waiting_below(record)

    def _add_waiting_below(self, record: ReplicaRecord) -> None:
        """It has a place: the one that was kept for it meanwhile, also from equals, may be another's."""
        priority = self._view.priority_of(record)
        for waiting in self._view.claims.pending:
            own = self._view.priority_of(waiting)
            if priority is not None and own is not None and own <= priority:
                self._queue.add(waiting.deployment)

    def _on_node(self, name: str) -> None:
        record = self._nodes.get(name)
        before = self._view.fleet.hosts.get(NodeName(name))
        self._view.set_node(NodeName(name), record)
        self._chronicle.add(self._chronicle.journal.on_node(NodeName(name), record, self._clock.now_s()))
        # In a large fleet the memory that others use changes somewhere all the time: one plan for many of them.
        is_quiet = before is not None and record is not None and _is_memory_only(before.record, record)
        self._add_all(_MEMORY_DELAY_S if is_quiet else 0)

    def _on_cordon(self, name: str) -> None:
        record = self._cordons.get(name)
        self._view.set_cordon(NodeName(name), record)
        self._chronicle.add(self._chronicle.journal.on_cordon(NodeName(name), record, self._clock.now_s()))
        self._add_all()

    def _on_measured(self, fingerprint: str) -> None:
        """A load took more or less than was planned: whoever waits may fit by that now."""
        self._view.set_measured(fingerprint, self._measured.get(fingerprint))
        for waiting in self._view.claims.pending:
            self._queue.add(waiting.deployment)

    def _add_all(self, delay_s: float = 0) -> None:
        for name in (*self._view.deployments, *self._view.claims.deployments):
            self._queue.add_after(name, delay_s)

    def _tell(self, action: Action, replica: ReplicaRecord, now_s: float) -> None:
        """Log what was done, and write down what people should know of it."""
        kind = type(action).__name__.lower()
        reason = action.note if isinstance(action, Note) else action.reason
        logger.info("%s %s: %s", kind, replica.id, reason, extra={"kv": {"action": kind, "replica": replica.id}})
        self._chronicle.add(self._chronicle.journal.on_action(action, replica, now_s))


def _is_memory_only(before: NodeRecord, now: NodeRecord) -> bool:
    """Whether nothing but the memory is another that nobody planned for: of others, of engines beyond their needs."""
    same = msgspec.structs.replace(now, foreign_bytes=before.foreign_bytes, unplanned_bytes=before.unplanned_bytes)
    return same == before


def _put(record: ReplicaRecord) -> Put:
    return Put(REPLICAS + record.id, encode_record(record))
