"""Where one replica can run: pure matching of an engine spec against nodes, with reasons for every node refused.

    selector ──▶ devices of the node that it means ──▶ healthy ──▶ engine environment for that kind ──▶ not taken

Accelerators are exclusive: a replica holds as many as its tensor parallel size, all of one node and one kind. The
processor is shared. `auto` means an accelerator if any node has one that the engine is built for, taken or not, and
the processor otherwise: a replica never lands on a slow device because the fast one is busy for a moment.

Cost: O(nodes x devices x environments) per call, O(1) lookups of what is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from xinf.core.device import DEVICE_KINDS, KIND_OF_VENDOR, Device, Health, Vendor, is_selected
from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.records import EngineSpec, NodeRecord, Phase, ReplicaRecord

_KIND_ORDER = {kind: order for order, kind in enumerate(DEVICE_KINDS)}
AUTO = "auto"


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """A place that fits."""

    node: NodeName
    devices: tuple[str, ...]
    device_uuids: tuple[str, ...]
    note: str


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """No place fits; `note` says for each node which constraint bound, with the values."""

    note: str


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What replicas hold: accelerators by UUID, and how many replicas each node has."""

    holder: Mapping[str, ReplicaId]  # accelerator UUID -> who has it
    n_on_node: Mapping[NodeName, int]
    n_of_deployment: Mapping[tuple[NodeName, DeploymentName], int]


def claims_of(replicas: Iterable[ReplicaRecord]) -> Claims:
    """Count what is held. A replica holds its devices until it is stopped, also while it fails and waits to restart."""
    holder: dict[str, ReplicaId] = {}
    n_on_node: dict[NodeName, int] = {}
    n_of_deployment: dict[tuple[NodeName, DeploymentName], int] = {}
    for replica in replicas:
        if replica.node is None or replica.phase is Phase.STOPPED:
            continue
        holder.update(dict.fromkeys(replica.device_uuids, replica.id))
        n_on_node[replica.node] = n_on_node.get(replica.node, 0) + 1
        key = (replica.node, replica.deployment)
        n_of_deployment[key] = n_of_deployment.get(key, 0) + 1
    return Claims(holder=holder, n_on_node=n_on_node, n_of_deployment=n_of_deployment)


def place(
    spec: EngineSpec, nodes: Mapping[NodeName, NodeRecord], claims: Claims, *, deployment: DeploymentName
) -> Placement | Refusal:
    """Find the best place for one more replica of `deployment`.

    Best: the kind that comes first, then the node with the fewest replicas of this deployment, then the fewest of any,
    then by name.
    """
    if not nodes:
        return Refusal(note="no node is registered; start `xinf worker` on one")
    kinds = _kinds_wanted(spec, nodes)
    fits: list[tuple[int, int, int, NodeName, list[Device]]] = []
    reasons: list[str] = []
    for name, node in sorted(nodes.items()):
        found = _place_on_node(spec, node, claims.holder, kinds)
        if isinstance(found, str):
            reasons.append(found)
            continue
        kind = _KIND_ORDER[KIND_OF_VENDOR[found[0].vendor]]
        mine = claims.n_of_deployment.get((name, deployment), 0)
        fits.append((kind, mine, claims.n_on_node.get(name, 0), name, found))
    if not fits:
        return Refusal(note="; ".join(reasons))
    *_, name, devices = min(fits, key=lambda fit: fit[:4])
    selectors = tuple(device.selector for device in devices)
    return Placement(
        node=name,
        devices=selectors,
        device_uuids=tuple(device.uuid for device in devices if device.vendor is not Vendor.CPU),
        note="; ".join([f"{name} has {', '.join(selectors)} free", *reasons]),
    )


def _kinds_wanted(spec: EngineSpec, nodes: Mapping[NodeName, NodeRecord]) -> Collection[str] | None:
    """Which device kinds `auto` means here and now; None when the selector names devices itself."""
    if spec.device != AUTO:
        return None
    accelerators = {
        KIND_OF_VENDOR[device.vendor]
        for node in nodes.values()
        for device in _whole_devices(node)
        if device.health is Health.OK and _is_built_for(node, spec.engine, KIND_OF_VENDOR[device.vendor])
    }
    return accelerators - {"cpu"} or {"cpu"}


def _place_on_node(
    spec: EngineSpec, node: NodeRecord, holder: Mapping[str, ReplicaId], kinds: Collection[str] | None
) -> list[Device] | str:
    """Choose devices of one node, or say why none will do."""
    parts = spec.device.split(",")
    devices = _whole_devices(node)
    if kinds is not None:
        meant = [device for device in devices if KIND_OF_VENDOR[device.vendor] in kinds]
    else:
        meant = [device for device in devices if any(is_selected(device, part) for part in parts)]
    what = " or ".join(sorted(kinds)) if kinds is not None else spec.device
    if not meant:
        has = ", ".join(device.selector for device in devices) or "none"
        return f"{node.name} has no device {what}; it has {has}"
    healthy = [device for device in meant if device.health is Health.OK]
    if not healthy:
        return f"{meant[0].selector} on {node.name} cannot be used: {meant[0].reason or meant[0].health}"
    with_engine = [device for device in healthy if _has_environment(node, spec.engine, device)]
    if not with_engine:
        has = ", ".join(environment.name for environment in node.environments) or "none"
        kind = KIND_OF_VENDOR[healthy[0].vendor]
        return f"{node.name} has no environment for {spec.engine} on {kind}; it has {has}"
    return _choose(spec, node, with_engine, holder)


def _choose(
    spec: EngineSpec, node: NodeRecord, devices: list[Device], holder: Mapping[str, ReplicaId]
) -> list[Device] | str:
    """Take the devices of the kind that comes first and has enough that are free, lowest index first."""
    reasons: list[str] = []
    for kind in sorted({KIND_OF_VENDOR[device.vendor] for device in devices}, key=_KIND_ORDER.__getitem__):
        of_kind = [device for device in devices if KIND_OF_VENDOR[device.vendor] == kind]
        if kind == "cpu":
            return of_kind[:1]  # shared, and one device however many processes the engine makes of it
        free = [device for device in of_kind if device.uuid not in holder]
        if len(free) >= spec.tensor_parallel_size:
            return sorted(free, key=lambda device: device.index)[: spec.tensor_parallel_size]
        reason = f"{spec.tensor_parallel_size} {kind} needed on {node.name}, {len(free)} of {len(of_kind)} free"
        taken = [f"{device.selector} has {holder[device.uuid]}" for device in of_kind if device.uuid in holder]
        reasons.append(f"{reason} ({', '.join(taken)})" if taken else reason)
    return "; ".join(reasons)


def _whole_devices(node: NodeRecord) -> list[Device]:
    """Devices that can be given away: a card that is split into MIG instances cannot, its instances can."""
    split = {device.parent for device in node.devices if device.parent is not None}
    return [
        device
        for device in node.devices
        if device.uuid not in split and not (device.extra.get("mig") == "enabled" and device.parent is None)
    ]


def _is_built_for(node: NodeRecord, engine: str, kind: str) -> bool:
    """Whether an environment names this kind; one that runs anywhere (`sim`) has no use for an accelerator."""
    return any(engine in environment.engines and kind in environment.device_kinds for environment in node.environments)


def _has_environment(node: NodeRecord, engine: str, device: Device) -> bool:
    kind = KIND_OF_VENDOR[device.vendor]
    return any(
        engine in environment.engines and (not environment.device_kinds or kind in environment.device_kinds)
        for environment in node.environments
    )
