"""Whether a replica may stay where it is.

    faulty, without its driver, not there any more     it moves
    silent (nobody can read it)                        it stays as long as it may serve, and moves when it has failed
    degraded (slowed down by heat)                     it stays; nothing new comes
    its node is drained                                it moves
    its node is cordoned                               it stays; nothing new comes

Only what is said of the device itself moves who serves on it: what an engine computes there may be wrong, or must be
over soon. That a probe cannot read a device says nothing of that; the engine, which is asked by its own watchdog, does.

Moving is what an update does: the next one is made first, and the one that serves is stopped when the next is ready or
when only its going makes room. An engine that still serves is never stopped for a place that does not exist.
"""

from __future__ import annotations

from xinf.core.device import Health
from xinf.core.records import Phase, ReplicaRecord
from xinf.scheduler.host import Fleet

_MOVES = (Health.FAULTY, Health.NO_DRIVER)


def reason_to_leave(replica: ReplicaRecord, fleet: Fleet) -> str | None:
    """Why a replica has to leave its place; None: it need not, or its node is away and nobody can tell."""
    host = fleet.hosts.get(replica.node) if replica.node is not None else None
    if host is None:
        return None
    if host.cordon is not None and host.cordon.is_draining:
        why = f": {host.cordon.reason}" if host.cordon.reason else ""
        return f"{host.name} is being drained{why}"
    for number, uuid in enumerate(replica.device_uuids):
        device = host.device(uuid)
        if device is None:
            selector = replica.devices[number] if number < len(replica.devices) else uuid
            return f"{selector} ({uuid}) is not on {host.name} any more"
        is_left = device.health is Health.SILENT and replica.phase is Phase.FAILED
        if device.health in _MOVES or is_left:
            state = device.health.value.replace("_", " ")
            return f"{device.selector} on {host.name} is {state}: {device.reason or '?'}"
    return None
