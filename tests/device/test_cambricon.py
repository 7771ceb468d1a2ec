"""Cambricon MLUs through a fake cndev, a fake cnmon and the bus. Live: none.

Proves our calls, our reading of structs and layouts, and what is made of refusals; not how a driver behaves.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.device.fake_tool import FakeTools
from tests.device.mutations import (
    FAILURES,
    RESPACINGS,
    Damage,
    Failure,
    damages,
    reorder_json,
    truncate,
    truncate_json,
)
from xinf.core.device import Device, Distance, Health, Vendor
from xinf.device import cambricon_structs, cambricon_tool, read_inventory
from xinf.device.cambricon import CambriconProbe
from xinf.device.cambricon_card import architecture_of
from xinf.device.tool import FormatError, ToolError

FIRST = ("0000:39:00.0", "0xcabc", "0x120000", 1)
SECOND = ("0000:3d:00.0", "0xcabc", "0x120000", -1)
LEFT, RIGHT = "MLU-0000-39-00.0", "MLU-0000-3d-00.0"
UUID = "MLU-d4e5f607-1829-3a4b-0000-00000000000"
MakeTree = Callable[..., Path]
Answer = Callable[..., Path]
Text = Callable[[str], str]
# What a child runs: the variable that the loader reads is read when a process starts.
SAMPLE = """
import pathlib, sys
from xinf.device.cambricon import CambriconProbe
print(*[sample.uuid for sample in CambriconProbe().sample(pathlib.Path(sys.argv[1]))])
"""
METRICS = ("Utilization", "Temperature", "Power", "ECC")


@pytest.fixture
def cndev_root(
    make_tree: MakeTree, fake_library: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Answer:
    """Make a root with two MLUs on the bus and a cndev that answers by a scenario; see fake/cndev.c."""

    def make(scenario: str, source: str = "cndev.c") -> Path:
        monkeypatch.setenv("FAKE_CNDEV", scenario)
        monkeypatch.setenv("FAKE_CNDEV_LOG", str(tmp_path / "cndev.log"))
        root = make_tree(FIRST, SECOND)
        directory = root / "usr/local/neuware/lib64"
        directory.mkdir(parents=True)
        shutil.copy(fake_library(source, "libcndev.so") / "libcndev.so", directory / "libcndev.so")
        return root

    return make


def test_cards_are_in_bus_order_and_keep_their_numbers(cndev_root: Answer) -> None:
    root = cndev_root("mlu590")
    (root / "usr/local/neuware/version.txt").write_text("Neuware Version 4.6.2\n")
    first, second = CambriconProbe().inventory(root)
    assert first == Device(
        vendor=Vendor.CAMBRICON,
        index=0,
        uuid=LEFT,
        name="MLU590-M9",
        arch="MLU590",
        memory_bytes=98304 << 20,
        driver="6.2.29",
        runtime="4.6.2",
        pci="0000:39:00.0",
        numa=1,
        dev_nodes=("/dev/cambricon_dev1",),
        visible="1",  # the card number: first on the bus, second for cndev
        extra={"uuid": UUID + "1"},
    )
    assert (second.index, second.uuid, second.pci, second.visible) == (1, RIGHT, "0000:3d:00.0", "0")


def test_neuware_is_found_where_its_variable_says(cndev_root: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cndev_root("mlu590")
    (root / "usr/local/neuware").rename(root / "opt")
    assert {card.health for card in CambriconProbe().inventory(root)} == {Health.NO_DRIVER}
    (root / "opt/version.txt").write_text("Neuware Version 4.4.3\n")
    monkeypatch.setenv("NEUWARE_HOME", "/opt")
    first, _ = CambriconProbe().inventory(root)
    assert (first.uuid, first.runtime) == (LEFT, "4.4.3")


def test_inventory_reads_no_metric(cndev_root: Answer, tmp_path: Path) -> None:
    CambriconProbe().inventory(cndev_root("mlu590"))
    asked = (tmp_path / "cndev.log").read_text()
    assert "cndevGetUUID" in asked
    assert [name for name in METRICS if name in asked] == []


def test_older_library_is_asked_with_its_version(cndev_root: Answer) -> None:
    first, second = CambriconProbe().inventory(cndev_root("old", "cndev_old.c"))
    assert [(card.uuid, card.pci, card.visible) for card in (first, second)] == [
        (LEFT, "0000:39:00.0", "1"),
        (RIGHT, "0000:3d:00.0", "0"),
    ]
    assert (first.driver, first.arch, first.memory_bytes) == ("5.10.22", "MLU370", 23374 << 20)


def test_older_library_is_sampled(cndev_root: Answer) -> None:
    sample, _ = CambriconProbe().sample(cndev_root("old", "cndev_old.c"))
    assert (sample.memory_used_bytes, sample.memory_free_bytes) == (374 << 20, 23000 << 20)
    assert sample.temp_c == 45.0, "its chip has no sensor: the board's is the next best"


def test_card_that_gives_no_handle_does_not_hide_the_other(cndev_root: Answer) -> None:
    root = cndev_root("lost")
    (root / "sys/bus/pci/drivers/cambricon-pci-drv").mkdir(parents=True)
    link = root / "sys/bus/pci/devices/0000:39:00.0/driver"
    link.symlink_to(root / "sys/bus/pci/drivers/cambricon-pci-drv")
    (root / "dev").mkdir()
    for number in (0, 1):
        (root / f"dev/cambricon_dev{number}").touch()
    lost, good = CambriconProbe().inventory(root)
    assert (good.uuid, good.visible, good.health) == (RIGHT, "0", Health.OK)
    assert (lost.pci, lost.visible, lost.health) == ("0000:39:00.0", None, Health.FAULTY)
    assert "lists 1 of the cards but not this one" in str(lost.reason)


def test_card_without_uuid_has_its_name_all_the_same(cndev_root: Answer) -> None:
    cards = CambriconProbe().inventory(cndev_root("nameless"))
    assert [(card.uuid, card.extra) for card in cards] == [(LEFT, {}), (RIGHT, {})]


def test_card_that_does_not_tell_its_address_for_now_gets_no_other_name(cndev_root: Answer) -> None:
    root, probe = cndev_root("placeless"), CambriconProbe()
    first, second = probe.inventory(root)
    assert (first.uuid, second.uuid) == ("PCI-0000-39-00.0", "MLU-0000-3d-00.0")
    assert "1 of 2 cards tell no bus address" in str(first.reason)
    assert [sample.uuid for sample in probe.sample(root)] == [second.uuid]
    path = root / "proc/driver/cambricon/mlus/0000:39:00.0/information"
    path.parent.mkdir(parents=True)
    path.write_text("Device inode path: /dev/cambricon_dev1\n")
    names = [device.uuid for device in probe.inventory(root)]
    assert names == ["MLU-0000-39-00.0", "MLU-0000-3d-00.0"], "the kernel's driver knows it"
    assert sorted(sample.uuid for sample in probe.sample(root)) == names


def test_sick_card_is_faulty_and_says_why(cndev_root: Answer) -> None:
    root = cndev_root("sick")
    good, sick = CambriconProbe().inventory(root)
    assert (good.health, good.reason, sick.health) == (Health.OK, None, Health.FAULTY)
    assert "its reset failed" in str(sick.reason)
    assert [sample.health for sample in CambriconProbe().sample(root)] == [Health.FAULTY, Health.OK]


def test_incidents_of_a_sick_card_are_told(cndev_root: Answer) -> None:
    well, sick = CambriconProbe().sample(cndev_root("modern"))[::-1]
    assert (well.health, well.reason, sick.health) == (Health.OK, None, Health.FAULTY)
    assert "it has a problem; An Xid error detected; PCIe width is too low; see `cnmon info`" in str(sick.reason)


def test_sample_reads_what_a_card_does(cndev_root: Answer) -> None:
    sample, other = CambriconProbe().sample(cndev_root("mlu590"))
    assert (sample.uuid, other.uuid) == (RIGHT, LEFT)
    assert (sample.memory_used_bytes, sample.memory_free_bytes) == (33654 << 20, (98304 - 33654) << 20)
    assert (sample.util_pct, sample.temp_c, sample.power_w, sample.ecc_uncorrected) == (37.0, 52.0, 110.0, 1)
    assert (sample.health, sample.reason) == (Health.OK, None)


def test_metric_that_is_not_supported_is_none(cndev_root: Answer) -> None:
    sample, _ = CambriconProbe().sample(cndev_root("mute"))
    assert (sample.util_pct, sample.temp_c, sample.power_w, sample.ecc_uncorrected) == (None, None, None, None)
    assert sample.health is None
    assert sample.memory_used_bytes == 33654 << 20


@pytest.mark.parametrize(("scenario", "source"), [("mlu590", "cndev.c"), ("old", "cndev_old.c")])
def test_mlu_link_is_the_nearest_way(cndev_root: Answer, scenario: str, source: str) -> None:
    assert CambriconProbe().topology(cndev_root(scenario, source)).between(LEFT, RIGHT) is Distance.LINK


def test_link_that_is_down_is_none(cndev_root: Answer) -> None:
    assert CambriconProbe().topology(cndev_root("unplugged")).between(LEFT, RIGHT) is Distance.PIX


def test_cards_without_links_are_apart_by_pcie(cndev_root: Answer) -> None:
    topology = CambriconProbe().topology(cndev_root("mlu370"))
    apart = [topology.between(RIGHT, other) for other in (LEFT, "MLU-0000-41-00.0", "MLU-0000-45-00.0")]
    assert apart == [Distance.PIX, Distance.PHB, Distance.SYS]
    assert len(topology.pairs) == 6
    assert all(a < b for a, b, _ in topology.pairs)


async def test_children_find_the_library_on_the_loader_path(
    make_tree: MakeTree, fake_library: Callable[[str, str], Path]
) -> None:
    directory = str(fake_library("cndev.c", "libcndev.so"))
    environ = {**os.environ, "LD_LIBRARY_PATH": directory, "FAKE_CNDEV": "mlu590"}
    root = make_tree(FIRST, SECOND)
    first, second, _ = await read_inventory(root=root, environ=environ, deadline_s=30)
    command = [sys.executable, "-c", SAMPLE, str(root)]
    child = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert set(child.stdout.split()) == {first.uuid, second.uuid}, child.stderr


@pytest.mark.parametrize(("scenario", "words"), [("hang", "did not answer within 4 s"), ("crash", "signal 11")])
async def test_library_that_hangs_or_crashes_costs_its_child(
    make_tree: MakeTree, fake_library: Callable[[str, str], Path], scenario: str, words: str
) -> None:
    directory = str(fake_library("cndev.c", "libcndev.so"))
    environ = {**os.environ, "LD_LIBRARY_PATH": directory, "FAKE_CNDEV": scenario}
    mlu, cpu = await read_inventory(root=make_tree(FIRST), environ=environ, deadline_s=4)
    assert (mlu.health, cpu.vendor) == (Health.SILENT, Vendor.CPU)
    assert words in str(mlu.reason)


@pytest.mark.parametrize(
    ("scenario", "words"), [("no_driver", "modprobe cambricon-drv"), ("empty", "cnmon is not there")]
)
def test_card_without_driver_is_recorded(cndev_root: Answer, scenario: str, words: str) -> None:
    first, second = CambriconProbe().inventory(cndev_root(scenario))
    assert (first.health, second.health) == (Health.NO_DRIVER, Health.NO_DRIVER)
    assert words in str(first.reason)
    assert (first.memory_bytes, first.visible) == (None, None)


def test_nothing_is_present_without_a_card(make_tree: MakeTree) -> None:
    root = make_tree(("0000:1b:00.0", "0x10de", "0x030000", 0))
    assert not CambriconProbe().is_present(root)
    assert CambriconProbe().inventory(root) == ()
    with pytest.raises(ToolError, match=r"libcndev\.so.*cnmon is not there"):
        CambriconProbe().sample(root)
    assert CambriconProbe().topology(root).pairs == ()


# Of cndev.h (driver 6); what it shares with the table of gpustack-runtime's test_pycndev is equal to it.
SIZES = {
    "cndevCardInfo_t": 8,
    "cndevUUID_t": 56,
    "cndevPCIeInfo_t": 48,
    "cndevPCIeInfoV2_t": 64,
    "cndevMemoryInfo_t": 216,
    "cndevMemoryInfoV2_t": 176,
    "cndevVersionInfo_t": 28,
    "cndevECCInfo_t": 72,
    "cndevDevicePowerInfo_t": 84,
    "cndevTemperatureInfo_t": 148,
    "cndevUtilizationInfo_t": 328,
    "cndevCardHealthState_t": 16,
    "cndevCardHealthStateV2_t": 34612,
    "cndevIncidentInfo_t": 540,
    "cndevMLULinkStatus_t": 16,
    "cndevMLULinkStatusV2_t": 44,
    "cndevMLULinkRemoteInfo_t": 376,
    "cndevTopologyRelationship_t": 8,
}


def test_struct_layouts_are_those_of_the_header(fake_library: Callable[[str, str], Path]) -> None:
    structs = {
        "cndevCardInfo_t": cambricon_structs.CardInfo,
        "cndevUUID_t": cambricon_structs.Uuid,
        "cndevPCIeInfo_t": cambricon_structs.PcieInfo,
        "cndevPCIeInfoV2_t": cambricon_structs.PcieInfoV2,
        "cndevMemoryInfo_t": cambricon_structs.MemoryInfo,
        "cndevMemoryInfoV2_t": cambricon_structs.MemoryInfoV2,
        "cndevVersionInfo_t": cambricon_structs.VersionInfo,
        "cndevECCInfo_t": cambricon_structs.EccInfo,
        "cndevDevicePowerInfo_t": cambricon_structs.PowerInfo,
        "cndevTemperatureInfo_t": cambricon_structs.TemperatureInfo,
        "cndevUtilizationInfo_t": cambricon_structs.UtilizationInfo,
        "cndevCardHealthState_t": cambricon_structs.HealthState,
        "cndevCardHealthStateV2_t": cambricon_structs.HealthStateV2,
        "cndevIncidentInfo_t": cambricon_structs.Incident,
        "cndevMLULinkStatus_t": cambricon_structs.LinkStatus,
        "cndevMLULinkStatusV2_t": cambricon_structs.LinkStatusV2,
        "cndevMLULinkRemoteInfo_t": cambricon_structs.LinkRemote,
        "cndevTopologyRelationship_t": cambricon_structs.Relationship,
    }
    library = ctypes.CDLL(str(fake_library("cndev.c", "libcndev.so") / "libcndev.so"))
    library.fake_layout.restype = ctypes.c_char_p
    n = ctypes.c_size_t()
    told: dict[str, int] = {}
    while (what := library.fake_layout(len(told), ctypes.byref(n))) is not None:
        told[what.decode()] = n.value
    assert {name: size for name, size in told.items() if "." not in name} == SIZES
    for name, value in told.items():
        struct, _, field = name.partition(".")
        ours = structs[struct]
        assert (getattr(ours, field).offset if field else ctypes.sizeof(ours)) == value, name


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("MLU370-X8", "MLU370"), ("MLU590-M9DG", "MLU590"), ("MLU585", "MLU585"), ("MLU5900", None), ("CE3226", None)],
)
def test_name_tells_the_architecture(name: str, architecture: str | None) -> None:
    assert architecture_of(name) == architecture


JSON = "cnmon-5.10.22-mlu370.json"
TEXT = "cnmon-5.10.22-info-mlu370.txt"
TABLES = ["cnmon-5.10.22-mlu370.txt", "cnmon-5.10.13-mlu370.txt", "cnmon-4.20.11-mlu370.txt"]
TREE = (("0000:0f:00.0", "0xcabc", "0x120000", 0), ("0000:13:00.0", "0xcabc", "0x120000", 1))


def test_json_is_read_from_the_file_that_the_tool_writes(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fake_tool.add("cnmon", {}, files={"info -j": ("cnmon_info.json", device_fixture(JSON))})
    root = make_tree(*TREE)
    first, second = CambriconProbe().inventory(root)
    assert second == Device(
        vendor=Vendor.CAMBRICON,
        index=1,
        uuid="MLU-0000-13-00.0",
        name="MLU370-X8",
        arch="MLU370",
        memory_bytes=20638 << 20,
        driver="5.10.22",
        pci="0000:13:00.0",
        numa=1,
        dev_nodes=("/dev/cambricon_dev0",),
        visible="0",
        extra={"uuid": "MLU-20012303-1003-0000-0000-000000000000"},
    )
    assert (first.pci, first.visible, first.memory_bytes) == ("0000:0f:00.0", "1", 20638 << 20)
    busy, unknown = CambriconProbe().sample(root)
    assert (busy.memory_used_bytes, busy.util_pct, busy.temp_c, busy.power_w) == (1024 << 20, 37.0, 33.0, 107.0)
    assert (unknown.memory_used_bytes, unknown.util_pct, unknown.temp_c) == (0, None, None)
    assert not (tmp_path / "cnmon_info.json").exists(), "it is written where nobody else looks"


def test_text_and_json_say_the_same(device_fixture: Text) -> None:
    from_json = cambricon_tool.parse_json(device_fixture(JSON))
    from_text = cambricon_tool.parse_text(device_fixture(TEXT))
    assert from_text[0] == from_json[0]
    assert [(card.uuid, card.pci, card.number) for card in from_text] == [
        (card.uuid, card.pci, card.number) for card in from_json
    ]


def test_forms_are_asked_in_order(make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Text) -> None:
    fake_tool.add("cnmon", {"info -j": "", "info": "unlike anything", "": device_fixture(TABLES[0])})
    first, second = CambriconProbe().inventory(make_tree(*TREE))
    assert fake_tool.calls("cnmon") == ["info -j", "info", ""]
    assert [(card.uuid, card.pci, card.visible, card.driver) for card in (first, second)] == [
        ("MLU-0000-0f-00.0", "0000:0f:00.0", "1", "5.10.22"),
        ("MLU-0000-13-00.0", "0000:13:00.0", "0", "5.10.22"),
    ]


def test_all_forms_that_failed_are_told(make_tree: MakeTree, fake_tool: FakeTools) -> None:
    fake_tool.add("cnmon", {"info -j": "", "info": "no", "": "no"})
    with pytest.raises(ToolError) as caught:
        CambriconProbe().sample(make_tree())
    assert "cnmon wrote no cnmon_info.json" in str(caught.value)
    assert "cnmon info opens no card" in str(caught.value)
    assert "no table with a known header" in str(caught.value)


@pytest.mark.parametrize("failure", FAILURES)
def test_failing_tool_is_named(
    failure: Failure, make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Text
) -> None:
    answers = {"info": device_fixture(TEXT), "": device_fixture(TABLES[0])}
    files = {"info -j": ("cnmon_info.json", device_fixture(JSON))}
    fake_tool.add("cnmon", answers, files=files, failure=failure)
    with pytest.raises(ToolError, match="cnmon"):
        CambriconProbe(timeout_s=0.3).sample(make_tree())
    assert fake_tool.calls("cnmon") == ["info -j", "info", ""]


def test_only_card_of_a_table_without_addresses_is_placed(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Text
) -> None:
    fake_tool.add("cnmon", {"": device_fixture(TABLES[2])})
    (card,) = CambriconProbe().inventory(make_tree(TREE[1]))
    assert (card.uuid, card.pci, card.visible, card.driver) == ("MLU-0000-13-00.0", "0000:13:00.0", "0", "4.20.11")
    assert (card.health, card.memory_bytes) == (Health.OK, 23308 << 20)


def test_card_of_a_table_without_addresses_among_several_stays_unplaced(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Text
) -> None:
    fake_tool.add("cnmon", {"": device_fixture(TABLES[2])})
    root = make_tree(*TREE)
    (card,) = CambriconProbe().inventory(root)
    assert (card.uuid, card.pci, card.visible) == ("MLU-card0", None, "0")
    assert [sample.uuid for sample in CambriconProbe().sample(root)] == ["MLU-card0"]


def test_kernel_tells_where_the_cards_of_a_table_without_addresses_are(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Text
) -> None:
    fake_tool.add("cnmon", {"": device_fixture(TABLES[2])})
    root = make_tree(*TREE)
    for address, number in (("0000:0f:00.0", 1), ("0000:13:00.0", 0)):
        path = root / "proc/driver/cambricon/mlus" / address / "information"
        path.parent.mkdir(parents=True)
        path.write_text(f"Device name: MLU370-X4\nDevice inode path: /dev/cambricon_dev{number}\nDevice Major: 510\n")
    bare, card = CambriconProbe().inventory(root)
    assert (card.uuid, card.pci, card.visible) == ("MLU-0000-13-00.0", "0000:13:00.0", "0")
    assert (bare.pci, bare.health) == ("0000:0f:00.0", Health.NO_DRIVER)
    assert [sample.uuid for sample in CambriconProbe().sample(root)] == [card.uuid]


def test_table_tells_the_metrics(device_fixture: Text) -> None:
    idle, busy = cambricon_tool.parse_table(device_fixture(TABLES[0]))
    assert (idle.util_pct, idle.temp_c, idle.power_w, idle.used_bytes) == (0.0, 28.0, 107.0, 0)
    assert (busy.util_pct, busy.temp_c, busy.power_w, busy.used_bytes) == (83.0, 61.0, 211.0, 18344 << 20)
    assert [card.util_pct for card in cambricon_tool.parse_table(device_fixture(TABLES[1]))] == [0.0, None]


@pytest.mark.parametrize("respace", RESPACINGS)
@pytest.mark.parametrize("name", TABLES)
def test_columns_of_the_table_may_move(name: str, respace: Damage, device_fixture: Text) -> None:
    text = device_fixture(name)
    assert cambricon_tool.parse_table(respace(text)) == cambricon_tool.parse_table(text)


@pytest.mark.parametrize("damage", damages("Memory-Usage", "Card", "Name", "Util", "Temp"))
@pytest.mark.parametrize("name", TABLES)
def test_damaged_table_is_refused(name: str, damage: Damage, device_fixture: Text) -> None:
    with pytest.raises(FormatError, match="cnmon"):
        cambricon_tool.parse_table(damage(device_fixture(name)))


@pytest.mark.parametrize("name", TABLES)
def test_truncated_table_is_refused(name: str, device_fixture: Text) -> None:
    text = device_fixture(name).partition("| Processes:")[0]
    with pytest.raises(FormatError, match="cnmon"):
        cambricon_tool.parse_table(truncate(text))


@pytest.mark.parametrize("respace", RESPACINGS)
def test_columns_of_the_text_may_move(respace: Damage, device_fixture: Text) -> None:
    text = device_fixture(TEXT)
    assert cambricon_tool.parse_text(respace(text)) == cambricon_tool.parse_text(text)


@pytest.mark.parametrize("damage", damages("Card", "Product Name"))
def test_damaged_text_is_refused(damage: Damage, device_fixture: Text) -> None:
    with pytest.raises(FormatError, match="cnmon"):
        cambricon_tool.parse_text(damage(device_fixture(TEXT)))


def test_text_that_is_cut_before_the_memory_of_the_last_card_is_refused(device_fixture: Text) -> None:
    text = device_fixture(TEXT)
    with pytest.raises(FormatError, match=r"cnmon info is cut off: it has Physical Memory Usage\.Total of some cards"):
        cambricon_tool.parse_text(text[: text.rindex("    Physical Memory Usage")])


def test_sections_of_the_text_do_not_mix(device_fixture: Text) -> None:
    text = device_fixture(TEXT).replace("    Physical Memory Usage\n", "    Physical Memory Wear\n")
    assert {card.memory_bytes for card in cambricon_tool.parse_text(text)} == {None}, "virtual memory is another"


def test_keys_of_the_json_may_move(device_fixture: Text) -> None:
    text = device_fixture(JSON)
    assert cambricon_tool.parse_json(reorder_json(text)) == cambricon_tool.parse_json(text)


@pytest.mark.parametrize("damage", [*damages("CnmonInfo", "CardNum", "ProductName"), truncate_json])
def test_damaged_json_is_refused(damage: Damage, device_fixture: Text) -> None:
    with pytest.raises(FormatError, match="cnmon"):
        cambricon_tool.parse_json(damage(device_fixture(JSON)))


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"CnmonInfo": []}', '{"CnmonInfo": [7]}', '{"CnmonInfo": {"CardNum": 0}}']
)
def test_json_of_another_shape_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="cnmon"):
        cambricon_tool.parse_json(text)


def test_total_in_another_unit_is_unknown_rather_than_wrong(device_fixture: Text) -> None:
    card, _ = cambricon_tool.parse_json(device_fixture(JSON).replace('"20638"', '"20 GiB"'))
    assert (card.memory_bytes, card.used_bytes) == (None, None)
