"""A node's presence in the store: its record under a lease that is kept alive, and made again when it was lost.

A node name belongs to one agent at a time. A record that another agent left behind is waited out for one lease time:
a dead agent's goes away by itself, a living one's stays, and then this agent must not run.

What this agent knows better than the store (devices, distances, memory in use, models on its disk) is written
over the record as it stands, with a comparison, so that nothing that somebody else put there is lost.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from xinf.agent.process import read_stat
from xinf.core.device import Device, Topology, Vendor
from xinf.core.errors import Conflict, LeaseExpired, StoreError, Unavailable
from xinf.core.ids import LeaseId, ReplicaId
from xinf.core.records import NODES, NodeRecord, decode_record, encode_record
from xinf.meta import Compare, KeyValue, Put, Store

logger = logging.getLogger(__name__)

_RENEWALS_PER_TTL = 3  # two may be late or lost
_RETRY_S = 0.5
_MAX_TRIES = 8  # of one rewrite, while others write too; the next renewal tries again


class Registration:
    """Keeps one NodeRecord in the store."""

    def __init__(self, store: Store, record: NodeRecord, *, ttl_s: float) -> None:
        self._store = store
        self._key = NODES + record.name
        self._record = record
        self._is_stale = False  # the store has not got all of it yet
        self._is_away = False  # the store gave no answer last: each try waits for seconds, and changes need not
        self._ttl_s = ttl_s
        self._lease: LeaseId | None = None
        self._writing = asyncio.Lock()
        self.is_registered = asyncio.Event()

    @property
    def record(self) -> NodeRecord:
        """The node as this agent knows it; the store has it a moment later."""
        return self._record

    def preset(
        self,
        *,
        devices: tuple[Device, ...] | None = None,
        foreign_bytes: dict[str, int] | None = None,
        unplanned_bytes: dict[ReplicaId, int] | None = None,
    ) -> None:
        """Take over what is known before anything is registered."""
        given = {"devices": devices, "foreign_bytes": foreign_bytes, "unplanned_bytes": unplanned_bytes}
        changes = {name: value for name, value in given.items() if value is not None}
        self._record = msgspec.structs.replace(self._record, **changes)

    async def run(self) -> None:
        """Register, renew, register again, until cancelled. Leaves the record to its lease: engines may serve on.

        Raises: Conflict when another living agent has this node's name.
        """
        while True:
            try:
                if self._lease is None:
                    async with self._writing:
                        await self._register()
                    self._is_away = False
                await asyncio.sleep(self._ttl_s / _RENEWALS_PER_TTL)
                await self._renew()
            except LeaseExpired:
                logger.warning("node %s lost its lease and registers again", self._record.name)
                self._lease = None
            except Unavailable as error:
                self._is_away = True
                logger.warning("node %s cannot reach the control process: %s", self._record.name, error)
                await asyncio.sleep(_RETRY_S)
            except StoreError as error:
                # Its disk is full, say. Engines are looked after all the same.
                logger.warning("node %s cannot be kept in the store: %s", self._record.name, error)
                await asyncio.sleep(_RETRY_S)

    async def update(
        self,
        *,
        devices: tuple[Device, ...] | None = None,
        topology: Topology | None = None,
        foreign_bytes: dict[str, int] | None = None,
        unplanned_bytes: dict[ReplicaId, int] | None = None,
        models: tuple[str, ...] | None = None,
    ) -> None:
        """Take over what changed and write it; if that cannot be done now, the next renewal or registration does it."""
        given = {
            "devices": devices,
            "topology": topology,
            "foreign_bytes": foreign_bytes,
            "unplanned_bytes": unplanned_bytes,
            "models": models,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        self._record = msgspec.structs.replace(self._record, **changes)
        self._is_stale = True
        if self._is_away or self._lease is None:
            return  # whoever renews or registers next writes it
        try:
            await self._write()
        except (Unavailable, StoreError) as error:
            self._is_away = isinstance(error, Unavailable)
            logger.info("node %s is told later what changed: %s", self._record.name, error)

    async def withdraw(self) -> None:
        """Take the node out of the store at once: its engines are stopped."""
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                await self._store.revoke(lease)
            except (LeaseExpired, Unavailable) as error:
                logger.info("node %s leaves to its lease: %s", self._record.name, error)

    async def _register(self) -> None:
        lease = await self._store.grant(self._ttl_s)
        deadline_s = asyncio.get_running_loop().time() + self._ttl_s + _RETRY_S
        while True:
            found = await self._store.get(self._key)
            is_late = asyncio.get_running_loop().time() > deadline_s
            if found is None or self._may_replace(found):
                compare = Compare(self._key, found.mod_revision if found else None)
                record = self._record
                put = Put(self._key, encode_record(record), lease)
                if (await self._store.txn([compare], [put])).succeeded:
                    break
            elif is_late:
                await self._store.revoke(lease)
                raise self._conflict(found)
            else:
                await asyncio.sleep(min(_RETRY_S, self._ttl_s / _RENEWALS_PER_TTL))
                await self._store.keep_alive(lease)
        self._lease = lease
        self._is_stale = record is not self._record
        self.is_registered.set()
        logger.info("node %s is registered", self._record.name, extra={"kv": {"lease": lease}})

    async def _renew(self) -> None:
        assert self._lease is not None
        await self._store.keep_alive(self._lease)
        self._is_away = False
        found = await self._store.get(self._key)
        if found is None:
            raise LeaseExpired(f"the record of node {self._record.name} was deleted")
        if found.lease != self._lease:
            raise self._conflict(found)
        if self._is_stale:
            await self._write()

    async def _write(self) -> None:
        """Write what this agent knows better over the record as it stands, under the lease that it has."""
        async with self._writing:
            for _ in range(_MAX_TRIES):
                lease, ours = self._lease, self._record
                found = None if lease is None else await self._store.get(self._key)
                if found is None or found.lease != lease:
                    return  # not registered, or no longer: whoever registers again writes it all
                before = decode_record(found.value, NodeRecord, key=self._key)
                record = msgspec.structs.replace(
                    before,
                    devices=ours.devices,
                    topology=ours.topology,
                    foreign_bytes=ours.foreign_bytes,
                    unplanned_bytes=ours.unplanned_bytes,
                    models=ours.models,
                )
                compare = Compare(self._key, found.mod_revision)
                if record != before:
                    put = Put(self._key, encode_record(record), lease)
                    if not (await self._store.txn([compare], [put])).succeeded:
                        continue
                if self._record is ours:  # nothing newer came meanwhile
                    self._record, self._is_stale = record, False
                    return

    def _may_replace(self, found: KeyValue) -> bool:
        """Whether the agent that wrote this record is known to be dead: it was on this host and its process is gone."""
        other = decode_record(found.value, NodeRecord, key=found.key)
        if _host_of(other) != _host_of(self._record):
            return False
        if other.agent_pid == self._record.agent_pid:
            return True  # our own, from before the lease was lost
        stat = read_stat(other.agent_pid)
        return stat is None or stat.is_dead

    def _conflict(self, found: KeyValue) -> Conflict:
        other = decode_record(found.value, NodeRecord, key=found.key)
        return Conflict(
            f"node {other.name} is run by another agent (pid {other.agent_pid})",
            remedy="stop that one, or give this one another name with --node",
            node=other.name,
            pid=other.agent_pid,
        )


def _host_of(record: NodeRecord) -> str | None:
    """The processors' UUID names the host."""
    return next((device.uuid for device in record.devices if device.vendor is Vendor.CPU), None)
