"""Keeps planning: the level-triggered loop that applies what `plan` decides.

Events only say which deployment to look at; what is done follows from the records as they are. After each write the
loop waits until its own mirrors show it, so that a plan never acts twice on one shortage.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from xinf.core.clock import Clock, SystemClock
from xinf.core.config import Config
from xinf.core.errors import Conflict, DeadlineExceeded, Unavailable
from xinf.core.ids import DeploymentName, NodeName, ReplicaId, new_replica_id
from xinf.core.records import (
    DEPLOYMENTS,
    NODES,
    REPLICAS,
    DeploymentRecord,
    NodeRecord,
    ReplicaRecord,
    encode_record,
)
from xinf.meta import Compare, KeyQueue, Mirror, Put, Store
from xinf.meta import Delete as DeleteKey
from xinf.scheduler.plan import Action, Create, Delete, Note, Place, Stop, World, create, placed, plan_deployment

logger = logging.getLogger(__name__)

_CATCH_UP_TIMEOUT_S = 10.0


class SchedulerLoop:
    """Runs in the control process, one at a time per store."""

    def __init__(self, store: Store, config: Config, *, clock: Clock | None = None) -> None:
        self._store = store
        self._clock = clock or SystemClock()
        self._resync_interval_s = config.control.resync_interval
        self._deployments = Mirror(store, DEPLOYMENTS, DeploymentRecord)
        self._replicas = Mirror(store, REPLICAS, ReplicaRecord)
        self._nodes = Mirror(store, NODES, NodeRecord)
        self._queue = KeyQueue(clock=self._clock)

    async def run(self) -> None:
        """Plan and apply until cancelled."""
        mirrors = (self._deployments, self._replicas, self._nodes)
        try:
            for mirror in mirrors:
                await mirror.start()
            self._deployments.listen(self._queue.add)
            self._replicas.listen(self._on_replica)
            self._nodes.listen(lambda _: self._add_all())
            self._add_all()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._resync())
                tasks.create_task(self._work())
        finally:
            for mirror in mirrors:
                await mirror.stop()

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self._resync_interval_s)
            self._add_all()

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
        for action in plan_deployment(name, self._world(), now_s):
            await self._apply(name, action, now_s)

    def _world(self) -> World:
        return World(
            deployments={DeploymentName(name): record for name, (record, _) in self._deployments.items.items()},
            replicas={ReplicaId(name): record for name, (record, _) in self._replicas.items.items()},
            nodes={NodeName(name): record for name, (record, _) in self._nodes.items.items()},
        )

    async def _apply(self, name: DeploymentName, action: Action, now_s: float) -> None:
        """Write one action, if what it was decided on still holds, and wait until the mirror shows it."""
        if isinstance(action, Create):
            await self._create(name, action, now_s)
            return
        found = self._replicas.items.get(action.replica)
        if found is None:
            raise Conflict(f"replica {action.replica} went away while {name} was planned")
        record, revision = found
        compare = Compare(REPLICAS + record.id, revision)
        match action:
            case Delete():
                await self._commit([compare], DeleteKey(compare.key))
            case Place():
                await self._commit([compare], _put(placed(record, action.placement, now_s)))
            case Stop():
                await self._commit([compare], _put(msgspec.structs.replace(record, target="stop")))
            case Note():
                await self._commit([compare], _put(msgspec.structs.replace(record, placement_note=action.note)))
        self._log(action, record.id)

    async def _create(self, name: DeploymentName, action: Create, now_s: float) -> None:
        found = self._deployments.items.get(name)
        if found is None:
            raise Conflict(f"deployment {name} was deleted while it was planned")
        deployment, revision = found
        record = create(deployment, new_replica_id(name), action, now_s)
        # The deployment is compared too: a replica of a generation that is no longer wished for is never made.
        compares = [Compare(DEPLOYMENTS + name, revision), Compare(REPLICAS + record.id, None)]
        await self._commit(compares, _put(record))
        self._log(action, record.id)

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

    def _on_replica(self, id_: str) -> None:
        if record := self._replicas.get(id_):
            self._queue.add(record.deployment)
        else:
            self._add_all()  # its devices may be what others wait for

    def _add_all(self) -> None:
        for name in self._deployments.items:
            self._queue.add(name)
        for record, _ in self._replicas.items.values():
            self._queue.add(record.deployment)

    def _log(self, action: Action, id_: ReplicaId) -> None:
        kind = type(action).__name__.lower()
        reason = action.note if isinstance(action, Note) else action.reason
        logger.info("%s %s: %s", kind, id_, reason, extra={"kv": {"action": kind, "replica": id_}})


def _put(record: ReplicaRecord) -> Put:
    return Put(REPLICAS + record.id, encode_record(record))
