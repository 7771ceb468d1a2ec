"""The NVIDIA probe through the real pynvml and a fake C library; proves our calls and error mapping, not a driver."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from xinf.core.device import Device, Distance, Health, Vendor
from xinf.device import Reading, ReadingStream, read_host, read_inventory

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
        memory_bytes=(32607 - 495) << 20,  # 31.36 GiB, as CUDA says
        driver="595.84",
        runtime="13.2",
        pci="0000:1b:00.0",
        numa=1,
        dev_nodes=("/dev/nvidia0",),
        visible="GPU-00000000-0000-0000-0000-000000000000",
        extra={"compute_capability": "12.0", "nvml_architecture": 10, "reserved_bytes": 495 << 20},
    )


async def test_b200_is_sm_100_and_cards_are_in_bus_order(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    cards = await nvidia(make_tree(CARD, SECOND_CARD), nvml_environ("2xb200"))
    assert [(card.index, card.pci, card.numa) for card in cards] == [(0, "0000:1b:00.0", 1), (1, "0000:3b:00.0", None)]
    assert {(card.arch, card.memory_bytes) for card in cards} == {("sm_100", (183359 - 729) << 20)}


async def test_mig_instances_name_their_card(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    card, *instances = await nvidia(make_tree(CARD), nvml_environ("mig"))
    assert (card.extra["mig"], card.visible) == ("enabled", None)
    assert [found.visible for found in instances] == [found.uuid for found in instances]
    assert [(found.index, found.parent, found.memory_bytes, found.extra) for found in instances] == [
        (1, card.uuid, 23552 << 20, {"mig_slot": 0}),
        (2, card.uuid, 23552 << 20, {"mig_slot": 2}),
    ]


async def test_instance_that_does_not_tell_of_its_memory_has_not_the_hosts(
    make_tree: Callable[..., Path], nvml_environ: Environ
) -> None:
    root, environ = make_tree(CARD), {**nvml_environ("mig"), "FAKE_NVML_MUTE": "1"}
    card, *instances = await nvidia(root, environ)
    assert [(found.health, found.memory_bytes) for found in (card, *instances)] == [
        (Health.OK, (183359 - 729) << 20),
        (Health.OK, None),
        (Health.OK, None),
    ]
    _, *samples = (await read_once(root, environ)).samples
    assert [(found.memory_used_bytes, found.memory_free_bytes) for found in samples] == [(None, None)] * 2


@pytest.mark.parametrize("used", ["programs", "all"])
async def test_reserve_of_the_driver_is_nobodys_memory(
    make_tree: Callable[..., Path], nvml_environ: Environ, used: str
) -> None:
    """Whether `used` has the reserve in it differs between drivers: what programs have is the same."""
    root = make_tree(CARD)
    environ = {**nvml_environ("5090"), **({"FAKE_NVML_USED": used} if used == "all" else {})}
    (card,) = await nvidia(root, environ)
    (sample,) = (await read_once(root, environ)).samples
    assert (sample.memory_used_bytes, sample.memory_free_bytes) == (512 << 20, (32607 - 495 - 512) << 20)
    assert card.memory_bytes == 512 * (1 << 20) + (sample.memory_free_bytes or 0)


@pytest.mark.parametrize("scenario", ["5090", "mig"])
async def test_driver_before_the_second_version_leaves_its_reserve_out_of_the_total(
    make_tree: Callable[..., Path], nvml_environ: Environ, scenario: str
) -> None:
    root = make_tree(CARD)
    new, old = nvml_environ(scenario), {**nvml_environ(scenario), "FAKE_NVML_OLD": "1"}
    cards, before = await nvidia(root, new), await nvidia(root, old)
    assert [card.memory_bytes for card in before] == [card.memory_bytes for card in cards]
    assert all("reserved_bytes" not in card.extra for card in before)
    samples, earlier = (await read_once(root, new)).samples, (await read_once(root, old)).samples
    assert [(one.memory_used_bytes, one.memory_free_bytes) for one in earlier] == [
        (one.memory_used_bytes, one.memory_free_bytes) for one in samples
    ]


async def test_cuda_counts_the_whole_card_on_wsl(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    root = make_tree(CARD)
    (root / "dev").mkdir()
    (root / "dev/dxg").touch()
    (card,) = await nvidia(root, nvml_environ("5090"))
    (sample,) = (await read_once(root, nvml_environ("5090"))).samples
    assert (card.memory_bytes, "reserved_bytes" in card.extra) == (32607 << 20, False)
    assert (sample.memory_used_bytes, sample.memory_free_bytes) == ((495 + 512) << 20, (32607 - 495 - 512) << 20)


@pytest.mark.parametrize(("scenario", "arch"), [("gb10", "sm_121"), ("wsl", "sm_120")])
async def test_unified_memory_is_the_hosts(
    make_tree: Callable[..., Path], nvml_environ: Environ, scenario: str, arch: str
) -> None:
    root = make_tree(CARD)
    (card,) = await nvidia(root, nvml_environ(scenario))
    assert (card.arch, card.memory_bytes, card.extra["memory"]) == (arch, 131072 * 1024, "unified")
    (sample,) = (await read_once(root, nvml_environ(scenario))).samples
    assert (sample.memory_used_bytes, sample.memory_free_bytes) == (65536 * 1024, 65536 * 1024)


async def test_memory_that_cannot_be_read_is_not_the_hosts(
    make_tree: Callable[..., Path], nvml_environ: Environ
) -> None:
    root = make_tree(CARD)
    (card,) = await nvidia(root, nvml_environ("unread"))
    assert (card.arch, card.memory_bytes, "memory" in card.extra) == ("sm_120", None, False)
    (sample,) = (await read_once(root, nvml_environ("unread"))).samples
    assert (sample.memory_used_bytes, sample.memory_free_bytes, sample.util_pct) == (None, None, 37.0)


async def test_jetson_is_a_device_on_no_bus(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    root = make_tree()
    (root / "dev/nvhost-gpu").mkdir(parents=True)
    (card,) = await nvidia(root, nvml_environ("orin"))
    assert (card.name, card.arch, card.memory_bytes) == ("Orin (nvgpu)", "sm_87", 131072 * 1024)
    assert (card.pci, card.driver, card.visible, card.dev_nodes, card.health) == (None, None, None, (), Health.OK)
    (sample,) = (await read_once(root, nvml_environ("orin"))).samples
    assert sample.memory_free_bytes == 65536 * 1024


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        (
            ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"),
            [("DEV-nvidia0", "NVIDIA device"), ("DEV-nvidia1", "NVIDIA device")],
        ),
        (("nvgpu",), [("DEV-nvgpu", "NVIDIA Jetson AGX Xavier")]),
        (("dxg",), []),
    ],
)
async def test_what_only_device_nodes_show_is_recorded(
    make_tree: Callable[..., Path], nodes: tuple[str, ...], found: list[tuple[str, str]]
) -> None:
    root = make_tree()
    (root / "dev").mkdir()
    for node in nodes:
        (root / "dev" / node).touch()
    (root / "proc/device-tree").mkdir()
    (root / "proc/device-tree/model").write_text("NVIDIA Jetson AGX Xavier\0")
    cards = await nvidia(root, dict(os.environ))
    assert [(card.uuid, card.name) for card in cards] == found
    assert all(card.health is Health.NO_DRIVER and "libnvidia-ml.so.1" in str(card.reason) for card in cards)


async def test_both_ends_of_a_vgpu_are_told(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    root = make_tree(CARD)
    (guest,) = await nvidia(root, nvml_environ("vgpu"))
    (host,) = await nvidia(root, nvml_environ("vgpu_host"))
    assert (guest.health, guest.extra["virtualization"]) == (Health.OK, "vgpu")
    assert (host.health, "virtual machines (vGPU)" in str(host.reason)) == (Health.NO_DRIVER, True)


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
    assert card.health is Health.SILENT, "nobody knows how it is"
    assert "did not answer within 4 s" in str(card.reason)


async def test_crashing_library_is_recorded(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    (card,) = await nvidia(make_tree(CARD), nvml_environ("crash"))
    assert card.health is Health.SILENT
    assert "signal 11" in str(card.reason)


async def test_vendor_that_does_not_answer_is_named_where_the_bus_shows_nothing(
    make_tree: Callable[..., Path], nvml_environ: Environ
) -> None:
    """As in a container: without it, all its cards would look as if they had been taken out."""
    root = make_tree()
    (root / "dev").mkdir()
    (root / "dev/nvidiactl").touch()
    host = await read_host(root=root, environ=nvml_environ("crash"))
    assert [device.vendor for device in host.devices] == [Vendor.CPU]
    assert list(host.silent) == [Vendor.NVIDIA]
    assert "signal 11" in host.silent[Vendor.NVIDIA]


async def test_library_is_not_asked_without_a_card(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    assert await nvidia(make_tree(), nvml_environ("hang")) == []


async def test_inventory_asks_for_no_metric(
    make_tree: Callable[..., Path], nvml_environ: Environ, tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    await nvidia(make_tree(CARD), {**nvml_environ("sick"), "FAKE_NVML_LOG": str(log)})
    assert not log.exists()


async def test_lost_card_is_named_by_the_bus(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    _, lost = await nvidia(make_tree(CARD, SECOND_CARD), nvml_environ("lost"))
    assert (lost.index, lost.uuid, lost.pci) == (1, "PCI-0000-3b-00.0", "0000:3b:00.0")


async def test_card_of_a_virtual_machine_is_not_called_broken(
    make_tree: Callable[..., Path], nvml_environ: Environ
) -> None:
    root = make_tree(CARD, SECOND_CARD)
    driver = root / "sys/bus/pci/drivers/vfio-pci"
    driver.mkdir(parents=True)
    (root / "sys/bus/pci/devices/0000:3b:00.0/driver").symlink_to(driver)
    _, kept = await nvidia(root, nvml_environ("5090"))
    assert kept.health is Health.NO_DRIVER
    assert "vfio-pci has it" in str(kept.reason)


@pytest.mark.parametrize(
    ("scenario", "old", "distance"),
    [("2xb200", False, Distance.LINK), ("2xb200", True, Distance.LINK), ("2x5090", False, Distance.PHB)],
)
async def test_links_of_the_cards_lie_over_the_bus(
    make_tree: Callable[..., Path], nvml_environ: Environ, scenario: str, old: bool, distance: Distance
) -> None:
    """An old driver has no P2P status for NVLink: then the links themselves say where they end."""
    environ = {**nvml_environ(scenario), **({"FAKE_NVML_OLD": "1"} if old else {})}
    host = await read_host(root=make_tree(CARD, SECOND_CARD), environ=environ)
    first, second, _ = host.devices
    assert host.topology.between(first.uuid, second.uuid) is distance


async def read_once(root: Path, environ: Mapping[str, str]) -> Reading:
    async with ReadingStream(interval_s=0.05, vendors=[Vendor.NVIDIA], root=root, environ=environ) as stream:
        return await anext(aiter(stream))


async def test_sample_reads_what_the_card_does(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    reading = await read_once(make_tree(CARD), nvml_environ("5090"))
    (card,) = reading.samples
    assert (card.memory_used_bytes, card.util_pct, card.temp_c, card.power_w) == (512 << 20, 37.0, 53.0, 91.3)
    assert card.ecc_uncorrected is None  # a card without ECC
    assert (card.health, card.reason, reading.fault) == (Health.OK, None, None)


async def test_unknown_metric_is_none_not_zero(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    (card,) = (await read_once(make_tree(CARD), nvml_environ("gb10"))).samples
    assert (card.util_pct, card.power_w, card.ecc_uncorrected, card.health) == (None, None, None, Health.OK)


async def test_state_of_a_card_is_read_with_its_remedy(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    reading = await read_once(make_tree(CARD), nvml_environ("sick"))
    (card,) = reading.samples
    assert (card.ecc_uncorrected, card.health) == (3, Health.DEGRADED)
    assert "too hot" in str(card.reason)
    assert [(process.pid, process.memory_bytes) for process in reading.processes] == [
        (4242, 20000 << 20),
        (4343, None),
    ]


@pytest.mark.parametrize(("scenario", "words"), [("reset", "--gpu-reset"), ("remap_failed", "row remapping failed")])
async def test_card_that_waits_for_a_repair_takes_no_work(
    make_tree: Callable[..., Path], nvml_environ: Environ, scenario: str, words: str
) -> None:
    (card,) = (await read_once(make_tree(CARD), nvml_environ(scenario))).samples
    assert card.health is Health.FAULTY
    assert words in str(card.reason)


@pytest.mark.parametrize(
    ("scenario", "settings", "health", "words"),
    [
        ("5090", {"ECC": "0", "PAGES": "0"}, Health.OK, None),
        ("5090", {"ECC": "2"}, Health.FAULTY, "uncorrectable errors of its memory"),
        ("5090", {"ECC": "2", "PAGES": "1"}, Health.FAULTY, "uncorrectable errors of its memory"),
        ("5090", {"ECC": "0", "PAGES": "1"}, Health.OK, "pages of its memory are to be retired"),
        # With row remapping an error is contained, or told as an Xid.
        ("2xb200", {"ECC": "2"}, Health.OK, None),
        ("5090", {"TEMP": "91", "LIMITS": "95,92"}, Health.OK, None),
        ("5090", {"TEMP": "92", "LIMITS": "95,92"}, Health.DEGRADED, "too hot"),
        ("5090", {"TEMP": "95", "LIMITS": "95,92"}, Health.FAULTY, "95 C or above, where it turns itself off"),
        ("5090", {"TEMP": "99", "LIMITS": "0,92"}, Health.DEGRADED, "too hot"),
        ("5090", {"TEMP": "99", "LIMITS": "95,0"}, Health.FAULTY, "turns itself off"),
        ("5090", {"TEMP": "99"}, Health.OK, None),  # no limits are known: its clocks say nothing of heat
        ("gb10", {"TEMP": "99"}, Health.OK, None),  # nor does it tell of its clocks: it answers, that is all
        ("gb10", {"TEMP": "60", "LIMITS": "95,92"}, Health.OK, None),
        ("reset", {"TEMP": "99", "LIMITS": "95,92", "ECC": "1"}, Health.FAULTY, "--gpu-reset"),
        ("remap_failed", {"ECC": "1"}, Health.FAULTY, "row remapping failed"),
    ],
)
async def test_health_is_read_from_what_the_card_counts_and_measures(
    make_tree: Callable[..., Path],
    nvml_environ: Environ,
    scenario: str,
    settings: dict[str, str],
    health: Health | None,
    words: str | None,
) -> None:
    environ = {**nvml_environ(scenario), **{f"FAKE_NVML_{name}": value for name, value in settings.items()}}
    card = (await read_once(make_tree(CARD), environ)).samples[0]
    assert card.health is health
    assert card.reason is None if words is None else words in str(card.reason)


@pytest.mark.parametrize("scenario", ["2xlate", "2xstuck"])
async def test_card_that_is_lost_while_it_is_read_costs_its_own_sample_only(
    make_tree: Callable[..., Path], nvml_environ: Environ, tmp_path: Path, scenario: str
) -> None:
    mark = tmp_path / "lost"
    mark.touch()
    environ = {**nvml_environ(scenario), "FAKE_NVML_MARK": str(mark)}
    reading = await read_once(make_tree(CARD, SECOND_CARD), environ)
    assert [sample.health for sample in reading.samples] == [Health.OK, Health.FAULTY], reading.fault


async def test_library_may_print_what_it_likes(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    root = make_tree(CARD)
    (card,) = await nvidia(root, nvml_environ("chatty"))
    assert (card.arch, card.health) == ("sm_120", Health.OK), card.reason
    assert (await read_once(root, nvml_environ("chatty"))).samples


async def test_instances_are_sampled_for_their_memory(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    _, *instances = (await read_once(make_tree(CARD), nvml_environ("mig"))).samples
    assert [(found.uuid[:4], found.memory_used_bytes) for found in instances] == [("MIG-", 512 << 20)] * 2


async def test_instance_that_is_just_taken_apart_is_no_fault_of_its_card(
    make_tree: Callable[..., Path], nvml_environ: Environ
) -> None:
    root, environ = make_tree(CARD), nvml_environ("mig_race")
    listed = await nvidia(root, environ)
    assert [(device.uuid[:4], device.health) for device in listed] == [("GPU-", Health.OK), ("MIG-", Health.OK)]
    card, *instances = (await read_once(root, environ)).samples
    assert card.health is not Health.FAULTY
    assert [found.uuid for found in instances] == [listed[1].uuid]


@pytest.mark.parametrize(("n_nodes", "words"), [(1, "a container shows the cards that it was given"), (2, "`dmesg`")])
async def test_card_that_a_container_was_not_given_is_told_from_one_that_the_driver_lacks(
    n_nodes: int, words: str, make_tree: Callable[..., Path], nvml_environ: Environ
) -> None:
    root = make_tree(CARD, ("0000:3d:00.0", "0x10de", "0x030200", 1))
    (root / "dev").mkdir()
    for number in range(n_nodes):
        (root / f"dev/nvidia{number}").touch()
    listed, other = await nvidia(root, nvml_environ("5090"))
    assert (listed.health, other.health) == (Health.OK, Health.NO_DRIVER)
    assert words in str(other.reason)


async def test_answer_counts_whatever_the_library_does_as_its_process_ends(
    make_tree: Callable[..., Path], nvml_environ: Environ
) -> None:
    (card,) = await nvidia(make_tree(CARD), nvml_environ("crash_at_exit"))
    assert (card.arch, card.health) == ("sm_120", Health.OK), card.reason


async def test_library_that_refuses_says_why(make_tree: Callable[..., Path], nvml_environ: Environ) -> None:
    reading = await read_once(make_tree(CARD), nvml_environ("mismatch"))
    assert (reading.samples, reading.misses) == ((), 0)
    assert "reboot" in str(reading.fault)
