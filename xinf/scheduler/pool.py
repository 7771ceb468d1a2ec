"""The memory of a host, which its processor fills, and with it the GPUs that have none of their own.

                 ┌──────────────── total ────────────────┐
    cpu          │ engines │ engines │ headroom │        │   what one of them takes the others have not: all needs,
    cuda:0       └─────────┴── on it ┴──────────┘ others ┘   what was not planned and what others use are one sum

A device of the pool may be allowed less than all of it (Metal's limit, the kernel's for AMD, a container's for the
processor): that binds beside the pool.

What engines hold beyond their needs is told by the node's agent for each replica, so that it goes with the replica when
a plan thinks it away; as memory of others it would stay, and an engine that nobody planned for could never be replaced.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from xinf.core.device import Device, Vendor
from xinf.core.ids import ReplicaId
from xinf.core.records import NodeRecord, Phase, ReplicaRecord
from xinf.scheduler.claims import CPU, Tally, Use, tally

_TOTAL = "memory_total_bytes"  # of a device's `extra`: what the host has where the device is allowed less


class Balance(msgspec.Struct, frozen=True):
    """What is taken of some memory."""

    n_bytes: int  # by our engines
    counted: tuple[ReplicaId, ...]  # by which of them


class Pool(msgspec.Struct, frozen=True):
    """The memory of one host. `devices`: who fills it, the processor first where there is one."""

    total_bytes: int
    devices: tuple[Device, ...]
    uuids: frozenset[str]  # of them, CPU for the processor's

    @property
    def is_shared(self) -> bool:
        """Whether not only the processor fills it."""
        return len(self.devices) > 1

    def others(self, device: Device) -> str:
        """Name those that a device shares it with."""
        rest = [other for other in self.devices if other.uuid != device.uuid]
        return " and ".join("the processor" if other.vendor is Vendor.CPU else other.selector for other in rest)


def find_pool(record: NodeRecord) -> Pool | None:
    """The memory of a node's host; None where nobody says how much it is."""
    processor = next((device for device in record.devices if device.vendor is Vendor.CPU), None)
    unified = [device for device in record.devices if device.is_unified]
    devices = ([] if processor is None else [processor]) + unified
    total = None if processor is None else _whole(processor)
    if total is None:
        # A Mac's processor does not say.
        total = max((size for device in unified if (size := _whole(device)) is not None), default=None)
    if total is None:
        return None
    uuids = frozenset(CPU if device.vendor is Vendor.CPU else device.uuid for device in devices)
    return Pool(total, tuple(devices), uuids)


def foreign_in(pool: Pool, record: NodeRecord) -> int:
    """What others use of it: each device of the pool is told of what it sees, and the most is the nearest."""
    return max(max(0, record.foreign_bytes.get(device.uuid, 0)) for device in pool.devices)


def free_of_pool(record: NodeRecord, replicas: Iterable[ReplicaRecord]) -> int | None:
    """What these leave of the memory of a node's host; None where nobody says how much it is."""
    pool = find_pool(record)
    if pool is None:
        return None
    held = tally(r for r in replicas if r.node == record.name and r.phase is not Phase.STOPPED)
    taken = balance(uses_of(pool, held), record.unplanned_bytes).n_bytes
    return max(0, pool.total_bytes - foreign_in(pool, record) - taken)


def balance(uses: list[Use], unplanned_bytes: dict[ReplicaId, int]) -> Balance:
    """Add up what the engines on some devices need, and what they hold beside. One on two devices needs it twice."""
    counted = {id_ for use in uses for id_ in use.counted}
    beside = {id_ for use in uses for id_ in use.holders} & unplanned_bytes.keys()
    n_bytes = sum(use.n_bytes for use in uses) + sum(max(0, unplanned_bytes[id_]) for id_ in beside)
    return Balance(n_bytes, tuple(sorted(counted | beside)))


def uses_of(pool: Pool, tally: Tally) -> list[Use]:
    """What is on the devices of a pool."""
    return [tally.uses[uuid] for uuid in sorted(pool.uuids) if uuid in tally.uses]


def _whole(device: Device) -> int | None:
    """What the host has, as far as this device says."""
    whole = device.extra.get(_TOTAL)
    return whole if isinstance(whole, int) else device.memory_bytes
