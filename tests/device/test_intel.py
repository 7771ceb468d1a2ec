"""Intel's GPUs through a fake Level Zero and a fake xpu-smi; see fake/level_zero.c for what it proves."""

from __future__ import annotations

import ctypes
import json
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from tests.device.fake_tool import FakeTools
from tests.device.gpu_tree import GpuTree
from tests.device.mutations import FAILURES, Damage, Failure, damages, reorder_json, truncate_json
from xinf.core.device import Device, Distance, Health, Topology, Vendor
from xinf.device import PROBES, LinkProbe, intel_structs, read_host
from xinf.device.intel import IntelProbe
from xinf.device.intel_tool import parse_detail, parse_discovery, parse_stats
from xinf.device.tool import FormatError, ToolError

Read = Callable[[str], str]
FLEX, GRAPHICS, NPU = "0000:4d:00.0", "0000:00:02.0", "0000:00:0b.0"
DISCOVERY, DETAIL = "xpu-smi-1.2.39-discovery-flex170.json", "xpu-smi-1.2.39-discovery-d-flex170.json"
STATS, STATS_OF_TILES = "xpu-smi-1.2.39-stats-flex170.json", "xpu-smi-1.3.1-stats-max1550.json"
UUID = "00000000-0000-0000-0000-151413121110"
MAX = {"0000:29:00.0": UUID, "0000:9a:00.0": "00000000-0000-0000-0000-252423222120"}
TILES = [f"{uuid}-t{tile}" for uuid in MAX.values() for tile in (0, 1)]
GIB = 1 << 30
KUNLUN = "| XPU-SMI               Driver Version: 5.0.21.26    XPU-RT Version: 5.0.21   |\n"
# sizeof and offsetof of the C compiler, by the names that fake/level_zero.c gives them.
LAYOUT: list[tuple[str, type[ctypes.Structure], dict[str, str]]] = [
    (
        "ze_device_properties_t",
        intel_structs.DeviceProperties,
        {"flags": "flags", "maxMemAllocSize": "max_mem_alloc_size", "timerResolution": "timer_resolution"}
        | {"uuid": "uuid", "name": "name"},
    ),
    ("ze_device_memory_properties_t", intel_structs.MemoryProperties, {"totalSize": "total_size", "name": "name"}),
    ("zes_pci_properties_t", intel_structs.PciProperties, {"address": "address"}),
    (
        "zes_device_properties_t",
        intel_structs.SysmanProperties,
        {"core": "core", "numSubdevices": "subdevices", "driverVersion": "driver_version"},
    ),
    ("zes_device_state_t", intel_structs.DeviceState, {"reset": "reset"}),
    ("zes_mem_state_t", intel_structs.MemoryState, {"health": "health", "free": "free", "size": "size"}),
    ("zes_engine_stats_t", intel_structs.Counter, {}),
    ("zes_ras_state_t", intel_structs.RasState, {"category": "category"}),
    ("zes_fabric_port_id_t", intel_structs.FabricPortId, {"portNumber": "port"}),
    (
        "zes_fabric_port_properties_t",
        intel_structs.FabricPortProperties,
        {"portId": "port", "maxTxSpeed": "max_send_speed"},
    ),
    (
        "zes_fabric_port_state_t",
        intel_structs.FabricPortState,
        {"status": "status", "remotePortId": "remote", "txSpeed": "send_speed"},
    ),
]


@pytest.fixture
def flex(gpu_tree: GpuTree) -> GpuTree:
    """A host with a Flex 170, a processor with graphics and an NPU."""
    gpu_tree.add_card(FLEX, vendor=0x8086, device=0x56C0, driver="i915", pci_class=0x038000, numa=1)
    (gpu_tree.root / "sys/bus/pci/devices" / FLEX / "drm/renderD129").mkdir(parents=True)
    gpu_tree.add_card(GRAPHICS, vendor=0x8086, device=0x4680, driver="i915", pci_class=0x030000)
    gpu_tree.add_card(NPU, vendor=0x8086, device=0x7D1D, driver="intel_vpu", pci_class=0x120000)
    return gpu_tree


@pytest.fixture
def level_zero(flex: GpuTree, fake_library: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> GpuTree:
    """The same with a Level Zero loader; FAKE_ZE says how it answers."""
    target = flex.root / "usr/lib/x86_64-linux-gnu/libze_loader.so.1"
    target.parent.mkdir(parents=True)
    shutil.copy(fake_library("level_zero.c", "libze_loader.so.1") / "libze_loader.so.1", target)
    monkeypatch.delenv("ZE_AFFINITY_MASK", raising=False)
    return flex


@pytest.fixture
def two_max(level_zero: GpuTree, monkeypatch: pytest.MonkeyPatch) -> GpuTree:
    """A host with two Max 1550 that an Xe Link joins."""
    monkeypatch.setenv("FAKE_ZE", "max")
    shutil.rmtree(level_zero.root / "sys/bus/pci/devices" / FLEX)
    monkeypatch.delenv("ZE_FLAT_DEVICE_HIERARCHY", raising=False)
    for address in MAX:
        level_zero.add_card(address, vendor=0x8086, device=0x0BD5, driver="xe", pci_class=0x038000)
    return level_zero


def add_xpu_smi(fake_tool: FakeTools, read: Read, stats: str = STATS) -> None:
    fake_tool.add(
        "xpu-smi",
        {"discovery -j": read(DISCOVERY), "discovery -d 0 -j": read(DETAIL), "stats -d 0 -j": read(stats)},
    )


def add_xpu_smi_of_max(fake_tool: FakeTools, read: Read, *, tiles: str = "2") -> None:
    entry = json.loads(read(DISCOVERY))["device_list"][0]
    cards = [
        entry | {"device_id": number, "pci_bdf_address": address, "uuid": uuid}
        for number, (address, uuid) in enumerate(MAX.items())
    ]
    answers = {"discovery -j": json.dumps({"device_list": cards})}
    for card in cards:
        detail = card | {"memory_physical_size_byte": str(128 * GIB), "number_of_tiles": tiles}
        answers[f"discovery -d {card['device_id']} -j"] = json.dumps(detail)
        answers[f"stats -d {card['device_id']} -j"] = read(STATS_OF_TILES)
    fake_tool.add("xpu-smi", answers)


def test_probe_is_registered() -> None:
    assert isinstance(PROBES[Vendor.INTEL], IntelProbe)


def test_discrete_gpu_is_described_by_level_zero(level_zero: GpuTree, fake_tool: FakeTools) -> None:
    fake_tool.add("xpu-smi", {"*": "must not be asked"})
    (device,) = IntelProbe().inventory(level_zero.root)
    assert device == Device(
        vendor=Vendor.INTEL,
        index=0,
        uuid=UUID,
        name="Intel(R) Data Center GPU Flex 170",
        arch="dg2",
        memory_bytes=14193102848,
        driver="I915_25.2.23_PSB_250224.30",
        pci=FLEX,
        numa=1,
        dev_nodes=("/dev/dri/renderD129",),
        visible="0",
    )
    assert fake_tool.calls("xpu-smi") == []


def test_processors_graphics_and_npu_are_no_devices(gpu_tree: GpuTree) -> None:
    gpu_tree.add_card(GRAPHICS, vendor=0x8086, device=0x4680, driver="i915", pci_class=0x030000)
    gpu_tree.add_card(NPU, vendor=0x8086, device=0x7D1D, driver="intel_vpu", pci_class=0x120000)
    gpu_tree.add_card("0000:b2:00.0", vendor=0x8086, device=0x0B30, driver="dfl-pci", pci_class=0x120000)  # an FPGA
    assert not IntelProbe().is_present(gpu_tree.root)
    assert IntelProbe().inventory(gpu_tree.root) == ()


@pytest.mark.parametrize("device", [0x1912, 0x3E92, 0x4680, 0x64A0, 0x7D55, 0x9A49, 0xA780, 0xA7A1, 0xB090, 0xD750])
def test_graphics_that_a_virtual_machine_shows_elsewhere_are_no_device(gpu_tree: GpuTree, device: int) -> None:
    gpu_tree.add_card("0000:05:00.0", vendor=0x8086, device=device, driver="xe", pci_class=0x030000)
    assert not IntelProbe().is_present(gpu_tree.root)


@pytest.mark.parametrize("device", [0x0BD5, 0x4905, 0x56A0, 0x56C1, 0xE20B, 0xE223, 0x674C])
def test_card_that_a_virtual_machine_shows_elsewhere_is_one(gpu_tree: GpuTree, device: int) -> None:
    gpu_tree.add_card("0000:05:00.0", vendor=0x8086, device=device, driver="xe", pci_class=0x038000)
    assert IntelProbe().is_present(gpu_tree.root)


def test_integrated_gpu_elsewhere_is_known_by_level_zeros_flag(level_zero: GpuTree) -> None:
    address = level_zero.root / "sys/bus/pci/devices" / GRAPHICS
    (address / "device").write_text("0x56a0\n")  # as if a virtual machine showed a card there
    assert [device.pci for device in IntelProbe().inventory(level_zero.root)] == [FLEX]


def test_card_at_the_processors_address_is_one_where_its_number_says_so(gpu_tree: GpuTree) -> None:
    gpu_tree.add_card(GRAPHICS, vendor=0x8086, device=0xE20B, driver="vfio-pci", pci_class=0x030000)
    (device,) = IntelProbe().inventory(gpu_tree.root)
    assert (device.pci, device.health) == (GRAPHICS, Health.NO_DRIVER)
    assert "vfio-pci is bound to it" in str(device.reason)


def test_virtual_function_is_no_device(flex: GpuTree) -> None:
    directory = flex.add_card("0000:4d:00.1", vendor=0x8086, device=0x56C0, driver=None, pci_class=0x038000)
    (directory / "physfn").symlink_to(directory.parent / FLEX)
    assert [device.pci for device in IntelProbe().inventory(flex.root)] == [FLEX]


def test_each_tile_is_a_device(two_max: GpuTree) -> None:
    devices = IntelProbe().inventory(two_max.root)
    assert [device.uuid for device in devices] == TILES
    assert [(device.index, device.visible) for device in devices] == [(0, "0"), (1, "1"), (2, "2"), (3, "3")]
    assert [device.pci for device in devices] == [address for address in MAX for _ in (0, 1)]
    assert [device.parent for device in devices] == [uuid for uuid in MAX.values() for _ in (0, 1)]
    assert [device.extra for device in devices] == [{"tile": 0, "tiles": 2}, {"tile": 1, "tiles": 2}] * 2
    assert {(device.arch, device.memory_bytes) for device in devices} == {("pvc", 64 * GIB)}


def test_tile_has_memory_and_utilisation_of_its_own(two_max: GpuTree) -> None:
    probe = IntelProbe()
    first, second = probe.sample(two_max.root), probe.sample(two_max.root)
    assert [sample.uuid for sample in first] == [sample.uuid for sample in second] == TILES
    assert [sample.util_pct for sample in first] == [None] * 4
    assert [(s.memory_used_bytes, s.memory_free_bytes, s.util_pct) for s in second] == [
        (1 * GIB, 63 * GIB, 30.0),
        (2 * GIB, 62 * GIB, 70.0),
    ] * 2
    # Those of the card, for each.
    assert {(s.temp_c, s.power_w, s.ecc_uncorrected, s.health) for s in second} == {(52.0, 87.5, 0, Health.OK)}


def test_what_is_not_told_by_tile_is_not_known_of_it(two_max: GpuTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ZE", "max_blind")
    probe = IntelProbe()
    probe.sample(two_max.root)
    samples = probe.sample(two_max.root)
    assert [sample.uuid for sample in samples] == TILES
    assert {(s.memory_used_bytes, s.memory_free_bytes, s.util_pct) for s in samples} == {(None, None, None)}
    assert {(s.temp_c, s.power_w) for s in samples} == {(52.0, 87.5)}


def test_fault_of_a_card_is_that_of_its_tiles(two_max: GpuTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ZE", "max_wedged")
    samples = IntelProbe().sample(two_max.root)
    assert [(sample.uuid, sample.health) for sample in samples] == [(uuid, Health.FAULTY) for uuid in TILES]


def test_composite_hierarchy_leaves_cards_whole(two_max: GpuTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZE_FLAT_DEVICE_HIERARCHY", "COMPOSITE")
    probe = IntelProbe()
    devices = probe.inventory(two_max.root)
    assert [(d.uuid, d.visible, d.memory_bytes, d.parent, d.extra) for d in devices] == [
        (uuid, visible, 128 * GIB, None, {}) for uuid, visible in zip(MAX.values(), "01", strict=True)
    ]
    probe.sample(two_max.root)
    assert [(s.uuid, s.memory_used_bytes, s.util_pct) for s in probe.sample(two_max.root)] == [
        (uuid, 3 * GIB, 50.0) for uuid in MAX.values()
    ]
    assert probe.topology(two_max.root).pairs == ((*MAX.values(), Distance.LINK),)


def test_driver_that_lists_cards_by_default_leaves_them_whole(
    two_max: GpuTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ZE", "max_early")
    probe = IntelProbe()
    assert [(d.uuid, d.memory_bytes) for d in probe.inventory(two_max.root)] == [
        (uuid, 128 * GIB) for uuid in MAX.values()
    ]
    assert [(s.uuid, s.memory_used_bytes) for s in probe.sample(two_max.root)] == [
        (uuid, 3 * GIB) for uuid in MAX.values()
    ]
    monkeypatch.setenv("ZE_FLAT_DEVICE_HIERARCHY", "FLAT")
    assert [device.uuid for device in IntelProbe().inventory(two_max.root)] == TILES


def test_tool_tells_tiles_by_the_same_names(two_max: GpuTree, fake_tool: FakeTools, device_fixture: Read) -> None:
    shutil.rmtree(two_max.root / "usr")
    add_xpu_smi_of_max(fake_tool, device_fixture)
    devices = IntelProbe().inventory(two_max.root)
    assert [(d.uuid, d.index, d.visible, d.memory_bytes, d.extra["tile"], d.extra["tiles"]) for d in devices] == [
        (uuid, index, None, 64 * GIB, index % 2, 2) for index, uuid in enumerate(TILES)
    ]
    probe = IntelProbe()
    samples = probe.sample(two_max.root)
    assert [(s.uuid, s.memory_used_bytes, s.util_pct) for s in samples] == [
        (uuid, (512, 768)[index % 2] << 20, (20.0, 60.0)[index % 2]) for index, uuid in enumerate(TILES)
    ]
    assert {(s.temp_c, s.power_w) for s in samples} == {(44.5, 402.5)}
    n_calls = len(fake_tool.calls("xpu-smi"))
    assert [sample.uuid for sample in probe.sample(two_max.root)] == TILES
    assert fake_tool.calls("xpu-smi")[n_calls:] == ["stats -d 0 -j", "stats -d 1 -j"]


def test_tool_leaves_cards_whole_in_the_composite_hierarchy(
    two_max: GpuTree, fake_tool: FakeTools, device_fixture: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZE_FLAT_DEVICE_HIERARCHY", "COMPOSITE")
    shutil.rmtree(two_max.root / "usr")
    add_xpu_smi_of_max(fake_tool, device_fixture)
    probe = IntelProbe()
    devices, samples = probe.inventory(two_max.root), probe.sample(two_max.root)
    assert [(d.uuid, d.memory_bytes, d.extra) for d in devices] == [(uuid, 128 * GIB, {}) for uuid in MAX.values()]
    assert [(s.uuid, s.memory_used_bytes) for s in samples] == [(uuid, 1280 << 20) for uuid in MAX.values()]


def test_names_of_tiles_stay_while_library_and_tool_take_turns(
    two_max: GpuTree, fake_tool: FakeTools, device_fixture: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_xpu_smi_of_max(fake_tool, device_fixture)
    probe = IntelProbe()
    for scenario in ("none", "max", "max_old"):  # the tool alone; the library alone; the library, named by the tool
        monkeypatch.setenv("FAKE_ZE", scenario)
        assert [device.uuid for device in probe.inventory(two_max.root)] == TILES, scenario
        assert [sample.uuid for sample in probe.sample(two_max.root)] == TILES, scenario
        assert [sample.uuid for sample in IntelProbe().sample(two_max.root)] == TILES, scenario


def test_loader_without_sysman_counts_tiles_that_only_the_tool_can_name(
    two_max: GpuTree, fake_tool: FakeTools, device_fixture: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ZE", "max_old")
    by_place = [f"PCI-{address.replace(':', '-')}-t{tile}" for address in MAX for tile in (0, 1)]
    assert [device.uuid for device in IntelProbe().inventory(two_max.root)] == by_place
    add_xpu_smi_of_max(fake_tool, device_fixture)
    devices = IntelProbe().inventory(two_max.root)
    assert [(d.uuid, d.visible, d.memory_bytes) for d in devices] == [
        (uuid, str(index), 64 * GIB) for index, uuid in enumerate(TILES)
    ]


def test_second_driver_makes_places_unknown(level_zero: GpuTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ZE", "two_drivers")
    assert IntelProbe().inventory(level_zero.root)[0].visible is None


async def test_xe_link_lies_over_the_bus(two_max: GpuTree, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(PROBES[Vendor.INTEL], LinkProbe)
    host = await read_host(root=two_max.root)
    assert [device.uuid for device in host.devices[:-1]] == TILES  # the last is the processor
    pairs = [tuple(sorted(pair)) for pair in combinations(TILES, 2)]
    assert [host.topology.between(*pair) for pair in pairs] == [Distance.LINK] * 6
    monkeypatch.setenv("FAKE_ZE", "max_down")
    of_one_card = [(TILES[0], TILES[1], Distance.LINK), (TILES[2], TILES[3], Distance.LINK)]
    assert IntelProbe().topology(two_max.root).pairs == tuple(of_one_card)


def test_links_are_not_known_without_sysman(flex: GpuTree) -> None:
    assert IntelProbe().topology(flex.root) == Topology()


def test_warning_before_the_tools_answer_is_passed_over(device_fixture: Read) -> None:
    text = device_fixture(DISCOVERY)
    assert parse_discovery(f"[WARNING] the daemon {{xpumd}} is old\n{text}") == parse_discovery(text)


def test_own_mask_does_not_hide_devices(level_zero: GpuTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZE_AFFINITY_MASK", "1")
    assert IntelProbe().inventory(level_zero.root)[0].visible == "0"


def test_loader_without_sysman_still_describes(level_zero: GpuTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ZE", "old")
    (device,) = IntelProbe().inventory(level_zero.root)
    assert (device.memory_bytes, device.driver, device.uuid) == (14193102848, "i915", UUID)


@pytest.mark.parametrize(("scenario", "words"), [("none", "libze_intel_gpu"), ("denied", "group render")])
def test_level_zero_that_does_not_start_is_the_reason(
    level_zero: GpuTree, monkeypatch: pytest.MonkeyPatch, scenario: str, words: str
) -> None:
    monkeypatch.setenv("FAKE_ZE", scenario)
    (device,) = IntelProbe().inventory(level_zero.root)
    assert (device.health, device.uuid, device.memory_bytes) == (Health.SILENT, "PCI-0000-4d-00.0", None)
    assert words in str(device.reason)
    assert "xpu-smi is not there" in str(device.reason)


def test_tool_describes_where_level_zero_is_not_there(
    flex: GpuTree, fake_tool: FakeTools, device_fixture: Read
) -> None:
    add_xpu_smi(fake_tool, device_fixture)
    (device,) = IntelProbe().inventory(flex.root)
    assert (device.uuid, device.name) == (UUID, "Intel(R) Data Center GPU Flex 170")
    assert (device.memory_bytes, device.driver) == (14193102848, "I915_23.10.15_PSB_231020")
    assert (device.visible, device.health) == (None, Health.OK)
    assert fake_tool.calls("xpu-smi") == ["discovery -j", "discovery -d 0 -j"]


@pytest.mark.parametrize("failure", FAILURES)
def test_failing_tool_is_named_in_the_reason(flex: GpuTree, fake_tool: FakeTools, failure: Failure) -> None:
    fake_tool.add("xpu-smi", {"*": ""}, failure=failure)
    (device,) = IntelProbe(timeout_s=0.3).inventory(flex.root)
    assert device.health is Health.SILENT, "its kernel driver is bound"
    assert "Level Zero:" in str(device.reason)
    assert "xpu-smi" in str(device.reason)


def test_kunlunxins_tool_of_that_name_is_refused(flex: GpuTree, fake_tool: FakeTools) -> None:
    fake_tool.add("xpu-smi", {"*": KUNLUN})
    (device,) = IntelProbe().inventory(flex.root)
    assert "not Intel's xpu-smi" in str(device.reason)


def test_rates_come_with_the_second_sample(level_zero: GpuTree) -> None:
    probe = IntelProbe()
    (first,), (second,) = probe.sample(level_zero.root), probe.sample(level_zero.root)
    assert (first.util_pct, first.power_w) == (None, None)
    assert (second.util_pct, second.power_w) == (30.0, 87.5)
    assert (second.uuid, second.memory_used_bytes, second.memory_free_bytes) == (UUID, 1 << 30, 14193102848 - (1 << 30))
    assert (second.temp_c, second.ecc_uncorrected, second.health) == (47.0, 0, Health.OK)


@pytest.mark.parametrize(
    ("scenario", "words"),
    [("lost", "the driver lost it"), ("wedged", "needs a reset"), ("bad_memory", "should be replaced")],
)
def test_sample_says_what_is_wrong(
    level_zero: GpuTree, monkeypatch: pytest.MonkeyPatch, scenario: str, words: str
) -> None:
    monkeypatch.setenv("FAKE_ZE", scenario)
    (sample,) = IntelProbe().sample(level_zero.root)
    assert sample.health is Health.FAULTY
    assert words in str(sample.reason)


def test_new_hardware_errors_make_it_faulty(level_zero: GpuTree, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = IntelProbe()
    assert probe.sample(level_zero.root)[0].health is Health.OK
    monkeypatch.setenv("FAKE_ZE", "errors")
    (sample,) = probe.sample(level_zero.root)
    assert (sample.health, sample.ecc_uncorrected) == (Health.FAULTY, 3)  # resets and driver errors are not counted


def test_sample_is_of_the_tool_where_level_zero_is_not_there(
    flex: GpuTree, fake_tool: FakeTools, device_fixture: Read
) -> None:
    add_xpu_smi(fake_tool, device_fixture)
    probe = IntelProbe()
    (sample,) = probe.sample(flex.root)
    assert (sample.uuid, sample.memory_used_bytes, sample.memory_free_bytes) == (UUID, 1024 << 20, None)
    assert (sample.util_pct, sample.temp_c, sample.power_w, sample.ecc_uncorrected) == (41.5, 52.0, 87.25, 0)
    probe.sample(flex.root)
    assert fake_tool.calls("xpu-smi") == ["discovery -j", "stats -d 0 -j", "stats -d 0 -j"]


def test_sample_says_why_it_is_none(flex: GpuTree) -> None:
    with pytest.raises(ToolError, match="xpu-smi is not there"):
        IntelProbe().sample(flex.root)


@pytest.mark.parametrize(("name", "struct", "fields"), LAYOUT, ids=[entry[0] for entry in LAYOUT])
def test_structs_are_laid_out_as_in_c(
    name: str,
    struct: type[ctypes.Structure],
    fields: dict[str, str],
    fake_library: Callable[[str, str], Path],
) -> None:
    layout = ctypes.CDLL(str(fake_library("level_zero.c", "libze_loader.so.1") / "libze_loader.so.1")).fake_layout
    layout.restype = ctypes.c_long
    assert ctypes.sizeof(struct) == layout(name.encode())
    for theirs, ours in fields.items():
        assert getattr(struct, ours).offset == layout(f"{name}.{theirs}".encode()), ours


def test_sizes_are_those_of_the_public_headers() -> None:
    sizes = {struct.__name__: ctypes.sizeof(struct) for _, struct, _ in LAYOUT}
    assert sizes == {
        "DeviceProperties": 368,
        "MemoryProperties": 296,
        "PciProperties": 56,
        "SysmanProperties": 776,
        "DeviceState": 24,
        "MemoryState": 40,
        "Counter": 16,
        "RasState": 72,
        "FabricPortId": 12,
        "FabricPortProperties": 328,
        "FabricPortState": 72,
    }


def test_shared_head_has_room_for_the_longest_tail(fake_library: Callable[[str, str], Path]) -> None:
    layout = ctypes.CDLL(str(fake_library("level_zero.c", "libze_loader.so.1") / "libze_loader.so.1")).fake_layout
    layout.restype = ctypes.c_long
    head = intel_structs.TypedProperties
    for longest in (b"zes_temp_properties_t", b"zes_mem_properties_t"):
        assert ctypes.sizeof(head) >= layout(longest)
    for struct in ("zes_engine_properties_t", "zes_mem_properties_t"):
        for theirs, ours in (("type", "type"), ("onSubdevice", "on_subdevice"), ("subdeviceId", "subdevice_id")):
            assert getattr(head, ours).offset == layout(f"{struct}.{theirs}".encode())


def test_functions_for_virtual_machines_are_left_out(device_fixture: Read) -> None:
    (card,) = parse_discovery(device_fixture(DISCOVERY))
    assert (card.number, card.address, card.memory_bytes) == (0, FLEX, None)


@pytest.mark.parametrize("size", ['"14193102848"', "14193102848"])
def test_memory_may_be_a_number_or_text(size: str, device_fixture: Read) -> None:
    (card,) = parse_discovery(device_fixture(DISCOVERY))
    text = device_fixture(DETAIL).replace('"14193102848"', size)
    assert parse_detail(text, card).memory_bytes == 14193102848


@pytest.mark.parametrize(
    ("said", "counted"), [('"2"', 2), ("2", 2), ('"1"', 1), ("0", 1), ('"N/A"', 1), ("null", 1), ("4000000000", 1)]
)
def test_number_of_tiles_may_be_a_number_or_text(said: str, counted: int, device_fixture: Read) -> None:
    (card,) = parse_discovery(device_fixture(DISCOVERY))
    text = device_fixture(DETAIL).replace('"number_of_tiles": "1"', f'"number_of_tiles": {said}')
    assert parse_detail(text, card).n_tiles == counted


def test_metrics_of_tiles_are_joined(device_fixture: Read) -> None:
    reading = parse_stats(device_fixture(STATS_OF_TILES))
    assert (reading.memory_used_bytes, reading.util_pct) == (1280 << 20, 40.0)
    assert (reading.temp_c, reading.power_w, reading.ecc_uncorrected) == (44.5, 402.5, None)
    tile = reading.of_tile(1)
    assert (tile.memory_used_bytes, tile.util_pct, tile.temp_c, tile.power_w) == (768 << 20, 60.0, 44.5, 402.5)


@pytest.mark.parametrize("name", [STATS, STATS_OF_TILES])
def test_order_of_keys_does_not_matter(name: str, device_fixture: Read) -> None:
    assert parse_stats(reorder_json(device_fixture(name))) == parse_stats(device_fixture(name))


@pytest.mark.parametrize(
    "damage",
    [*damages('"device_list"', '"device_id"', '"pci_bdf_address"'), pytest.param(truncate_json, id="truncated")],
)
def test_damaged_discovery_is_refused(damage: Damage, device_fixture: Read) -> None:
    with pytest.raises(FormatError, match="xpu-smi"):
        parse_discovery(damage(device_fixture(DISCOVERY)))


@pytest.mark.parametrize(
    "damage", [*damages('"memory_physical_size_byte"'), pytest.param(truncate_json, id="truncated")]
)
def test_damaged_detail_is_refused(damage: Damage, device_fixture: Read) -> None:
    (card,) = parse_discovery(device_fixture(DISCOVERY))
    with pytest.raises(FormatError, match="xpu-smi"):
        parse_detail(damage(device_fixture(DETAIL)), card)


@pytest.mark.parametrize(
    "damage", [*damages('"device_level"', "XPUM_STATS_"), pytest.param(truncate_json, id="truncated")]
)
def test_damaged_stats_are_refused(damage: Damage, device_fixture: Read) -> None:
    with pytest.raises(FormatError, match="xpu-smi"):
        parse_stats(damage(device_fixture(STATS)))


def test_error_of_the_tool_is_passed_on() -> None:
    with pytest.raises(ToolError, match="Level Zero Initialization Error"):
        parse_discovery('{"error": "Level Zero Initialization Error", "errno": 13}')
