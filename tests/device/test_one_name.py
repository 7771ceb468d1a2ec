"""A card has one name whichever way it was read, while library and tool take turns in the life of one probe.

Proves that inventories and samples of every way join; not that real libraries and tools tell the same addresses.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from tests.device.fake_tool import FakeTools
from xinf.core.device import Vendor
from xinf.device.ascend import AscendProbe
from xinf.device.cambricon import CambriconProbe
from xinf.device.enflame import EnflameProbe
from xinf.device.kunlunxin import KunlunxinProbe
from xinf.device.mthreads import MthreadsProbe
from xinf.device.roster_probe import RosterProbe


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """Two cards of a vendor, as its fake library knows them and as its fake tool prints them."""

    make: Callable[[], RosterProbe]
    library: tuple[str, str, str]  # source, name, directory below the root
    scenario: tuple[str, str]  # of the library that answers, and of one that does not any more
    pci_id: str
    addresses: tuple[str, str]  # in bus order
    tool: str
    forms: tuple[tuple[str, ...], ...]  # arguments and a fixture for each; those of one form belong together
    other_places: Mapping[str, str] = {}  # how the fixtures write the addresses


CASES = {
    Vendor.ASCEND: Case(
        make=AscendProbe,
        library=("dcmi.c", "libdcmi.so", "usr/local/dcmi"),
        scenario=("910b", "empty"),
        pci_id="0x19e5",
        addresses=("0000:c1:00.0", "0000:d9:00.0"),
        tool="npu-smi",
        forms=(("info", "npu-smi-23.0.3-910b2c.txt", "info -m", "npu-smi-23.0.3-map-910b2c.txt"),),
        other_places={"0000:57:00.0": "0000:C1:00.0"},
    ),
    Vendor.CAMBRICON: Case(
        make=CambriconProbe,
        library=("cndev.c", "libcndev.so", "usr/local/neuware/lib64"),
        scenario=("mlu590", "empty"),
        pci_id="0xcabc",
        addresses=("0000:39:00.0", "0000:3d:00.0"),
        tool="cnmon",
        forms=(
            ("info -j", "cnmon-5.10.22-mlu370.json"),
            ("info", "cnmon-5.10.22-info-mlu370.txt"),
            ("", "cnmon-5.10.22-mlu370.txt"),
        ),
        other_places={"0000:0f": "0000:39", "0000:0F": "0000:39", "0000:13": "0000:3d", '"0f"': '"39"', '"13"': '"3d"'}
        | {": 0f": ": 39", ": 13": ": 3d"},
    ),
    Vendor.ENFLAME: Case(
        make=EnflameProbe,
        library=("efml.c", "libefml.so", "usr/lib"),
        scenario=("s60", "drift"),
        pci_id="0x1e36",
        addresses=("0000:2d:00.0", "0000:3d:00.0"),
        tool="efsmi",
        forms=(("-q", "efsmi-1.4.3.4-s60-query.txt"), ("", "efsmi-1.4.0.505-s60.txt")),
    ),
    Vendor.MTHREADS: Case(
        make=MthreadsProbe,
        library=("mtml.c", "libmtml.so.2", "usr/lib64"),
        scenario=("s5000", "garbled"),
        pci_id="0x1ed5",
        addresses=("0000:18:00.0", "0000:2a:00.0"),
        tool="mthreads-gmi",
        forms=(("-q --json", "mthreads-gmi-2.3.2-s5000.json"), ("", "mthreads-gmi-2.4.1-s5000.txt")),
    ),
    Vendor.KUNLUNXIN: Case(
        make=KunlunxinProbe,
        library=("xpuml.c", "libxpuml.so.1", "usr/local/xpu/lib64"),
        scenario=("p800", "drift"),
        pci_id="0x1d22",
        addresses=("0000:03:00.0", "0000:52:00.0"),
        tool="xpu-smi",
        forms=(
            ("-q", "xpu-smi-5.0.21.26-p800-query.txt"),
            ("-m", "xpu-smi-5.0.21.26-p800-machine.txt"),
            ("", "xpu-smi-5.0.21.26-p800.txt"),
        ),
    ),
}


@pytest.mark.parametrize("vendor", CASES)
def test_names_stay_while_library_and_tool_take_turns(
    vendor: Vendor,
    make_tree: Callable[..., Path],
    fake_library: Callable[[str, str], Path],
    fake_tool: FakeTools,
    device_fixture: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = CASES[vendor]
    source, name, directory = case.library
    answers, fails = case.scenario
    variable = f"FAKE_{source.removesuffix('.c').upper()}"
    root = make_tree(*((address, case.pci_id, "0x120000", 0) for address in reversed(case.addresses)))
    (root / directory).mkdir(parents=True)
    shutil.copy(fake_library(source, name) / name, root / directory / name)
    monkeypatch.setenv(variable, answers)
    probe = case.make()
    listed = probe.inventory(root)
    names = [device.uuid for device in listed]
    assert [(device.pci, device.visible is not None) for device in listed] == [(at, True) for at in case.addresses]
    for form in case.forms:
        add_form(fake_tool, case, form, device_fixture)
        monkeypatch.setenv(variable, fails)
        assert [device.uuid for device in probe.inventory(root)] == names, form
        assert {sample.uuid for sample in probe.sample(root)} == set(names), form
        n_calls = len(fake_tool.calls(case.tool))
        assert n_calls > 0, "the tool had the word"
        monkeypatch.setenv(variable, answers)
        assert {sample.uuid for sample in probe.sample(root)} == set(names), "the library has the word again"
        assert len(fake_tool.calls(case.tool)) == n_calls
        monkeypatch.setenv(variable, fails)
        assert [device.uuid for device in case.make().inventory(root)] == names, "a process that knows the tool alone"


def add_form(tools: FakeTools, case: Case, form: tuple[str, ...], read: Callable[[str], str]) -> None:
    """Let the tool know one form of its answers only."""
    texts: dict[str, str] = {}
    for arguments, fixture in zip(form[::2], form[1::2], strict=True):
        text = read(fixture)
        for before, after in case.other_places.items():
            text = text.replace(before, after)
        texts[arguments] = text
    if form[0] == "info -j":
        tools.add(case.tool, {}, files={"info -j": ("cnmon_info.json", texts["info -j"])})
    else:
        tools.add(case.tool, texts)
