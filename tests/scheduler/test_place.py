"""Placement tables: which node and devices a spec gets, and the words when it gets none."""

from __future__ import annotations

import pytest

from tests.scheduler.worlds import CPU_ENVIRONMENT, CUDA_ENVIRONMENT, SIM_ENVIRONMENT, deployment, node
from xinf.core.device import Device, Health, Vendor
from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.records import EngineSpec, NodeRecord, Phase, ReplicaRecord
from xinf.scheduler import Placement, Refusal, place
from xinf.scheduler.place import claims_of


def put(spec: EngineSpec, *nodes: NodeRecord, held: tuple[ReplicaRecord, ...] = ()) -> Placement | Refusal:
    return place(spec, {n.name: n for n in nodes}, claims_of(held), deployment=DeploymentName("m"))


def holder(node_name: str, *uuids: str, name: str = "other", phase: Phase = Phase.READY) -> ReplicaRecord:
    return ReplicaRecord(
        id=ReplicaId(f"{name}-1"),
        deployment=DeploymentName(name),
        generation=1,
        spec=deployment().spec,
        node=NodeName(node_name),
        device_uuids=uuids,
        phase=phase,
    )


@pytest.mark.parametrize(
    ("device", "size", "devices"),
    [
        ("auto", 1, ("cuda:0",)),
        ("auto", 2, ("cuda:0", "cuda:1")),
        ("cuda", 1, ("cuda:0",)),
        ("cuda:1", 1, ("cuda:1",)),
        ("cuda:2,cuda:1", 2, ("cuda:1", "cuda:2")),
        ("GPU-a-2", 1, ("cuda:2",)),
        ("cpu", 1, ("cpu",)),
    ],
)
def test_selector_chooses_devices(device: str, size: int, devices: tuple[str, ...]) -> None:
    found = put(EngineSpec(model="m", device=device, tensor_parallel_size=size), node(n_cuda=3))
    assert isinstance(found, Placement)
    assert found.devices == devices
    uuids = tuple(f"GPU-a-{d.removeprefix('cuda:')}" for d in devices) if devices != ("cpu",) else ()
    assert found.device_uuids == uuids


@pytest.mark.parametrize(
    ("spec", "the_node", "words"),
    [
        (EngineSpec(model="m", device="cuda"), node("b"), "b has no device cuda; it has cpu"),
        (EngineSpec(model="m", device="cuda:4"), node(n_cuda=2), "a has no device cuda:4; it has cuda:0, cuda:1, cpu"),
        (
            EngineSpec(model="m", device="cuda"),
            node(n_cuda=1, health=Health.NO_DRIVER),
            "cuda:0 on a cannot be used: the driver is not loaded",
        ),
        (
            EngineSpec(model="m", device="cuda"),
            node(n_cuda=1, environments=[CPU_ENVIRONMENT]),
            "a has no environment for vllm on cuda; it has vllm-cpu",
        ),
        (EngineSpec(model="m"), node(environments=[]), "a has no environment for vllm on cpu; it has none"),
        (
            EngineSpec(model="m", device="cuda", tensor_parallel_size=4),
            node(n_cuda=2),
            "4 cuda needed on a, 2 of 2 free",
        ),
    ],
)
def test_refusal_says_which_constraint_bound(spec: EngineSpec, the_node: NodeRecord, words: str) -> None:
    assert put(spec, the_node) == Refusal(note=words)


def test_refusal_names_the_holder() -> None:
    found = put(EngineSpec(model="m", device="cuda"), node(n_cuda=1), held=(holder("a", "GPU-a-0"),))
    assert found == Refusal(note="1 cuda needed on a, 0 of 1 free (cuda:0 has other-1)")


def test_no_node_is_told_what_to_start() -> None:
    found = put(EngineSpec(model="m"))
    assert isinstance(found, Refusal)
    assert "xinf worker" in found.note


def test_auto_waits_for_a_busy_accelerator_instead_of_taking_the_processor() -> None:
    found = put(EngineSpec(model="m"), node(n_cuda=1), held=(holder("a", "GPU-a-0"),))
    assert isinstance(found, Refusal)


@pytest.mark.parametrize(
    "the_node",
    [node(n_cuda=1, health=Health.NO_DRIVER), node(n_cuda=1, environments=[CPU_ENVIRONMENT]), node(n_cuda=0)],
    ids=["no driver", "no environment", "no card"],
)
def test_auto_takes_the_processor_where_no_accelerator_can_be_used(the_node: NodeRecord) -> None:
    found = put(EngineSpec(model="m"), the_node)
    assert isinstance(found, Placement)
    assert found.devices == ("cpu",)


def test_placement_says_why_the_others_were_not_chosen() -> None:
    found = put(EngineSpec(model="m", device="cuda"), node("a", n_cuda=1), node("b"))
    assert isinstance(found, Placement)
    assert found.note == "a has cuda:0 free; b has no device cuda; it has cpu"


def test_processor_is_shared() -> None:
    held = tuple(holder("a", name=f"x{i}") for i in range(20))
    assert isinstance(put(EngineSpec(model="m", device="cpu"), node(), held=held), Placement)


def test_replicas_of_a_deployment_spread_over_nodes() -> None:
    held = (holder("a", "GPU-a-0", name="m"), holder("b", "GPU-b-0"), holder("b", "GPU-b-1"))
    found = put(EngineSpec(model="m"), node("a", n_cuda=4), node("b", n_cuda=4), held=held)
    assert isinstance(found, Placement)
    assert found.node == "b"


def test_stopped_replica_holds_nothing() -> None:
    held = (holder("a", "GPU-a-0", phase=Phase.STOPPED),)
    assert isinstance(put(EngineSpec(model="m", device="cuda"), node(n_cuda=1), held=held), Placement)


def test_card_split_into_instances_is_not_given_away() -> None:
    card = Device(vendor=Vendor.NVIDIA, index=0, uuid="GPU-card-0", name="card", extra={"mig": "enabled"})
    instance = Device(vendor=Vendor.NVIDIA, index=1, uuid="MIG-0000-1", name="slice", parent="GPU-card-0")
    split = NodeRecord(name=NodeName("a"), address="", devices=(card, instance), environments=(CUDA_ENVIRONMENT,))
    found = put(EngineSpec(model="m"), split)
    assert isinstance(found, Placement)
    assert found.device_uuids == ("MIG-0000-1",)


@pytest.mark.parametrize(("device", "chosen"), [("auto", "cpu"), ("cpu", "cpu"), ("cuda:0", "cuda:0")])
def test_engine_that_runs_anywhere_takes_an_accelerator_only_when_told(device: str, chosen: str) -> None:
    spec = EngineSpec(model="m", engine="sim", device=device)
    found = put(spec, node(n_cuda=1, environments=[SIM_ENVIRONMENT]))
    assert isinstance(found, Placement)
    assert found.devices == (chosen,)
