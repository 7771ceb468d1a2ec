"""The Kunlunxin probe through a fake xpu-smi.

Proves our arguments, our reading of its texts and what is refused; not how a real card or tool behaves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.device.fake_tool import FakeTools
from tests.device.mutations import FAILURES, RESPACINGS, Damage, Failure, damages, truncate
from xinf.core.device import Health, Vendor
from xinf.device.kunlunxin import KunlunxinProbe
from xinf.device.kunlunxin_tool import parse_machine, parse_query, parse_table
from xinf.device.roster import Card
from xinf.device.tool import FormatError, ToolError

LATER = ("0000:52:00.0", "0x1d22", "0x120000", 1)
EARLIER = ("0000:03:00.0", "0x1d22", "0x120000", 0)
QUERY, MACHINE = "xpu-smi-5.0.21.26-p800-query.txt", "xpu-smi-5.0.21.26-p800-machine.txt"
TABLE, IN_CONTAINER = "xpu-smi-5.0.21.26-p800.txt", "xpu-smi-515.58-p800.txt"
UUID = "GPU-420716f2-0000-5108-a5b2-e6b7cf36000"
Fixture = Callable[[str], str]
MakeTree = Callable[..., Path]


def test_query_and_machine_form_are_joined_by_the_bus(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Fixture
) -> None:
    fake_tool.add("xpu-smi", {"-q": device_fixture(QUERY), "-m": device_fixture(MACHINE)}, stderr="a warning")
    root = make_tree(LATER, EARLIER)
    first, second = KunlunxinProbe().inventory(root)
    assert fake_tool.calls("xpu-smi") == ["-q", "-m"]
    assert (first.index, first.pci, first.visible, first.uuid) == (0, "0000:03:00.0", "1", f"{UUID}2")
    assert (second.index, second.pci, second.visible, second.uuid) == (1, "0000:52:00.0", "0", f"{UUID}1")
    assert (second.name, second.arch, second.memory_bytes) == ("P800 OAM", "P800", 98304 << 20)
    assert (second.driver, second.runtime, second.numa) == ("5.0.21.26", "10.2", 1)
    assert (second.dev_nodes, second.extra) == (("/dev/xpu0",), {"architecture": "KL3"})
    assert {sample.uuid for sample in KunlunxinProbe().sample(root)} == {first.uuid, second.uuid}


def test_machine_form_stands_in_for_the_query(
    make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Fixture
) -> None:
    fake_tool.add("xpu-smi", {"-m": device_fixture(MACHINE)})
    root = make_tree(LATER, EARLIER)
    first, second = KunlunxinProbe().inventory(root)
    assert (first.uuid, first.visible) == ("XPU-02K15K624CV99902", "1")
    assert (second.uuid, second.visible) == ("XPU-02K15K624CV99901", "0")
    sample = KunlunxinProbe().sample(root)[0]
    assert (sample.uuid, sample.memory_used_bytes, sample.memory_free_bytes) == (second.uuid, 1 << 30, 95 << 30)


def test_table_is_the_last_resort(make_tree: MakeTree, fake_tool: FakeTools, device_fixture: Fixture) -> None:
    fake_tool.add("xpu_smi", {"": device_fixture(TABLE)})
    root = make_tree(LATER, EARLIER)
    first, second = KunlunxinProbe().inventory(root)
    assert (first.uuid, first.visible, second.visible) == ("PCI-0000-03-00.0", "1", "0")
    assert [sample.ecc_uncorrected for sample in KunlunxinProbe().sample(root)] == [0, 4]


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
    assert (hidden.pci, hidden.health, hidden.reason) == (
        "0000:03:00.0",
        Health.NO_DRIVER,
        "xpu-smi does not list it",
    )


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
        uuid=f"{UUID}1",
        name="P800 OAM",
        arch="P800",
        memory_bytes=98304 << 20,  # not the 96 MiB of the L3 cache, whose keys are named alike
        driver="5.0.21.26",
        runtime="10.2",
        dev_nodes=("/dev/xpu0",),
        extra={"architecture": "KL3"},
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


@pytest.mark.parametrize(("value", "instead"), [("98304 MiB", "96 GiB"), ("12 %", "12 ‰"), ("38 C", "311 K")])
def test_strange_value_is_refused_by_its_key(device_fixture: Fixture, value: str, instead: str) -> None:
    with pytest.raises(FormatError, match=r"xpu-smi -q: `.+` is"):
        parse_query(device_fixture(QUERY).replace(value, instead))


def test_machine_form_is_read_by_its_places(device_fixture: Fixture) -> None:
    first, second = parse_machine(device_fixture(MACHINE))
    assert first == Card(
        pci="0000:52:00.0",
        number=0,
        uuid="XPU-02K15K624CV99901",
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
