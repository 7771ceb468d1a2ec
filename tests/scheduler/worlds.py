"""Small worlds for the scheduler's tests: records with defaults, and a store of sorts that agents of sorts act on."""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec

from xinf.core.device import Device, Health, Vendor
from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.records import (
    DeploymentRecord,
    EngineEnvironment,
    EngineSpec,
    NodeRecord,
    Phase,
    ReplicaRecord,
)
from xinf.scheduler import Action, Create, Delete, Note, Place, Stop, World, plan
from xinf.scheduler.plan import create, placed

CPU_ENVIRONMENT = EngineEnvironment(name="vllm-cpu", python="/e/cpu", engines=("vllm",), device_kinds=("cpu",))
CUDA_ENVIRONMENT = EngineEnvironment(name="vllm-cuda", python="/e/cuda", engines=("vllm",), device_kinds=("cuda",))
SIM_ENVIRONMENT = EngineEnvironment(name="builtin", python="/e/own", engines=("sim",), device_kinds=())


def node(
    name: str = "a",
    *,
    n_cuda: int = 0,
    environments: Iterable[EngineEnvironment] = (CPU_ENVIRONMENT, CUDA_ENVIRONMENT),
    health: Health = Health.OK,
) -> NodeRecord:
    cards = tuple(
        Device(
            vendor=Vendor.NVIDIA,
            index=i,
            uuid=f"GPU-{name}-{i}",
            name="card",
            health=health,
            reason=None if health is Health.OK else "the driver is not loaded",
        )
        for i in range(n_cuda)
    )
    cpu = Device(vendor=Vendor.CPU, index=0, uuid=f"CPU-{name}", name="cpu")
    return NodeRecord(name=NodeName(name), address="", devices=(*cards, cpu), environments=tuple(environments))


def deployment(
    name: str = "m", *, replicas: int = 1, generation: int = 1, device: str = "auto", tensor_parallel_size: int = 1
) -> DeploymentRecord:
    spec = EngineSpec(model="org/m", device=device, tensor_parallel_size=tensor_parallel_size)
    return DeploymentRecord(name=DeploymentName(name), spec=spec, replicas=replicas, generation=generation)


def world(
    deployments: Iterable[DeploymentRecord] = (),
    nodes: Iterable[NodeRecord] = (),
    replicas: Iterable[ReplicaRecord] = (),
) -> World:
    return World(
        deployments={d.name: d for d in deployments},
        nodes={n.name: n for n in nodes},
        replicas={r.id: r for r in replicas},
    )


class Simulation:
    """A world that plans are applied to, with agents that move one random replica a step at a time."""

    def __init__(self, start: World, *, seed: int = 0) -> None:
        self.world = start
        self.random = random.Random(seed)
        self.now_s = 1000.0
        self.n_created = 0
        self.lowest_ready = 10**9  # over all steps, of all replicas together

    def edit(self, **changes: object) -> None:
        self.world = msgspec.structs.replace(self.world, **changes)

    def set_deployment(self, record: DeploymentRecord) -> None:
        self.edit(deployments={**self.world.deployments, record.name: record})

    def set_nodes(self, *records: NodeRecord) -> None:
        self.edit(nodes={record.name: record for record in records})

    def ready(self, name: str = "m") -> list[ReplicaRecord]:
        return [r for r in self.of(name) if r.phase is Phase.READY]

    def of(self, name: str = "m") -> list[ReplicaRecord]:
        return [r for r in self.world.replicas.values() if r.deployment == name]

    def plan_once(self) -> list[Action]:
        self.now_s += 1
        actions = plan(self.world, self.now_s)
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
        raise AssertionError(f"no fixpoint after {most_steps} steps; the plan is {plan(self.world, self.now_s)}")

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
        """No accelerator is held twice, and nobody holds a device that its node does not have."""
        held: dict[str, ReplicaId] = {}
        for replica in self.world.replicas.values():
            if replica.phase is Phase.STOPPED or replica.node not in self.world.nodes:
                continue
            for uuid in replica.device_uuids:
                assert uuid not in held, f"{uuid} is held by {held[uuid]} and {replica.id}"
                assert uuid.startswith(f"GPU-{replica.node}-")
                held[uuid] = replica.id

    def _put(self, record: ReplicaRecord) -> None:
        self.edit(replicas={**self.world.replicas, record.id: record})

    def _apply(self, action: Action) -> None:
        replicas = self.world.replicas
        match action:
            case Create():
                self.n_created += 1
                id_ = ReplicaId(f"{action.deployment}-{self.n_created:04d}")
                self._put(create(self.world.deployments[action.deployment], id_, action, self.now_s))
            case Place():
                self._put(placed(replicas[action.replica], action.placement, self.now_s))
            case Stop():
                self._put(msgspec.structs.replace(replicas[action.replica], target="stop"))
            case Note():
                self._put(msgspec.structs.replace(replicas[action.replica], placement_note=action.note))
            case Delete():
                self.edit(replicas={id_: r for id_, r in replicas.items() if id_ != action.replica})


def _is_done(replica: ReplicaRecord) -> bool:
    return replica.phase is Phase.STOPPED
