"""Whatever a tool prints, a parser answers or refuses by name: the recorded answers with pieces cut out and put in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xinf.device import amd_tool, apple_tool, hygon_tool, intel_tool
from xinf.device.pci import known_address
from xinf.device.tool import ToolError

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
]
PIECES = st.one_of(
    st.sampled_from(
        ["", "N/A", "null", "-1", "{}", "[]", '"', ",", "\n", "0x", "1e999", "NaN", "٣", "²", " | ", "[N/A]"]
    ),
    st.text(max_size=12),
)


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
    try:
        parse(text)
    except ToolError as error:
        named = str(error).split()[0].rstrip(":")
    else:
        named = "answered"
    assert named in ("answered", "amd-smi", "hy-smi", "xpu-smi", "system_profiler", "sysctl", "ioreg", "vm_stat")


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
