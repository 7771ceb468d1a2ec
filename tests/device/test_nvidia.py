"""The NVIDIA probe through the real pynvml and a fake C library; proves our calls and error mapping, not a driver."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from xinf.core.device import Device, Health, Vendor
from xinf.device import SampleStream, read_inventory

CARD = ("0000:1b:00.0", "0x10de", "0x030200", 1)
SECOND_CARD = ("0000:3b:00.0", "0x10de", "0x030200", -1)
Environ = Callable[[str], Mapping[str, str]]


async def nvidia(root: Path, environ: Mapping[str, str], *, deadline_s: float = 30) -> list[Device]:
    devices = await read_inventory(root=root, environ=environ, deadline_s=deadline_s)
    assert devices[-1].vendor is Vendor.CPU, "whatever NVIDIA's driver does, the processor is listed"
    return list(devices[:-1])


async def test_rtx_5090_is_sm_120(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    (card,) = await nvidia(make_tree(CARD), nvml_environ("5090"))
    assert card == Device(
        vendor=Vendor.NVIDIA,
        index=0,
        uuid="GPU-00000000-0000-0000-0000-000000000000",
        name="NVIDIA GeForce RTX 5090",
        arch="sm_120",
        memory_bytes=32607 << 20,
        driver="595.84",
        runtime="13.2",
        pci="0000:1b:00.0",
        numa=1,
        dev_nodes=("/dev/nvidia0",),
        extra={"compute_capability": "12.0", "nvml_architecture": 10},
    )


async def test_b200_is_sm_100_and_cards_are_in_bus_order(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    cards = await nvidia(make_tree(CARD, SECOND_CARD), nvml_environ("2xb200"))
    assert [(card.index, card.pci, card.numa) for card in cards] == [(0, "0000:1b:00.0", 1), (1, "0000:3b:00.0", None)]
    assert {(card.arch, card.memory_bytes) for card in cards} == {("sm_100", 183359 << 20)}


async def test_mig_instances_name_their_card(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    card, *instances = await nvidia(make_tree(CARD), nvml_environ("mig"))
    assert card.extra["mig"] == "enabled"
    assert [(found.index, found.parent, found.memory_bytes, found.extra) for found in instances] == [
        (1, card.uuid, 23552 << 20, {"mig_slot": 0}),
        (2, card.uuid, 23552 << 20, {"mig_slot": 2}),
    ]


async def test_unified_memory_is_the_hosts(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    (card,) = await nvidia(make_tree(CARD), nvml_environ("gb10"))
    assert (card.arch, card.memory_bytes, card.extra["memory"]) == ("sm_121", 131072 * 1024, "unified")


async def test_lost_card_does_not_hide_the_other(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    good, lost = await nvidia(make_tree(CARD, SECOND_CARD), nvml_environ("lost"))
    assert (good.health, lost.health) == (Health.OK, Health.FAULTY)
    assert "GPU is lost" in str(lost.reason)


@pytest.mark.parametrize(
    ("scenario", "words"), [("not_loaded", "modprobe nvidia"), ("mismatch", "reboot"), ("absent", "install the NVIDIA")]
)
async def test_card_without_driver_is_recorded(
    make_tree: Callable[..., Path], nvml_environ: Environ, scenario: str, words: str
) -> None:
    environ = dict(os.environ) if scenario == "absent" else nvml_environ(scenario)
    (card,) = await nvidia(make_tree(CARD), environ)
    assert (card.health, card.pci, card.uuid) == (Health.NO_DRIVER, "0000:1b:00.0", "PCI-0000-1b-00.0")
    assert words in str(card.reason)
    assert card.memory_bytes is None


async def test_hanging_driver_costs_its_deadline_only(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    (card,) = await nvidia(make_tree(CARD), nvml_environ("hang"), deadline_s=4)
    assert card.health is Health.FAULTY
    assert "did not answer within 4 s" in str(card.reason)


async def test_crashing_library_is_recorded(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    (card,) = await nvidia(make_tree(CARD), nvml_environ("crash"))
    assert card.health is Health.FAULTY
    assert "signal 11" in str(card.reason)


async def test_library_is_not_asked_without_a_card(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    assert await nvidia(make_tree(), nvml_environ("hang")) == []


async def test_sample_reads_what_the_card_does(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    stream = SampleStream(interval_s=0.05, root=make_tree(CARD), environ=nvml_environ("5090"))
    async with stream:
        batches = stream.__aiter__()
        first, second = await anext(batches), await anext(batches)
    assert second[0].t_ns > first[0].t_ns
    card, cpu = first
    assert (card.memory_used_bytes, card.util_pct, card.temp_c, card.power_w) == (512 << 20, 37.0, 53.0, 91.3)
    assert card.ecc_uncorrected is None  # the library has no such function
    assert cpu.memory_free_bytes == 65536 * 1024


async def test_unknown_metric_is_none_not_zero(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    async with SampleStream(interval_s=1, root=make_tree(CARD), environ=nvml_environ("gb10")) as stream:
        card = (await anext(stream.__aiter__()))[0]
    assert (card.memory_used_bytes, card.util_pct, card.power_w) == (None, None, None)


async def test_hung_sampler_is_replaced(make_tree: Callable[..., Path], nvml_environ: Environ, tmp_path: Path) -> None:
    environ = {**nvml_environ("hang_once"), "FAKE_NVML_MARK": str(tmp_path / "mark")}
    async with SampleStream(interval_s=0.05, deadline_s=4, root=make_tree(CARD), environ=environ) as stream:
        samples = await anext(stream.__aiter__())
    assert len(samples) == 2
    assert stream.restarts >= 1
