"""What a plan may ask for, and the records that come of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.records import DeploymentRecord, MemoryNeed, Phase, ReplicaRecord
from xinf.scheduler.verdict import Binding

StopCause = Literal["surplus", "deleted", "replaced", "moved", "preempted"]
NoteKind = Literal["not_placed", "moving", "stays"]


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """A place that fits."""

    node: NodeName
    devices: tuple[str, ...]
    device_uuids: tuple[str, ...]
    note: str
    need: MemoryNeed | None = None  # of each of the devices; None: nobody can tell


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """No place fits; `note` says for the nearest nodes which constraint bound, with the values, and counts the rest."""

    note: str
    binding: Binding | None = None  # of the node that came nearest; None: there is no node


class Create(msgspec.Struct, frozen=True, kw_only=True):
    """Make a replica of the deployment as it is now, placed at once if a place is given."""

    deployment: DeploymentName
    placement: Placement | None
    reason: str
    binding: Binding | None = None  # why it has no place


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Give a pending replica its place."""

    replica: ReplicaId
    placement: Placement
    reason: str


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """Aim a replica at stop; its agent drains it."""

    replica: ReplicaId
    reason: str
    cause: StopCause


class Delete(msgspec.Struct, frozen=True, kw_only=True):
    """Remove the record."""

    replica: ReplicaId
    reason: str


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Write down why a replica has no place, or cannot leave the one it has."""

    replica: ReplicaId
    note: str
    kind: NoteKind = "not_placed"
    binding: Binding | None = None  # why it has no place


Action = Create | Place | Stop | Delete | Note


def create(deployment: DeploymentRecord, id_: ReplicaId, action: Create, now_s: float) -> ReplicaRecord:
    """Make the record of a new replica."""
    record = ReplicaRecord(
        id=id_,
        deployment=deployment.name,
        generation=deployment.generation,
        spec=deployment.spec,
        shares=deployment.shares,
        placement_note=action.reason,
        phase_since_s={Phase.PENDING: now_s},
        created_s=now_s,
    )
    return record if action.placement is None else placed(record, action.placement, deployment, now_s)


def placed(replica: ReplicaRecord, placement: Placement, deployment: DeploymentRecord, now_s: float) -> ReplicaRecord:
    """The record with its place in it, and with what it was given there."""
    return msgspec.structs.replace(
        replica,
        node=placement.node,
        devices=placement.devices,
        device_uuids=placement.device_uuids,
        placement_note=placement.note,
        need=placement.need,
        shares=deployment.shares,
        phase=Phase.PLACED,
        phase_since_s={**replica.phase_since_s, Phase.PLACED: now_s},
    )


def stopped(replica: ReplicaRecord, action: Stop) -> ReplicaRecord:
    """The record aimed at stop; its note says why where that was not its deployment's own wish."""
    if action.cause in ("moved", "preempted"):
        return msgspec.structs.replace(replica, target="stop", placement_note=action.reason)
    return msgspec.structs.replace(replica, target="stop")
