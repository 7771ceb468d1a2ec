"""What a host says of itself, and the environment its engines get."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import msgspec
import pytest

from xinf.agent import describe_node, engines_dir
from xinf.agent.node import node_name, parse_labels
from xinf.agent.starter import fetch_spec, free_endpoint
from xinf.agent.surroundings import choose_environment, engine_environ
from xinf.core.config import load
from xinf.core.device import VISIBLE_ENV, Device, Health, Vendor
from xinf.core.errors import ConfigError, EngineStartFailed, InvalidRequest
from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.records import EngineEnvironment, EngineSpec, NodeRecord, ReplicaRecord

CONFIG = load(environ={})
CUDA = EngineEnvironment(name="vllm-cuda", python="/e/cuda/bin/python", engines=("vllm",), device_kinds=("cuda",))
CPU = EngineEnvironment(name="vllm-cpu", python="/e/cpu/bin/python", engines=("vllm",), device_kinds=("cpu",))
NODE = NodeRecord(
    name=NodeName("a"),
    address="",
    devices=(
        Device(vendor=Vendor.NVIDIA, index=0, uuid="GPU-0", name="card", visible="GPU-0"),
        Device(vendor=Vendor.NVIDIA, index=1, uuid="GPU-1", name="card", visible="GPU-1"),
        Device(vendor=Vendor.CPU, index=0, uuid="CPU-0", name="cpu"),
    ),
    environments=(CPU, CUDA),
)


def replica(*uuids: str, **spec: object) -> ReplicaRecord:
    return ReplicaRecord(
        id=ReplicaId("m-1"),
        deployment=DeploymentName("m"),
        generation=1,
        spec=msgspec.structs.replace(EngineSpec(model="m"), **spec),
        devices=tuple(f"cuda:{uuid[-1]}" for uuid in uuids) or ("cpu",),
        device_uuids=uuids,
    )


async def test_node_is_described(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(CONFIG.agent, labels="zone=a, disk=ssd", engines_dir=str(tmp_path))
    node = await describe_node(msgspec.structs.replace(CONFIG, agent=settings))
    assert node.devices[-1].vendor is Vendor.CPU
    assert [environment.engines for environment in node.environments] == [("sim",)]
    assert node.labels == {"zone": "a", "disk": "ssd"}


def test_name_comes_from_the_host_and_is_a_valid_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "My_Host.Local.")
    assert node_name(CONFIG.agent) == "my-host.local"
    monkeypatch.setattr(platform, "node", lambda: "")
    assert node_name(CONFIG.agent) == "localhost"
    with pytest.raises(InvalidRequest, match="node"):
        node_name(msgspec.structs.replace(CONFIG.agent, node="a/b"))


def test_label_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="zone"):
        parse_labels("zone")


def test_engines_directory_follows_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    assert engines_dir(CONFIG.agent) == Path("/somewhere/xinf/engines")
    assert engines_dir(msgspec.structs.replace(CONFIG.agent, engines_dir="/e")) == Path("/e")


def test_environment_fits_engine_and_device() -> None:
    assert choose_environment(replica(), NODE) is CPU
    assert choose_environment(replica("GPU-1"), NODE) is CUDA
    with pytest.raises(EngineStartFailed, match="no environment for sim on cuda; it has vllm-cpu, vllm-cuda"):
        choose_environment(replica("GPU-1", engine="sim"), NODE)


def test_device_that_went_away_is_named() -> None:
    with pytest.raises(EngineStartFailed, match="GPU-9 is not on a any more") as raised:
        choose_environment(replica("GPU-9"), NODE)
    assert raised.value.fields["cause"] == "device_unavailable"


def test_engine_environ_hides_other_devices_and_our_settings() -> None:
    base = {
        "HOME": "/h",
        "PATH": "/bin",
        "XINF_PORT": "1",
        "PYTHONPATH": "/p",
        "VIRTUAL_ENV": "/v",
        "HF_TOKEN": "t",
        "CUDA_VISIBLE_DEVICES": "3",
    }
    environ = engine_environ(base, CUDA, replica("GPU-1", "GPU-0", env={"A": "b"}), NODE)
    assert environ == {
        "HOME": "/h",
        "PATH": "/e/cuda/bin:/bin",
        "HF_TOKEN": "t",
        "A": "b",
        "PYTHONUNBUFFERED": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "GPU-1,GPU-0",
    }
    on_cpu = engine_environ({**base, "HIP_VISIBLE_DEVICES": "0"}, CPU, replica(), NODE)
    assert (on_cpu["CUDA_VISIBLE_DEVICES"], on_cpu["ROCR_VISIBLE_DEVICES"]) == ("", "")
    assert "HIP_VISIBLE_DEVICES" not in on_cpu


def test_own_interpreter_keeps_its_path() -> None:
    own = EngineEnvironment(name="builtin", python=sys.executable, engines=("sim",), device_kinds=())
    assert engine_environ({"PYTHONPATH": "/p"}, own, replica(), NODE)["PYTHONPATH"] == "/p"


def test_endpoint_names_a_free_port() -> None:
    host, _, port = free_endpoint("127.0.0.1").rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 1023


def node_of(*devices: Device) -> NodeRecord:
    return msgspec.structs.replace(NODE, devices=devices)


def card(vendor: Vendor, number: int, *, visible: str | None) -> Device:
    return Device(vendor=vendor, index=number, uuid=f"id-{number}", name="card", visible=visible)


@pytest.mark.parametrize("vendor", list(VISIBLE_ENV))
def test_variables_of_a_vendor_show_its_own_devices_by_identity(vendor: Vendor) -> None:
    node = node_of(card(vendor, 0, visible="7"), card(vendor, 1, visible="3"), card(vendor, 2, visible="5"))
    base = {"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "0", "MUSA_VISIBLE_DEVICES": "0"}
    environ = engine_environ(base, CUDA, replica("id-1", "id-0"), node)
    shown = {key: value for key, value in environ.items() if "VISIBLE" in key or "AFFINITY" in key}
    assert shown == dict.fromkeys(VISIBLE_ENV[vendor], "3,7")


def test_device_without_an_identity_is_refused_among_several() -> None:
    several = node_of(card(Vendor.ASCEND, 0, visible=None), card(Vendor.ASCEND, 1, visible="1"))
    with pytest.raises(EngineStartFailed, match=r"cannot be confined to npu:0: .* ASCEND_RT_VISIBLE_DEVICES") as raised:
        engine_environ({}, CUDA, replica("id-0"), several)
    assert raised.value.fields["cause"] == "device_unavailable"
    alone = node_of(card(Vendor.ASCEND, 0, visible=None), card(Vendor.NVIDIA, 1, visible="GPU-1"))
    assert "ASCEND_RT_VISIBLE_DEVICES" not in engine_environ({}, CUDA, replica("id-0"), alone)


def test_device_that_does_not_work_is_refused_with_its_reason() -> None:
    sick = msgspec.structs.replace(card(Vendor.NVIDIA, 0, visible="x"), health=Health.FAULTY, reason="Xid 79")
    with pytest.raises(EngineStartFailed, match="cuda:0 on a cannot be used: Xid 79"):
        choose_environment(replica("id-0"), node_of(sick))
    hot = msgspec.structs.replace(sick, health=Health.DEGRADED, reason="too hot")
    assert choose_environment(replica("id-0"), node_of(hot)) == CUDA


@pytest.mark.parametrize("spec", [
    EngineSpec(model="/a/path"),
    EngineSpec(model="Org/Name", engine="sim"),
    EngineSpec(model="Org/Name", engine_args={"load_format": "dummy"}),
    EngineSpec(model="Org/Name", engine_args={"--download-dir": "/x"}),
])  # fmt: skip
def test_what_the_engine_finds_itself_is_not_fetched(spec: EngineSpec) -> None:
    assert fetch_spec(spec, load(environ={}).registry, {}) is None


def test_fetcher_runs_in_the_environment_of_the_agent_and_leaves_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = load(environ={}).registry
    spec = EngineSpec(model="modelscope://Org/Name", engine_args={"load_format": "dummy"})
    monkeypatch.setenv("PYTHONPATH", "/checkout")
    found = fetch_spec(spec, registry, {"HOME": "/h"})
    assert found is not None
    assert (found.command[0], found.environ, found.registry) == (sys.executable, {"PYTHONPATH": "/checkout"}, registry)
    # One that the engine is to have as well is not taken away from it.
    kept = fetch_spec(spec, registry, {"PYTHONPATH": "/checkout"})
    assert kept is not None
    assert kept.environ == {}
    monkeypatch.delenv("PYTHONPATH")
    installed = fetch_spec(spec, registry, {})
    assert installed is not None
    assert installed.environ == {}


def test_name_of_no_model_fails_the_start_with_a_sentence() -> None:
    with pytest.raises(InvalidRequest, match="neither a path nor a hub id"):
        fetch_spec(EngineSpec(model="a/b/c"), load(environ={}).registry, {})
