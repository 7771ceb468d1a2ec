"""Every form of `--device` as it is documented, typed at `plan` and `launch`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from typer.testing import Result

from tests.cli.conftest import Control
from tests.cli.records import NODE
from xinf.core.device import Device, Vendor
from xinf.core.records import DeploymentRecord, EngineEnvironment, NodeRecord

CPU = Device(vendor=Vendor.CPU, index=0, uuid="CPU-0123456789ab", name="CPU", arch="x86_64", memory_bytes=64 << 30)
CARDS = tuple(
    Device(
        vendor=Vendor.NVIDIA, index=index, uuid=f"GPU-0000000{index}", name="L4", arch="sm_89", memory_bytes=24 << 30
    )
    for index in range(2)
)
MLU = Device(
    vendor=Vendor.CAMBRICON,
    index=0,
    uuid="MLU-0000-39-00.0",
    name="MLU590",
    memory_bytes=80 << 30,
    extra={"uuid": "MLU-d4e5-0000"},
)
VLLM = EngineEnvironment(name="vllm", python="p", engines=("vllm",), device_kinds=(), version="0.32.0")


@pytest.fixture
def node(control: Control) -> NodeRecord:
    made = replace(NODE, devices=(*CARDS, MLU, CPU), environments=(VLLM,))
    control.run(control.records.create(NodeRecord, made.name, made))
    return made


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("all", ["cuda:0", "cuda:1", "mlu:0", "cpu"]),
        ("auto", ["cuda:0", "cuda:1", "mlu:0"]),
        ("cuda", ["cuda:0", "cuda:1"]),
        ("cuda:1", ["cuda:1"]),
        ("CUDA:0, cpu", ["cuda:0", "cpu"]),
        ("GPU-00000001", ["cuda:1"]),
        ("MLU-0000-39-00.0", ["mlu:0"]),
        ("MLU-d4e5-0000", ["mlu:0"]),
        ("cpu:0", ["cpu"]),
        ("CPU-0123456789ab,mlu", ["mlu:0", "cpu"]),
    ],
)
def test_plan_is_for_the_devices_that_were_meant(
    node: NodeRecord, xinf: Callable[..., Result], typed: str, meant: list[str]
) -> None:
    done = xinf("plan", "scripted", "--all", "--device", typed)
    assert done.exit_code == 0, done.output
    table = done.stdout.partition("\n\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[1] for line in table[1:]] == meant


def test_launch_keeps_what_was_meant(node: NodeRecord, control: Control, xinf: Callable[..., Result]) -> None:
    done = xinf("launch", "--model", "scripted", "--no-wait", "--name", "d", "--device", "CUDA:0, cpu")
    assert done.exit_code == 0, done.output
    found = control.run(control.records.get(DeploymentRecord, "d"))
    assert found is not None
    assert found[0].spec.device == "cuda:0,cpu"


def test_device_that_is_not_there_is_answered_with_those_that_are(
    node: NodeRecord, xinf: Callable[..., Result]
) -> None:
    done = xinf("plan", "scripted", "--all", "--device", "cuda:7")
    assert done.exit_code == 1
    assert "there are: cuda:0, cuda:1, mlu:0, cpu" in done.stderr


@pytest.mark.parametrize("command", [("plan", "scripted", "--all"), ("plan", "scripted", "--all", "--device", "cuda")])
def test_plan_of_no_nodes_says_that_no_worker_is_connected(
    control: Control, xinf: Callable[..., Result], command: tuple[str, ...]
) -> None:
    done = xinf(*command)
    assert done.exit_code == 1
    assert "no worker is connected" in done.stderr


@pytest.mark.parametrize("options", [(), ("--compat", "scripted")])
def test_devices_of_no_nodes_says_that_no_worker_is_connected(
    control: Control, xinf: Callable[..., Result], options: tuple[str, ...]
) -> None:
    assert xinf("devices", "--all", *options).stdout == "no worker is connected: start one with `xinf worker`\n"


@pytest.mark.parametrize(("options", "nothing"), [((), {}), (("--compat", "scripted"), [])])
def test_devices_of_no_nodes_is_empty_json(
    control: Control, xinf_json: Callable[..., Any], options: tuple[str, ...], nothing: Any
) -> None:
    assert xinf_json("devices", "--all", *options) == nothing
