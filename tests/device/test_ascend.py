"""Ascend NPUs through a fake DCMI, a fake npu-smi and the bus. Live: none.

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

import msgspec
import pytest

from tests.device.fake_tool import FakeTools
from tests.device.mutations import FAILURES, RESPACINGS, Damage, Failure, damages, truncate
from xinf.core.device import Device, Distance, Health, Vendor
from xinf.device import ascend_layouts, ascend_structs, ascend_tool, read_inventory
from xinf.device.ascend import AscendProbe
from xinf.device.ascend_chip import architecture_of
from xinf.device.tool import FormatError, ToolError

FIRST = ("0000:c1:00.0", "0x19e5", "0x120000", 1)
SECOND = ("0000:d9:00.0", "0x19e5", "0x120000", -1)
LEFT, RIGHT = "NPU-0000-c1-00.0-0", "NPU-0000-d9-00.0-0"
DIE = "NPU-E0F4EE64-002061B1-6A691492-89528485-000000"
MakeTree = Callable[..., Path]
Answer = Callable[[str], Path]
Text = Callable[[str], str]
# What a child runs: the variable that the loader reads is read when a process starts.
SAMPLE = """
import pathlib, sys
from xinf.device.ascend import AscendProbe
print(*[sample.uuid for sample in AscendProbe().sample(pathlib.Path(sys.argv[1]))])
"""
METRICS = ("utilization", "temperature", "power", "ecc")


@pytest.fixture
def dcmi_root(
    make_tree: MakeTree, fake_library: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Answer:
    """Make a root with two NPUs on the bus and a DCMI that answers by a scenario; see fake/dcmi.c."""

    def make(scenario: str) -> Path:
        monkeypatch.setenv("FAKE_DCMI", scenario)
        monkeypatch.setenv("FAKE_DCMI_LOG", str(tmp_path / "dcmi.log"))
        root = make_tree(FIRST, SECOND)
        (root / "usr/local/dcmi").mkdir(parents=True)
        shutil.copy(fake_library("dcmi.c", "libdcmi.so") / "libdcmi.so", root / "usr/local/dcmi/libdcmi.so")
        return root

    return make


def test_910b_is_listed_in_bus_order_by_its_die(dcmi_root: Answer) -> None:
    root = dcmi_root("910b")
    info = root / "usr/local/Ascend/ascend-toolkit/latest/aarch64-linux/ascend_toolkit_install.info"
    info.parent.mkdir(parents=True)
    info.write_text("package_name=Ascend-cann-toolkit\nversion=8.3.RC1\n")
    first, second = AscendProbe().inventory(root)
    assert first == Device(
        vendor=Vendor.ASCEND,
        index=0,
        uuid=LEFT,
        name="Ascend 910B3",
        arch="910B3",
        memory_bytes=65536 << 20,
        driver="25.3.rc1",
        runtime="8.3.RC1",
        pci="0000:c1:00.0",
        numa=1,
        dev_nodes=("/dev/davinci8",),
        visible="0",
        extra={"npu_id": 2, "chip_id": 0, "physical_id": 8, "cores": 20, "uuid": DIE + "20"},
    )
    assert (second.index, second.uuid, second.pci, second.numa) == (1, RIGHT, "0000:d9:00.0", None)
    assert (second.visible, second.dev_nodes) == ("1", ("/dev/davinci9",))


def test_inventory_reads_no_metric(dcmi_root: Answer, tmp_path: Path) -> None:
    AscendProbe().inventory(dcmi_root("910b"))
    asked = (tmp_path / "dcmi.log").read_text()
    assert "dcmi_get_device_chip_info_v2" in asked
    assert [name for name in METRICS if name in asked] == []


def test_two_dies_of_a_card_are_two_devices_and_its_controller_is_none(dcmi_root: Answer) -> None:
    *dies, lost, other = sorted(AscendProbe().inventory(dcmi_root("a3")), key=lambda device: device.name)
    assert [(die.name, die.arch, die.pci, die.visible, die.extra["chip_id"]) for die in dies] == [
        ("Ascend 910", "910C", "0000:9d:00.0", "4", 0),
        ("Ascend 910", "910C", "0000:9f:00.0", "5", 1),
    ]
    assert {die.extra["soc"] for die in dies} == {"Ascend910_9391"}
    assert (lost.health, other.health) == (Health.NO_DRIVER, Health.NO_DRIVER)  # on the bus, but not listed


def test_two_chips_at_one_bus_address_have_two_identities(dcmi_root: Answer) -> None:
    chips = [device for device in AscendProbe().inventory(dcmi_root("310p")) if device.arch is not None]
    assert [(chip.arch, chip.pci, chip.visible) for chip in chips] == [
        ("310P3", "0000:01:00.0", "4"),
        ("310P3", "0000:01:00.0", "5"),
    ]
    assert len({chip.uuid for chip in chips}) == 2
    assert {chip.memory_bytes for chip in chips} == {21527 << 20}


def test_950_is_asked_through_the_second_interface(dcmi_root: Answer, tmp_path: Path) -> None:
    chips = [device for device in AscendProbe().inventory(dcmi_root("950")) if device.arch is not None]
    assert [(chip.name, chip.arch, chip.visible, chip.dev_nodes, chip.driver) for chip in chips] == [
        ("Ascend 950PR", "950", "0", ("/dev/davinci4",), None),
        ("Ascend 950PR", "950", "1", ("/dev/davinci5",), None),
    ]
    assert {chip.memory_bytes for chip in chips} == {65536 << 20}
    asked = (tmp_path / "dcmi.log").read_text().splitlines()
    assert asked[:2] == ["dcmi_init", "dcmiv2_init"]
    assert {name[:7] for name in asked[1:]} == {"dcmiv2_"}


def test_chip_without_physical_id_is_shown_but_not_offered(dcmi_root: Answer) -> None:
    good, lost = AscendProbe().inventory(dcmi_root("lost"))
    assert (good.health, good.visible) == (Health.OK, "0")
    assert (lost.health, lost.visible, lost.dev_nodes, lost.pci) == (Health.FAULTY, None, (), "0000:d9:00.0")
    assert "physical id of NPU 4 chip 0" in str(lost.reason)


def test_alarm_stops_new_work_and_a_warning_does_not(dcmi_root: Answer) -> None:
    root = dcmi_root("alarm")
    warned, alarmed = AscendProbe().inventory(root)
    assert (warned.health, warned.reason) == (Health.OK, None)
    assert alarmed.health is Health.FAULTY
    assert "the NPU says Alarm (errors 80E01801 00000C4F)" in str(alarmed.reason)
    assert [sample.reason for sample in AscendProbe().sample(root)] == [alarmed.reason, None]


def test_well_chip_is_not_asked_for_its_errors(dcmi_root: Answer, tmp_path: Path) -> None:
    AscendProbe().sample(dcmi_root("910b"))
    assert "errorcode" not in (tmp_path / "dcmi.log").read_text()


def test_card_that_is_not_listed_is_recorded(dcmi_root: Answer) -> None:
    root = dcmi_root("910b")
    third = root / "sys/bus/pci/devices/0000:c5:00.0"
    shutil.copytree(root / "sys/bus/pci/devices/0000:c1:00.0", third)
    (root / "sys/bus/pci/drivers/devdrv_device_driver").mkdir(parents=True)
    (third / "driver").symlink_to(root / "sys/bus/pci/drivers/devdrv_device_driver")
    (root / "dev").mkdir()
    for number in (8, 9):
        (root / f"dev/davinci{number}").touch()
    hidden = AscendProbe().inventory(root)[1]
    assert (hidden.pci, hidden.health) == ("0000:c5:00.0", Health.NO_DRIVER)
    assert "a container shows the cards that it was given" in str(hidden.reason)
    (root / "dev/davinci10").touch()
    devices = AscendProbe().inventory(root)
    assert [device.pci for device in devices] == ["0000:c1:00.0", "0000:c5:00.0", "0000:d9:00.0"]
    assert [device.index for device in devices] == [0, 1, 2]
    assert (devices[1].health, devices[1].visible) == (Health.FAULTY, None)
    assert "lists 2 of the cards but not this one" in str(devices[1].reason)


def test_chip_that_does_not_tell_its_address_for_now_gets_no_other_name(dcmi_root: Answer) -> None:
    root, probe = dcmi_root("resetting"), AscendProbe()
    left, right = probe.inventory(root)
    assert (left.uuid, left.health, right.uuid) == (LEFT, Health.OK, "PCI-0000-d9-00.0")
    assert "not ready" in str(right.reason)
    assert [sample.uuid for sample in probe.sample(root)] == [LEFT]


def test_chips_on_no_bus_are_named_by_their_cards(dcmi_root: Answer) -> None:
    root = dcmi_root("no_bus")
    devices = AscendProbe().inventory(root)
    assert [(device.uuid, device.pci) for device in devices] == [("NPU-card2-0", None), ("NPU-card4-0", None)]
    assert {sample.uuid for sample in AscendProbe().sample(root)} == {device.uuid for device in devices}


@pytest.mark.parametrize("other", ["0x1711", "0xa250"], ids=["display of the management processor", "compression"])
def test_other_parts_of_the_server_are_no_npu(make_tree: MakeTree, other: str) -> None:
    root = make_tree(("0000:05:00.0", "0x19e5", "0x120000" if other == "0xa250" else "0x030000", 0))
    (root / "sys/bus/pci/devices/0000:05:00.0/device").write_text(f"{other}\n")
    assert not AscendProbe().is_present(root)
    (root / "dev").mkdir()
    (root / "dev/davinci_manager").touch()
    assert AscendProbe().is_present(root), "a container may show the nodes only"


def test_sample_reads_what_a_chip_does(dcmi_root: Answer) -> None:
    samples = {sample.uuid: sample for sample in AscendProbe().sample(dcmi_root("910b"))}
    sample = samples[LEFT]
    assert (sample.memory_used_bytes, sample.memory_free_bytes) == (3413 << 20, (65536 - 3413) << 20)
    assert (sample.util_pct, sample.temp_c, sample.power_w, sample.ecc_uncorrected) == (37.0, 53.0, 91.3, 2)
    assert (sample.health, sample.reason) == (Health.OK, None)
    assert len(samples) == 2


def test_sample_of_a_card_of_two_dies_tells_its_power_once(dcmi_root: Answer) -> None:
    assert [sample.power_w for sample in AscendProbe().sample(dcmi_root("a3"))] == [91.3, None]


def test_metric_that_cannot_be_believed_is_none(dcmi_root: Answer) -> None:
    root = dcmi_root("split")
    sample, _ = AscendProbe().sample(root)
    assert (sample.util_pct, sample.temp_c, sample.power_w, sample.ecc_uncorrected) == (None, None, None, None)
    assert sample.uuid == RIGHT
    assert all("uuid" not in device.extra for device in AscendProbe().inventory(root)), "zeros are no die id"


def test_sample_of_chips_without_hbm_reads_their_ddr(dcmi_root: Answer) -> None:
    sample, _ = AscendProbe().sample(dcmi_root("310p"))
    assert (sample.memory_used_bytes, sample.memory_free_bytes) == (1527 << 20, 20000 << 20)


@pytest.mark.parametrize(
    ("scenario", "distance"),
    [("910b", Distance.LINK), ("a3", Distance.LINK), ("310p", None), ("old_topo", None), ("950", None)],
)
def test_topology_knows_links(dcmi_root: Answer, scenario: str, distance: Distance | None) -> None:
    root = dcmi_root(scenario)
    topology = AscendProbe().topology(root)
    uuids = sorted(device.uuid for device in AscendProbe().inventory(root) if device.arch is not None)
    assert topology.between(*uuids) is distance


async def test_children_find_the_library_on_the_loader_path(
    make_tree: MakeTree, fake_library: Callable[[str, str], Path]
) -> None:
    directory = str(fake_library("dcmi.c", "libdcmi.so"))
    environ = {**os.environ, "LD_LIBRARY_PATH": directory, "FAKE_DCMI": "910b"}
    root = make_tree(FIRST, SECOND)
    first, second, _ = await read_inventory(root=root, environ=environ, deadline_s=30)
    command = [sys.executable, "-c", SAMPLE, str(root)]
    child = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert set(child.stdout.split()) == {first.uuid, second.uuid}, child.stderr


@pytest.mark.parametrize(("scenario", "words"), [("hang", "did not answer within 4 s"), ("crash", "signal 11")])
async def test_library_that_hangs_or_crashes_costs_its_child(
    make_tree: MakeTree, fake_library: Callable[[str, str], Path], scenario: str, words: str
) -> None:
    directory = str(fake_library("dcmi.c", "libdcmi.so"))
    environ = {**os.environ, "LD_LIBRARY_PATH": directory, "FAKE_DCMI": scenario}
    npu, cpu = await read_inventory(root=make_tree(FIRST), environ=environ, deadline_s=4)
    assert (npu.health, cpu.vendor) == (Health.SILENT, Vendor.CPU)
    assert words in str(npu.reason)


def test_upgrade_under_way_is_said(dcmi_root: Answer) -> None:
    card, _ = AscendProbe().inventory(dcmi_root("upgrading"))
    assert card.health is Health.NO_DRIVER
    assert "an upgrade is under way" in str(card.reason)
    assert "npu-smi is not there" in str(card.reason), "all that was tried is told"


def test_nothing_installed_is_said(make_tree: MakeTree) -> None:
    (card,) = AscendProbe().inventory(make_tree(FIRST))
    assert (card.health, card.pci, card.memory_bytes) == (Health.NO_DRIVER, "0000:c1:00.0", None)
    assert "libdcmi.so" in str(card.reason)


def test_struct_layouts_are_those_of_the_header(fake_library: Callable[[str, str], Path]) -> None:
    structs = {
        "dcmi_chip_info_v2": ascend_structs.ChipInfo,
        "dcmi_pcie_info_all": ascend_structs.PcieInfo,
        "dcmi_die_id": ascend_structs.DieId,
        "dcmi_hbm_info": ascend_structs.HbmInfo,
        "dcmi_get_memory_info_stru": ascend_structs.MemoryInfo,
        "dcmi_ecc_info": ascend_structs.EccInfo,
    }
    told = read_layout(ctypes.CDLL(str(fake_library("dcmi.c", "libdcmi.so") / "libdcmi.so")))
    sizes = {name: size for name, size in told.items() if "." not in name}
    assert sizes == {
        "dcmi_chip_info_v2": 132,
        "dcmi_pcie_info_all": 64,  # the header says so in words
        "dcmi_die_id": 20,
        "dcmi_hbm_info": 32,
        "dcmi_get_memory_info_stru": 112,
        "dcmi_ecc_info": 28,
    }
    for name, n in told.items():
        struct, _, field = name.partition(".")
        ours = structs[struct]
        if field:
            assert getattr(ours, field).offset == n, name
        else:
            room = 36 if struct == "dcmi_ecc_info" else 0
            assert ctypes.sizeof(ours) == n + room, name


def read_layout(library: ctypes.CDLL) -> dict[str, int]:
    library.fake_layout.restype = ctypes.c_char_p
    told: dict[str, int] = {}
    n = ctypes.c_size_t()
    for index in range(1000):
        what = library.fake_layout(index, ctypes.byref(n))
        if what is None:
            return told
        told[what.decode()] = n.value
    raise AssertionError("the fake's layout has no end")


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("310", "310"),
        ("310B4", "310B4"),
        ("310P3", "310P3"),
        ("Ascend 310P1", "310P1"),
        ("910A", "910A"),
        ("910ProB", "910A"),
        ("910B", "910A"),  # the first generation's; the second has a digit
        ("910B3", "910B3"),
        ("Ascend910B2C", "910B2C"),
        ("910B4-1", "910B4-1"),
        ("Ascend910", "910C"),
        ("910_9391", "910C"),
        ("910_9579", "950"),
        ("Ascend950PR", "950"),
        ("910B3-vir10_3c_32g", "910B3"),
        ("910X", None),
        ("NPU", None),
    ],
)
def test_name_tells_the_architecture(name: str, architecture: str | None) -> None:
    assert architecture_of(name) == architecture


def answers(text: Text, layout: str) -> dict[str, str]:
    """Give what npu-smi prints on the host of a layout."""
    tables = {"910b2c": "23.0.3", "a3": "24.1.rc3.7", "950": "26.1"}
    version = tables[layout]
    return {
        "info": text(f"npu-smi-{version}-{layout}.txt"),
        "info -m": text(f"npu-smi-{version}-map-{layout}.txt"),
    }


def test_tool_tells_the_logic_ids_of_910b(make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Text) -> None:
    fake_tool.add("npu-smi", answers(device_fixture, "910b2c"), stderr="[WARNING] not completely installed")
    first, second = AscendProbe().inventory(
        make_tree(("0000:57:00.0", "0x19e5", "0x120000", 0), ("0000:d9:00.0", "0x19e5", "0x120000", 2))
    )
    assert (first.pci, first.visible, first.health) == ("0000:57:00.0", "1", Health.FAULTY)
    assert second == Device(
        vendor=Vendor.ASCEND,
        index=1,
        uuid="NPU-0000-d9-00.0-0",
        name="Ascend 910B2C",
        arch="910B2C",
        memory_bytes=65536 << 20,
        driver="23.0.3",
        pci="0000:d9:00.0",
        numa=2,
        visible="0",  # NPU 12 of the tool: its number is no answer to what the variable takes
        extra={"npu_id": 12, "chip_id": 0},
    )
    assert fake_tool.calls("npu-smi") == ["info -m", "info"]


def test_tool_tells_both_dies_of_a3(make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Text) -> None:
    fake_tool.add("npu-smi", answers(device_fixture, "a3"))
    root = make_tree(("0000:95:00.0", "0x19e5", "0x120000", 0))
    devices = AscendProbe().inventory(root)
    assert [(device.uuid, device.visible, device.dev_nodes, device.driver) for device in devices] == [
        ("NPU-0000-95-00.0-0", "0", ("/dev/davinci4",), "24.1.rc3.7"),
        ("NPU-0000-97-00.0-1", "1", ("/dev/davinci5",), "24.1.rc3.7"),
    ]
    samples = AscendProbe().sample(root)
    assert [(sample.uuid, sample.power_w, sample.util_pct) for sample in samples] == [
        ("NPU-0000-95-00.0-0", 176.3, 0.0),
        ("NPU-0000-97-00.0-1", None, 60.0),
    ]


def test_npu_id_of_950_is_the_logic_id(make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Text) -> None:
    fake_tool.add("npu-smi", answers(device_fixture, "950"))
    root = make_tree(("0000:11:00.0", "0x19e5", "0x120000", 0))
    devices = AscendProbe().inventory(root)
    assert [(device.uuid, device.visible, device.arch, device.dev_nodes) for device in devices] == [
        ("NPU-0000-11-00.0-0", "0", "950", ("/dev/davinci6",)),
        ("NPU-card1-0", "1", "950", ("/dev/davinci7",)),  # on no PCI bus
    ]
    first, second = AscendProbe().sample(root)
    assert (first.util_pct, first.memory_used_bytes, first.health) == (12.0, 3120 << 20, Health.OK)
    assert second.health is None, "UNKNOWN is not OK"


def test_unknown_table_is_made_up_for_by_keys(make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Text) -> None:
    board = device_fixture("npu-smi-24.1.rc3.7-board-a3.txt")
    known = answers(device_fixture, "a3")
    fake_tool.add(
        "npu-smi",
        {
            **known,
            "info": known["info"].replace("Bus-Id", "Bus-Nr"),
            "info -t usages -i 2": device_fixture("npu-smi-24.1.rc3.7-usages-a3.txt"),
            "info -t board -i 2 -c 0": board.replace("0000:97", "0000:95"),
            "info -t board -i 2 -c 1": board,
        },
    )
    root = make_tree(("0000:95:00.0", "0x19e5", "0x120000", 0))
    devices = AscendProbe().inventory(root)
    assert [(device.pci, device.visible, device.memory_bytes) for device in devices] == [
        ("0000:95:00.0", "0", 65536 << 20),
        ("0000:97:00.0", "1", 65536 << 20),
    ]
    with pytest.raises(ToolError, match=r"libdcmi\.so.*npu-smi"):
        AscendProbe().sample(root)


def test_chip_that_a_cut_table_lacks_is_asked_for_by_keys(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Text
) -> None:
    known = answers(device_fixture, "a3")
    second = known["info"].index("| 2     Ascend910           | OK            | -")
    known["info"] = known["info"][:second]
    root = make_tree(*((f"0000:{bus}:00.0", "0x19e5", "0x120000", 0) for bus in ("95", "97")))
    (root / "dev").mkdir()
    for number in (4, 5):
        (root / f"dev/davinci{number}").touch()
    fake_tool.add("npu-smi", known)
    first, second_die = AscendProbe().inventory(root)
    assert (first.uuid, first.health, second_die.uuid) == ("NPU-0000-95-00.0-0", Health.OK, "PCI-0000-97-00.0")
    keys = {
        "info -t usages -i 2": device_fixture("npu-smi-24.1.rc3.7-usages-a3.txt"),
        "info -t board -i 2 -c 1": device_fixture("npu-smi-24.1.rc3.7-board-a3.txt"),
    }
    fake_tool.add("npu-smi", {**known, **keys})
    assert [(device.uuid, device.visible) for device in AscendProbe().inventory(root)] == [
        ("NPU-0000-95-00.0-0", "0"),
        ("NPU-0000-97-00.0-1", "1"),
    ]


def test_950_is_not_asked_for_a_chip_of_a_card(make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Text) -> None:
    known = answers(device_fixture, "950")
    usages = device_fixture("npu-smi-24.1.rc3.7-usages-a3.txt")
    board = device_fixture("npu-smi-24.1.rc3.7-board-a3.txt")
    keys = {f"info -t usages -i {card}": usages for card in (0, 1)}
    keys |= {f"info -t board -i {card}": board.replace(":97:", f":1{card}:") for card in (0, 1)}
    fake_tool.add("npu-smi", {**known, "info": "another table", **keys})
    devices = AscendProbe().inventory(make_tree(("0000:10:00.0", "0x19e5", "0x120000", 0)))
    assert [(device.pci, device.visible) for device in devices] == [("0000:10:00.0", "0"), ("0000:11:00.0", "1")]


def test_tool_tells_the_topology(make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Text) -> None:
    topology = device_fixture("npu-smi-24.1.rc3.7-topo-a3.txt")
    fake_tool.add("npu-smi", {**answers(device_fixture, "a3"), "info -t topo": topology})
    root, probe = make_tree(), AscendProbe()
    found = probe.topology(root)
    assert found.between("NPU-0000-95-00.0-0", "NPU-0000-97-00.0-1") is Distance.LINK
    assert probe.topology(root) == found
    assert fake_tool.calls("npu-smi") == ["info -m", "info", "info -t topo", "info -t topo"], (
        "the cards are listed once"
    )


@pytest.mark.parametrize("failure", FAILURES)
def test_failing_tool_is_named(
    failure: Failure, make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Text
) -> None:
    fake_tool.add("npu-smi", answers(device_fixture, "a3"), failure=failure)
    with pytest.raises(ToolError, match="npu-smi"):
        ascend_tool.read_cards(make_tree(), msgspec.structs.replace(ascend_tool.TOOL, timeout_s=0.3))


def test_310p_table_has_no_hbm(device_fixture: Text) -> None:
    listing = ascend_layouts.parse_table(device_fixture("npu-smi-22.0.4-310p3.txt"))
    assert listing.driver == "22.0.4"
    assert [(row.npu_id, row.chip_id, row.pci, row.power_w, row.temp_c) for row in listing.rows] == [
        (32768, 0, "0000:81:00.0", None, 49.0),
        (32768, 1, "0000:81:00.0", None, 45.0),
    ]
    assert [row.memory_total_bytes for row in listing.rows] == [44278 << 20, 43693 << 20]
    assert [row.condition.health for row in listing.rows] == [Health.OK, Health.OK]


TABLES = ["npu-smi-23.0.3-910b2c.txt", "npu-smi-24.1.rc3.7-a3.txt", "npu-smi-22.0.4-310p3.txt", "npu-smi-26.1-950.txt"]
MAPS = ["npu-smi-23.0.3-map-910b2c.txt", "npu-smi-24.1.rc3.7-map-a3.txt", "npu-smi-26.1-map-950.txt"]
TOPOLOGIES = [
    "npu-smi-24.1.rc1-topo-910b3.txt",
    "npu-smi-24.1.rc3.7-topo-a3.txt",
    "npu-smi-26.1-topo-950.txt",
]


@pytest.mark.parametrize("respace", RESPACINGS)
@pytest.mark.parametrize("name", TABLES)
def test_columns_of_the_table_may_move(name: str, respace: Damage, device_fixture: Text) -> None:
    text = device_fixture(name)
    assert ascend_layouts.parse_table(respace(text)) == ascend_layouts.parse_table(text)


@pytest.mark.parametrize("damage", damages("Bus-Id", "NPU", "Name", "Health", "Memory-Usage(MB)"))
@pytest.mark.parametrize("name", TABLES)
def test_damaged_table_is_refused(name: str, damage: Damage, device_fixture: Text) -> None:
    with pytest.raises(FormatError, match="npu-smi"):
        ascend_layouts.parse_table(damage(device_fixture(name)))


@pytest.mark.parametrize("name", TABLES)
def test_truncated_table_is_refused(name: str, device_fixture: Text) -> None:
    text = device_fixture(name).partition("| NPU     Chip ")[0]
    with pytest.raises(FormatError, match="npu-smi"):
        ascend_layouts.parse_table(truncate(text))


@pytest.mark.parametrize("respace", RESPACINGS)
@pytest.mark.parametrize("name", MAPS)
def test_columns_of_the_mapping_may_move(name: str, respace: Damage, device_fixture: Text) -> None:
    text = device_fixture(name)
    assert ascend_layouts.parse_mapping(respace(text)) == ascend_layouts.parse_mapping(text)


@pytest.mark.parametrize("damage", damages("NPU ID", "Chip ID", "Chip Name"))
@pytest.mark.parametrize("name", MAPS)
def test_damaged_mapping_is_refused(name: str, damage: Damage, device_fixture: Text) -> None:
    with pytest.raises(FormatError, match="npu-smi"):
        ascend_layouts.parse_mapping(damage(device_fixture(name)))


@pytest.mark.parametrize(
    ("name", "word"), [(MAPS[0], "Chip Logic ID"), (MAPS[1], "Chip Logic ID"), (MAPS[2], "Slot ID")]
)
def test_mapping_without_logic_ids_is_refused(name: str, word: str, device_fixture: Text) -> None:
    with pytest.raises(FormatError, match="unknown header"):
        ascend_layouts.parse_mapping(device_fixture(name).replace(word, "Chip Nr"))


def test_mapping_leaves_out_controllers_and_keeps_what_has_no_physical_id(device_fixture: Text) -> None:
    text = device_fixture(MAPS[1])
    assert [(entry.logic_id, entry.physical_id) for entry in ascend_layouts.parse_mapping(text)] == [(0, 4), (1, 5)]
    row = next(line for line in text.splitlines() if line.split()[:2] == ["2", "1"])
    dashed = row.replace("5 ", "- ")
    entries = ascend_layouts.parse_mapping(text.replace(row, dashed))
    assert [(entry.physical_id, entry.has_physical_id) for entry in entries] == [(4, True), (None, True)]


def test_chip_whose_physical_id_is_a_dash_is_not_offered(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Text
) -> None:
    known = answers(device_fixture, "a3")
    row = next(line for line in known["info -m"].splitlines() if line.split()[:2] == ["2", "1"])
    fake_tool.add("npu-smi", {**known, "info -m": known["info -m"].replace(row, row.replace("5 ", "- "))})
    good, lost = AscendProbe().inventory(make_tree(("0000:95:00.0", "0x19e5", "0x120000", 0)))
    assert (good.visible, good.health) == ("0", Health.OK)
    assert (lost.visible, lost.health) == (None, Health.FAULTY)


def test_truncated_mapping_is_refused(device_fixture: Text) -> None:
    with pytest.raises(FormatError, match="does not fit its header"):
        ascend_layouts.parse_mapping(truncate(device_fixture(MAPS[0])))


def test_topology_table_tells_every_kind(device_fixture: Text) -> None:
    links = ascend_layouts.parse_topology(device_fixture(TOPOLOGIES[0]))
    assert [(link.first, link.second, link.distance) for link in links] == [
        ("NPU0", "NPU1", Distance.LINK),
        ("NPU0", "NPU2", Distance.SYS),
        ("NPU0", "NPU3", Distance.PHB),
        ("NPU1", "NPU2", Distance.PXB),
        ("NPU2", "NPU3", Distance.PIX),
    ]
    (link,) = ascend_layouts.parse_topology(device_fixture(TOPOLOGIES[2]))
    assert (link.first, link.second, link.distance) == ("NPU0", "NPU1", Distance.LINK)


@pytest.mark.parametrize("respace", RESPACINGS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_columns_of_the_topology_may_move(name: str, respace: Damage, device_fixture: Text) -> None:
    text = device_fixture(name)
    assert ascend_layouts.parse_topology(respace(text)) == ascend_layouts.parse_topology(text)


@pytest.mark.parametrize("damage", damages("NPU0", "HCCS", "CPU Affinity"))
def test_damaged_topology_is_refused(damage: Damage, device_fixture: Text) -> None:
    with pytest.raises(FormatError, match="npu-smi"):
        ascend_layouts.parse_topology(damage(device_fixture(TOPOLOGIES[0])))


def test_topology_without_its_last_row_is_refused(device_fixture: Text) -> None:
    text = device_fixture(TOPOLOGIES[0])
    without = "\n".join(line for line in text.splitlines() if not line.startswith("NPU3"))
    with pytest.raises(FormatError, match="3 rows for 4 columns"):
        ascend_layouts.parse_topology(without)


@pytest.mark.parametrize("respace", RESPACINGS)
def test_columns_of_keys_may_move(respace: Damage, device_fixture: Text) -> None:
    usages = device_fixture("npu-smi-24.1.rc3.7-usages-a3.txt")
    board = device_fixture("npu-smi-24.1.rc3.7-board-a3.txt")
    told = ascend_layouts.parse_usages(respace(usages))
    assert told == ascend_layouts.parse_usages(usages)
    assert (told[0]["Aicore Usage Rate(%)"], told[1]["Aicore Usage Rate(%)"]) == (7.0, None)
    assert ascend_layouts.parse_board(respace(board)) == ascend_layouts.parse_board(board) == "0000:97:00.0"


@pytest.mark.parametrize("damage", damages("Capacity(MB)", "Chip ID"))
def test_damaged_usages_are_refused(damage: Damage, device_fixture: Text) -> None:
    with pytest.raises(FormatError, match="npu-smi"):
        ascend_layouts.parse_usages(damage(device_fixture("npu-smi-24.1.rc3.7-usages-a3.txt")))


@pytest.mark.parametrize("damage", damages("Chip Name"))
def test_damaged_board_is_refused(damage: Damage, device_fixture: Text) -> None:
    with pytest.raises(FormatError, match="npu-smi"):
        ascend_layouts.parse_board(damage(device_fixture("npu-smi-24.1.rc3.7-board-a3.txt")))
