"""A Mac's GPU through a fake Metal and the system's tools as fakes; nothing here ran on macOS."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.device.fake_tool import FakeTools
from tests.device.mutations import FAILURES, Damage, Failure, damages, reorder_json, truncate_json
from xinf.core.device import Health, Vendor
from xinf.device import PROBES
from xinf.device.apple import AppleProbe
from xinf.device.apple_tool import (
    ACCELERATOR,
    MEMORY,
    MEMORY_SIZE,
    PLATFORM,
    PROFILER,
    parse_accelerator,
    parse_available,
    parse_memory_size,
    parse_platform_uuid,
    parse_profiler,
)
from xinf.device.tool import FormatError, ToolError

Read = Callable[[str], str]
PROFILED, STATISTICS = "system_profiler-14.5-m3pro.json", "ioreg-14.5-accelerator-m3pro.txt"
MACHINE, PAGES = "ioreg-14.5-platform-m3pro.txt", "vm_stat-14.5-m3pro.txt"
TOTAL, LIMIT = 36 << 30, 28991029248


@pytest.fixture
def mac(fake_tool: FakeTools, device_fixture: Read) -> AppleProbe:
    """A probe that believes to run on a Mac, with its tools."""
    fake_tool.add("system_profiler", {" ".join(PROFILER[1:]): device_fixture(PROFILED)})
    fake_tool.add("sysctl", {" ".join(MEMORY_SIZE[1:]): f"{TOTAL}\n"})
    fake_tool.add(
        "ioreg",
        {" ".join(ACCELERATOR[1:]): device_fixture(STATISTICS), " ".join(PLATFORM[1:]): device_fixture(MACHINE)},
    )
    fake_tool.add("vm_stat", {" ".join(MEMORY[1:]): device_fixture(PAGES)})
    return AppleProbe(system="darwin", machine="arm64", timeout_s=2)


@pytest.fixture
def metal(tmp_path: Path, fake_library: Callable[[str, str], Path]) -> Path:
    """A root with a fake Metal."""
    root = tmp_path / "root"
    made = fake_library("metal.c", "Metal") / "Metal"
    for place in ("System/Library/Frameworks/Metal.framework/Metal", "usr/lib/libobjc.A.dylib"):
        (root / place).parent.mkdir(parents=True)
        shutil.copy(made, root / place)
    return root


def test_probe_is_registered() -> None:
    assert isinstance(PROBES[Vendor.APPLE], AppleProbe)


@pytest.mark.parametrize(
    ("system", "machine", "is_present"),
    [("darwin", "arm64", True), ("darwin", "x86_64", False), ("linux", "aarch64", False)],
)
def test_only_apples_processors_have_it(system: str, machine: str, is_present: bool, tmp_path: Path) -> None:
    assert AppleProbe(system=system, machine=machine).is_present(tmp_path) is is_present


def test_metal_says_what_may_be_filled(mac: AppleProbe, metal: Path, fake_tool: FakeTools) -> None:
    (device,) = mac.inventory(metal)
    assert (device.selector, device.name, device.arch, device.memory_bytes) == ("mps", "Apple M3 Pro", "m3", LIMIT)
    assert device.extra == {"memory": "unified", "memory_total_bytes": TOTAL}
    assert fake_tool.calls("system_profiler") == []  # it takes a second


def test_tools_describe_where_metal_does_not(mac: AppleProbe, tmp_path: Path) -> None:
    (device,) = mac.inventory(tmp_path)
    assert (device.name, device.arch, device.memory_bytes, device.runtime) == ("Apple M3 Pro", "m3", TOTAL, "Metal 3")
    assert device.extra["gpu_cores"] == 18
    assert (device.health, device.reason) == (Health.OK, None)


def test_virtual_machine_without_metal_is_recorded(
    mac: AppleProbe, metal: Path, fake_tool: FakeTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_METAL", "none")
    fake_tool.add("system_profiler", {"*": '{"SPDisplaysDataType": []}'})
    (device,) = mac.inventory(metal)
    assert device.health is Health.NO_DRIVER
    assert "Metal has no device" in str(device.reason)
    assert "sppci_model" in str(device.reason)


@pytest.mark.parametrize("failure", FAILURES)
def test_failing_tools_are_named(fake_tool: FakeTools, tmp_path: Path, failure: Failure) -> None:
    for name in ("system_profiler", "sysctl", "ioreg", "vm_stat"):
        fake_tool.add(name, {"*": ""}, failure=failure)
    probe = AppleProbe(system="darwin", machine="arm64", timeout_s=0.2)
    (device,) = probe.inventory(tmp_path)
    assert (device.health, device.memory_bytes) == (Health.NO_DRIVER, None)
    assert "system_profiler" in str(device.reason)
    assert "sysctl" in str(device.reason)
    with pytest.raises(ToolError, match="ioreg"):
        probe.sample(tmp_path)


def test_free_memory_is_the_lesser_of_limit_and_machine(mac: AppleProbe, metal: Path, fake_tool: FakeTools) -> None:
    (sample,) = mac.sample(metal)
    pages = 65536 + 524288 + 32768 + 16384
    assert (sample.memory_used_bytes, sample.memory_free_bytes, sample.util_pct) == (2 << 30, pages * 16384, 7.0)
    fake_tool.add("vm_stat", {"*": "no such tool"})
    assert mac.sample(metal)[0].memory_free_bytes == LIMIT - (2 << 30)


def test_inventory_and_sample_name_it_alike_and_keep_the_machine_private(mac: AppleProbe, metal: Path) -> None:
    (device,), (sample,) = mac.inventory(metal), mac.sample(metal)
    assert device.uuid == sample.uuid
    assert device.uuid.startswith("MPS-")
    assert "0F1E2D3C" not in device.uuid.upper()


def test_statistics_of_the_driver_are_not_taken_for_the_gpus(device_fixture: Read) -> None:
    reading = parse_accelerator(device_fixture(STATISTICS))
    assert (reading.memory_used_bytes, reading.util_pct) == (2 << 30, 7.0)


def test_platform_uuid_is_read(device_fixture: Read) -> None:
    assert parse_platform_uuid(device_fixture(MACHINE)) == "0F1E2D3C-4B5A-6978-8796-A5B4C3D2E1F0"


def test_order_of_keys_does_not_matter(device_fixture: Read) -> None:
    assert parse_profiler(reorder_json(device_fixture(PROFILED))) == parse_profiler(device_fixture(PROFILED))


@pytest.mark.parametrize(
    "damage", [*damages('"SPDisplaysDataType"', '"sppci_model"'), pytest.param(truncate_json, id="truncated")]
)
def test_damaged_profile_is_refused(damage: Damage, device_fixture: Read) -> None:
    with pytest.raises(FormatError, match="system_profiler"):
        parse_profiler(damage(device_fixture(PROFILED)))


@pytest.mark.parametrize("damage", damages("PerformanceStatistics"))
def test_damaged_statistics_are_refused(damage: Damage, device_fixture: Read) -> None:
    with pytest.raises(FormatError, match="ioreg"):
        parse_accelerator(damage(device_fixture(STATISTICS)))


@pytest.mark.parametrize("damage", damages("IOPlatformUUID"))
def test_damaged_platform_is_refused(damage: Damage, device_fixture: Read) -> None:
    with pytest.raises(FormatError, match="ioreg"):
        parse_platform_uuid(damage(device_fixture(MACHINE)))


@pytest.mark.parametrize("damage", damages("page size", "Pages free", "Pages inactive"))
def test_damaged_pages_are_refused(damage: Damage, device_fixture: Read) -> None:
    with pytest.raises(FormatError, match="vm_stat"):
        parse_available(damage(device_fixture(PAGES)))


@pytest.mark.parametrize("text", ["", "36 GB\n", "hw.memsize: 38654705664\n"])
def test_memory_size_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="sysctl"):
        parse_memory_size(text)
