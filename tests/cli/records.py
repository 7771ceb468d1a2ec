"""Records for tests of commands."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from xinf.core.device import Device, Vendor
from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.records import (
    DeploymentRecord,
    EngineEnvironment,
    EngineSpec,
    NodeRecord,
    Phase,
    ReplicaFailure,
    ReplicaRecord,
)

SPEC = EngineSpec(model="m", engine="sim", served_names=("demo",), device="cpu")
DEPLOYMENT = DeploymentRecord(name=DeploymentName("demo"), spec=SPEC, created_s=1000.0)
NODE = NodeRecord(
    name=NodeName("host"),
    address="",
    devices=(Device(vendor=Vendor.CPU, index=0, uuid="cpu-1", name="CPU"),),
    environments=(EngineEnvironment(name="builtin", python="python", engines=("sim",), device_kinds=()),),
)
READY = ReplicaRecord(
    id=ReplicaId("demo-aaaaa"),
    deployment=DEPLOYMENT.name,
    generation=1,
    spec=SPEC,
    node=NODE.name,
    devices=("cpu",),
    placement_note="host has cpu free",
    phase=Phase.READY,
    phase_since_s={"placed": 1000.0, "starting": 1001.0, "loading": 1002.0, "warming": 1005.0, "ready": 1006.0},
    pid=4242,
    created_s=1000.0,
)
FAILURE = ReplicaFailure(
    cause="out_of_memory",
    message="the engine needs 17.9 GiB",
    remedy="lower --max-model-len",
    log_tail=("line one", "line two"),
    at_s=1003.0,
)
FAILED = replace(READY, phase=Phase.FAILED, failure=FAILURE, restarts=3, retry_at_s=1032.0, pid=None)


def changed(record: Any, **changes: Any) -> Any:
    """The record with other values."""
    return replace(record, **changes)
