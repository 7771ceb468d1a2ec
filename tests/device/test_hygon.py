"""Hygon's cards from KFD, library and tool; see gpu_tree.py, fake/rocm_smi.c and fake_tool.py for what each proves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.device.fake_tool import FakeTools
from tests.device.gpu_tree import GpuTree
from tests.device.mutations import FAILURES, RESPACINGS, Damage, Failure, damages, reorder_json, truncate, truncate_json
from xinf.core.device import Health, Vendor
from xinf.device import PROBES
from xinf.device.hygon import HygonProbe
from xinf.device.hygon_tool import FACTS, POWER, READINGS, parse_cards, parse_facts, parse_readings, parse_table
from xinf.device.rocm import read_runtime_version
from xinf.device.tool import FormatError

Read = Callable[[str], str]
FIRST, SECOND = "0000:09:00.0", "0000:36:00.0"
JSON, LINES, OLDEST = "hy-smi-24.04.3-k100ai.json", "hy-smi-26.04-bw1000.txt", "rocm-smi-dtk22-z100.json"
TABLE_DCU, TABLE_HCU = "hy-smi-24.04.1-table-k100ai.txt", "hy-smi-26.04-table-bw1000.txt"
ASK_FACTS, ASK_READINGS = (*FACTS, "--json"), (*READINGS, POWER, "--json")


@pytest.fixture
def two_cards(gpu_tree: GpuTree) -> GpuTree:
    """Two K100_AI of which only the bus and KFD speak; the first on the bus is second in KFD's order."""
    for address, node in ((SECOND, 4), (FIRST, 5)):
        gpu_tree.add_card(address, vendor=0x1D94, device=0x6210, driver="hydcu")
        bus = int(address.split(":")[1], 16)
        properties = {"location_id": bus << 8, "gfx_target_version": 90208, "vendor_id": 7572, "unique_id": 100 + node}
        banks = [{"heap_type": 1, "size_in_bytes": 68702699520}]
        gpu_tree.add_node(node, {**properties, "drm_render_minor": 124 + node}, gpu_id=node, banks=banks)
    gpu_tree.open_kfd()
    gpu_tree.write("proc/sys/kernel/osrelease", "5.15.0\n")
    return gpu_tree


@pytest.fixture
def silent(two_cards: GpuTree) -> GpuTree:
    """The same where KFD's files are not to be seen."""
    shutil.rmtree(two_cards.root / "sys/class")
    (two_cards.root / "dev/kfd").unlink()
    return two_cards


def test_probe_is_registered() -> None:
    assert isinstance(PROBES[Vendor.HYGON], HygonProbe)


def test_card_is_described_by_kfd_and_named_by_the_tool(
    two_cards: GpuTree, fake_tool: FakeTools, device_fixture: Read
) -> None:
    fake_tool.add("hy-smi", {" ".join(ASK_FACTS): device_fixture(JSON)})
    first, second = HygonProbe().inventory(two_cards.root)
    assert (first.selector, first.pci, first.uuid) == ("dcu:0", FIRST, "GPU-0000000000000069")
    assert (first.name, first.arch, first.memory_bytes, first.driver) == (
        "K100_AI",
        "gfx928",
        68702699520,
        "linux 5.15.0",
    )
    assert (first.visible, second.visible) == ("1", "0")  # HIP's order, not the bus's
    assert (first.health, first.dev_nodes) == (Health.OK, ("/dev/kfd", "/dev/dri/renderD129"))


def test_card_is_usable_without_the_tool(two_cards: GpuTree) -> None:
    first, _ = HygonProbe().inventory(two_cards.root)
    assert (first.health, first.name, first.memory_bytes) == (Health.OK, "hygon 0x6210", 68702699520)


def test_tools_number_makes_visible_where_kfd_is_hidden(
    silent: GpuTree, fake_tool: FakeTools, device_fixture: Read
) -> None:
    fake_tool.add("hy-smi", {" ".join(ASK_FACTS): device_fixture(JSON).replace("card1", "card7")})
    silent.write("dev/mkfd", "")
    first, second = HygonProbe().inventory(silent.root)
    assert [(d.pci, d.visible, d.name, d.memory_bytes) for d in (first, second)] == [
        (FIRST, "0", "K100_AI", 65520 << 20),
        (SECOND, "7", "K100_AI", 65520 << 20),
    ]
    assert (first.health, first.arch) == (Health.OK, None)  # it works; what it can compute is not known


def test_broken_json_is_asked_for_as_lines(two_cards: GpuTree, fake_tool: FakeTools, device_fixture: Read) -> None:
    broken = '{"card0": {"HCU use (%)": "0%" "PCI Bus": "0000:09:00.0"}'
    lines = device_fixture(LINES).replace("0000:9f:00.0", FIRST)
    fake_tool.add("hy-smi", {" ".join(ASK_FACTS): broken, " ".join(FACTS): lines})
    first, second = HygonProbe().inventory(two_cards.root)
    assert (first.name, second.name) == ("BW1000", "hygon 0x6210")


@pytest.mark.parametrize("failure", FAILURES)
def test_failing_tool_is_named_in_the_reason(silent: GpuTree, fake_tool: FakeTools, failure: Failure) -> None:
    fake_tool.add("hy-smi", {"*": ""}, failure=failure)
    first, _ = HygonProbe(timeout_s=0.3).inventory(silent.root)
    assert (first.health, first.memory_bytes, first.visible) == (Health.NO_DRIVER, None, None)
    assert "/dev/kfd is not there" in str(first.reason)
    assert "hy-smi" in str(first.reason)


def test_card_without_its_driver_is_recorded(gpu_tree: GpuTree) -> None:
    gpu_tree.add_card(FIRST, vendor=0x1D94, device=0x6210, driver=None)
    (card,) = HygonProbe().inventory(gpu_tree.root)
    assert (card.health, card.uuid) == (Health.NO_DRIVER, "PCI-0000-09-00.0")
    assert "run `modprobe hycu` (older: hydcu)" in str(card.reason)


def test_sample_is_of_the_tool_by_address(two_cards: GpuTree, fake_tool: FakeTools, device_fixture: Read) -> None:
    fake_tool.add("hy-smi", {" ".join(ASK_READINGS): device_fixture(JSON)})
    first, second = HygonProbe().sample(two_cards.root)
    assert (first.uuid, first.memory_used_bytes, first.temp_c) == ("GPU-0000000000000069", 3 << 20, 49.0)
    assert (second.memory_used_bytes, second.memory_free_bytes) == (20413 << 20, (65520 - 20413) << 20)
    assert (second.util_pct, second.power_w, second.ecc_uncorrected) == (37.5, 214.0, None)


def test_release_without_power_is_asked_again(two_cards: GpuTree, fake_tool: FakeTools, device_fixture: Read) -> None:
    cards = json.loads(device_fixture(JSON))
    for card in cards.values():
        del card["Average Graphics Package Power (W)"]
    fake_tool.add("hy-smi", {" ".join((*READINGS, "--json")): json.dumps(cards)})
    first, _ = HygonProbe().sample(two_cards.root)
    assert (first.memory_used_bytes, first.power_w) == (3 << 20, None)
    assert fake_tool.calls("hy-smi") == [" ".join(ASK_READINGS), " ".join((*READINGS, "--json"))]


def test_sample_is_of_the_library_first(
    gpu_tree: GpuTree, fake_library: Callable[[str, str], Path], fake_tool: FakeTools
) -> None:
    gpu_tree.add_card("0000:83:00.0", vendor=0x1D94, device=0x6210, driver="hydcu")
    target = gpu_tree.root / "opt/hyhal/lib/librocm_smi64.so"
    target.parent.mkdir(parents=True)
    shutil.copy(fake_library("rocm_smi.c", "librocm_smi64.so") / "librocm_smi64.so", target)
    fake_tool.add("hy-smi", {"*": "must not be asked"})
    (sample,) = HygonProbe().sample(gpu_tree.root)
    assert (sample.memory_used_bytes, sample.util_pct) == (11 << 30, 41.0)
    assert fake_tool.calls("hy-smi") == []


def test_table_is_read_for_a_single_card(gpu_tree: GpuTree, fake_tool: FakeTools, device_fixture: Read) -> None:
    gpu_tree.add_card("0000:9f:00.0", vendor=0x1D94, device=0x6320, driver="hydcu")
    fake_tool.add("hy-smi", {"": device_fixture(TABLE_HCU), "*": "unknown option\n"})
    (sample,) = HygonProbe().sample(gpu_tree.root)
    assert (sample.temp_c, sample.power_w, sample.util_pct, sample.memory_used_bytes) == (50.0, 80.0, 12.5, None)


def test_table_names_no_card_of_several(two_cards: GpuTree, fake_tool: FakeTools, device_fixture: Read) -> None:
    fake_tool.add("hy-smi", {"": device_fixture(TABLE_DCU), "*": "unknown option\n"})
    assert {sample.temp_c for sample in HygonProbe().sample(two_cards.root)} == {None}


def test_units_are_those_in_the_keys(device_fixture: Read) -> None:
    (new,), (old,) = (parse_facts(parse_cards(device_fixture(name))) for name in (LINES, OLDEST))
    assert (new.memory_bytes, new.name, new.address) == (65520 << 20, "BW1000", "0000:9f:00.0")
    assert (old.memory_bytes, old.name, old.address) == (17163091968, "Z100", "0000:07:00.0")


def test_warnings_before_the_answer_are_passed_over(device_fixture: Read) -> None:
    text = device_fixture(JSON)
    for warning in ("WARNING: DCU 0 sleeps", "[WARN] {dcu 0} sleeps", "======== HCU System Management ========"):
        assert parse_cards(f"{warning}\n{text}") == parse_cards(text)


def test_unknown_unit_is_refused(device_fixture: Read) -> None:
    with pytest.raises(FormatError, match="unit of"):
        parse_facts(parse_cards(device_fixture(JSON).replace("(MiB)", "(pages)")))


def test_both_tables_are_read_by_their_headers(device_fixture: Read) -> None:
    old, new = parse_table(device_fixture(TABLE_DCU)), parse_table(device_fixture(TABLE_HCU))
    assert {number: (card.temp_c, card.power_w, card.util_pct) for number, card in old.items()} == {
        0: (49.0, 118.0, 37.0),
        1: (51.0, 121.0, 0.0),
    }
    assert (new[0].temp_c, new[0].power_w, new[0].util_pct) == (50.0, 80.0, 12.5)


@pytest.mark.parametrize("respace", RESPACINGS)
@pytest.mark.parametrize("name", [TABLE_DCU, TABLE_HCU])
def test_columns_may_move(name: str, respace: Damage, device_fixture: Read) -> None:
    assert parse_table(respace(device_fixture(name))) == parse_table(device_fixture(name))


@pytest.mark.parametrize("respace", RESPACINGS)
def test_lines_may_be_spaced_otherwise(respace: Damage, device_fixture: Read) -> None:
    assert parse_cards(respace(device_fixture(LINES).expandtabs())) == parse_cards(device_fixture(LINES))


def test_order_of_keys_does_not_matter(device_fixture: Read) -> None:
    text = device_fixture(JSON)
    assert parse_readings(parse_cards(reorder_json(text))) == parse_readings(parse_cards(text))


@pytest.mark.parametrize("damage", [*damages("Temp", "AvgPwr", "DCU%"), pytest.param(truncate, id="truncated")])
def test_damaged_table_is_refused(damage: Damage, device_fixture: Read) -> None:
    text = device_fixture(TABLE_DCU).split("=====\n")[2]  # without the frame after the rows
    with pytest.raises(FormatError, match="hy-smi"):
        parse_table(damage(text))


@pytest.mark.parametrize(
    "damage", [*damages("vram Total Memory", "PCI Bus"), pytest.param(truncate_json, id="truncated")]
)
def test_damaged_facts_are_refused(damage: Damage, device_fixture: Read) -> None:
    with pytest.raises(FormatError, match="hy-smi"):
        parse_facts(parse_cards(damage(device_fixture(JSON))))


@pytest.mark.parametrize(
    "damage", [*damages("vram Total Used Memory", "PCI Bus", "HCU["), pytest.param(lambda text: text[:300], id="cut")]
)
def test_damaged_readings_are_refused(damage: Damage, device_fixture: Read) -> None:
    with pytest.raises(FormatError, match="hy-smi"):
        parse_readings(parse_cards(damage(device_fixture(LINES))))


@pytest.mark.parametrize(
    ("path", "text"),
    [("opt/dtk/.dtk_version", "DTK-26.04-rc4\n"), ("opt/dtk/.info/version", "26.04\n")],
    ids=["as hcu_envcheck (Hygon, 2026) finds it", "as ROCm has it"],
)
def test_version_of_dtk_is_read_from_either_file(gpu_tree: GpuTree, path: str, text: str) -> None:
    assert read_runtime_version(HygonProbe.runtime, gpu_tree.root) is None
    gpu_tree.write(path, text)
    assert read_runtime_version(HygonProbe.runtime, gpu_tree.root) == "26.04"
