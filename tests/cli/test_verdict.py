"""What the tables of compatibility do to `launch` and `devices`: refuse before writing, warn, say, and list."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from typer.testing import Result

from tests.cli.conftest import Control
from tests.cli.records import NODE
from xinf.agent.environment import MANIFEST, Manifest
from xinf.cli.devices import dtypes_cell
from xinf.core.device import Device, Dtype, Health, Support, Vendor
from xinf.core.ids import NodeName
from xinf.core.records import DeploymentRecord, EngineEnvironment, NodeRecord

T4 = Device(vendor=Vendor.NVIDIA, index=0, uuid="GPU-t4", name="Tesla T4", arch="sm_75", memory_bytes=16 << 30)
A100 = replace(T4, index=1, uuid="GPU-a100", name="A100", arch="sm_80")
NEW = replace(T4, index=2, uuid="GPU-new", name="Something new", arch="sm_999")
CPU = Device(vendor=Vendor.CPU, index=0, uuid="cpu-1", name="CPU", arch="x86_64", extra={"isa": "avx512_bf16"})
LOST = Device(
    vendor=Vendor.AMD, index=0, uuid="PCI-1", name="amd 0x74a1", health=Health.NO_DRIVER, reason="amdgpu is not loaded"
)
CUDA = EngineEnvironment(name="vllm-cuda", python="p", engines=("vllm",), device_kinds=("cuda",), version="0.32.0")
ON_CPU = EngineEnvironment(name="vllm-cpu", python="p", engines=("vllm",), device_kinds=("cpu",), version="0.32.0")


def model(directory: Path, **config: Any) -> str:
    directory.mkdir()
    written = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16", **config}
    (directory / "config.json").write_text(json.dumps(written))
    return str(directory)


@pytest.fixture
def qwen(tmp_path: Path) -> str:
    return model(tmp_path / "qwen")


@pytest.fixture
def add_node(control: Control) -> Callable[..., NodeRecord]:
    """Register a node with these devices, as its worker would."""

    def add(*devices: Device, name: str = "host", environments: tuple[EngineEnvironment, ...] = (CUDA,)) -> NodeRecord:
        node = replace(NODE, name=NodeName(name), devices=devices, environments=environments)
        control.run(control.records.create(NodeRecord, node.name, node))
        return node

    return add


def wishes(control: Control) -> list[str]:
    return [str(record.name) for record, _ in control.run(control.records.list(DeploymentRecord))]


def test_launch_refuses_what_no_device_can_run_and_writes_nothing(
    control: Control, add_node: Callable[..., NodeRecord], xinf: Callable[..., Result], qwen: str
) -> None:
    add_node(T4)
    done = xinf("launch", "--model", qwen, "--dtype", "bfloat16", "--no-wait")
    assert done.exit_code == 1
    assert f"no device can run {qwen}: cuda:0 on host: sm_75 has no BF16" in done.stderr
    assert "use --dtype float16" in done.stderr
    assert wishes(control) == []


def test_launch_goes_ahead_where_one_device_can(
    control: Control, add_node: Callable[..., NodeRecord], xinf: Callable[..., Result], qwen: str
) -> None:
    add_node(T4, A100)
    done = xinf("launch", "--model", qwen, "--dtype", "bfloat16", "--no-wait")
    assert done.exit_code == 0, done.output
    assert "note" not in done.stdout
    assert wishes(control) == ["qwen"]


def test_launch_on_the_device_that_was_named_is_judged_by_that(
    control: Control, add_node: Callable[..., NodeRecord], xinf: Callable[..., Result], qwen: str
) -> None:
    add_node(T4, A100)
    done = xinf("launch", "--model", qwen, "--dtype", "bfloat16", "--no-wait", "--device", "cuda:0")
    assert done.exit_code == 1
    assert wishes(control) == []


def test_launch_says_how_packed_weights_run(
    control: Control, add_node: Callable[..., NodeRecord], xinf: Callable[..., Result], qwen: str
) -> None:
    add_node(A100)
    done = xinf("launch", "--model", qwen, "--quantization", "fp8", "--no-wait")
    assert done.exit_code == 0, done.output
    assert "note: cuda:1 on host: FP8 E4M3 weights on sm_80 run weight-only" in done.stdout


def test_launch_warns_of_what_nobody_knows(
    control: Control, add_node: Callable[..., NodeRecord], xinf: Callable[..., Result], qwen: str
) -> None:
    add_node(NEW)
    done = xinf("launch", "--model", qwen, "--no-wait")
    assert done.exit_code == 0, done.output
    assert "not known to run: cuda:2 on host: no source says whether sm_999 computes in BF16" in done.stdout
    assert wishes(control) == ["qwen"]


def test_launch_for_another_kind_is_not_judged_by_this_one(
    control: Control, add_node: Callable[..., NodeRecord], xinf: Callable[..., Result], qwen: str
) -> None:
    """`auto` prefers accelerators that an environment serves; without one the processor is meant."""
    add_node(T4, CPU, environments=(ON_CPU,))
    done = xinf("launch", "--model", qwen, "--dtype", "bfloat16", "--no-wait")
    assert done.exit_code == 0, done.output


def test_up_refuses_before_it_starts_anything(xinf: Callable[..., Result], short_dir: Path) -> None:
    """An environment that is only said to be there: nothing of it may be started."""
    home = short_dir / "engines" / "vllm-cpu"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "python").symlink_to(sys.executable)
    environment = replace(ON_CPU, python=str(home / "bin" / "python"))
    manifest = Manifest(environment=environment, requirements_sha256="", xinf_sha256="")
    (home / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    gemma = model(short_dir / "gemma", architectures=["Gemma2ForCausalLM"], model_type="gemma2")
    done = xinf("up", gemma, "--dtype", "float16")
    assert done.exit_code == 1
    assert "vLLM refuses this model in FP16" in done.stderr
    assert "use --dtype bfloat16" in done.stderr
    assert not (short_dir / "data" / "meta").exists()


def test_compat_says_for_each_device_how_it_would_run(
    control: Control,
    add_node: Callable[..., NodeRecord],
    xinf: Callable[..., Result],
    xinf_json: Callable[..., Any],
    qwen: str,
) -> None:
    add_node(T4, A100, NEW, CPU, LOST)
    lines = xinf("devices", "--all", "--compat", qwen, "--dtype", "bfloat16").stdout.splitlines()
    assert lines[0].split() == ["DEVICE", "NAME", "ARCH", "RUNS", "SERVED", "BY", "WHY"]
    assert [line.split("  ")[0] for line in lines[1:-1]] == ["cuda:0", "cuda:1", "cuda:2", "cpu", "rocm:0"]
    assert lines[-1].startswith("SERVED BY: in brackets what no environment there has")
    assert "  no       vllm-cuda   sm_75 has no BF16: use --dtype float16" in lines[1]
    assert "  native   vllm-cuda   sm_80 computes in BF16" in lines[2]
    assert "  unknown  vllm-cuda   no source says whether sm_999 computes in BF16" in lines[3]
    assert "  native   (vllm-cpu)  x86_64 computes in BF16" in lines[4]
    assert "  no       (vllm)      has no driver: amdgpu is not loaded" in lines[5]
    found = xinf_json("devices", "--all", "--compat", qwen, "--quantization", "fp8")
    assert [each["level"] for each in found] == ["weight_only", "weight_only", "unknown", "unknown", "none"]
    assert (found[4]["health"], found[4]["reason"]) == ("no_driver", "has no driver: amdgpu is not loaded")
    assert found[0]["sources"]
    assert found[1]["environment"] == "vllm-cuda"


def test_compat_of_a_device_that_is_hot_says_so_and_how_it_would_run(
    control: Control, add_node: Callable[..., NodeRecord], xinf_json: Callable[..., Any], qwen: str
) -> None:
    add_node(replace(A100, health=Health.DEGRADED, reason="95 C"), replace(T4, health=Health.FAULTY))
    hot, faulty = xinf_json("devices", "--all", "--compat", qwen, "--dtype", "float16")
    assert (hot["level"], hot["reason"]) == ("native", "is degraded: 95 C; sm_80 computes in FP16")
    assert (faulty["level"], faulty["reason"]) == ("none", "is faulty")


@pytest.mark.parametrize(("options", "is_told"), [((), True), (("--env", "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1"), False)])
def test_launch_warns_of_a_context_that_the_model_has_not(
    control: Control,
    add_node: Callable[..., NodeRecord],
    xinf: Callable[..., Result],
    tmp_path: Path,
    options: tuple[str, ...],
    is_told: bool,
) -> None:
    add_node(A100)
    short = model(tmp_path / "short", max_position_embeddings=4096)
    done = xinf("launch", "--model", short, "--max-model-len", "8192", "--no-wait", *options)
    assert done.exit_code == 0, done.output
    assert ("note: --max-model-len 8192 is more than the model's 4096" in done.stdout) is is_told


def test_compat_explains_brackets_only_where_there_are_some(
    add_node: Callable[..., NodeRecord], xinf: Callable[..., Result], qwen: str
) -> None:
    add_node(A100)
    assert "brackets" not in xinf("devices", "--all", "--compat", qwen).stdout


@pytest.mark.parametrize(("option", "said"), [("--engine", "use vllm or sim"), ("--dtype", "no type that an engine")])
def test_compat_refuses_what_launch_would_refuse(
    xinf: Callable[..., Result], qwen: str, option: str, said: str
) -> None:
    done = xinf("devices", "--compat", qwen, option, "zork")
    assert done.exit_code == 1
    assert said in done.stderr


def test_compat_refuses_a_method_that_nobody_has(xinf: Callable[..., Result], qwen: str) -> None:
    done = xinf("devices", "--compat", qwen, "--quantization", "zork")
    assert done.exit_code == 1
    assert "'zork' is no method that vllm is known to have" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"), [(("--replicas", "0"), "up needs a replica"), (("--timeout", "soon"), "is not a duration")]
)
def test_up_refuses_what_makes_no_sense_before_it_looks_at_anything(
    xinf: Callable[..., Result], qwen: str, options: tuple[str, ...], said: str
) -> None:
    done = xinf("up", qwen, *options)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert said in done.stderr


def test_compat_on_this_host(xinf: Callable[..., Result], qwen: str) -> None:
    done = xinf("devices", "--compat", qwen)
    assert done.exit_code == 0, done.output
    assert any(line.startswith("cpu ") for line in done.stdout.splitlines())


def test_compat_of_a_model_that_is_not_here_says_so(
    xinf: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    done = xinf("devices", "--compat", "Org/Name", "--quantization", "awq")
    assert done.exit_code == 0, done.output
    assert "Org/Name cannot be read from here" in done.stdout


def test_devices_show_what_they_compute_in(
    control: Control, add_node: Callable[..., NodeRecord], xinf: Callable[..., Result], xinf_json: Callable[..., Any]
) -> None:
    add_node(A100, NEW)
    shown = xinf("devices", "--all").stdout
    assert "fp32 fp16 bf16 int8 int4 fp8_e4m3* fp8_e5m2? fp4*" in shown
    assert "DTYPES: * weights only, ? no source says" in shown
    assert xinf_json("devices", "--all")["host"][0]["capabilities"]["fp8_e4m3"] == "weight_only"
    assert xinf_json("devices")[-1]["capabilities"]["fp32"] == "native"


@pytest.mark.parametrize(
    ("levels", "cell"),
    [
        ({}, "-"),
        ({Dtype.FP8_E4M3: Support.NATIVE, Dtype.FP8_E5M2: Support.NATIVE}, "fp32? fp16? bf16? int8? int4? fp8 fp4?"),
        (dict.fromkeys(Dtype, Support.NONE), "none"),
        (dict.fromkeys(Dtype, Support.NONE) | {Dtype.INT4: Support.WEIGHT_ONLY}, "int4*"),
    ],
)
def test_the_cell_of_a_device(levels: dict[Dtype, Support], cell: str) -> None:
    assert dtypes_cell(dict.fromkeys(Dtype, Support.UNKNOWN) | levels) == cell
