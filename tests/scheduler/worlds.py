"""Small worlds for the scheduler's tests: records with defaults, and a store of sorts that agents of sorts act on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from xinf.core.device import KIND_OF_VENDOR, Device, Health, Topology, Vendor
from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.model import ModelFacts
from xinf.core.records import (
    CordonRecord,
    DeploymentRecord,
    EngineEnvironment,
    EngineSpec,
    MeasuredRecord,
    MemoryNeed,
    NodeRecord,
    Phase,
    PlacementPolicy,
    ReplicaRecord,
)
from xinf.scheduler import Action, Create, Delete, Note, Place, Placement, Rules, Stop, World, plan
from xinf.scheduler.actions import create, placed, stopped

GIB = 1 << 30
CPU_ENVIRONMENT = EngineEnvironment(name="vllm-cpu", python="/e/cpu", engines=("vllm",), device_kinds=("cpu",))
CUDA_ENVIRONMENT = EngineEnvironment(name="vllm-cuda", python="/e/cuda", engines=("vllm",), device_kinds=("cuda",))
SIM_ENVIRONMENT = EngineEnvironment(name="builtin", python="/e/own", engines=("sim",), device_kinds=())


def node(
    name: str = "a",
    *,
    n_cuda: int = 0,
    environments: Iterable[EngineEnvironment] = (CPU_ENVIRONMENT, CUDA_ENVIRONMENT),
    health: Health = Health.OK,
    memory: int | None = None,
    memories: Sequence[int] = (),
    cpu_memory: int | None = None,
    n_sockets: int = 1,
    foreign: Mapping[str, int] | None = None,
    labels: Mapping[str, str] | None = None,
    topology: Topology | None = None,
    models: tuple[str, ...] = (),
    is_unified: bool = False,
    unplanned: Mapping[str, float] | None = None,
) -> NodeRecord:
    """`memory`: GiB of each card, or `memories`, by which they are called too; `foreign`: GiB by UUID.

    `is_unified`: that memory is the host's; `unplanned`: GiB by replica.
    """
    sizes = list(memories) or [memory] * n_cuda
    cards = tuple(
        Device(
            vendor=Vendor.NVIDIA,
            index=i,
            uuid=f"GPU-{name}-{i}",
            name=f"card{size}" if memories else "card",
            memory_bytes=None if size is None else size * GIB,
            health=health,
            reason=None if health is Health.OK else "the driver is not loaded",
            extra={"memory": "unified"} if is_unified else {},
        )
        for i, size in enumerate(sizes)
    )
    cpu_bytes = None if cpu_memory is None else cpu_memory * GIB
    nodes: dict[str, str | int] = {}
    if cpu_bytes is not None and n_sockets > 1:
        nodes = {"numa_nodes": n_sockets, "numa_memory_bytes": cpu_bytes // n_sockets}
    cpu = Device(vendor=Vendor.CPU, index=0, uuid=f"CPU-{name}", name="cpu", memory_bytes=cpu_bytes, extra=nodes)
    return NodeRecord(
        name=NodeName(name),
        address="",
        devices=(*cards, cpu),
        environments=tuple(environments),
        topology=topology or Topology(),
        foreign_bytes={uuid: gib * GIB for uuid, gib in (foreign or {}).items()},
        unplanned_bytes={ReplicaId(id_): int(gib * GIB) for id_, gib in (unplanned or {}).items()},
        labels=dict(labels or {}),
        models=models,
    )


def with_health(record: NodeRecord, uuid: str, health: Health, reason: str = "Xid 79") -> NodeRecord:
    """The node with one device in another state."""
    devices = tuple(
        msgspec.structs.replace(d, health=health, reason=None if health is Health.OK else reason)
        if d.uuid == uuid
        else d
        for d in record.devices
    )
    return msgspec.structs.replace(record, devices=devices)


def need(gib: float, *, wanted: float | None = None) -> MemoryNeed:
    """So much of each device; `wanted`: GiB of cache where a processor has room for it."""
    kv_wanted = None if wanted is None else int(wanted * GIB)
    return MemoryNeed(weights_bytes=int(gib * GIB), kv_bytes=0, overhead_bytes=0, kv_wanted_bytes=kv_wanted)


def model(gib: float, **gib_of: float) -> ModelFacts:
    """A model that needs so much of any device, but for those that are named: by kind (`cpu`) or by name."""
    of = {"*": gib, **gib_of}
    return ModelFacts(stored_dtypes={what: int(size * GIB) for what, size in of.items()})


def plan_need(
    spec: EngineSpec,
    facts: ModelFacts,
    device: Device,
    environment: EngineEnvironment,
    /,
    *,
    identity: str | None,
    measured: Mapping[str, MeasuredRecord],
) -> MemoryNeed | None:
    """What `model` says of such a device: less where it was measured. The cache of a processor is wanted in full."""
    sizes = facts.stored_dtypes
    kind = KIND_OF_VENDOR[device.vendor]
    size = sizes.get(device.name, sizes.get(kind, sizes["*"]))
    if size < 0:
        return None
    if identity is not None and (record := measured.get(f"{identity}-{kind}")) is not None:
        size = record.fixed_bytes
    return MemoryNeed(weights_bytes=size, kv_bytes=0, overhead_bytes=0, kv_wanted_bytes=GIB if kind == "cpu" else None)


RULES = Rules(planner=plan_need)


def deployment(
    name: str = "m",
    *,
    replicas: int = 1,
    generation: int = 1,
    device: str = "auto",
    tensor_parallel_size: int = 1,
    gib: float | None = None,
    shares: bool = False,
    priority: int = 0,
    labels: Mapping[str, str] | None = None,
    placement: str = "spread",
    engine: str = "vllm",
    gib_of: Mapping[str, float] | None = None,
) -> DeploymentRecord:
    """`gib`: what its model needs of a device; `gib_of`: of other kinds of device, by kind or name."""
    spec = EngineSpec(model="org/m", engine=engine, device=device, tensor_parallel_size=tensor_parallel_size)
    return DeploymentRecord(
        name=DeploymentName(name),
        spec=spec,
        replicas=replicas,
        generation=generation,
        model=None if gib is None else model(gib, **(gib_of or {})),
        shares=shares,
        priority=priority,
        labels=dict(labels or {}),
        placement=PlacementPolicy(placement),
    )


def holder(
    node_name: str,
    *uuids: str,
    name: str = "other",
    phase: Phase = Phase.READY,
    gib: float | None = None,
    shares: bool = False,
    devices: tuple[str, ...] = (),
    number: int = 1,
    target: str = "run",
) -> ReplicaRecord:
    """A replica that is there already."""
    return ReplicaRecord(
        id=ReplicaId(f"{name}-{number}"),
        deployment=DeploymentName(name),
        generation=1,
        spec=deployment().spec,
        target=target,  # type: ignore[arg-type]
        node=NodeName(node_name),
        devices=devices,
        device_uuids=uuids,
        need=None if gib is None else need(gib),
        shares=shares,
        phase=phase,
    )


def world(
    deployments: Iterable[DeploymentRecord] = (),
    nodes: Iterable[NodeRecord] = (),
    replicas: Iterable[ReplicaRecord] = (),
    cordons: Iterable[CordonRecord] = (),
) -> World:
    return World(
        deployments={d.name: d for d in deployments},
        nodes={n.name: n for n in nodes},
        replicas={r.id: r for r in replicas},
        cordons={c.node: c for c in cordons},
    )


class Simulation:
    """A world that plans are applied to, with agents that move one random replica a step at a time."""

    def __init__(self, start: World, *, seed: int = 0, rules: Rules | None = None) -> None:
        self.world = start
        self.random = random.Random(seed)
        self.rules = rules or RULES
        self.now_s = 1000.0
        self.seen: frozenset[ReplicaId] = frozenset()  # that had places when the last plan was made
        self.n_created = 0
        self.n_preempted = 0
        self.lowest_ready = 10**9  # over all steps, of all replicas together

    def edit(self, **changes: object) -> None:
        self.world = msgspec.structs.replace(self.world, **changes)

    def set_deployment(self, record: DeploymentRecord) -> None:
        self.edit(deployments={**self.world.deployments, record.name: record})

    def set_nodes(self, *records: NodeRecord) -> None:
        self.edit(nodes={record.name: record for record in records})

    def set_cordons(self, *records: CordonRecord) -> None:
        self.edit(cordons={record.node: record for record in records})

    def ready(self, name: str = "m") -> list[ReplicaRecord]:
        return [r for r in self.of(name) if r.phase is Phase.READY]

    def of(self, name: str = "m") -> list[ReplicaRecord]:
        return [r for r in self.world.replicas.values() if r.deployment == name]

    def plan_once(self) -> list[Action]:
        self.now_s += 1
        self.seen = frozenset(id_ for id_, r in self.world.replicas.items() if r.node is not None)
        actions = plan(self.world, self.now_s, self.rules)
        for action in actions:
            self._apply(action)
        self.check_devices()
        self.lowest_ready = min(self.lowest_ready, sum(r.phase is Phase.READY for r in self.world.replicas.values()))
        return actions

    def settle(self, *, most_steps: int = 400) -> None:
        """Plan and let agents act until neither changes anything; asserts that this happens."""
        for _ in range(most_steps):
            if not self.plan_once() and not self.agents_step():
                return
        left = plan(self.world, self.now_s, self.rules)
        raise AssertionError(f"no fixpoint after {most_steps} steps; the plan is {left}")

    def agents_step(self) -> bool:
        """One agent that is present moves one replica on; False when there is nothing to move."""
        movable = [
            r
            for r in self.world.replicas.values()
            if r.node in self.world.nodes and (r.phase is not Phase.READY or r.target == "stop") and not _is_done(r)
        ]
        if not movable:
            return False
        record = self.random.choice(movable)
        phase = Phase.STOPPED if record.target == "stop" else Phase.READY
        self._put(msgspec.structs.replace(record, phase=phase))
        return True

    def check_devices(self) -> None:
        """No accelerator is promised twice, no processor gives more than it has; nobody holds what is not there."""
        held: dict[str, list[ReplicaRecord]] = {}
        for replica in self.world.replicas.values():
            if replica.phase is Phase.STOPPED or replica.node not in self.world.nodes:
                continue
            for uuid in replica.device_uuids:
                assert uuid.startswith(f"GPU-{replica.node}-")
                held.setdefault(uuid, []).append(replica)
            if "cpu" in replica.devices:
                held.setdefault(f"CPU-{replica.node}", []).append(replica)
        for uuid, replicas in held.items():
            is_processor = uuid.startswith("CPU-")
            if len(replicas) > 1 and not is_processor:
                ids = ", ".join(replica.id for replica in replicas)
                assert all(replica.shares and replica.need for replica in replicas), f"{uuid} is held by {ids}"
            self._check_memory(uuid, replicas, is_shared=is_processor or len(replicas) > 1)
        for host in self.world.nodes.values():
            self._check_pool(host, counts_unplanned=False)

    def _check_pool(self, host: NodeRecord, *, counts_unplanned: bool) -> None:
        """What is promised of a host's memory, on the processor and on GPUs that have none of their own, is there.

        Engines that nobody planned for may come after others were placed: what they hold binds those that follow.
        """
        unified = [device for device in host.devices if "memory" in device.extra]
        processor = next(device for device in host.devices if device.vendor is Vendor.CPU)
        sizes = [d.memory_bytes for d in unified if d.memory_bytes is not None]
        total = max(sizes, default=None) if processor.memory_bytes is None else processor.memory_bytes
        if total is None:
            return
        uuids = [processor.uuid, *(device.uuid for device in unified)]
        here = [r for r in self.world.replicas.values() if r.node == host.name and r.phase is not Phase.STOPPED]
        n_on = {r.id: sum(uuid in uuids for uuid in r.device_uuids) + ("cpu" in r.devices) for r in here}
        promised = sum(n_on[r.id] * r.need.device_bytes for r in here if r.need is not None)
        known = [r.id for r in here if n_on[r.id] and r.id in self.seen] if counts_unplanned else []
        beside = sum(host.unplanned_bytes.get(id_, 0) for id_ in known)
        foreign = max(host.foreign_bytes.get(uuid, 0) for uuid in uuids)
        room = total - foreign - self.rules.headroom_bytes
        assert not promised or promised + beside <= room, f"{host.name}: {promised} and {beside} of {room} are promised"

    def _check_memory(self, uuid: str, replicas: list[ReplicaRecord], *, is_shared: bool) -> None:
        host = self.world.nodes[replicas[0].node]  # type: ignore[index]
        device = next((d for d in host.devices if d.uuid == uuid), None)
        if device is None or device.memory_bytes is None:
            return  # it went away under them, or nobody says what it has
        promised = sum(r.need.device_bytes for r in replicas if r.need is not None)
        room = device.memory_bytes - host.foreign_bytes.get(uuid, 0) - is_shared * self.rules.headroom_bytes
        assert not promised or promised <= room, f"{uuid}: {promised} bytes are promised, {room} are there"

    def _check_placed(self, placement: Placement | None) -> None:
        """Whoever was just given a place by plan has it beside all that is known to be taken."""
        if placement is None or placement.need is None:
            return
        host = self.world.nodes[placement.node]
        unified = {device.uuid for device in host.devices if "memory" in device.extra}
        if "cpu" in placement.devices or unified & set(placement.device_uuids):
            self._check_pool(host, counts_unplanned=True)

    def _put(self, record: ReplicaRecord) -> None:
        self.edit(replicas={**self.world.replicas, record.id: record})

    def _apply(self, action: Action) -> None:
        replicas = self.world.replicas
        match action:
            case Create():
                self.n_created += 1
                id_ = ReplicaId(f"{action.deployment}-{self.n_created:04d}")
                self._put(create(self.world.deployments[action.deployment], id_, action, self.now_s))
                self._check_placed(action.placement)
            case Place():
                before = replicas[action.replica]
                of = self.world.deployments[before.deployment]
                self._put(placed(before, action.placement, of, self.now_s))
                self._check_placed(action.placement)
            case Stop():
                self.n_preempted += action.cause == "preempted"
                self._put(stopped(replicas[action.replica], action))
            case Note():
                self._put(msgspec.structs.replace(replicas[action.replica], placement_note=action.note))
            case Delete():
                self.edit(replicas={id_: r for id_, r in replicas.items() if id_ != action.replica})


def _is_done(replica: ReplicaRecord) -> bool:
    return replica.phase is Phase.STOPPED
