"""What Moore Threads' mthreads-gmi prints: `mthreads-gmi -q --json`, and its table.

Sources: the JSON in SwanLab's moorethreads.py and in exporters' tests (driver 2.7.0 on S4000, 3.3.5-server on S5000;
the bus is `Bus ID` or `PCI/Bus ID`, and `Power Draw ` ends in a space); the table in users' documents (1.14.0 and
2.0.0 on S80, 2.3.2 and 2.4.1 on S5000, with and without the columns `Perf` and `ECC Mode`).
"""

from __future__ import annotations

import json
import re

from xinf.device.mthreads_library import name_arch
from xinf.device.pci import normalise_address
from xinf.device.roster import Card
from xinf.device.tool import FormatError

_UNKNOWN = ("", "-", "N/A")
_UNITS = {"MiB": 1 << 20, "GiB": 1 << 30}
_ADDRESS = re.compile(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]")
_TITLE = re.compile(r"mthreads-gmi:\s*(?P<version>[\d.]+)\s+Driver Version:\s*(?P<driver>\S+)")
_HEADERS = (
    {"ID Name|PCIe|%GPU Mem"},
    {"Device Type Perf|Pcie Lane Width|Temp MPC Capable", "Device Type|Pcie Lane Width|Temp MPC Capable"},
    {"||ECC Mode", "|ECC Mode"},  # the third line draws its frame as it likes
)
_FIRST = re.compile(r"(?P<number>\d+)\s+(?P<name>\S.*)")
_LOAD = re.compile(r"(?P<load>N/A|\d+%)\s+(?P<used>\d+)MiB\s*\(\s*(?P<total>\d+)MiB\s*\)")
_HEAT = re.compile(r"(?P<temp>N/A|\d+C)\s+\S+")


def parse_json(text: str) -> tuple[Card, ...]:
    """Read `mthreads-gmi -q --json`. Raises: FormatError."""
    try:
        answer = _strip_keys(json.loads(text))
    except json.JSONDecodeError as error:
        raise FormatError(f"mthreads-gmi -q --json printed no JSON: {error}") from None
    if not isinstance(answer, dict) or not isinstance(answer.get("GPU"), list):
        raise FormatError("mthreads-gmi -q --json has no list `GPU`")
    driver = answer.get("Driver Version")
    return tuple(_read_gpu(entry, driver if isinstance(driver, str) else None) for entry in answer["GPU"])


def parse_table(text: str) -> tuple[Card, ...]:
    """Read the table of a plain `mthreads-gmi`. Raises: FormatError."""
    title = _TITLE.search(text)
    if title is None:
        raise FormatError("mthreads-gmi's table does not begin with `mthreads-gmi:` and `Driver Version:`")
    table = text[title.end() :].partition("Processes:")[0]
    rows = [row for line in table.splitlines() if (row := _split(line)) is not None]
    if len(rows) < 2 or _words(rows[0]) not in _HEADERS[0] or _words(rows[1]) not in _HEADERS[1]:
        raise FormatError("mthreads-gmi's table has columns that are not known: " + " / ".join(map(_words, rows[:2])))
    height = 3 if len(rows) > 2 and _words(rows[2]) in _HEADERS[2] else 2
    lines = rows[height:]
    if not lines or len(lines) % height:
        raise FormatError(f"mthreads-gmi's table has {len(lines)} lines of cards, not {height} for each")
    return tuple(_read_lines(lines[at], lines[at + 1], title["driver"]) for at in range(0, len(lines), height))


def _read_gpu(entry: object, driver: str | None) -> Card:
    number = _text(entry, "Index")
    if number is None or not number.isdigit():
        raise FormatError(f"mthreads-gmi -q --json: a GPU has the `Index` {number!r}, not a number")
    address = _text(entry, "PCI", "Bus ID") or _text(entry, "PCI", "PCI/Bus ID")
    if address is None or not _ADDRESS.fullmatch(address):
        raise FormatError(f"mthreads-gmi -q --json: GPU {number} has the PCI `Bus ID` {address!r}, not an address")
    name = _text(entry, "Product Name")
    total = _size(entry, "FB Memory Usage", "Total")
    if name is None or total is None:
        lacking = "Product Name" if name is None else "FB Memory Usage/Total"
        raise FormatError(f"mthreads-gmi -q --json: GPU {number} has no `{lacking}`")
    return Card(
        pci=normalise_address(address),
        number=int(number),
        uuid=_text(entry, "GPU UUID"),
        name=name,
        arch=name_arch(name),
        memory_bytes=total,
        driver=driver,
        used_bytes=_size(entry, "FB Memory Usage", "Used"),
        free_bytes=_size(entry, "FB Memory Usage", "Free"),
        util_pct=_quantity("%", entry, "Utilization", "Gpu"),
        temp_c=_quantity("C", entry, "Temperature", "GPU Current Temp"),
        power_w=_quantity("W", entry, "Power Readings", "Power Draw"),
    )


def _read_lines(first: list[str], second: list[str], driver: str) -> Card:
    if len(first) != 3 or len(second) != 3 or not _ADDRESS.fullmatch(first[1]):
        raise FormatError(f"mthreads-gmi's table has a line that is not known: {_words(first)[:80]!r}")
    named, state, heat = _match(_FIRST, first[0]), _match(_LOAD, first[2]), _match(_HEAT, second[2])
    return Card(
        pci=normalise_address(first[1]),
        number=int(named["number"]),
        name=named["name"].strip(),
        arch=name_arch(named["name"]),
        memory_bytes=int(state["total"]) << 20,
        driver=driver,
        used_bytes=int(state["used"]) << 20,
        util_pct=None if state["load"] in _UNKNOWN else float(state["load"].rstrip("%")),
        temp_c=None if heat["temp"] in _UNKNOWN else float(heat["temp"].rstrip("C")),
    )


def _strip_keys(value: object) -> object:
    """Take the spaces off the keys: of `Power Draw ` nobody means the last one."""
    if isinstance(value, dict):
        return {str(key).strip(): _strip_keys(entry) for key, entry in value.items()}
    return [_strip_keys(entry) for entry in value] if isinstance(value, list) else value


def _text(entry: object, *path: str) -> str | None:
    for key in path:
        entry = entry.get(key) if isinstance(entry, dict) else None
    text = str(entry).strip() if isinstance(entry, str | int | float) else ""
    return None if text in _UNKNOWN else text


def _size(entry: object, *path: str) -> int | None:
    text = _text(entry, *path)
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(MiB|GiB)", text)
    if found is None:
        raise FormatError(f"mthreads-gmi -q --json: `{'/'.join(path)}` is {text[:60]!r}, not a size")
    return round(float(found[1]) * _UNITS[found[2]])


def _quantity(unit: str, entry: object, *path: str) -> float | None:
    text = _text(entry, *path)
    if text is None:
        return None
    found = re.fullmatch(rf"(-?\d+(?:\.\d+)?)\s*{unit}?", text)
    if found is None:
        raise FormatError(f"mthreads-gmi -q --json: `{'/'.join(path)}` is {text[:60]!r}, not a number of {unit}")
    return float(found[1])


def _split(line: str) -> list[str] | None:
    """Cut a line of the table at its frames; None for rules and empty lines."""
    return [cell.strip() for cell in line.split("|")] if re.search(r"\w", line) else None


def _words(row: list[str]) -> str:
    return "|".join(" ".join(cell.split()) for cell in row)


def _match(pattern: re.Pattern[str], cell: str) -> re.Match[str]:
    found = pattern.fullmatch(cell)
    if found is None:
        raise FormatError(f"mthreads-gmi's table has a cell that is not known: {cell[:60]!r}")
    return found
