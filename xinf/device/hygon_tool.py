"""What hy-smi prints (rocm-smi in the oldest images): JSON, or `DCU[0] : key: value` lines, or its short table.

The keys are those of AMD's rocm-smi, renamed once (DCU became HCU in DTK 26) and with the unit inside the key:
`vram Total Memory (MiB)` in DTK 24.04.3, `VRAM Total Memory (B)` before. Cards are named cardN in any order. Some
releases leave commas out of their JSON; the same options without --json print lines, which are then read instead.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from xinf.device.amdgpu import CardFacts, CardReading
from xinf.device.json_answer import read_json
from xinf.device.pci import known_address
from xinf.device.quantity import size_in_bytes
from xinf.device.tool import FormatError, ToolError, run_tool

FACTS = ("--showproductname", "--showmeminfo", "vram", "--showbus")
READINGS = ("--showmeminfo", "vram", "--showuse", "--showtemp", "--showbus")
POWER = "--showpower"  # missing in some releases
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_LINE = re.compile(r"\s*(?:GPU|DCU|HCU)\[([0-9]{1,9})\]\s*:\s*([^:]+?)\s*:\s*(.+?)\s*")
_CARD = re.compile(r"card([0-9]{1,9})")
_MEMORY = re.compile(r"vram total (used )?memory \((\w+)\)", re.IGNORECASE)
_USE = re.compile(r"(?:gpu|dcu|hcu) use \(%\)", re.IGNORECASE)
_TEMPERATURE = re.compile(r"temperature \(sensor (junction|core|edge)\) \(c\)", re.IGNORECASE)
_SENSORS = ("junction", "core", "edge")  # the hottest first
_POWER = re.compile(r"(?:average|current socket) graphics package power \(w\)", re.IGNORECASE)

Cards = dict[int, dict[str, str]]


class ToolCard(CardFacts, frozen=True, kw_only=True):
    """A card as the tool lists it: by its number, with its address."""

    number: int
    address: str


def read_facts(tool: str, *, timeout_s: float) -> tuple[ToolCard, ...]:
    """Ask what cards there are. Raises: ToolError."""
    return parse_facts(_ask(tool, FACTS, timeout_s))


def read_readings(tool: str, *, timeout_s: float) -> dict[str, CardReading]:
    """Ask what the cards are doing, by address. Raises: ToolError."""
    begun = time.monotonic()
    try:
        cards = _ask(tool, (*READINGS, POWER), timeout_s)
    except FormatError:
        raise
    except ToolError:
        if time.monotonic() - begun > timeout_s / 2:
            raise  # it hung, and would again
        cards = _ask(tool, READINGS, timeout_s)
    return parse_readings(cards)


def parse_cards(text: str) -> Cards:
    """Read either form into keys and values by card number. Raises: FormatError."""
    if re.search(r"^\{", text, re.MULTILINE):
        content = read_json(text, "hy-smi")
        pairs = content.items() if isinstance(content, dict) else ()
        cards = {
            int(match[1]): {str(key): str(value) for key, value in entry.items()}
            for name, entry in pairs
            if (match := _CARD.fullmatch(name)) and isinstance(entry, dict)
        }
    else:
        cards = {}
        for line in text.splitlines():
            if match := _LINE.fullmatch(line):
                cards.setdefault(int(match[1]), {})[match[2]] = match[3]
    if not cards:
        raise FormatError(f"hy-smi: no card0 and no DCU[0] or HCU[0] in {text.strip()[:120]!r}")
    return dict(sorted(cards.items()))


def parse_facts(cards: Cards) -> tuple[ToolCard, ...]:
    """Make facts of keys and values. Raises: FormatError."""
    found: list[ToolCard] = []
    for number, entry in cards.items():
        total = _memory(entry, is_used=False)
        if total is None:
            raise FormatError(f"hy-smi: card{number} has no `vram Total Memory (unit)` but {', '.join(entry)}")
        name = next((value for key, value in entry.items() if key.lower() == "card series"), None)
        found.append(ToolCard(number=number, address=_address(number, entry), name=name or None, memory_bytes=total))
    return tuple(found)


def parse_readings(cards: Cards) -> dict[str, CardReading]:
    """Make readings of keys and values, by address. Raises: FormatError."""
    found: dict[str, CardReading] = {}
    for number, entry in cards.items():
        used = _memory(entry, is_used=True)
        if used is None:
            raise FormatError(f"hy-smi: card{number} has no `vram Total Used Memory (unit)` but {', '.join(entry)}")
        sensors = {match[1].lower(): value for key, value in entry.items() if (match := _TEMPERATURE.fullmatch(key))}
        found[_address(number, entry)] = CardReading(
            memory_used_bytes=used,
            memory_total_bytes=_memory(entry, is_used=False),
            util_pct=_first(entry, _USE),
            temp_c=next((value for name in _SENSORS if (value := _number(sensors.get(name))) is not None), None),
            power_w=_first(entry, _POWER),
        )
    return found


def parse_table(text: str) -> dict[int, CardReading]:
    """Read the table of a bare `hy-smi`, by card number. It has no memory in bytes. Raises: FormatError."""
    found: dict[int, CardReading] = {}
    columns: list[str] | None = None
    for line in text.splitlines():
        words = line.split()
        if words and words[0] in ("DCU", "HCU"):
            columns = words
        elif columns is not None and words and words[0].isdecimal():
            if len(words) != len(columns):
                raise FormatError(
                    f"hy-smi: {len(words)} values under the columns {' '.join(columns)}: {line.strip()!r}"
                )
            row = dict(zip(columns, words, strict=True))
            found[int(words[0])] = CardReading(
                util_pct=_table_value(row, f"{columns[0]}%", "%"),
                temp_c=_table_value(row, "Temp", "C"),
                power_w=_table_value(row, "AvgPwr", "W"),
            )
    if not found:
        raise FormatError(f"hy-smi: no table that starts with DCU or HCU in {text.strip()[:120]!r}")
    return found


def _ask(tool: str, options: tuple[str, ...], timeout_s: float) -> Cards:
    """Ask for JSON, and for lines where the JSON is broken."""
    try:
        return parse_cards(run_tool([tool, *options, "--json"], timeout_s=timeout_s))
    except FormatError:
        return parse_cards(run_tool([tool, *options], timeout_s=timeout_s))


def _address(number: int, entry: Mapping[str, str]) -> str:
    address = known_address(entry.get("PCI Bus", ""))
    if address is None:
        raise FormatError(f"hy-smi: card{number} has no `PCI Bus` with an address but {', '.join(entry)}")
    return address


def _memory(entry: Mapping[str, str], *, is_used: bool) -> int | None:
    for key, value in entry.items():
        match = _MEMORY.fullmatch(key)
        if match is None or bool(match[1]) is not is_used:
            continue
        if match[2] not in _UNITS:
            raise FormatError(f"hy-smi: the unit of {key!r} is not known")
        return size_in_bytes(_number(value), _UNITS[match[2]])
    return None


def _first(entry: Mapping[str, str], pattern: re.Pattern[str]) -> float | None:
    return next((_number(value) for key, value in entry.items() if pattern.fullmatch(key)), None)


def _number(text: str | None) -> float | None:
    match = re.match(r"-?\d{1,18}(?:\.\d+)?", text or "")
    return float(match[0]) if match else None


def _table_value(row: Mapping[str, str], column: str, unit: str) -> float | None:
    text = row.get(column)
    if text is None:
        raise FormatError(f"hy-smi: the table has no column {column} but {' '.join(row)}")
    return _number(text) if text.endswith(unit) else None
