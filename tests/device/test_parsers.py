"""Whatever a tool prints, a parser answers or refuses by name: the recorded answers with pieces cut out and put in."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xinf.device import (
    amd_tool,
    apple_tool,
    ascend_layouts,
    cambricon_tool,
    enflame_tool,
    hygon_tool,
    intel_tool,
    kunlunxin_tool,
    mthreads_tool,
)
from xinf.device.pci import known_address
from xinf.device.tool import FormatError, ToolError

Parse = Callable[[str], object]


def detail(text: str) -> object:
    return intel_tool.parse_detail(text, intel_tool.ToolCard(number=0, address="0000:4d:00.0", uuid=None, name=None))


ANSWERS: list[tuple[str, Parse]] = [
    ("amd-smi-7.0-static-mi300x.json", amd_tool.parse_static),
    ("amd-smi-6.2-static-w7900.json", amd_tool.parse_static),
    ("amd-smi-7.0-metric-mi300x.json", amd_tool.parse_metric),
    ("amd-smi-7.0-list-mi300x.json", amd_tool.parse_list),
    ("hy-smi-24.04.3-k100ai.json", lambda text: hygon_tool.parse_facts(hygon_tool.parse_cards(text))),
    ("hy-smi-24.04.3-k100ai.json", lambda text: hygon_tool.parse_readings(hygon_tool.parse_cards(text))),
    ("hy-smi-26.04-bw1000.txt", lambda text: hygon_tool.parse_readings(hygon_tool.parse_cards(text))),
    ("hy-smi-24.04.1-table-k100ai.txt", hygon_tool.parse_table),
    ("xpu-smi-1.2.39-discovery-flex170.json", intel_tool.parse_discovery),
    ("xpu-smi-1.2.39-discovery-d-flex170.json", detail),
    ("xpu-smi-1.3.1-stats-max1550.json", intel_tool.parse_stats),
    ("system_profiler-14.5-m3pro.json", apple_tool.parse_profiler),
    ("ioreg-14.5-accelerator-m3pro.txt", apple_tool.parse_accelerator),
    ("ioreg-14.5-platform-m3pro.txt", apple_tool.parse_platform_uuid),
    ("vm_stat-14.5-m3pro.txt", apple_tool.parse_available),
    ("npu-smi-23.0.3-910b2c.txt", ascend_layouts.parse_table),
    ("npu-smi-22.0.4-310p3.txt", ascend_layouts.parse_table),
    ("npu-smi-24.1.rc3.7-a3.txt", ascend_layouts.parse_table),
    ("npu-smi-26.1-950.txt", ascend_layouts.parse_table),
    ("npu-smi-24.1.rc3.7-map-a3.txt", ascend_layouts.parse_mapping),
    ("npu-smi-26.1-map-950.txt", ascend_layouts.parse_mapping),
    ("npu-smi-24.1.rc3.7-usages-a3.txt", ascend_layouts.parse_usages),
    ("npu-smi-24.1.rc3.7-board-a3.txt", ascend_layouts.parse_board),
    ("npu-smi-24.1.rc3.7-topo-a3.txt", ascend_layouts.parse_topology),
    ("cnmon-5.10.22-mlu370.json", cambricon_tool.parse_json),
    ("cnmon-5.10.22-info-mlu370.txt", cambricon_tool.parse_text),
    ("cnmon-5.10.22-mlu370.txt", cambricon_tool.parse_table),
    ("cnmon-4.20.11-mlu370.txt", cambricon_tool.parse_table),
    ("efsmi-1.4.3.4-s60-query.txt", enflame_tool.parse_query),
    ("efsmi-1.6.3.12-s60g.txt", enflame_tool.parse_table),
    ("efsmi-1.20.0-t20.txt", enflame_tool.parse_table),
    ("mthreads-gmi-2.3.2-s5000.json", mthreads_tool.parse_json),
    ("mthreads-gmi-2.4.1-s5000.txt", mthreads_tool.parse_table),
    ("xpu-smi-5.0.21.26-p800-query.txt", kunlunxin_tool.parse_query),
    ("xpu-smi-5.0.21.26-p800-machine.txt", kunlunxin_tool.parse_machine),
    ("xpu-smi-5.0.21.26-p800.txt", kunlunxin_tool.parse_table),
    ("xpu-smi-5.0.21.47-topo-p800.txt", kunlunxin_tool.parse_topology),
]
TOOLS = ("amd-smi", "hy-smi", "xpu-smi", "npu-smi", "cnmon", "efsmi", "mthreads-gmi")
TOOLS_OF_MACS = ("system_profiler", "sysctl", "ioreg", "vm_stat")
PIECES = st.one_of(
    st.sampled_from(
        ["", "N/A", "null", "-1", "{}", "[]", '"', ",", "\n", "0x", "1e999", "NaN", "٣", "²", " | ", "[N/A]"]
    ),
    st.text(max_size=12),
)


def refusal(parse: Parse, text: str) -> str | None:
    """What a parser refuses an answer with; None: it gives what can be sent to the worker."""
    try:
        msgspec.json.encode(parse(text))
    except ToolError as error:
        return str(error)
    return None


def is_named(words: str | None) -> bool:
    return words is None or any(tool in words for tool in (*TOOLS, *TOOLS_OF_MACS))


@pytest.mark.parametrize(("name", "parse"), ANSWERS, ids=[f"{name} {n}" for n, (name, _) in enumerate(ANSWERS)])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_parser_answers_or_refuses(
    name: str, parse: Parse, device_fixture: Callable[[str], str], data: st.DataObject
) -> None:
    text = device_fixture(name)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 40))
        text = text[:start] + data.draw(PIECES) + text[start + length :]
    assert is_named(refusal(parse, text))


@pytest.mark.parametrize(("name", "parse"), ANSWERS, ids=[f"{name} {n}" for n, (name, _) in enumerate(ANSWERS)])
def test_no_number_breaks_a_parser(name: str, parse: Parse, device_fixture: Callable[[str], str]) -> None:
    """A digit that int() refuses, more of them than it or 64 bits take, a value of another JSON type, none at all."""
    text = device_fixture(name)
    for found in re.finditer(r"[0-9]+", text):
        for instead in ("²", "9" * 400, "N/A", "[1]", ""):
            assert is_named(refusal(parse, text[: found.start()] + instead + text[found.end() :]))


# What lists cards: the fixture, its parser, and whether a text that ends between two cards is told from a whole one.
LISTS: list[tuple[str, Callable[[str], Sequence[object]], bool]] = [
    ("npu-smi-23.0.3-910b2c.txt", lambda text: ascend_layouts.parse_table(text).rows, False),
    ("npu-smi-22.0.4-310p3.txt", lambda text: ascend_layouts.parse_table(text).rows, False),
    ("npu-smi-24.1.rc3.7-a3.txt", lambda text: ascend_layouts.parse_table(text).rows, False),
    ("npu-smi-26.1-950.txt", lambda text: ascend_layouts.parse_table(text).rows, False),
    ("cnmon-5.10.13-mlu370.txt", cambricon_tool.parse_table, False),
    ("cnmon-5.10.22-mlu370.txt", cambricon_tool.parse_table, False),
    ("cnmon-5.10.22-mlu370.json", cambricon_tool.parse_json, True),
    ("efsmi-1.2.0.301-s60.txt", enflame_tool.parse_table, False),
    ("efsmi-1.4.0.505-s60.txt", enflame_tool.parse_table, False),
    ("efsmi-1.6.3.12-s60g.txt", enflame_tool.parse_table, False),
    ("mthreads-gmi-2.4.1-s5000.txt", mthreads_tool.parse_table, False),
    ("mthreads-gmi-2.3.2-s5000.json", mthreads_tool.parse_json, True),
    ("xpu-smi-5.0.21.26-p800-query.txt", kunlunxin_tool.parse_query, True),
    ("xpu-smi-5.0.21.26-p800.txt", kunlunxin_tool.parse_table, False),
]


@pytest.mark.parametrize(("name", "parse", "is_told"), LISTS, ids=[name for name, *_ in LISTS])
def test_answer_that_ends_early_is_refused_but_behind_a_rule(
    name: str, parse: Callable[[str], Sequence[object]], is_told: bool, device_fixture: Callable[[str], str]
) -> None:
    lines = device_fixture(name).splitlines(keepends=True)
    cards = list(parse("".join(lines)))
    assert len(cards) == 2
    for end in range(len(lines)):
        try:
            found = list(parse("".join(lines[:end])))
        except FormatError:
            continue
        if len(found) < len(cards):
            assert not is_told
            assert set(lines[end - 1].strip()) <= set("|*+-= "), "nothing but a rule may be below the last card"
        assert found == cards[: len(found)] or is_told


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0000:C1:00.0", "0000:c1:00.0"),
        ("00000001:0b:1f.7", "0001:0b:1f.7"),
        ("N/A", None),
        ("83:00.0", None),
        ("", None),
    ],
)
def test_address_of_a_tool_is_one_or_none(text: str, address: str | None) -> None:
    assert known_address(text) == address
