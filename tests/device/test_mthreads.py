"""The Moore Threads probe through a fake C library (fake/mtml.c) and a fake mthreads-gmi.

Proves our calls, our reading of structs and texts, and what is refused; not how a real card, library or tool behaves.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.device.fake_tool import FakeTools
from tests.device.mutations import FAILURES, RESPACINGS, Damage, Failure, damages, reorder_json, truncate_json
from xinf.agent.condition import Condition
from xinf.core.device import Distance, Health, Vendor
from xinf.device import read_inventory
from xinf.device.mthreads import MthreadsProbe
from xinf.device.mthreads_library import LinkLayout, LinkSpec, PciInfo, Property
from xinf.device.mthreads_tool import parse_json, parse_table
from xinf.device.reading import Reading
from xinf.device.roster import Card
from xinf.device.tool import FormatError, ToolError

LATER = ("0000:2a:00.0", "0x1ed5", "0x030200", 1)
EARLIER = ("0000:18:00.0", "0x1ed5", "0x030200", 0)
JSON, TABLE = "mthreads-gmi-2.3.2-s5000.json", "mthreads-gmi-2.4.1-s5000.txt"
TABLES = {
    "mthreads-gmi-1.14.0-s80.txt": [("MTT S80", "mp_21", "2.7.0", 16384, 2, 0.0, 49.0)],
    "mthreads-gmi-2.0.0-s80.txt": [("MTT S80", "mp_21", "3.0.0", 16384, 662, 3.0, 41.0)],
    "mthreads-gmi-2.3.2-s5000.txt": [("MTT S5000", "mp_31", "3.3.5-server", 81920, 0, 0.0, 40.0)],
    "mthreads-gmi-2.3.2-ecc-s5000.txt": [
        ("MTT S5000", "mp_31", "3.3.5-server", 81920, 66641, 0.0, 52.0),
        ("MTT S5000", "mp_31", "3.3.5-server", 81920, 10, 0.0, 51.0),
    ],
    TABLE: [
        ("MTT S5000", "mp_31", "5.1.0-server", 81920, 8192, 75.0, 48.0),
        ("MTT S5000", "mp_31", "5.1.0-server", 81920, 0, 0.0, 39.0),
    ],
}
LEFT, RIGHT = "MUSA-0000-18-00.0", "MUSA-0000-2a-00.0"
UUID = "7de4d75b-0000-0000-0000-00000000000"
LIBRARY = "usr/lib/x86_64-linux-gnu/libmtml.so.2"
Fixture = Callable[[str], str]
MakeTree = Callable[..., Path]
WithLibrary = Callable[[str], Path]
LAYOUT = {
    "MtmlPciInfo": 104,
    "MtmlPciInfo.segment": 32,
    "MtmlPciInfo.pciSubsystemId": 48,
    "MtmlPciInfo.busWidth": 52,
    "MtmlPciInfo.pciMaxSpeed": 56,
    "MtmlPciInfo.rsvd": 80,
    "MtmlDeviceProperty": 8,
    "MtmlMtLinkLayout": 24,
    "MtmlMtLinkLayout.remoteLinkId": 4,
    "MtmlMtLinkLayout.rsvd": 8,
    "MtmlMtLinkSpec": 28,  # as test_abi_layout.py of MooreThreads/mthreads-ml-py has it
    "MtmlMtLinkSpec.linkNum": 8,
}


@pytest.fixture
def with_library(
    make_tree: MakeTree, fake_library: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> WithLibrary:
    """Make a root with two cards and a libmtml of its own that answers as a scenario says."""

    def make(scenario: str) -> Path:
        monkeypatch.setenv("FAKE_MTML", scenario)
        root = make_tree(*((EARLIER,) if scenario == "mpc" else (LATER, EARLIER)))
        (root / LIBRARY).parent.mkdir(parents=True)
        shutil.copy(fake_library("mtml.c", "libmtml.so.2") / "libmtml.so.2", root / LIBRARY)
        return root

    return make


def calls(root: Path, name: str) -> int:
    return int(ctypes.CDLL(str(root / LIBRARY)).fake_calls(name.encode()))


def test_cards_are_in_bus_order_and_keep_the_librarys_index(with_library: WithLibrary) -> None:
    first, second = MthreadsProbe().inventory(with_library("s5000"))
    assert (first.index, first.pci, first.visible, first.uuid) == (0, "0000:18:00.0", "1", LEFT)
    assert (second.index, second.pci, second.visible, second.uuid) == (1, "0000:2a:00.0", "0", RIGHT)
    assert (second.name, second.arch, second.driver) == ("MTT S5000", "mp_31", "3.3.5-server")
    assert (second.memory_bytes, second.numa, second.health) == (81920 << 20, 1, Health.OK)
    assert second.dev_nodes == ("/dev/mtgpu.0", "/dev/dri/renderD128")
    assert (first.extra, second.extra) == ({"uuid": f"{UUID}1"}, {"uuid": f"{UUID}0"})


def test_inventory_asks_no_metric(with_library: WithLibrary) -> None:
    root = with_library("s5000")
    MthreadsProbe().inventory(root)
    metrics = (
        *("mtmlMemoryGetUsed", "mtmlGpuGetUtilization", "mtmlGpuGetTemperature"),
        *("mtmlDeviceGetPowerUsage", "mtmlMemoryGetEccErrorCounter"),
    )
    assert [calls(root, name) for name in metrics] == [0, 0, 0, 0, 0]


def test_sample_reads_the_units_of_each_call(with_library: WithLibrary) -> None:
    first, second = MthreadsProbe().sample(with_library("s5000"))
    assert (first.uuid, first.memory_used_bytes, first.memory_free_bytes) == (
        RIGHT,
        1428 << 20,
        (81920 - 1428) << 20,
    )
    assert (first.util_pct, first.temp_c, first.power_w, first.ecc_uncorrected) == (75.0, 48.0, 96.66, 3)
    assert (second.power_w, second.health) == (None, Health.OK)


def test_library_is_started_once_and_handles_are_kept(with_library: WithLibrary) -> None:
    root, probe = with_library("s5000"), MthreadsProbe()
    for _ in range(3):
        assert len(probe.sample(root)) == 2
    assert len(probe.inventory(root)) == 2
    assert probe.topology(root).pairs
    assert (calls(root, "mtmlLibraryInit"), calls(root, "mtmlLibraryShutDown")) == (1, 0)
    assert (calls(root, "mtmlLibraryInitDeviceByIndex"), calls(root, "mtmlDeviceInitGpu")) == (2, 2)


def test_card_of_which_nothing_is_answered_is_faulty(with_library: WithLibrary) -> None:
    samples = MthreadsProbe().sample(with_library("lost"))
    assert {sample.health for sample in samples} == {Health.FAULTY}
    assert "the driver cannot be reached" in str(samples[0].reason)
    assert (samples[0].util_pct, samples[0].memory_used_bytes, samples[0].memory_free_bytes) == (None, None, None)


def test_card_that_answers_again_is_well(with_library: WithLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    root, probe = with_library("lost"), MthreadsProbe()
    condition = Condition(probe.inventory(root))
    seen: list[set[Health]] = []
    for scenario in ("lost", "s5000", "s5000"):  # what is better counts after a calm time
        monkeypatch.setenv("FAKE_MTML", scenario)
        condition.take(Reading(vendor=Vendor.MTHREADS, samples=probe.sample(root)))
        seen.append({device.health for device in condition.mark(3600.0 * len(seen))})
    assert (seen[0], seen[2]) == ({Health.FAULTY}, {Health.OK})


def test_unopened_card_does_not_hide_the_other(with_library: WithLibrary) -> None:
    root, probe = with_library("half"), MthreadsProbe()
    lost, good = probe.inventory(root)
    assert (lost.pci, lost.health, lost.visible) == ("0000:18:00.0", Health.NO_DRIVER, None)
    assert "device 1: mtmlLibraryInitDeviceByIndex: the driver cannot be reached" in str(lost.reason)
    assert (good.health, len(probe.sample(root))) == (Health.OK, 1)


def test_instances_of_a_divided_card_name_their_parent(with_library: WithLibrary) -> None:
    parent, *instances = MthreadsProbe().inventory(with_library("mpc"))
    assert (parent.uuid, parent.visible, parent.extra["mpc"], parent.parent) == (LEFT, None, "parent", None)
    assert [(found.index, found.uuid, found.visible, found.parent) for found in instances] == [
        (1, f"{LEFT}-mpc0", "1", LEFT),
        (2, f"{LEFT}-mpc1", "2", LEFT),
    ]


def test_slice_of_a_virtual_machine_is_not_ours(with_library: WithLibrary) -> None:
    root, probe = with_library("vgpu"), MthreadsProbe()
    unlisted, card = probe.inventory(root)
    assert (card.uuid, unlisted.health) == (RIGHT, Health.NO_DRIVER)
    assert [sample.uuid for sample in probe.sample(root)] == [RIGHT]
    assert probe.topology(root).pairs == ()


@pytest.mark.parametrize(
    ("scenario", "distance"),
    [
        ("s5000", Distance.LINK),
        ("unrelated", Distance.LINK),
        ("wired", Distance.NODE),
        ("linkless", Distance.NODE),
    ],
)
def test_link_that_is_up_is_the_shortest_way(with_library: WithLibrary, scenario: str, distance: Distance) -> None:
    topology = MthreadsProbe().topology(with_library(scenario))
    assert topology.pairs == ((LEFT, RIGHT, distance),)


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("version9", "libmtml says version '9.0.0'; layouts are known of 1.x and 2.x"),
        ("garbled", "gives the address '', so its layout is not known"),
        ("not_loaded", "the Moore Threads driver is not loaded: run `modprobe mtgpu`"),
    ],
)
def test_refused_library_gives_way_to_the_tool(
    with_library: WithLibrary, fake_tool: FakeTools, device_fixture: Fixture, scenario: str, words: str
) -> None:
    root = with_library(scenario)
    bare = MthreadsProbe().inventory(root)
    assert {device.health for device in bare} == {Health.NO_DRIVER}
    assert all(words in str(device.reason) and "mthreads-gmi is not there" in str(device.reason) for device in bare)
    fake_tool.add("mthreads-gmi", {"-q --json": device_fixture(JSON)})
    probe = MthreadsProbe()
    assert [(device.pci, device.visible, device.health) for device in probe.inventory(root)] == [
        ("0000:18:00.0", "1", Health.OK),
        ("0000:2a:00.0", "0", Health.OK),
    ]
    assert [sample.util_pct for sample in probe.sample(root)] == [75.0, None]


def test_refusal_is_kept(with_library: WithLibrary) -> None:
    root, probe = with_library("not_loaded"), MthreadsProbe()
    for _ in range(2):
        with pytest.raises(ToolError, match="mthreads-gmi is not there"):
            probe.sample(root)
    assert probe.topology(root).pairs == ()
    assert calls(root, "mtmlLibraryInit") == 1


def test_structs_are_laid_out_as_the_compiler_does(fake_library: Callable[[str, str], Path]) -> None:
    library = ctypes.CDLL(str(fake_library("mtml.c", "libmtml.so.2") / "libmtml.so.2"))
    assert {name: library.fake_layout(name.encode()) for name in LAYOUT} == LAYOUT
    ours = {
        "MtmlPciInfo": ctypes.sizeof(PciInfo),
        "MtmlPciInfo.segment": PciInfo.segment.offset,
        "MtmlPciInfo.pciSubsystemId": PciInfo.pci_subsystem_id.offset,
        "MtmlPciInfo.busWidth": PciInfo.bus_width.offset,
        "MtmlPciInfo.pciMaxSpeed": PciInfo.max_speed.offset,
        "MtmlPciInfo.rsvd": PciInfo.reserved.offset,
        "MtmlDeviceProperty": ctypes.sizeof(Property),
        "MtmlMtLinkLayout": ctypes.sizeof(LinkLayout),
        "MtmlMtLinkLayout.remoteLinkId": LinkLayout.remote_link.offset,
        "MtmlMtLinkLayout.rsvd": LinkLayout.reserved.offset,
        "MtmlMtLinkSpec": ctypes.sizeof(LinkSpec),
        "MtmlMtLinkSpec.linkNum": LinkSpec.n_links.offset,
    }
    assert ours == LAYOUT


def test_bits_are_packed_as_the_compiler_does(fake_library: Callable[[str, str], Path]) -> None:
    library, kind = ctypes.CDLL(str(fake_library("mtml.c", "libmtml.so.2") / "libmtml.so.2")), Property()
    library.fake_property(ctypes.byref(kind), 5, 6, 1)
    assert (kind.virtual_role, kind.mpc_type, kind.can_mtlink) == (5, 6, 1)
    assert (kind.can_virtualize, kind.can_mpc, kind.reserved) == (0, 0, 0)


def test_json_is_read_by_its_keys(device_fixture: Fixture) -> None:
    first, second = parse_json(device_fixture(JSON))
    assert first == Card(
        pci="0000:2a:00.0",
        number=0,
        uuid=RIGHT,
        name="MTT S5000",
        arch="mp_31",
        memory_bytes=81920 << 20,
        driver="3.3.5-server",
        extra={"uuid": "399282a8-0000-1475-893c-2eeca9e30001"},
        used_bytes=1024 << 20,
        free_bytes=80896 << 20,
        util_pct=75.0,
        temp_c=27.0,
        power_w=96.66,
    )
    assert (second.pci, second.memory_bytes) == ("0000:18:00.0", 80 << 30)  # GiB, and the bus under its other name
    assert (second.util_pct, second.temp_c, second.power_w) == (None, None, None)


def test_json_may_be_written_otherwise(device_fixture: Fixture) -> None:
    text = device_fixture(JSON)
    assert parse_json(reorder_json(text)) == parse_json(text)
    assert parse_json(text.replace('"Power Draw "', '"Power Draw"')) == parse_json(text)


@pytest.mark.parametrize(
    "damage",
    [*damages('"GPU"', "Index", "Product Name", "Bus ID", "FB Memory Usage", "Total"), truncate_json],
)
def test_damaged_json_is_refused(damage: Damage, device_fixture: Fixture) -> None:
    with pytest.raises(FormatError, match="mthreads-gmi -q --json"):
        parse_json(damage(device_fixture(JSON)))


@pytest.mark.parametrize(("value", "instead"), [("81920MiB", "81920"), ("75%", "busy"), ("96.66W", "96.66kW")])
def test_strange_value_is_refused_by_its_key(device_fixture: Fixture, value: str, instead: str) -> None:
    with pytest.raises(FormatError, match=r"mthreads-gmi -q --json: `.+/.+` is"):
        parse_json(device_fixture(JSON).replace(f'"{value}"', f'"{instead}"'))


def sizes_mib(card: Card) -> tuple[int, int]:
    assert card.memory_bytes is not None
    assert card.used_bytes is not None
    return card.memory_bytes >> 20, card.used_bytes >> 20


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_all_versions_are_read(device_fixture: Fixture, name: str) -> None:
    cards = parse_table(device_fixture(name))
    assert [
        (card.name, card.arch, card.driver, *sizes_mib(card), card.util_pct, card.temp_c) for card in cards
    ] == TABLES[name]
    assert [card.pci for card in cards] == ["0000:2a:00.0", "0000:18:00.0"][: len(cards)]


@pytest.mark.parametrize("respace", RESPACINGS)
@pytest.mark.parametrize("name", TABLES)
def test_columns_may_move(respace: Damage, name: str, device_fixture: Fixture) -> None:
    assert parse_table(respace(device_fixture(name))) == parse_table(device_fixture(name))


def cut_in_a_card(text: str) -> str:
    return text[: text.index("16x(16x)") + 3]


@pytest.mark.parametrize(
    "damage", [*damages("mthreads-gmi", "Driver Version", "Name", "%GPU", "Temp", "Pcie Lane Width"), cut_in_a_card]
)
def test_damaged_table_is_refused(damage: Damage, device_fixture: Fixture) -> None:
    with pytest.raises(FormatError, match="mthreads-gmi"):
        parse_table(damage(device_fixture(TABLE)))


def test_table_is_read_when_the_tool_knows_no_json(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Fixture
) -> None:
    fake_tool.add("mthreads-gmi", {"-q --json": "unknown option --json\n", "": device_fixture(TABLE)}, stderr="noise")
    root = make_tree(LATER, EARLIER)
    first, second = MthreadsProbe().inventory(root)
    assert fake_tool.calls("mthreads-gmi") == ["-q --json", ""]
    assert (first.pci, first.visible, first.uuid) == ("0000:18:00.0", "1", LEFT)
    assert {sample.uuid for sample in MthreadsProbe().sample(root)} == {first.uuid, second.uuid}


def test_card_behind_the_end_of_a_cut_table_is_silent_and_not_lost(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Fixture
) -> None:
    root = make_tree(LATER, EARLIER)
    (root / "dev").mkdir()
    (root / "sys/bus/pci/drivers/mtgpu").mkdir(parents=True)
    for number, (address, *_) in enumerate((LATER, EARLIER)):
        (root / f"dev/mtgpu.{number}").touch()
        (root / f"sys/bus/pci/devices/{address}/driver").symlink_to(root / "sys/bus/pci/drivers/mtgpu")
    text, json_text = device_fixture(TABLE), device_fixture(JSON)
    fake_tool.add("mthreads-gmi", {"": text[: text.index("1    MTT S5000")]})
    untold, told = MthreadsProbe().inventory(root)
    assert (told.pci, told.health, untold.pci, untold.health) == (LATER[0], Health.OK, EARLIER[0], Health.SILENT)
    assert "the tool told of 1 cards where 2 have a node /dev/mtgpu.N" in str(untold.reason)
    # JSON that is read is whole: what it does not list, the driver does not have.
    answer = json.loads(json_text)
    fake_tool.add("mthreads-gmi", {"-q --json": json.dumps({**answer, "GPU": answer["GPU"][:1]})})
    lost, _ = MthreadsProbe().inventory(root)
    assert lost.health is Health.FAULTY


@pytest.mark.parametrize("failure", FAILURES)
def test_failing_tool_is_named(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Fixture, failure: Failure
) -> None:
    fake_tool.add("mthreads-gmi", {"-q --json": device_fixture(JSON), "": device_fixture(TABLE)}, failure=failure)
    root, probe = make_tree(LATER), MthreadsProbe(timeout_s=0.3)
    (card,) = probe.inventory(root)
    assert (card.health, card.vendor) == (Health.NO_DRIVER, Vendor.MTHREADS)
    assert "libmtml" in str(card.reason)
    assert "mthreads-gmi" in str(card.reason)
    with pytest.raises(ToolError, match="mthreads-gmi"):
        probe.sample(root)


def test_nothing_is_asked_without_a_card(make_tree: MakeTree) -> None:
    assert not MthreadsProbe().is_present(make_tree(("0000:1b:00.0", "0x10de", "0x030200", 0)))


async def test_child_reads_the_library_on_the_loaders_path(
    make_tree: MakeTree, fake_library: Callable[[str, str], Path]
) -> None:
    directory = fake_library("mtml.c", "libmtml.so.2")
    environ = {**os.environ, "LD_LIBRARY_PATH": str(directory), "FAKE_MTML": "s5000"}
    root = make_tree(LATER, EARLIER)
    devices = await read_inventory(root=root, environ=environ, deadline_s=30)
    assert [device.selector for device in devices] == ["musa:0", "musa:1", "cpu"]
