"""`plan`, and what `launch` and `up` do with the same plan. Models are directories made here; nothing is downloaded."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from typer.testing import Result

from tests.cli.conftest import Control
from tests.cli.records import NODE, READY
from xinf.cli.need import DevicePlan, add_model, find_known_for, meant_devices, plan_device
from xinf.cli.plan import Planned, notes, row
from xinf.cli.plan_hosts import free_on
from xinf.core.config import load
from xinf.core.device import Device, Health, Vendor
from xinf.core.errors import PlacementFailed
from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.records import (
    DeploymentRecord,
    EngineEnvironment,
    EngineSpec,
    MeasuredRecord,
    MemoryNeed,
    NodeRecord,
    Phase,
    ReplicaRecord,
)
from xinf.registry import fingerprint, identify_model
from xinf.scheduler import Claims, Fleet, Placement, Refusal, Rules, place

GIB = 1 << 30


def planned_for(
    made: DeploymentRecord, nodes: list[NodeRecord], measured: list[MeasuredRecord], *, must_fit: bool
) -> tuple[DeploymentRecord, list[str]]:
    return add_model(made, asyncio.run(find_known_for(load(), made.spec, nodes)), nodes, measured, must_fit=must_fit)


@pytest.fixture
def model(short_dir: Path) -> Path:
    return make_model(short_dir / "large", 12)


@pytest.fixture
def large_model(short_dir: Path) -> Callable[[int], Path]:
    """A model of so many GiB by its header alone: the file has a hole where the weights would be."""
    return lambda gib: make_model(short_dir / f"large{gib}", gib)


def make_model(directory: Path, gib: int) -> Path:
    directory.mkdir()
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 12288,
        "vocab_size": 65536,
        "max_position_embeddings": 32768,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    size = gib * GIB
    tensors = {"model.embed_tokens.weight": {"dtype": "BF16", "shape": [size // 8192, 4096], "data_offsets": [0, size]}}
    header = json.dumps(tensors).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    return directory


def gpu_node(*gib: int, name: str = "gpu") -> NodeRecord:
    cards = tuple(
        Device(
            vendor=Vendor.NVIDIA, index=n, uuid=f"GPU-{name}-{n}", name="card", arch="sm_90", memory_bytes=size * GIB
        )
        for n, size in enumerate(gib)
    )
    cpu = Device(vendor=Vendor.CPU, index=0, uuid=f"CPU-{name}", name="cpu", memory_bytes=256 * GIB)
    engines = EngineEnvironment(
        name="vllm-cuda", python="python", engines=("vllm",), device_kinds=("cuda",), version="0.32.0"
    )
    return NodeRecord(name=NodeName(name), address="", devices=(*cards, cpu), environments=(engines,))


# ---- plan ---------------------------------------------------------------------------------------------------------


def test_plan_of_this_host_says_what_the_model_takes(xinf_json: Callable[..., Any], model: Path) -> None:
    found = xinf_json("plan", str(model), "--device", "cpu", "--max-model-len", "4096")
    (device,) = found["devices"]
    plan = device["plan"]
    assert plan["weights_bytes"] == 12 * GIB
    assert plan["kv_token_bytes"] == 2 * 32 * 8 * 128 * 2
    assert plan["kv_bytes"] == (4096 + 32) * plan["kv_token_bytes"]
    assert device["free_bytes"] > 0
    assert device["fit"]["fits"] == (
        plan["weights_bytes"] + plan["kv_bytes"] + plan["activation_bytes"] + plan["runtime_bytes"]
        <= device["free_bytes"]
    )
    assert found["facts"]["n_layers"] == 32


def test_plan_of_the_scripted_model_is_a_table(xinf: Callable[..., Result]) -> None:
    done = xinf("plan", "scripted", "--device", "cpu")
    assert done.exit_code == 0, done.output
    head, _, columns, row, *_ = done.stdout.splitlines()
    assert head.startswith("scripted: ")
    assert columns.split() == [
        "DEVICE", "FREE", "WEIGHTS", "KV/REQUEST", "RESERVE", "SUM", "FITS", "CONTEXT", "REQUESTS", "FROM",
    ]  # fmt: skip
    assert row.startswith("cpu ")
    assert row.split()[-1] == "estimate"


def test_plan_of_all_nodes_counts_what_is_placed_there(
    control: Control, xinf_json: Callable[..., Any], xinf: Callable[..., Result], model: Path
) -> None:
    node = gpu_node(24, 80)
    need = MemoryNeed(weights_bytes=60 * GIB, kv_bytes=2 * GIB, overhead_bytes=2 * GIB)
    taken = replace(
        READY, node=node.name, devices=("cuda:1",), device_uuids=("GPU-gpu-1",), need=need, phase=Phase.READY
    )
    control.run(control.records.create(NodeRecord, node.name, node))
    control.run(control.records.create(ReplicaRecord, taken.id, taken))
    found = xinf_json("plan", str(model), "--all", "--device", "cuda")
    assert [(one["device"]["index"], one["free_bytes"], one["fit"]["fits"]) for one in found["devices"]] == [
        (0, 24 * GIB, True),
        (1, 15.5 * GIB, False),  # 512 MiB stay free where engines share
    ]
    assert found["advice"] == {}, "one of them can"
    assert "gpu" in xinf("plan", str(model), "--all").stdout


def test_plan_that_fits_nowhere_says_what_would(control: Control, xinf: Callable[..., Result], model: Path) -> None:
    node = gpu_node(16, 16)
    control.run(control.records.create(NodeRecord, node.name, node))
    done = xinf("plan", str(model), "--all", "--device", "cuda")
    assert done.exit_code == 0, done.output
    assert "gpu/cuda: --max-model-len " in done.stdout
    assert "gpu/cuda: --tensor-parallel-size 2 needs " in done.stdout


def test_plan_for_a_device_that_is_not_there_says_what_is(xinf: Callable[..., Result], model: Path) -> None:
    done = xinf("plan", str(model), "--device", "musa:7")
    assert done.exit_code == 1
    assert "no device musa:7" in done.stderr
    assert "cpu" in done.stderr


def test_plan_for_cards_that_are_not_here_says_what_each_would_hold(xinf_json: Callable[..., Any], model: Path) -> None:
    found = xinf_json("plan", str(model), "--on", "t4,2xl4,h100")
    rows = {made["node"]: made for made in found["devices"]}
    assert list(rows) == ["t4", "2x l4", "h100-80gb"], "equal cards of a host are one row"
    assert [rows[name]["fit"]["fits"] for name in rows] == [False, True, True]
    assert rows["h100-80gb"]["free_bytes"] == int(79.10 * GIB), "of 81559 MiB, as CUDA counts them"
    # A larger card takes larger steps, and needs more for them.
    assert rows["h100-80gb"]["plan"]["activation_bytes"] > rows["2x l4"]["plan"]["activation_bytes"]
    assert set(found["advice"]) == {"t4/cuda"}


def test_plan_for_too_few_cards_says_how_many_would_do(xinf: Callable[..., Result], model: Path) -> None:
    printed = xinf("plan", str(model), "--on", "l4,2xl4", "--tensor-parallel-size", "4").stdout
    assert "l4/cuda: --tensor-parallel-size 4 needs 4 devices, there are 1" in printed
    assert "2x l4/cuda: --tensor-parallel-size 2 needs" in printed
    printed = xinf("plan", str(model), "--on", "a10", "--max-model-len", "131072").stdout
    assert "a10/cuda: --max-model-len" in printed
    printed = xinf("plan", str(model), "--on", "v100-16gb,t4", "--quantization", "awq", "--dtype", "bfloat16").stdout
    assert "cuda:0 on v100-16gb cannot run it:" in printed
    assert "cuda:0 on t4 cannot run it:" in printed


def test_plan_names_how_many_cards_hold_what_none_of_these_does(
    xinf: Callable[..., Result], large_model: Callable[[int], Path]
) -> None:
    printed = xinf("plan", str(large_model(96)), "--on", "h100,t4").stdout
    assert "h100-80gb/cuda: 2 such devices would do: --tensor-parallel-size 2 needs" in printed
    assert "t4/cuda: 16 such devices would do" in printed
    printed = xinf("plan", str(large_model(900)), "--on", "t4").stdout
    assert "t4/cuda: nothing that is known here makes it fit" in printed


def test_cards_and_devices_exclude_each_other(xinf: Callable[..., Result], model: Path) -> None:
    for more in (("--device", "cuda"), ("--all",)):
        result = xinf("plan", str(model), "--on", "h100", *more)
        assert result.exit_code == 1
        assert "--on stands for the devices" in result.stderr
    result = xinf("plan", str(model), "--on", "voodoo")
    assert result.exit_code == 1
    assert "rtx-5090" in result.stderr


def test_plan_with_an_argument_of_unknown_effect_says_so(xinf: Callable[..., Result], model: Path) -> None:
    done = xinf("plan", str(model), "--device", "cpu", "--engine-arg", "cpu_offload_gb=4")
    assert done.exit_code == 0, done.output
    assert "'cpu_offload_gb' changes what memory is needed in a way that is not planned" in done.stdout


@pytest.mark.parametrize(("n_tokens", "is_told"), [(32768, False), (32769, True)])
def test_plan_says_that_an_engine_would_refuse_the_context(
    xinf: Callable[..., Result], model: Path, n_tokens: int, is_told: bool
) -> None:
    printed = xinf("plan", str(model), "--on", "h100", "--max-model-len", str(n_tokens)).stdout
    assert (f"note: --max-model-len {n_tokens} is more than the model's 32768: vLLM refuses" in printed) is is_told


def test_replica_of_unknown_need_has_its_card_for_itself() -> None:
    node = replace(gpu_node(24, 24), foreign_bytes={"GPU-gpu-1": 4 * GIB})
    taken = replace(READY, node=node.name, devices=("cuda:0",), device_uuids=("GPU-gpu-0",))
    free = free_on(node, [taken], headroom_bytes=0)
    assert (free["GPU-gpu-0"], free["GPU-gpu-1"], free["CPU-gpu"]) == (0, 20 * GIB, 256 * GIB)


def test_what_is_left_is_what_the_scheduler_would_give(model: Path) -> None:
    """A processor is never one's own; an accelerator is unless somebody is on it."""
    engines = EngineEnvironment(name="vllm", python="p", engines=("vllm",), device_kinds=(), version="0.32.0")
    node = replace(gpu_node(24, 80), environments=(engines,), foreign_bytes={"CPU-gpu": 6 * GIB})
    need = MemoryNeed(weights_bytes=6 * GIB, kv_bytes=GIB, overhead_bytes=GIB)
    held = [
        replace(READY, node=node.name, devices=("cuda:1",), device_uuids=("GPU-gpu-1",), need=need, shares=True),
        replace(READY, id=ReplicaId("other"), node=node.name, devices=("cpu",), device_uuids=(), need=need),
    ]
    free = free_on(node, held, headroom_bytes=GIB)
    assert free == {"GPU-gpu-0": 24 * GIB, "GPU-gpu-1": 71 * GIB, "CPU-gpu": 241 * GIB}
    facts = asyncio.run(find_known_for(load(), wish(model).spec, [node])).facts
    exact = replace(wish(model, device="cpu"), model=facts)

    def is_placed(n_bytes: int) -> bool:
        wanted = MemoryNeed(weights_bytes=n_bytes, kv_bytes=0, overhead_bytes=0)
        rules = Rules(headroom_bytes=GIB, planner=lambda *_, **__: wanted)
        return isinstance(place(exact, Fleet([node]), Claims(held), rules), Placement)

    assert is_placed(free["CPU-gpu"])
    assert not is_placed(free["CPU-gpu"] + 1)


def test_plan_says_whose_memory_it_is(model: Path) -> None:
    facts = asyncio.run(find_known_for(load(), wish(model).spec, [gpu_node(24)])).facts
    card = replace(gpu_node(24).devices[0], extra={"memory": "unified"})
    made = DevicePlan(node=NodeName("gpu"), device=card, free_bytes=20 * GIB)
    assert row(made, with_node=False)[:2] == ("cuda:0", "20 GiB shared")
    (_, line) = notes(Planned(model="m", facts=facts, devices=[made], advice={}))
    assert line.startswith("cuda:0: its memory is the host's, shared with the processor; ")
    own = replace(made, device=gpu_node(24).devices[0])
    assert notes(Planned(model="m", facts=facts, devices=[own], advice={})) == []


def test_gpu_and_processor_of_one_memory_have_the_same_free() -> None:
    node = gpu_node(24)
    cards = tuple(
        replace(d, memory_bytes=64 * GIB, extra={"memory": "unified"} if d.vendor is Vendor.NVIDIA else {})
        for d in node.devices
    )
    node = replace(node, devices=cards, foreign_bytes={"CPU-gpu": 4 * GIB})
    need = MemoryNeed(weights_bytes=20 * GIB, kv_bytes=0, overhead_bytes=0)
    held = [
        replace(READY, node=node.name, devices=("cuda:0",), device_uuids=("GPU-gpu-0",), need=need),
        replace(READY, id=ReplicaId("p-1"), node=node.name, devices=("cpu",), need=need),
    ]
    free = free_on(node, held, headroom_bytes=GIB)
    assert (free["GPU-gpu-0"], free["CPU-gpu"]) == (19 * GIB, 19 * GIB)
    node = replace(gpu_node(24), unplanned_bytes={ReplicaId("p-1"): 5 * GIB, ReplicaId("gone-1"): 7 * GIB})
    free = free_on(node, held[1:], headroom_bytes=GIB)
    assert (free["GPU-gpu-0"], free["CPU-gpu"]) == (24 * GIB, (256 - 20 - 5 - 1) * GIB)


# ---- launch -------------------------------------------------------------------------------------------------------


def wish(model: Path, **fields: Any) -> DeploymentRecord:
    return DeploymentRecord(name=DeploymentName("large"), spec=EngineSpec(model=str(model), **fields))


def test_wish_carries_what_it_needs(model: Path) -> None:
    planned, (told,) = planned_for(wish(model), [gpu_node(24)], [], must_fit=True)
    assert planned.model is not None
    assert planned.model.weight_bytes == 12 * GIB
    assert planned.model_identity == identify_model(str(model), environ={})
    assert told.startswith("memory: needs ")
    assert told.endswith("estimated)")


def test_kinds_of_device_are_told_apart_where_they_need_different_things(model: Path) -> None:
    made = wish(model, device="cuda,cpu", max_model_len=4096)
    engines = EngineEnvironment(name="vllm", python="p", engines=("vllm",), device_kinds=(), version="0.32.0")
    nodes = [replace(gpu_node(24, 24, 80), environments=(engines,)), gpu_node(24, name="other")]
    _, told = planned_for(made, nodes, [], must_fit=True)
    assert [line.rpartition(" on ")[2] for line in told] == ["card (24 GiB)", "card (80 GiB)", "cpu"]
    _, (alike,) = planned_for(made, [gpu_node(24, 32)], [], must_fit=True)
    assert alike.endswith("estimated)"), "both take the same batch"


def test_device_that_cannot_run_it_is_no_device_that_could_hold_it(model: Path) -> None:
    (large,) = gpu_node(80, name="old").devices[:1]
    old = replace(gpu_node(80, name="old"), devices=(replace(large, arch="sm_60"),))
    _, (told,) = planned_for(wish(model, max_model_len=2048), [gpu_node(24), old], [], must_fit=True)
    assert told.endswith("estimated)"), "one kind is left"
    with pytest.raises(PlacementFailed, match="cuda:0 on gpu has 8 GiB in all"):
        planned_for(wish(model, max_model_len=2048), [gpu_node(8), old], [], must_fit=True)


def test_wish_that_no_device_could_ever_hold_is_refused_with_advice(model: Path) -> None:
    with pytest.raises(
        PlacementFailed, match=r"cannot place large: needs .* GiB on a device, cuda:0 on gpu has 16"
    ) as c:
        planned_for(wish(model), [gpu_node(16, 16)], [], must_fit=True)
    assert c.value.fields["largest_bytes"] == 16 * GIB
    assert "--tensor-parallel-size 2" in str(c.value.remedy)
    assert "--force writes it anyway" in str(c.value.remedy)
    forced, told = planned_for(wish(model), [gpu_node(16, 16)], [], must_fit=False)
    assert forced.model is None, "a need that fits nowhere would keep it from being placed"
    assert "written all the same" in told[0]


def test_split_needs_as_many_large_devices_on_one_node(model: Path) -> None:
    split = wish(model, tensor_parallel_size=2)
    _, (told,) = planned_for(split, [gpu_node(16, 16)], [], must_fit=True)
    assert " on each of 2 devices (" in told
    with pytest.raises(PlacementFailed, match="1 of its 2 devices on gpu are large enough"):
        planned_for(split, [gpu_node(16, 4), gpu_node(12, name="other")], [], must_fit=True)


def test_split_over_cards_that_take_other_batches_needs_the_greater_on_both(model: Path) -> None:
    """Each would do beside one of its own size: what a wish is refused for is what the scheduler would say."""
    split = wish(model, tensor_parallel_size=2, max_model_len=8192, device="cuda")
    cards = gpu_node(24, 80)
    known = asyncio.run(find_known_for(load(), split.spec, [cards]))
    small, large = (
        plan_device(split.spec, known, cards, card, free_bytes=card.memory_bytes, measured={}).plan
        for card in cards.devices[:2]
    )
    assert small is not None
    assert large is not None
    between = (small.device_bytes + large.device_bytes) // 2
    used = {"GPU-gpu-0": 24 * GIB - between, "GPU-gpu-1": 80 * GIB - between}
    tight = replace(cards, foreign_bytes=used)
    assert isinstance(place(replace(split, model=known.facts), Fleet([tight]), Claims(), Rules()), Refusal)
    planned, told = planned_for(split, [tight], [], must_fit=True)
    assert [line.rpartition(" on ")[2] for line in told] == ["card (24 GiB)", "card (80 GiB)"]
    assert planned.model == known.facts, "it would fit if others let go"


def test_split_that_the_model_does_not_allow_is_refused_before_anything_is_written(
    control: Control, xinf: Callable[..., Result], model: Path
) -> None:
    node = gpu_node(80, 80, 80)
    control.run(control.records.create(NodeRecord, node.name, node))
    done = xinf("launch", "--model", str(model), "--tensor-parallel-size", "3", "--no-wait")
    assert done.exit_code == 1
    assert "32 attention heads cannot be split over 3 devices" in done.stderr
    assert control.run(control.records.list(DeploymentRecord)) == []
    assert xinf("launch", "--model", str(model), "--tensor-parallel-size", "3", "--no-wait", "--force").exit_code == 0


def test_measured_load_is_believed(model: Path) -> None:
    node = gpu_node(24)
    made = wish(model)
    identity = identify_model(str(model), environ={})
    assert identity is not None
    digest = fingerprint(identity, made.spec, engine_version="0.32.0", device=node.devices[0])
    record = MeasuredRecord(
        fingerprint=digest, model=str(model), engine="vllm", device_bytes=20 * GIB, kv_bytes=5 * GIB,
        fixed_bytes=15 * GIB, has_peak=True, kv_blocks=1, block_tokens=16,
    )  # fmt: skip
    _, (told,) = planned_for(made, [node], [record], must_fit=True)
    assert told.startswith("memory: needs 19.0 GiB (weights 12 GiB, KV of one request 4.0 GiB, reserve 3 GiB; ")
    assert told.endswith("measured before)")


def test_cache_that_is_asked_for_is_told_in_the_place_of_one_request(model: Path) -> None:
    _, (told,) = planned_for(
        wish(model, engine_args={"kv_cache_memory_bytes": 5 * GIB}), [gpu_node(24)], [], must_fit=True
    )
    assert "weights 12 GiB, KV cache 5 GiB, reserve" in told


def test_what_cannot_be_read_is_left_to_the_engine(short_dir: Path) -> None:
    (short_dir / "config.json").write_text('{"architectures": ["X"]}')
    _, (told,) = planned_for(wish(short_dir), [gpu_node(24)], [], must_fit=True)
    assert told.startswith("memory: not planned, the engine checks it itself")
    planned, (told,) = planned_for(wish(short_dir / "absent"), [gpu_node(24)], [], must_fit=True)
    assert planned.model is None
    assert told.startswith("memory: not planned, the engine checks it itself")


def test_simulated_engine_needs_nothing(model: Path) -> None:
    made = wish(model, engine="sim")
    assert planned_for(made, [gpu_node(1)], [], must_fit=True) == (made, [])


def test_auto_means_accelerators_where_an_engine_is_built_for_them() -> None:
    spec = EngineSpec(model="m")
    with_card, without = gpu_node(24), replace(NODE, environments=())
    assert [device.selector for _, device in meant_devices(spec, [with_card, without])] == ["cuda:0"]
    assert [device.selector for _, device in meant_devices(spec, [without])] == ["cpu"]
    named = meant_devices(replace(spec, device="cpu,cuda:0"), [with_card])
    assert [device.selector for _, device in named] == ["cuda:0", "cpu"]


def test_engine_for_any_device_counts_for_each() -> None:
    """As the scheduler and the agent read it: no kinds are all kinds."""
    node = gpu_node(24)
    (engine,) = node.environments
    anywhere = replace(node, environments=(replace(engine, device_kinds=()),))
    assert [device.selector for _, device in meant_devices(EngineSpec(model="m"), [anywhere])] == ["cuda:0"]


def test_launch_refuses_before_anything_is_written(control: Control, xinf: Callable[..., Result], model: Path) -> None:
    node = gpu_node(8)
    control.run(control.records.create(NodeRecord, node.name, node))
    done = xinf("launch", "--model", str(model), "--no-wait")
    assert done.exit_code == 1
    assert "cannot place large: needs" in done.stderr
    assert control.run(control.records.list(DeploymentRecord)) == []
    forced = xinf("launch", "--model", str(model), "--no-wait", "--force")
    assert forced.exit_code == 0, forced.output
    ((record, _),) = control.run(control.records.list(DeploymentRecord))
    assert record.model is None


def test_plan_that_changed_is_written_and_no_change_for_the_user(
    control: Control, xinf: Callable[..., Result], model: Path
) -> None:
    node = gpu_node(24)
    control.run(control.records.create(NodeRecord, node.name, node))
    xinf("launch", "--model", str(model), "--no-wait")
    ((first, revision),) = control.run(control.records.list(DeploymentRecord))
    control.run(control.records.replace(DeploymentRecord, first.name, replace(first, model=None), revision))
    assert "like this already" in xinf("launch", "--model", str(model), "--no-wait").stdout
    ((again, _),) = control.run(control.records.list(DeploymentRecord))
    assert again == first


def test_model_that_cannot_be_read_any_more_is_as_it_was_read_before(
    control: Control, xinf: Callable[..., Result], model: Path
) -> None:
    node = gpu_node(24)
    control.run(control.records.create(NodeRecord, node.name, node))
    xinf("launch", "--model", str(model), "--no-wait")
    ((first, _),) = control.run(control.records.list(DeploymentRecord))
    assert first.model is not None
    (model / "model.safetensors").write_bytes(b"broken")
    again = xinf("launch", "--model", str(model), "--no-wait", "--replicas", "2")
    assert "memory: needs" in again.stdout
    ((kept, _),) = control.run(control.records.list(DeploymentRecord))
    assert (kept.model, kept.model_identity, kept.replicas) == (first.model, first.model_identity, 2)
    other = xinf("launch", "--model", str(model), "--no-wait", "--max-model-len", "4096")
    assert "memory: not planned" in other.stdout, "it is for another wish now, perhaps for other files"


def test_who_forces_a_wish_is_believed_about_a_model_that_is_known(
    control: Control, xinf: Callable[..., Result], model: Path
) -> None:
    node = gpu_node(24)
    control.run(control.records.create(NodeRecord, node.name, node))
    xinf("launch", "--model", str(model), "--no-wait")
    smaller = gpu_node(8)
    control.run(control.records.put(NodeRecord, node.name, smaller))
    assert "written all the same" in xinf("launch", "--model", str(model), "--no-wait", "--force").stdout
    ((forced, _),) = control.run(control.records.list(DeploymentRecord))
    assert forced.model is None


def test_model_of_this_host_is_known_before_there_is_a_place_for_it(
    control: Control, xinf: Callable[..., Result], model: Path
) -> None:
    xinf("launch", "--model", str(model), "--no-wait")
    ((made, _),) = control.run(control.records.list(DeploymentRecord))
    assert made.model is not None, "nodes that join later are planned by it"


def test_hub_is_not_asked_for_what_has_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xinf.cli.need.find_known", lambda *_: pytest.fail("the hub was asked"))
    made = DeploymentRecord(name=DeploymentName("large"), spec=EngineSpec(model="Org/Nobody-asks", device="cpu"))
    # There is no engine for the processor of that node.
    assert planned_for(made, [gpu_node(24)], [], must_fit=True) == (made, [])
    assert planned_for(made, [], [], must_fit=True) == (made, [])


def test_launch_plans_for_the_nodes_with_its_labels(control: Control, xinf: Callable[..., Result], model: Path) -> None:
    small = replace(gpu_node(8), labels={"zone": "a"})
    large = replace(gpu_node(80, name="b"), labels={"zone": "b"})
    for node in (small, large):
        control.run(control.records.create(NodeRecord, node.name, node))
    options = ("launch", "--model", str(model), "--no-wait", "--max-model-len", "2048")
    refused = xinf(*options, "--name", "in-a", "--label", "zone=a")
    assert refused.exit_code == 1
    assert "cuda:0 on gpu has 8 GiB in all" in refused.stderr
    done = xinf(*options, "--name", "in-b", "--label", "zone=b")
    assert done.exit_code == 0, done.output


def test_hot_device_is_what_auto_means() -> None:
    node = gpu_node(24)
    hot = replace(node, devices=(replace(node.devices[0], health=Health.DEGRADED, reason="too hot"), node.devices[1]))
    spec = EngineSpec(model="m")
    assert meant_devices(spec, [hot]) == [(hot, hot.devices[0])]
