"""The share that an engine is given, and what is kept of a load. Devices are samples here; processes are real."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.registry.planned_models import CPU, GIB, QWEN_7B, card
from xinf.agent.memory import (
    StartMemory,
    choose_share,
    fixed_bytes,
    granted_cache_bytes,
    measure,
    read_resident_bytes,
    read_start_memory,
)
from xinf.agent.process import ProcessId, identify
from xinf.core.device import Device, Sample, Vendor
from xinf.core.errors import UnknownModel
from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.records import EngineEnvironment, EngineSpec, MemoryNeed, NodeRecord, Phase, ReplicaRecord
from xinf.device import DeviceProcess, Reading
from xinf.registry import KvLayers, ModelFacts, context_bytes, memory_share

CARDS = (card(80), card(80, index=1))


def sample(device: Device, free_gib: float | None) -> Sample:
    return Sample(uuid=device.uuid, t_ns=0, memory_free_bytes=None if free_gib is None else int(free_gib * GIB))


def node(*devices: Device) -> NodeRecord:
    engines = EngineEnvironment(
        name="vllm", python="python", engines=("vllm",), device_kinds=("cpu", "cuda"), version="0.32.0"
    )
    return NodeRecord(name=NodeName("here"), address="", devices=devices, environments=(engines,))


def ready(model: str = "m", **fields: object) -> ReplicaRecord:
    made = ReplicaRecord(
        id=ReplicaId("m-1"),
        deployment=DeploymentName("m"),
        generation=1,
        spec=EngineSpec(model=model),
        devices=("cpu",),
        phase=Phase.READY,
        phase_since_s={"starting": 10.0, "ready": 25.0},
        kv_blocks=100,
        block_tokens=32,
    )
    return replace(made, **fields)


# ---- the share ----------------------------------------------------------------------------------------------------


def test_share_is_that_of_the_fullest_device() -> None:
    share = choose_share(CARDS, [sample(CARDS[0], 79), sample(CARDS[1], 40)])
    assert share == memory_share(Vendor.NVIDIA, 2, free_bytes=40 * GIB, total_bytes=80 * GIB)
    assert share is not None
    assert share * 80 * GIB + context_bytes(Vendor.NVIDIA, 2) <= 40 * GIB


def test_idle_device_is_used_as_the_engine_would_by_itself() -> None:
    assert choose_share(CARDS[:1], [sample(CARDS[0], 79.5)]) == 0.92


def test_unknown_free_memory_leaves_it_to_the_engine() -> None:
    assert choose_share(CARDS, [sample(CARDS[0], 79)]) is None
    assert choose_share(CARDS[:1], [sample(CARDS[0], None)]) is None
    assert choose_share((replace(CARDS[0], memory_bytes=None),), [sample(CARDS[0], 79)]) is None


def test_shared_device_gives_what_was_planned() -> None:
    share = choose_share(CARDS[:1], [sample(CARDS[0], 79)], limit_bytes=20 * GIB)
    assert share is not None
    assert share * 80 * GIB + context_bytes(Vendor.NVIDIA, 1) <= 20 * GIB


def test_shared_device_that_does_not_answer_gives_no_more_than_was_planned() -> None:
    assert choose_share(CARDS[:1], [], limit_bytes=20 * GIB) == choose_share(
        CARDS[:1], [sample(CARDS[0], 79)], limit_bytes=20 * GIB
    )


# ---- what is kept -------------------------------------------------------------------------------------------------


def test_rest_of_the_share_is_what_the_engine_profiled() -> None:
    found, has_peak = fixed_bytes(70 * GIB, 50 * GIB, device=CARDS[0], replica=ready(), share=0.9)
    assert has_peak
    assert found == int(80 * GIB * 0.9) + context_bytes(Vendor.NVIDIA, 1) - 50 * GIB


@pytest.mark.parametrize("name", ["gpu_memory_utilization", "--kv-cache-memory-bytes"])
def test_cache_of_the_users_size_says_nothing_of_the_peak(name: str) -> None:
    replica = ready(spec=EngineSpec(model="m", engine_args={name: 1}))
    assert fixed_bytes(70 * GIB, 50 * GIB, device=CARDS[0], replica=replica, share=0.9) == (20 * GIB, False)


def test_processes_are_counted_by_what_they_share(tmp_path: Path) -> None:
    for pid, kib in ((1, 100), (2, 50)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "smaps_rollup").write_text(
            f"55d0 rollup\nRss: 999 kB\nPss:   {kib} kB\nPss_Anon: 7 kB\n"
        )
    assert read_resident_bytes((1, 2, 3), tmp_path) == 150 << 10
    assert read_resident_bytes((3,), tmp_path) is None


@pytest.fixture
def process(tmp_path: Path) -> Iterator[ProcessId]:
    """A process of a group of its own that has filled 64 MiB."""
    code = "import sys; data = bytearray(b'x') * (64 << 20); print('filled', flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"filled\n"
    found = identify(child.pid)
    assert found is not None
    yield found
    child.stdin.close()
    child.stdout.close()
    child.wait(10)


def small(_: str, __: Mapping[str, str]) -> ModelFacts:
    return replace(QWEN_7B, kv=(KvLayers(n_layers=2, n_kv_heads=2, head_size=64),))


async def test_ready_engine_on_the_processor_is_measured(process: ProcessId, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    record = await measure(
        ready(str(tmp_path)), process, tmp_path, node=node(CPU), start=StartMemory(), environ=os.environ, read=small
    )
    assert record is not None
    assert record.kv_bytes == 100 * 32 * 1024
    assert 64 << 20 < record.device_bytes < 256 << 20
    assert record.fixed_bytes == record.device_bytes - record.kv_bytes
    assert not record.has_peak
    assert (record.engine_version, record.arch, record.start_s) == ("0.32.0", "x86_64", 15.0)


@pytest.mark.parametrize(
    "replica",
    [
        ready(spec=EngineSpec(model="m", engine="sim")),
        ready(kv_blocks=None),
        ready("Org/Not-in-the-cache"),
        ready(spec=EngineSpec(model="m", engine_args={"cpu_offload_gb": 1})),
    ],
)
async def test_what_cannot_be_told_is_not_kept(process: ProcessId, tmp_path: Path, replica: ReplicaRecord) -> None:
    environ = {"HF_HUB_CACHE": str(tmp_path)}
    found = await measure(replica, process, tmp_path, node=node(CPU), start=StartMemory(), environ=environ, read=small)
    assert found is None


async def test_model_whose_layers_share_a_pool_unevenly_is_not_kept(process: ProcessId, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    def windowed(_: str, __: Mapping[str, str]) -> ModelFacts:
        return replace(QWEN_7B, kv=(KvLayers(n_layers=2, n_kv_heads=2, head_size=64, window_tokens=128),))

    def absent(model: str, _: Mapping[str, str]) -> ModelFacts:
        raise UnknownModel(f"there is no {model}")

    for read in (windowed, absent):
        found = await measure(
            ready(str(tmp_path)), process, tmp_path, node=node(CPU), start=StartMemory(), environ={}, read=read
        )
        assert found is None


# ---- on accelerators ----------------------------------------------------------------------------------------------


def read_as(*readings: Reading) -> Callable[..., Any]:
    """Stand in for the children that ask drivers; what they do is tested in tests/device."""

    async def read(vendors: set[Vendor], **_: object) -> tuple[Reading, ...]:
        return tuple(reading for reading in readings if reading.vendor in vendors)

    return read


def on_card(model: Path, **fields: object) -> ReplicaRecord:
    return ready(str(model), devices=("cuda:0",), device_uuids=(CARDS[0].uuid,), **fields)


async def test_start_looks_at_its_own_accelerators(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    used = Sample(uuid=CARDS[0].uuid, t_ns=0, memory_free_bytes=40 * GIB, memory_used_bytes=40 * GIB)
    reading = Reading(vendor=Vendor.NVIDIA, samples=(used, sample(CARDS[1], 1)))
    monkeypatch.setattr("xinf.agent.memory.read_once", read_as(reading))
    found = await read_start_memory(on_card(tmp_path), node(*CARDS, CPU))
    assert found.share == choose_share(CARDS[:1], [used])
    assert found.used_bytes == {CARDS[0].uuid: 40 * GIB}
    need = MemoryNeed(weights_bytes=8 * GIB, kv_bytes=GIB, overhead_bytes=GIB)
    shared = await read_start_memory(on_card(tmp_path, shares=True, need=need), node(*CARDS, CPU))
    assert shared.share == choose_share(CARDS[:1], [used], limit_bytes=10 * GIB)
    unified = replace(CARDS[0], extra={"memory": "unified"})
    of_host = await read_start_memory(on_card(tmp_path, need=need), node(unified, CARDS[1], CPU))
    assert of_host.share == shared.share, "the rest is the processor's"
    assert await read_start_memory(ready(), node(*CARDS, CPU)) == StartMemory()


def test_cache_that_was_granted_is_what_the_engine_is_told() -> None:
    open_ = MemoryNeed(weights_bytes=GIB, kv_bytes=GIB, overhead_bytes=GIB, kv_wanted_bytes=8 * GIB)
    granted = replace(open_, kv_bytes=3 * GIB, kv_wanted_bytes=None)
    assert granted_cache_bytes(ready(need=granted)) == 3 * GIB
    assert granted_cache_bytes(ready(need=open_)) is None, "nobody knew what is free there"
    assert granted_cache_bytes(ready()) is None
    assert granted_cache_bytes(on_card(Path("/m"), need=granted)) is None


async def test_accelerator_is_measured_by_the_memory_of_the_engines_processes(
    process: ProcessId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    mine = DeviceProcess(uuid=CARDS[0].uuid, pid=process.pid, memory_bytes=30 * GIB)
    others = DeviceProcess(uuid=CARDS[0].uuid, pid=1, memory_bytes=9 * GIB)
    elsewhere = DeviceProcess(uuid=CARDS[1].uuid, pid=process.pid, memory_bytes=50 * GIB)
    reading = Reading(vendor=Vendor.NVIDIA, processes=(mine, others, elsewhere))
    monkeypatch.setattr("xinf.agent.memory.read_once", read_as(reading))
    record = await measure(
        on_card(tmp_path), process, tmp_path, node=node(*CARDS, CPU), start=StartMemory(), environ={}, read=small
    )
    assert record is not None
    assert (record.device_bytes, record.arch, record.has_peak) == (30 * GIB, "sm_90", False)


async def test_in_a_container_what_was_added_is_the_engines(
    process: ProcessId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    now = Sample(uuid=CARDS[0].uuid, t_ns=0, memory_used_bytes=50 * GIB)
    monkeypatch.setattr("xinf.agent.memory.read_once", read_as(Reading(vendor=Vendor.NVIDIA, samples=(now,))))
    start = StartMemory(used_bytes={CARDS[0].uuid: 20 * GIB})
    record = await measure(
        on_card(tmp_path), process, tmp_path, node=node(*CARDS, CPU), start=start, environ={}, read=small
    )
    assert record is not None
    assert record.device_bytes == 30 * GIB
    unknown = await measure(
        on_card(tmp_path), process, tmp_path, node=node(*CARDS, CPU), start=StartMemory(), environ={}, read=small
    )
    assert unknown is None
    shared = on_card(tmp_path, shares=True)
    assert await measure(shared, process, tmp_path, node=node(*CARDS, CPU), start=start, environ={}, read=small) is None
    unified = node(replace(CARDS[0], extra={"memory": "unified"}), CPU)
    alone = on_card(tmp_path)
    assert await measure(alone, process, tmp_path, node=unified, start=start, environ={}, read=small) is None
