"""A node's presence in the store: its record under a lease that is kept alive, and made again when it was lost.

A node name belongs to one agent at a time. A record that another agent left behind is waited out for one lease time:
a dead agent's goes away by itself, a living one's stays, and then this agent must not run.
"""

from __future__ import annotations

import asyncio
import logging

from xinf.agent.process import read_stat
from xinf.core.device import Vendor
from xinf.core.errors import Conflict, LeaseExpired, Unavailable
from xinf.core.ids import LeaseId
from xinf.core.records import NODES, NodeRecord, decode_record, encode_record
from xinf.meta import Compare, KeyValue, Put, Store

logger = logging.getLogger(__name__)

_RENEWALS_PER_TTL = 3  # two may be late or lost
_RETRY_S = 0.5


class Registration:
    """Keeps one NodeRecord in the store."""

    def __init__(self, store: Store, record: NodeRecord, *, ttl_s: float) -> None:
        self._store = store
        self._record = record
        self._ttl_s = ttl_s
        self._lease: LeaseId | None = None
        self.is_registered = asyncio.Event()

    async def run(self) -> None:
        """Register, renew, register again, until cancelled. Leaves the record to its lease: engines may serve on.

        Raises: Conflict when another living agent has this node's name.
        """
        while True:
            try:
                if self._lease is None:
                    await self._register()
                await asyncio.sleep(self._ttl_s / _RENEWALS_PER_TTL)
                await self._renew()
            except LeaseExpired:
                logger.warning("node %s lost its lease and registers again", self._record.name)
                self._lease = None
            except Unavailable as error:
                logger.warning("node %s cannot reach the control process: %s", self._record.name, error)
                await asyncio.sleep(_RETRY_S)

    async def withdraw(self) -> None:
        """Take the node out of the store at once: its engines are stopped."""
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                await self._store.revoke(lease)
            except (LeaseExpired, Unavailable) as error:
                logger.info("node %s leaves to its lease: %s", self._record.name, error)

    async def _register(self) -> None:
        key = NODES + self._record.name
        lease = await self._store.grant(self._ttl_s)
        deadline_s = asyncio.get_running_loop().time() + self._ttl_s + _RETRY_S
        while True:
            found = await self._store.get(key)
            is_late = asyncio.get_running_loop().time() > deadline_s
            if found is None or self._may_replace(found):
                compare = Compare(key, found.mod_revision if found else None)
                put = Put(key, encode_record(self._record), lease)
                if (await self._store.txn([compare], [put])).succeeded:
                    break
            elif is_late:
                await self._store.revoke(lease)
                raise self._conflict(found)
            else:
                await asyncio.sleep(min(_RETRY_S, self._ttl_s / _RENEWALS_PER_TTL))
                await self._store.keep_alive(lease)
        self._lease = lease
        self.is_registered.set()
        logger.info("node %s is registered", self._record.name, extra={"kv": {"lease": lease}})

    async def _renew(self) -> None:
        assert self._lease is not None
        await self._store.keep_alive(self._lease)
        found = await self._store.get(NODES + self._record.name)
        if found is None:
            raise LeaseExpired(f"the record of node {self._record.name} was deleted")
        if found.lease != self._lease:
            raise self._conflict(found)

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
