"""What amd-smi prints as JSON, in every shape that was seen, as facts and readings by PCI address.

    {"gpu_data": [{"gpu": 0, ...}]}        ROCm 7 and later
    [{"gpu": 0, ...}]                      before

A quantity is {"value": 196592, "unit": "MB"}, "5325 GB/s", a number, or "N/A". Its MB are 1,048,576 bytes: an MI300X of
192 GiB reads 196592 MB. Options and keys: ROCm docs, amd-smi CLI, and public logs.
"""

from __future__ import annotations

import re
import time

from xinf.device.amdgpu import CardFacts, CardReading
from xinf.device.json_answer import read_json
from xinf.device.pci import known_address
from xinf.device.quantity import size_in_bytes
from xinf.device.tool import FormatError, ToolError, run_tool

STATIC = ("static", "--asic", "--vram", "--driver", "--bus", "--json")
LIST = ("list", "--json")
METRIC = ("metric", "--usage", "--power", "--temperature", "--ecc", "--mem-usage", "--json")
METRIC_OF_GUESTS = ("metric", "--mem-usage", "--json")  # all that its first releases know in a virtual machine
_UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_QUANTITY = re.compile(r"(\d{1,18}(?:\.\d+)?)\s*([A-Za-z/%]*)")


def read_static(tool: str, *, timeout_s: float) -> dict[str, CardFacts]:
    """Ask what cards there are, by address. Raises: ToolError."""
    return parse_static(run_tool([tool, *STATIC], timeout_s=timeout_s))


def read_metric(tool: str, addresses: dict[int, str], *, timeout_s: float) -> dict[str, CardReading]:
    """Ask what the cards are doing; `addresses` by the tool's own numbers, of read_list. Raises: ToolError."""
    begun = time.monotonic()
    try:
        text = run_tool([tool, *METRIC], timeout_s=timeout_s)
    except ToolError:
        if time.monotonic() - begun > timeout_s / 2:
            raise  # it hung, and would again
        text = run_tool([tool, *METRIC_OF_GUESTS], timeout_s=timeout_s)
    readings = parse_metric(text)
    return {addresses[number]: reading for number, reading in readings.items() if number in addresses}


def read_list(tool: str, *, timeout_s: float) -> dict[int, str]:
    """Ask which address each of the tool's numbers means. Raises: ToolError."""
    return parse_list(run_tool([tool, *LIST], timeout_s=timeout_s))


def parse_static(text: str) -> dict[str, CardFacts]:
    """Read `amd-smi static`. Raises: FormatError."""
    found: dict[str, CardFacts] = {}
    for entry in _entries(text):
        asic, vram, driver = (_section(entry, name) for name in ("asic", "vram", "driver"))
        address = known_address(_text(_section(entry, "bus").get("bdf")) or "")
        if address is None:
            raise FormatError(f"amd-smi static: no bus.bdf of gpu {entry.get('gpu')}, only {', '.join(entry)}")
        size = vram.get("size", vram.get("vram_size"))
        arch = _text(asic.get("target_graphics_version"))
        found[address] = CardFacts(
            name=_text(asic.get("market_name")),
            arch=arch if arch and arch.startswith("gfx") else None,
            memory_bytes=_bytes(size) or None,
            driver=_text(driver.get("version", driver.get("driver_version"))),
        )
    return found


def parse_list(text: str) -> dict[int, str]:
    """Read `amd-smi list`. Raises: FormatError."""
    found: dict[int, str] = {}
    for entry in _entries(text):
        number, address = entry.get("gpu"), known_address(_text(entry.get("bdf")) or "")
        if not isinstance(number, int) or address is None:
            raise FormatError(f"amd-smi list: an entry has no number gpu and no bdf, but {', '.join(entry)}")
        found[number] = address
    return found


def parse_metric(text: str) -> dict[int, CardReading]:
    """Read `amd-smi metric`, by the tool's own numbers. Raises: FormatError."""
    found: dict[int, CardReading] = {}
    for entry in _entries(text):
        number = entry.get("gpu")
        if not isinstance(number, int) or not entry.keys() & {"usage", "mem_usage", "power", "temperature", "ecc"}:
            raise FormatError(f"amd-smi metric: an entry has no number gpu or no metrics, but {', '.join(entry)}")
        temperature, memory = _section(entry, "temperature"), _section(entry, "mem_usage")
        temp_c = _quantity(temperature.get("hotspot"))
        errors = _quantity(_section(entry, "ecc").get("total_uncorrectable_count"))
        found[number] = CardReading(
            memory_used_bytes=_bytes(memory.get("used_vram")),
            memory_total_bytes=_bytes(memory.get("total_vram")) or None,
            util_pct=_quantity(_section(entry, "usage").get("gfx_activity")),
            temp_c=_quantity(temperature.get("edge")) if temp_c is None else temp_c,
            power_w=_quantity(_section(entry, "power").get("socket_power")),
            ecc_uncorrected=None if errors is None else int(errors),
        )
    return found


def _entries(text: str) -> list[dict[str, object]]:
    """Find the list of cards in either shape."""
    content = read_json(text, "amd-smi")
    if isinstance(content, dict):
        content = content.get("gpu_data")
    if not isinstance(content, list) or not content or not all(isinstance(entry, dict) for entry in content):
        raise FormatError(f"amd-smi: neither a list of GPUs nor one under gpu_data: {text.strip()[:120]!r}")
    return content


def _section(entry: dict[str, object], name: str) -> dict[str, object]:
    section = entry.get(name)
    return section if isinstance(section, dict) else {}  # "N/A" where a card has no such section


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value not in ("", "N/A") else None


def _quantity(value: object) -> float | None:
    if isinstance(value, dict):
        value = value.get("value")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e18 else None  # NaN is not; float() refuses an int of many digits
    match = _QUANTITY.match(value.strip()) if isinstance(value, str) else None
    return float(match[1]) if match else None


def _bytes(value: object) -> int | None:
    amount = _quantity(value)
    if amount is None:
        return None
    unit: object = None
    if isinstance(value, dict):
        unit = value.get("unit")
    elif isinstance(value, str) and (match := _QUANTITY.match(value.strip())):
        unit = match[2]
    if not isinstance(unit, str) or unit not in _UNITS:
        raise FormatError(f"amd-smi: the unit of {value!r} is not known")
    return size_in_bytes(amount, _UNITS[unit])
