"""Whose devices `xinf plan` plans for: this host's, those of an installation's nodes, or cards that are not here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from xinf.cli.session import Session
from xinf.core.device import Vendor
from xinf.core.records import NodeRecord, Phase, ReplicaRecord


class PlanHost(msgspec.Struct, frozen=True, kw_only=True):
    """A node, and what is free on its devices by UUID."""

    node: NodeRecord
    free_bytes: Mapping[str, int]
    is_imagined: bool = False  # its cards are equal, and none of them is there


async def read_this_host(session: Session) -> PlanHost:
    """Probe this host: devices, engine environments, and what is free now."""
    from xinf.agent import describe_node
    from xinf.device import read_once

    node = await describe_node(session.config)
    readings = await read_once({one.vendor for one in node.devices})
    samples = (sample for reading in readings for sample in reading.samples)
    free = {sample.uuid: sample.memory_free_bytes for sample in samples if sample.memory_free_bytes is not None}
    return PlanHost(node=node, free_bytes=free)


async def read_nodes(session: Session) -> list[PlanHost]:
    """The nodes of the server. Free is what others and the replicas placed there leave, as far as that is known."""
    from xinf.meta import Records

    async with session.store() as store:
        records = Records(store)
        nodes = [record for record, _ in await records.list(NodeRecord)]
        replicas = [record for record, _ in await records.list(ReplicaRecord)]
    headroom = session.config.control.share_headroom
    return [PlanHost(node=node, free_bytes=free_on(node, replicas, headroom_bytes=headroom)) for node in nodes]


def imagine(cards: str) -> list[PlanHost]:
    """Hosts with cards that are not here, empty. Raises: InvalidRequest for a card that is not known."""
    from xinf.registry import imagine_hosts

    hosts = imagine_hosts(cards)
    return [PlanHost(node=node, free_bytes=free_on(node, (), headroom_bytes=0), is_imagined=True) for node in hosts]


def free_on(node: NodeRecord, replicas: Sequence[ReplicaRecord], *, headroom_bytes: int) -> dict[str, int]:
    """What is left of each device of a node. A replica whose need nobody knows has its devices for itself.

    `headroom_bytes`: what the scheduler leaves free where a newcomer is not alone (xinf/scheduler/filter.py): on a
    processor always, on an accelerator if somebody is on it.
    """
    from xinf.scheduler import free_of_pool

    shared = {one.uuid for one in node.devices if one.vendor is Vendor.CPU}
    free = {one.uuid: one.memory_bytes for one in node.devices if one.memory_bytes is not None}
    for uuid, n_bytes in node.foreign_bytes.items():
        if uuid in free:
            free[uuid] -= n_bytes
    for replica in replicas:
        if replica.node != node.name or replica.phase is Phase.STOPPED:
            continue
        need = replica.need
        for one in node.devices:
            if one.uuid in free and (one.uuid in replica.device_uuids or one.selector in replica.devices):
                is_shared = one.uuid not in replica.device_uuids
                shared.add(one.uuid)
                free[one.uuid] = free[one.uuid] - need.device_bytes if need else free[one.uuid] if is_shared else 0
    free = {uuid: n_bytes - headroom_bytes * (uuid in shared) for uuid, n_bytes in free.items()}
    left = free_of_pool(node, replicas)
    if left is not None:  # the processor's, with what engines hold beyond their needs, is that of unified GPUs too
        of_host = (one.uuid for one in node.devices if one.is_unified or one.vendor is Vendor.CPU)
        free |= {uuid: min(free[uuid], left - headroom_bytes) for uuid in of_host if uuid in free}
    return {uuid: max(0, n_bytes) for uuid, n_bytes in free.items()}
