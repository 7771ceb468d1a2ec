"""The Kunlunxin probe through a fake C library (fake/xpuml.c) and a fake xpu-smi.

Proves our calls, our reading of structs and texts, and what is refused; not how a real card, library or tool behaves.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.device.fake_tool import FakeTools
from tests.device.mutations import FAILURES, RESPACINGS, Damage, Failure, damages, truncate
from xinf.core.device import Distance, Health, Vendor
from xinf.device import read_inventory
from xinf.device.kunlunxin import KunlunxinProbe
from xinf.device.kunlunxin_library import MemoryInfo, PciInfo, ProcessInfo, Utilization
from xinf.device.kunlunxin_tool import parse_machine, parse_query, parse_table, parse_topology
from xinf.device.roster import Card
from xinf.device.tool import FormatError, ToolError

LATER = ("0000:52:00.0", "0x1d22", "0x120000", 1)
EARLIER = ("0000:03:00.0", "0x1d22", "0x120000", 0)
QUERY, MACHINE = "xpu-smi-5.0.21.26-p800-query.txt", "xpu-smi-5.0.21.26-p800-machine.txt"
TOPOLOGY = "xpu-smi-5.0.21.47-topo-p800.txt"
TABLE, IN_CONTAINER = "xpu-smi-5.0.21.26-p800.txt", "xpu-smi-515.58-p800.txt"
LEFT, RIGHT = "KUNLUN-0000-03-00.0", "KUNLUN-0000-52-00.0"
UUID = "GPU-420716f2-0000-5108-a5b2-e6b7cf36000"
Fixture = Callable[[str], str]
MakeTree = Callable[..., Path]
WithLibrary = Callable[[str], Path]
LAYOUT = {
    "xpumlPciInfo_t": 128,
    "xpumlPciInfo_t.pciDeviceId": 16,
    "xpumlPciInfo_t.busId": 24,
    "xpumlPciInfo_t.reserved": 56,
    "xpumlMemory_t": 128,
    "xpumlMemory_t.totalGlobalMemory": 8,
    "xpumlMemory_t.usedGlobalMemory": 24,
    "xpumlMemory_t.reserved": 64,
    "xpumlUtilization_t": 128,
    "xpumlUtilization_t.reserved": 8,
    "xpumlProcessInfo_t": 128,
    "xpumlProcessInfo_t.usedGlobalMemory": 8,
    "xpumlProcessInfo_t.root_ns_pid": 24,
    "xpumlProcessInfo_t.reserved": 32,
}


@pytest.fixture
def with_library(
    make_tree: MakeTree, fake_library: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> WithLibrary:
    """Make a root with two cards and a libxpuml of its own that answers as a scenario says."""

    def make(scenario: str) -> Path:
        monkeypatch.setenv("FAKE_XPUML", scenario)
        root = make_tree(LATER, EARLIER)
        (root / "usr/local/xpu/lib64").mkdir(parents=True)
        made = fake_library("xpuml.c", "libxpuml.so.1") / "libxpuml.so.1"
        shutil.copy(made, root / "usr/local/xpu/lib64/libxpuml.so.1")
        return root

    return make


def test_library_lists_the_cards_in_bus_order(with_library: WithLibrary) -> None:
    first, second = KunlunxinProbe().inventory(with_library("p800"))
    assert (first.index, first.uuid, first.pci, first.visible) == (0, LEFT, "0000:03:00.0", "1")
    assert (second.index, second.uuid, second.pci, second.visible) == (1, RIGHT, "0000:52:00.0", "0")
    assert (second.name, second.arch, second.memory_bytes) == ("P800 OAM", "P800", 98304 << 20)
    assert (second.driver, second.numa, second.health) == ("5.0.21.26", 1, Health.OK)
    assert (second.dev_nodes, second.extra) == (("/dev/xpu0",), {"serial": "02K15K624CV99901"})


def test_library_samples_the_cards(with_library: WithLibrary) -> None:
    root, probe = with_library("p800"), KunlunxinProbe()
    idle, busy = probe.sample(root)
    assert (busy.uuid, busy.memory_used_bytes, busy.memory_free_bytes) == (RIGHT, 1 << 30, 95 << 30)
    assert (busy.util_pct, busy.temp_c, busy.power_w, busy.ecc_uncorrected) == (12.0, 38.0, 85.5, None)
    assert (idle.uuid, idle.util_pct, idle.health) == (LEFT, 0.0, Health.OK)
    held = [(one.uuid, one.pid, one.memory_bytes) for one in probe.processes(root)]
    assert held == [(RIGHT, 4242, 512 << 20), (RIGHT, 4243, 512 << 20)]
    library = ctypes.CDLL(str(root / "usr/local/xpu/lib64/libxpuml.so.1"))
    assert library.fake_inits() == 1


def test_process_of_no_plausible_size_is_unknown(with_library: WithLibrary) -> None:
    held = KunlunxinProbe().processes(with_library("shy"))
    assert [(one.pid, one.memory_bytes) for one in held] == [(4242, 512 << 20), (4243, None)]


def test_what_the_library_does_not_answer_is_unknown(with_library: WithLibrary) -> None:
    root = with_library("mute")
    first, _ = KunlunxinProbe().inventory(root)
    assert (first.uuid, first.memory_bytes, first.health) == (LEFT, None, Health.OK)
    sample, _ = KunlunxinProbe().sample(root)
    assert (sample.util_pct, sample.temp_c, sample.power_w, sample.health) == (None, None, None, None)
    assert (sample.memory_used_bytes, sample.memory_free_bytes) == (None, None)
    assert KunlunxinProbe().processes(root) == ()


def test_card_in_an_exception_is_faulty(with_library: WithLibrary) -> None:
    root = with_library("sick")
    assert [(card.uuid, card.health) for card in KunlunxinProbe().inventory(root)] == [
        (LEFT, Health.FAULTY),
        (RIGHT, Health.OK),
    ]
    sick, good = KunlunxinProbe().sample(root)
    assert (sick.health, good.health) == (Health.FAULTY, Health.OK)
    assert "it is in an exception" in str(sick.reason)


def test_lost_card_is_faulty_with_the_remedy(with_library: WithLibrary) -> None:
    good, lost = KunlunxinProbe().sample(with_library("lost"))
    assert (good.uuid, good.health, lost.uuid, lost.health) == (LEFT, Health.OK, RIGHT, Health.FAULTY)
    assert "fallen off the bus" in str(lost.reason)
    assert (lost.util_pct, lost.memory_used_bytes) == (None, None)


def test_card_without_a_handle_does_not_hide_the_other(with_library: WithLibrary) -> None:
    lost, good = KunlunxinProbe().inventory(with_library("half"))
    assert (good.uuid, good.health, lost.pci, lost.visible) == (RIGHT, Health.OK, "0000:03:00.0", None)
    assert "device 1: xpumlDeviceGetHandleByIndex: the card has fallen off the bus" in str(lost.reason)


def test_id_is_not_guessed_where_nodes_are_numbered_otherwise(with_library: WithLibrary) -> None:
    cards = KunlunxinProbe().inventory(with_library("renumbered"))
    assert [(card.visible, card.dev_nodes) for card in cards] == [(None, ("/dev/xpu6",)), (None, ("/dev/xpu7",))]


def test_memory_that_is_nothing_is_unknown(with_library: WithLibrary) -> None:
    assert {card.memory_bytes for card in KunlunxinProbe().inventory(with_library("starting"))} == {None}


def test_two_chips_at_one_address_are_told_apart_by_every_way(
    with_library: WithLibrary, fake_tool: FakeTools, device_fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = with_library("k200")
    names = [f"{RIGHT}-0", f"{RIGHT}-1"]
    by_library = [card for card in KunlunxinProbe().inventory(root) if card.arch is not None]
    assert [(card.uuid, card.visible, card.arch) for card in by_library] == [
        (names[0], "0", "K200"),
        (names[1], "1", "K200"),
    ]
    monkeypatch.setenv("FAKE_XPUML", "not_loaded")
    texts = [device_fixture(name).replace(":03:", ":52:") for name in (QUERY, MACHINE, TABLE)]
    for form, text in zip(("-q", "-m", ""), texts, strict=True):
        fake_tool.add("xpu-smi", {form: text})
        assert [sample.uuid for sample in KunlunxinProbe().sample(root)] == names, form


def test_chip_keeps_its_name_when_its_neighbour_is_lost(
    with_library: WithLibrary, fake_tool: FakeTools, device_fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = with_library("k200_half")
    names = [f"{RIGHT}-1"]
    listed = [card for card in KunlunxinProbe().inventory(root) if card.arch is not None]
    assert [card.uuid for card in listed] == names
    assert [sample.uuid for sample in KunlunxinProbe().sample(root)] == names
    monkeypatch.setenv("FAKE_XPUML", "not_loaded")
    machine, table = (device_fixture(name).replace("P800 OAM", "K200    ") for name in (MACHINE, TABLE))
    second = machine.splitlines()[-1].replace(":03:", ":52:")
    fake_tool.add("xpu-smi", {"-m": second + "\n"})
    assert [sample.uuid for sample in KunlunxinProbe().sample(root)] == names
    head, rule = table[: table.index("|   0 ")], "+-------------------------------+----------------------+---"
    body = table[table.index("|   1 ") : table.index("+--", table.index("|   1 "))].replace(":03:", ":52:")
    fake_tool.add("xpu-smi", {"": f"{head}{body}{rule}\n"})
    assert [sample.uuid for sample in KunlunxinProbe().sample(root)] == names


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("version9", "libxpuml says version '9.0.1.1'; layouts are known of 4.x and 5.x"),
        ("drift", "so its layout is not known"),
        ("countless", "xpumlDeviceGetCount gives 4294967295 devices: its layout is not known"),
        ("not_loaded", "the Kunlunxin kernel driver is not loaded"),
    ],
)
def test_refused_library_gives_way_to_the_tool(
    with_library: WithLibrary, fake_tool: FakeTools, device_fixture: Fixture, scenario: str, words: str
) -> None:
    root = with_library(scenario)
    bare = KunlunxinProbe().inventory(root)
    assert {card.health for card in bare} == {Health.NO_DRIVER}
    assert all(words in str(card.reason) and "xpu-smi is not there" in str(card.reason) for card in bare)
    fake_tool.add("xpu-smi", {"-q": device_fixture(QUERY), "-m": device_fixture(MACHINE)})
    probe = KunlunxinProbe()
    assert [(card.uuid, card.visible) for card in probe.inventory(root)] == [(LEFT, "1"), (RIGHT, "0")]
    assert [sample.uuid for sample in probe.sample(root)] == [LEFT, RIGHT]
    assert probe.processes(root) == ()


def test_structs_are_laid_out_as_the_compiler_does(fake_library: Callable[[str, str], Path]) -> None:
    library = ctypes.CDLL(str(fake_library("xpuml.c", "libxpuml.so.1") / "libxpuml.so.1"))
    assert {name: library.fake_layout(name.encode()) for name in LAYOUT} == LAYOUT
    ours = {
        "xpumlPciInfo_t": PciInfo,
        "xpumlMemory_t": MemoryInfo,
        "xpumlUtilization_t": Utilization,
        "xpumlProcessInfo_t": ProcessInfo,
    }
    for name, value in LAYOUT.items():
        struct, _, field = name.partition(".")
        assert (getattr(ours[struct], field).offset if field else ctypes.sizeof(ours[struct])) == value, name


async def test_child_reads_the_library_on_the_loaders_path(
    make_tree: MakeTree, fake_library: Callable[[str, str], Path]
) -> None:
    directory = fake_library("xpuml.c", "libxpuml.so.1")
    environ = {**os.environ, "LD_LIBRARY_PATH": str(directory), "FAKE_XPUML": "p800"}
    devices = await read_inventory(root=make_tree(LATER, EARLIER), environ=environ, deadline_s=30)
    assert [device.uuid for device in devices[:2]] == [LEFT, RIGHT]


@pytest.mark.parametrize(
    ("vendor", "pci_class"),
    [("0x1d22", "0x078000"), ("0x2057", "0x120000")],
    ids=["K200 as lspci shows it", "P800 PCIe"],
)
def test_card_of_another_class_or_vendor_number_is_found(make_tree: MakeTree, vendor: str, pci_class: str) -> None:
    assert KunlunxinProbe().is_present(make_tree(("0000:53:00.0", vendor, pci_class, 0)))


def test_storage_of_the_same_maker_is_no_accelerator(make_tree: MakeTree) -> None:
    assert not KunlunxinProbe().is_present(make_tree(("0000:53:00.0", "0x1d22", "0x018000", 0)))


def test_query_and_machine_form_are_joined_by_the_bus(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Fixture
) -> None:
    fake_tool.add("xpu-smi", {"-q": device_fixture(QUERY), "-m": device_fixture(MACHINE)}, stderr="a warning")
    root = make_tree(LATER, EARLIER)
    first, second = KunlunxinProbe().inventory(root)
    assert fake_tool.calls("xpu-smi") == ["-q", "-m"]
    assert (first.index, first.pci, first.visible, first.uuid) == (0, "0000:03:00.0", "1", LEFT)
    assert (second.index, second.pci, second.visible, second.uuid) == (1, "0000:52:00.0", "0", RIGHT)
    assert (second.name, second.arch, second.memory_bytes) == ("P800 OAM", "P800", 98304 << 20)
    assert (second.driver, second.runtime, second.numa) == ("5.0.21.26", "10.2", 1)
    assert second.dev_nodes == ("/dev/xpu0",)
    assert second.extra == {"architecture": "KL3", "uuid": f"{UUID}1", "serial": "02K15K624CV99901"}
    assert {sample.uuid for sample in KunlunxinProbe().sample(root)} == {first.uuid, second.uuid}


def test_machine_form_stands_in_for_the_query(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Fixture
) -> None:
    fake_tool.add("xpu-smi", {"-m": device_fixture(MACHINE)})
    root = make_tree(LATER, EARLIER)
    first, second = KunlunxinProbe().inventory(root)
    assert (first.uuid, first.visible, first.extra) == (LEFT, "1", {"serial": "02K15K624CV99902"})
    assert (second.uuid, second.visible, second.extra) == (RIGHT, "0", {"serial": "02K15K624CV99901"})
    sample = KunlunxinProbe().sample(root)[1]
    assert (sample.uuid, sample.memory_used_bytes, sample.memory_free_bytes) == (second.uuid, 1 << 30, 95 << 30)


def test_table_is_the_last_resort(make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Fixture) -> None:
    fake_tool.add("xpu_smi", {"": device_fixture(TABLE)})
    root = make_tree(LATER, EARLIER)
    first, second = KunlunxinProbe().inventory(root)
    assert (first.uuid, first.visible, second.visible) == (LEFT, "1", "0")
    assert [sample.ecc_uncorrected for sample in KunlunxinProbe().sample(root)] == [4, 0]


def test_without_an_index_an_engine_cannot_be_confined(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Fixture
) -> None:
    fake_tool.add("xpu-smi", {"-q": device_fixture(QUERY)})
    cards = KunlunxinProbe().inventory(make_tree(LATER, EARLIER))
    assert [(card.health, card.visible) for card in cards] == [(Health.OK, None)] * 2


def test_intels_tool_of_the_same_name_is_refused(make_tree: MakeTree, fake_tool: FakeTools) -> None:
    fake_tool.add("xpu-smi", {"*": '{"error": "Error: unknown option"}\n'})
    (card,) = KunlunxinProbe().inventory(make_tree(LATER))
    assert card.health is Health.NO_DRIVER
    assert "fields, not 32" in str(card.reason)
    assert "does not begin as Kunlunxin's does" in str(card.reason)


def test_intel_card_is_not_ours(make_tree: MakeTree) -> None:
    root = make_tree(("0000:4d:00.0", "0x8086", "0x038000", 0))
    assert not KunlunxinProbe().is_present(root)


def test_card_that_the_tool_does_not_list_is_recorded(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Fixture
) -> None:
    fake_tool.add("xpu-smi", {"": device_fixture(IN_CONTAINER)})
    hidden, seen = KunlunxinProbe().inventory(make_tree(LATER, EARLIER))
    assert (seen.pci, seen.health, seen.driver, seen.runtime) == ("0000:52:00.0", Health.OK, "515.58", None)
    assert (hidden.pci, hidden.health) == ("0000:03:00.0", Health.NO_DRIVER)
    assert "xpu-smi does not list it" in str(hidden.reason)


def test_without_the_tool_the_bus_is_what_there_is(make_tree: MakeTree, fake_tool: FakeTools) -> None:
    root = make_tree(LATER)
    (card,) = KunlunxinProbe().inventory(root)
    assert (card.health, card.vendor) == (Health.NO_DRIVER, Vendor.KUNLUNXIN)
    assert "install Kunlunxin's driver" in str(card.reason)
    with pytest.raises(ToolError, match="install Kunlunxin's driver"):
        KunlunxinProbe().sample(root)


@pytest.mark.parametrize("failure", FAILURES)
def test_failing_tool_is_named(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Fixture, failure: Failure
) -> None:
    answers = {"-q": device_fixture(QUERY), "-m": device_fixture(MACHINE), "": device_fixture(TABLE)}
    fake_tool.add("xpu-smi", answers, failure=failure)
    root, probe = make_tree(LATER), KunlunxinProbe(timeout_s=0.3)
    (card,) = probe.inventory(root)
    assert card.health is Health.NO_DRIVER
    assert str(card.reason).count("xpu-smi") >= 3
    with pytest.raises(ToolError, match="xpu-smi"):
        probe.sample(root)


def test_query_is_read_by_its_keys(device_fixture: Fixture) -> None:
    first, second = parse_query(device_fixture(QUERY))
    assert first == Card(
        pci="0000:52:00.0",
        uuid=RIGHT,
        name="P800 OAM",
        arch="P800",
        memory_bytes=98304 << 20,  # not the 96 MiB of the L3 cache, whose keys are named alike
        driver="5.0.21.26",
        runtime="10.2",
        dev_nodes=("/dev/xpu0",),
        extra={"architecture": "KL3", "uuid": f"{UUID}1", "serial": "02K15K624CV99901"},
        used_bytes=1 << 30,
        free_bytes=95 << 30,
        util_pct=12.0,
        temp_c=38.0,
        power_w=85.5,
        ecc_uncorrected=0,  # since the start, not the 7 of the card's life
    )
    assert (second.temp_c, second.power_w, second.ecc_uncorrected) == (None, None, 4)


@pytest.mark.parametrize("damage", damages("XPU-RT Version", "Product Name", "Memory Usage", "Total"))
def test_damaged_query_is_refused(damage: Damage, device_fixture: Fixture) -> None:
    with pytest.raises(FormatError, match="xpu-smi -q"):
        parse_query(damage(device_fixture(QUERY)))


def test_query_that_ends_before_the_last_card_is_refused(device_fixture: Fixture) -> None:
    text = device_fixture(QUERY)
    with pytest.raises(FormatError, match="says `Attached XPUs` '2' and lists 1: it is cut off"):
        parse_query(text[: text.rindex("XPU 0000")])


@pytest.mark.parametrize(("value", "instead"), [("98304 MiB", "96 GiB"), ("12 %", "12 ‰"), ("38 C", "311 K")])
def test_strange_value_is_refused_by_its_key(device_fixture: Fixture, value: str, instead: str) -> None:
    with pytest.raises(FormatError, match=r"xpu-smi -q: `.+` is"):
        parse_query(device_fixture(QUERY).replace(value, instead))


def test_machine_form_is_read_by_its_places(device_fixture: Fixture) -> None:
    first, second = parse_machine(device_fixture(MACHINE))
    assert first == Card(
        pci="0000:52:00.0",
        uuid=RIGHT,
        number=0,
        extra={"serial": "02K15K624CV99901"},
        name="P800 OAM",
        arch="P800",
        memory_bytes=98304 << 20,
        dev_nodes=("/dev/xpu0",),
        used_bytes=1 << 30,
        util_pct=12.0,
        temp_c=38.0,
        power_w=85.0,
    )
    assert (second.number, second.used_bytes) == (1, 0)


def test_power_of_another_unit_is_unknown(device_fixture: Fixture) -> None:
    text = device_fixture(MACHINE).replace(" 38 0 0 0 85 ", " 38 0 0 0 85000 ")
    assert parse_machine(text)[0].power_w is None


def one_field_less(text: str) -> str:
    return text.replace(" 0\n", "\n", 1)


def one_field_more(text: str) -> str:
    return text.replace("\n", " 0\n", 1)


def swapped(text: str) -> str:
    return text.replace(" 1024 98304 ", " 98304 1024 ")


@pytest.mark.parametrize("damage", [*damages("00000000:52:00.0"), truncate, one_field_less, one_field_more, swapped])
def test_damaged_machine_form_is_refused(damage: Damage, device_fixture: Fixture) -> None:
    with pytest.raises(FormatError, match="xpu-smi -m"):
        parse_machine(damage(device_fixture(MACHINE)))


def test_table_is_read_by_its_three_lines(device_fixture: Fixture) -> None:
    first, second = parse_table(device_fixture(TABLE))
    assert first == Card(
        pci="0000:52:00.0",
        uuid=RIGHT,
        number=0,
        name="P800 OAM",
        arch="P800",
        memory_bytes=98304 << 20,
        driver="5.0.21.26",
        runtime="5.0.21",
        used_bytes=1 << 30,
        util_pct=12.0,
        temp_c=38.0,
        power_w=85.0,
        ecc_uncorrected=0,
    )
    assert (second.number, second.pci, second.ecc_uncorrected) == (1, "0000:03:00.0", 4)


def cut_in_a_card(text: str) -> str:
    return text[: text.rindex("84W / 400W")]


@pytest.mark.parametrize(
    "damage",
    [*damages("XPU-SMI", "Persistence-M", "Bus-Id", "Memory-Usage", "XPU-Util", "L3-Usage"), cut_in_a_card],
)
def test_damaged_table_is_refused(damage: Damage, device_fixture: Fixture) -> None:
    with pytest.raises(FormatError, match="xpu-smi"):
        parse_table(damage(device_fixture(TABLE)))


@pytest.mark.parametrize("respace", RESPACINGS)
def test_columns_may_move(respace: Damage, device_fixture: Fixture) -> None:
    assert parse_table(respace(device_fixture(TABLE))) == parse_table(device_fixture(TABLE))
    assert parse_table(respace(device_fixture(IN_CONTAINER))) == parse_table(device_fixture(IN_CONTAINER))
    assert parse_query(respace(device_fixture(QUERY))) == parse_query(device_fixture(QUERY))
    assert parse_machine(device_fixture(MACHINE).replace(" ", "   ").replace("P800   OAM", "P800 OAM")) == (
        parse_machine(device_fixture(MACHINE))
    )


def test_topology_is_read_by_its_labels(device_fixture: Fixture) -> None:
    links = parse_topology(device_fixture(TOPOLOGY))
    assert [(link.first, link.second, link.distance) for link in links] == [
        ("XPU0", "XPU1", Distance.LINK),
        ("XPU0", "XPU2", Distance.SYS),
        ("XPU0", "XPU3", Distance.SYS),
        ("XPU1", "XPU2", Distance.SYS),
        ("XPU1", "XPU3", Distance.SYS),
        ("XPU2", "XPU3", Distance.LINK),
    ]
    coloured = device_fixture(TOPOLOGY).replace("XL", "\x1b[32mXL\x1b[0m")
    assert parse_topology(coloured) == links


@pytest.mark.parametrize("respace", RESPACINGS)
def test_columns_of_the_topology_may_move(respace: Damage, device_fixture: Fixture) -> None:
    text = device_fixture(TOPOLOGY)
    assert parse_topology(respace(text)) == parse_topology(text)


def without_a_row(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("XPU3"))


@pytest.mark.parametrize("damage", [*damages("XPU1", "XL", "CPU Affinity"), without_a_row])
def test_damaged_topology_is_refused(damage: Damage, device_fixture: Fixture) -> None:
    with pytest.raises(FormatError, match="xpu-smi topo"):
        parse_topology(damage(device_fixture(TOPOLOGY)))


def test_topology_names_the_cards_by_their_places(
    with_library: WithLibrary, fake_tool: FakeTools, device_fixture: Fixture
) -> None:
    fake_tool.add("xpu-smi", {"topo -m": device_fixture(TOPOLOGY)})
    assert KunlunxinProbe().topology(with_library("p800")).pairs == ((LEFT, RIGHT, Distance.LINK),)


def test_topology_without_ids_says_nothing(
    with_library: WithLibrary, fake_tool: FakeTools, device_fixture: Fixture
) -> None:
    fake_tool.add("xpu-smi", {"topo -m": device_fixture(TOPOLOGY)})
    assert KunlunxinProbe().topology(with_library("renumbered")).pairs == ()


def test_topology_that_the_tool_does_not_know_is_none(with_library: WithLibrary, fake_tool: FakeTools) -> None:
    fake_tool.add("xpu-smi", {"*": "unknown command topo"})
    assert KunlunxinProbe().topology(with_library("p800")).pairs == ()
