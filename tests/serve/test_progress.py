"""What a person is told while a deployment becomes ready: pure, record by record."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.registry.planned_models import CPU, QWEN_7B, card
from xinf.core.config import load
from xinf.core.device import Device, Vendor
from xinf.core.errors import EngineStartFailed, PlacementFailed
from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.records import (
    DeploymentRecord,
    EngineEnvironment,
    EngineSpec,
    MeasuredRecord,
    NodeRecord,
    Phase,
    ReplicaFailure,
    ReplicaRecord,
)
from xinf.registry import fingerprint, need_on
from xinf.scheduler import rules_of
from xinf.serve.progress import Progress

SPEC = EngineSpec(model="m", engine="sim", device="cpu")
DEPLOYMENT = DeploymentRecord(name=DeploymentName("a"), spec=SPEC, generation=2)
NODE = NodeRecord(
    name=NodeName("host"),
    address="",
    devices=(Device(vendor=Vendor.CPU, index=0, uuid="cpu-1", name="CPU"),),
    environments=(EngineEnvironment(name="builtin", python="python", engines=("sim",), device_kinds=()),),
)
NODES = {NODE.name: NODE}
PENDING = ReplicaRecord(id=ReplicaId("a-1"), deployment=DEPLOYMENT.name, generation=2, spec=SPEC)
PLACED = replace(
    PENDING, phase=Phase.PLACED, node=NODE.name, devices=("cpu",), phase_since_s={Phase.PENDING: 100.0, "placed": 100.5}
)
READY = replace(
    PLACED,
    phase=Phase.READY,
    phase_since_s={**PLACED.phase_since_s, "starting": 101.0, "loading": 102.0, "warming": 105.0, "ready": 106.0},
)
FAILURE = ReplicaFailure(cause="out_of_memory", message="no room", remedy="less context", log_tail=("x", "y"), at_s=1.0)


OLD = replace(READY, phase_since_s={phase: at_s - 50.0 for phase, at_s in READY.phase_since_s.items()})


def progress(*present: ReplicaRecord, deployment: DeploymentRecord = DEPLOYMENT) -> Progress:
    return Progress(deployment, present, since_s=100.0)


def told(
    made: Progress, *replicas: ReplicaRecord, nodes: dict[NodeName, NodeRecord] = NODES
) -> list[tuple[float, str]]:
    return [(step.at_s, step.title) for step in made.update(replicas, nodes, 100.0)]


def test_phases_are_told_in_order_and_once() -> None:
    made = progress()
    assert told(made, PLACED) == [(0.5, "placed")]
    assert not made.is_ready
    assert told(made, READY) == [(1.0, "starting"), (2.0, "loading"), (5.0, "warming up"), (6.0, "ready")]
    assert made.is_ready
    assert told(made, READY) == []


def test_ready_says_how_long_each_phase_took() -> None:
    *_, last = progress().update([READY], NODES, 100.0)
    assert last.text == "(starting 1.0s, loading 3.0s, warming up 1.0s)"


def test_replica_that_was_ready_before_is_not_told() -> None:
    made = progress(OLD)
    assert told(made, OLD) == []
    assert made.is_ready


def test_replica_that_was_ready_between_the_wish_and_the_first_look_is_told() -> None:
    assert told(progress(READY), READY) == told(progress(), READY) != []


def test_old_generation_and_other_deployments_do_not_count() -> None:
    made = progress()
    assert told(made, replace(READY, generation=1), replace(READY, deployment=DeploymentName("b"))) == []
    assert not made.is_ready


def test_all_wished_for_replicas_must_be_ready() -> None:
    made = progress(deployment=replace(DEPLOYMENT, replicas=2))
    made.update([READY], NODES, 100.0)
    assert not made.is_ready
    made.update([READY, replace(READY, id=ReplicaId("a-2"))], NODES, 100.0)
    assert made.is_ready


def test_no_worker_is_said_once() -> None:
    made = progress()
    (step,) = made.update([], {}, 103.0)
    assert step.title == "waiting"
    assert "xinf worker" in step.text
    assert made.update([PENDING], {}, 104.0) == []


def test_place_that_is_taken_is_waited_for() -> None:
    note = "1 cuda needed on host, 0 of 1 free (cuda:0 has b-1)"
    (step,) = progress().update([replace(PENDING, placement_note=note)], NODES, 100.0)
    assert step.text == note


def test_place_that_cannot_be_is_an_error_with_the_reason() -> None:
    deployment = replace(DEPLOYMENT, spec=replace(SPEC, device="cuda:0"))
    made = progress(deployment=deployment)
    with pytest.raises(PlacementFailed, match="host has no device cuda:0; it has cpu") as caught:
        made.update([PENDING], NODES, 100.0)
    assert str(caught.value.remedy).startswith("change --device, or start a worker on a host that has one; the deploy")


def test_remedy_is_that_of_the_constraint_that_bound() -> None:
    made = progress(deployment=replace(DEPLOYMENT, labels={"zone": "a"}))
    with pytest.raises(PlacementFailed, match="host lacks the label zone=a") as caught:
        made.update([PENDING], NODES, 100.0)
    assert str(caught.value.remedy).startswith("change --label, or give a node that label")


def test_failure_carries_cause_log_and_remedy() -> None:
    made = progress()
    made.update([PLACED], NODES, 100.0)
    with pytest.raises(EngineStartFailed, match="out_of_memory") as caught:
        made.update([replace(PLACED, phase=Phase.FAILED, failure=FAILURE)], NODES, 100.0)
    assert caught.value.remedy == "less context"
    assert caught.value.fields["log_tail"] == "x\ny"


def test_failure_of_a_start_that_is_being_repeated_is_told_too() -> None:
    made = progress(PLACED)
    with pytest.raises(EngineStartFailed):
        made.update([replace(PLACED, phase=Phase.STARTING, restarts=1, failure=FAILURE)], NODES, 100.0)


def test_failure_of_long_ago_is_not() -> None:
    recovered = replace(OLD, failure=FAILURE, restarts=1)
    made = progress(recovered)
    assert told(made, recovered) == []
    assert made.is_ready


def test_what_a_load_took_decides_whether_anything_could_ever_fit() -> None:
    """As the scheduler reads it, or the watching would end in an error while the replica is being placed."""
    engine = EngineEnvironment(name="vllm", python="p", engines=("vllm",), device_kinds=("cuda",), version="0.32.0")
    device = card(17)
    small = replace(NODE, devices=(device,), environments=(engine,))
    spec = EngineSpec(model="org/m", device="cuda")
    wish = replace(DEPLOYMENT, spec=spec, model=QWEN_7B, model_identity="org/m@1")
    waiting = replace(PENDING, spec=spec, placement_note="host: cuda:0 has other-1")
    took = MeasuredRecord(
        fingerprint="", model="org/m", engine="vllm", device_bytes=15 << 30, kv_bytes=2 << 30,
        fixed_bytes=13 << 30, has_peak=True, kv_blocks=1, block_tokens=16,
    )  # fmt: skip
    with pytest.raises(PlacementFailed, match="17 GiB free"):
        progress(deployment=wish).update([waiting], {small.name: small}, 100.0)
    measured = {fingerprint("org/m@1", spec, engine_version="0.32.0", device=device): took}
    (step,) = progress(deployment=wish).update([waiting], {small.name: small}, 100.0, measured=measured)
    assert step.title == "waiting"


def test_what_stays_free_on_a_processor_is_what_the_configuration_says() -> None:
    engine = EngineEnvironment(name="vllm", python="p", engines=("vllm",), device_kinds=("cpu",), version="0.32.0")
    spec = EngineSpec(model="org/m", device="cpu")
    wish = replace(DEPLOYMENT, spec=spec, model=QWEN_7B)
    least = need_on(spec, QWEN_7B, CPU, engine, identity=None, measured={})
    assert least is not None
    host = replace(NODE, devices=(replace(CPU, memory_bytes=least.device_bytes + (256 << 20)),), environments=(engine,))
    waiting = replace(PENDING, spec=spec, placement_note="host: cpu needs more")
    with pytest.raises(PlacementFailed, match="cpu needs"):
        Progress(wish, [], 100.0).update([waiting], {NODE.name: host}, 100.0)
    rules = rules_of(load(environ={}, overrides={"control.share_headroom": "128MiB"}))
    (step,) = Progress(wish, [], 100.0, rules=rules).update([waiting], {NODE.name: host}, 100.0)
    assert step.title == "waiting"
