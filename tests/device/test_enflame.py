"""The Enflame probe through a fake C library (fake/efml.c) and a fake efsmi.

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
from xinf.device.enflame import EnflameProbe
from xinf.device.enflame_library import (
    DeviceInfo,
    EccStatus,
    MemoryInfo,
    PortInfo,
    PowerInfo,
    ThermalInfo,
)
from xinf.device.enflame_tool import parse_query, parse_table
from xinf.device.roster import Card
from xinf.device.tool import FormatError, ToolError

LATER = ("0000:3d:00.0", "0x1e36", "0x120000", -1)
EARLIER = ("0000:2d:00.0", "0x1e36", "0x120000", 0)
QUERY, TABLE = "efsmi-1.4.3.4-s60-query.txt", "efsmi-1.4.0.505-s60.txt"
TABLES = {
    "efsmi-1.20.0-t20.txt": [("T20", "0000:3d:00.0", 32 << 30, 0.0, 30.0, 48.0)],
    "efsmi-1.2.0.301-s60.txt": [
        ("S60", "0000:3d:00.0", 49120 << 20, 0.0, 39.0, 105.0),
        ("S60", "0000:2d:00.0", 42976 << 20, 17.5, 46.0, 128.0),
    ],
    TABLE: [
        ("Enflame S60", "0000:3d:00.0", 49120 << 20, 0.0, None, None),
        ("Enflame S60", "0000:2d:00.0", 42976 << 20, 3.0, 71.0, 118.0),
    ],
    "efsmi-1.6.3.12-s60g.txt": [
        ("Enflame S60G", "0000:2d:00.0", 23552 << 20, 0.0, 34.0, None),
        ("Enflame S60G", "0000:3d:00.0", 23552 << 20, 0.0, 33.0, None),
    ],
    "efsmi-1.7.2.14-l300.txt": [("Enflame L300", "0000:2d:00.0", 147456 << 20, 0.0, 35.0, 68.0)],
}
Fixture = Callable[[str], str]
MakeTree = Callable[..., Path]
WithLibrary = Callable[[str], Path]
LAYOUT = {
    "efmlDeviceInfo_t": 156,
    "efmlDeviceInfo_t.vendor_id": 128,
    "efmlDeviceInfo_t.domain_id": 136,
    "efmlDeviceInfo_t.func_id": 148,
    "efmlDevPowerInfo_t": 8,
    "efmlDevPowerInfo_t.cur_pwr_consumption": 4,
    "efmlDevMemInfo_t": 16,
    "efmlDevMemInfo_t.mem_used": 8,
    "efmlDevThermalInfo_t": 12,
    "efmlEccStatus_t": 12,
    "efmlEccStatus_t.ecnt_db": 8,
    "efmlEslPortInfo_t": 104,
    "efmlEslPortInfo_t.uuid": 4,
    "efmlEslPortInfo_t.port_type": 48,
    "efmlEslPortInfo_t.remote_uuid": 56,
    "efmlEslPortInfo_t.remote_domain_id": 80,
    "efmlEslPortInfo_t.remote_func_id": 92,
    "efmlEslPortInfo_t.remote_port_type": 100,
}


@pytest.fixture
def with_library(
    make_tree: MakeTree, fake_library: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> WithLibrary:
    """Make a root with two cards and a libefml of its own that answers as a scenario says."""

    def make(scenario: str) -> Path:
        monkeypatch.setenv("FAKE_EFML", scenario)
        root = make_tree(LATER, EARLIER)
        (root / "usr/lib").mkdir(parents=True)
        shutil.copy(fake_library("efml.c", "libefml.so") / "libefml.so", root / "usr/lib/libefml.so")
        return root

    return make


def calls(root: Path, name: str) -> int:
    return int(ctypes.CDLL(str(root / "usr/lib/libefml.so")).fake_calls(name.encode()))


def test_cards_are_in_bus_order_and_keep_the_librarys_index(with_library: WithLibrary) -> None:
    first, second = EnflameProbe().inventory(with_library("s60"))
    assert (first.index, first.pci, first.visible, first.uuid) == (0, "0000:2d:00.0", "1", "GCU-0000-2d-00.0")
    assert (second.index, second.pci, second.visible, second.uuid) == (1, "0000:3d:00.0", "0", "GCU-0000-3d-00.0")
    assert (second.name, second.arch, second.driver) == ("Enflame S60", "S60", "1.4.4.501")
    assert (second.memory_bytes, second.health) == (42976 << 20, Health.OK)
    assert (first.extra, second.extra) == ({"uuid": "GCU-TR6Y46010301"}, {"uuid": "GCU-TR6Y46010300"})
    assert (first.numa, second.numa) == (0, 1)  # of sysfs, then of the library


def test_inventory_asks_no_metric(with_library: WithLibrary) -> None:
    root = with_library("s60")
    EnflameProbe().inventory(root)
    assert calls(root, "EfmlGetDevMem") == 2  # the total is in it
    metrics = ("EfmlGetDevPwr", "EfmlGetDevDtuUsage", "EfmlGetDevTemp", "EfmlGetDevEccStatus")
    assert [calls(root, name) for name in metrics] == [0, 0, 0, 0]


def test_sample_reads_the_units_of_each_call(with_library: WithLibrary) -> None:
    idle, busy = EnflameProbe().sample(with_library("s60"))
    assert (idle.uuid, idle.memory_used_bytes, idle.memory_free_bytes) == (
        "GCU-0000-3d-00.0",
        1129 << 20,
        (42976 - 1129) << 20,
    )
    assert (idle.util_pct, idle.temp_c, idle.power_w, idle.ecc_uncorrected) == (0.0, 45.0, 104.5, 2)
    assert (busy.util_pct, busy.temp_c, busy.power_w, busy.ecc_uncorrected) == (37.5, 46.0, None, None)
    assert (idle.health, idle.reason) == (Health.OK, None)


def test_library_is_started_once_and_never_shut_down(with_library: WithLibrary) -> None:
    root, probe = with_library("s60"), EnflameProbe()
    for _ in range(3):
        assert len(probe.sample(root)) == 2
    assert len(probe.inventory(root)) == 2
    assert (calls(root, "EfmlInit"), calls(root, "EfmlShutdown")) == (1, 0)


def test_unhealthy_card_is_faulty(with_library: WithLibrary) -> None:
    root, probe = with_library("sick"), EnflameProbe()
    silent, sick = probe.inventory(root)
    (sample,) = probe.sample(root)
    assert (sick.health, sample.health) == (Health.FAULTY, Health.FAULTY)
    assert "not healthy" in str(sick.reason)
    assert "not healthy" in str(sample.reason)
    assert (silent.health, silent.visible) == (Health.NO_DRIVER, None)
    assert "libefml does not list it" in str(silent.reason)


def test_unreadable_card_does_not_hide_the_other(with_library: WithLibrary) -> None:
    root, probe = with_library("half"), EnflameProbe()
    lost, good = probe.inventory(root)
    assert (lost.pci, lost.health) == ("0000:2d:00.0", Health.NO_DRIVER)
    assert "device 1: EfmlGetDevInfo: failed" in str(lost.reason)
    assert (good.health, len(probe.sample(root))) == (Health.OK, 1)


def test_dies_with_one_uuid_are_told_apart(with_library: WithLibrary) -> None:
    root, probe = with_library("dual"), EnflameProbe()
    names = {"GCU-0000-2d-00.0", "GCU-0000-3d-00.0"}
    assert {device.uuid for device in probe.inventory(root)} == names
    assert {device.extra["uuid"] for device in probe.inventory(root)} == {"GCU-TR6Y46010307"}
    assert {sample.uuid for sample in probe.sample(root)} == names


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("version3", "libefml says version '3.0.1'; layouts are known of 1.x and 2.x"),
        ("drift", "gives the PCI vendor 0x0, so its layout is not known"),
        ("not_loaded", "the Enflame kernel driver is not loaded"),
    ],
)
def test_refused_library_gives_way_to_the_tool(
    with_library: WithLibrary, fake_tool: FakeTools, device_fixture: Fixture, scenario: str, words: str
) -> None:
    root = with_library(scenario)
    bare = EnflameProbe().inventory(root)
    assert {device.health for device in bare} == {Health.NO_DRIVER}
    assert all(words in str(device.reason) and "efsmi is not there" in str(device.reason) for device in bare)
    fake_tool.add("efsmi", {"-q": device_fixture(QUERY)})
    sick, listed = EnflameProbe().inventory(root)
    assert (listed.pci, listed.uuid, listed.visible) == ("0000:3d:00.0", "GCU-0000-3d-00.0", "0")
    assert (sick.pci, sick.visible, sick.health) == ("0000:2d:00.0", "1", Health.FAULTY)


def test_refusal_is_kept(with_library: WithLibrary) -> None:
    root, probe = with_library("not_loaded"), EnflameProbe()
    for _ in range(2):
        with pytest.raises(ToolError, match="efsmi is not there"):
            probe.sample(root)
    assert calls(root, "EfmlInit") == 1


def test_link_is_a_short_way(with_library: WithLibrary) -> None:
    topology = EnflameProbe().topology(with_library("linked"))
    assert topology.pairs == (("GCU-0000-2d-00.0", "GCU-0000-3d-00.0", Distance.LINK),)


@pytest.mark.parametrize("scenario", ["s60", "unplugged", "not_loaded"])
def test_cards_without_links_have_no_distance(with_library: WithLibrary, scenario: str) -> None:
    assert EnflameProbe().topology(with_library(scenario)).pairs == ()


def test_structs_are_laid_out_as_the_compiler_does(fake_library: Callable[[str, str], Path]) -> None:
    library = ctypes.CDLL(str(fake_library("efml.c", "libefml.so") / "libefml.so"))
    assert {name: library.fake_layout(name.encode()) for name in LAYOUT} == LAYOUT
    ours = {
        "efmlDeviceInfo_t": ctypes.sizeof(DeviceInfo),
        "efmlDeviceInfo_t.vendor_id": DeviceInfo.vendor_id.offset,
        "efmlDeviceInfo_t.domain_id": DeviceInfo.domain_id.offset,
        "efmlDeviceInfo_t.func_id": DeviceInfo.func_id.offset,
        "efmlDevPowerInfo_t": ctypes.sizeof(PowerInfo),
        "efmlDevPowerInfo_t.cur_pwr_consumption": PowerInfo.consumption.offset,
        "efmlDevMemInfo_t": ctypes.sizeof(MemoryInfo),
        "efmlDevMemInfo_t.mem_used": MemoryInfo.used_mib.offset,
        "efmlDevThermalInfo_t": ctypes.sizeof(ThermalInfo),
        "efmlEccStatus_t": ctypes.sizeof(EccStatus),
        "efmlEccStatus_t.ecnt_db": EccStatus.double_bit.offset,
        "efmlEslPortInfo_t": ctypes.sizeof(PortInfo),
        "efmlEslPortInfo_t.uuid": PortInfo.uuid.offset,
        "efmlEslPortInfo_t.port_type": PortInfo.port_type.offset,
        "efmlEslPortInfo_t.remote_uuid": PortInfo.remote_uuid.offset,
        "efmlEslPortInfo_t.remote_domain_id": PortInfo.remote_domain_id.offset,
        "efmlEslPortInfo_t.remote_func_id": PortInfo.remote_func_id.offset,
        "efmlEslPortInfo_t.remote_port_type": PortInfo.remote_port_type.offset,
    }
    assert ours == LAYOUT


def test_query_is_read_by_its_keys(device_fixture: Fixture) -> None:
    first, second = parse_query(device_fixture(QUERY))
    assert first == Card(
        pci="0000:3d:00.0",
        number=0,
        uuid="GCU-0000-3d-00.0",
        name="S60",
        arch="S60",
        memory_bytes=42976 << 20,
        driver="1.4.3.4",
        health=Health.OK,
        extra={"uuid": "GCU-TQ6Y46010917"},
        used_bytes=512 << 20,
        free_bytes=41335 << 20,
        util_pct=12.5,
        temp_c=35.0,
        power_w=96.0,
        ecc_uncorrected=1,
    )
    assert (second.number, second.pci, second.health) == (1, "0000:2d:00.0", Health.FAULTY)
    assert (second.temp_c, second.power_w, second.ecc_uncorrected) == (None, None, None)


def test_older_query_has_other_keys_and_no_uuid(device_fixture: Fixture) -> None:
    (card,) = parse_query(device_fixture("efsmi-1.2.0-s60-query.txt"))
    assert (card.pci, card.extra, card.driver, card.health) == ("0000:01:0c.0", {}, None, None)
    assert (card.memory_bytes, card.used_bytes, card.free_bytes) == (42976 << 20, 1129 << 20, None)
    assert (card.temp_c, card.util_pct) == (34.0, 0.0)


@pytest.mark.parametrize("sign", ["35 C", "35 ℃", "35 ??", "35 \ufffd\ufffd", "35"])
def test_degrees_are_read_whatever_became_of_their_sign(device_fixture: Fixture, sign: str) -> None:
    assert parse_query(device_fixture(QUERY).replace("35 ℃", sign))[0].temp_c == 35.0


@pytest.mark.parametrize("damage", damages("DEV ID", "Dev Name", "Domain", "Bus", "Func", "Total Size"))
def test_damaged_query_is_refused(damage: Damage, device_fixture: Fixture) -> None:
    with pytest.raises(FormatError, match="efsmi -q"):
        parse_query(damage(device_fixture(QUERY)))


@pytest.mark.parametrize(
    ("value", "instead"), [("42976 MiB", "42976 Mb"), ("12.5 %", "a lot"), (": 3d", ": zz"), (": 1\n", ": many\n")]
)
def test_strange_value_is_refused_by_its_key(device_fixture: Fixture, value: str, instead: str) -> None:
    text = device_fixture(QUERY)
    assert value in text
    with pytest.raises(FormatError, match="efsmi -q: "):
        parse_query(text.replace(value, instead))


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_all_versions_are_read(device_fixture: Fixture, name: str) -> None:
    cards = parse_table(device_fixture(name))
    found = [(card.name, card.pci, card.memory_bytes, card.util_pct, card.temp_c, card.power_w) for card in cards]
    assert found == TABLES[name]
    assert [card.number for card in cards] == list(range(len(cards)))
    assert {card.extra.get("uuid") for card in cards} == ({"GCU-W28001219991"} if "t20" in name else {None})


@pytest.mark.parametrize("respace", RESPACINGS)
@pytest.mark.parametrize("name", TABLES)
def test_columns_may_move(respace: Damage, name: str, device_fixture: Fixture) -> None:
    assert parse_table(respace(device_fixture(name))) == parse_table(device_fixture(name))


@pytest.mark.parametrize("respace", RESPACINGS)
def test_query_may_be_indented_otherwise(respace: Damage, device_fixture: Fixture) -> None:
    assert parse_query(respace(device_fixture(QUERY))) == parse_query(device_fixture(QUERY))


@pytest.mark.parametrize("damage", [*damages("EFSMI", "NAME", "BUS-ID", "TEMP", "Pwr", "Mem", "DUsed"), truncate])
def test_damaged_table_is_refused(damage: Damage, device_fixture: Fixture) -> None:
    with pytest.raises(FormatError, match="efsmi"):
        parse_table(damage(device_fixture(TABLE)))


def test_table_is_read_when_the_query_is_not_understood(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Fixture
) -> None:
    root = make_tree(("0100:3d:00.0", "0x1e36", "0x120000", 1), EARLIER)
    fake_tool.add("efsmi", {"-q": "efsmi: unknown option -q\n", "": device_fixture(TABLE)}, stderr="a warning")
    first, second = EnflameProbe().inventory(root)
    assert fake_tool.calls("efsmi") == ["-q", ""]
    # The table cuts the domain to two digits; the bus knows the whole.
    assert (second.pci, second.visible, second.numa, second.uuid) == ("0100:3d:00.0", "0", 1, "GCU-0100-3d-00.0")
    assert (first.pci, first.visible, first.health) == ("0000:2d:00.0", "1", Health.OK)
    assert {sample.uuid for sample in EnflameProbe().sample(root)} == {first.uuid, second.uuid}


@pytest.mark.parametrize("failure", FAILURES)
def test_failing_tool_is_named(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Fixture, failure: Failure
) -> None:
    fake_tool.add("efsmi", {"-q": device_fixture(QUERY), "": device_fixture(TABLE)}, failure=failure)
    root, probe = make_tree(LATER), EnflameProbe(timeout_s=0.3)
    (card,) = probe.inventory(root)
    assert (card.health, card.vendor) == (Health.NO_DRIVER, Vendor.ENFLAME)
    assert "libefml" in str(card.reason)
    assert "efsmi" in str(card.reason).partition("libefml")[2]
    with pytest.raises(ToolError, match="efsmi"):
        probe.sample(root)


def test_nothing_is_asked_without_a_card(make_tree: MakeTree) -> None:
    assert not EnflameProbe().is_present(make_tree(("0000:1b:00.0", "0x10de", "0x030200", 0)))


async def test_child_reads_the_library_on_the_loaders_path(
    make_tree: MakeTree, fake_library: Callable[[str, str], Path]
) -> None:
    directory = fake_library("efml.c", "libefml.so")
    environ = {**os.environ, "LD_LIBRARY_PATH": str(directory), "FAKE_EFML": "s60"}
    root = make_tree(LATER, EARLIER)
    devices = await read_inventory(root=root, environ=environ, deadline_s=30)
    assert [device.selector for device in devices] == ["gcu:0", "gcu:1", "cpu"]
