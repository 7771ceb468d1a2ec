"""What Enflame's efsmi prints: `efsmi -q` (a `key : value` per line) and its tables.

Sources: `-q` in ZStack's GPU plugin (driver 1.4.3.4; older drivers say `Mem Size` and `Mem Usage`); tables in a
monitor of 2023 (1.20.0, with `*` for a frame), PaddleCustomDevice (1.2.0.301), vllm-gcu docs/installation.md
(1.4.0.505) and FlagTree's documents (1.6.3.12, 1.7.2.14). `efsmi -q --json-format` exists from some 1.4 on; of its
layout only the memory part is public, so it is not read.
"""

from __future__ import annotations

import re

from xinf.core.device import Health
from xinf.device.enflame_library import UNHEALTHY, name_arch
from xinf.device.roster import Card
from xinf.device.tool import FormatError

_UNKNOWN = ("", "-", "N/A")
_UNITS = {"MiB": 1 << 20, "GiB": 1 << 30, "M": 1 << 20, "G": 1 << 30}
# The cells of a table's two header lines, by their words. Source of each: the module's docstring.
_HEADS = ("DEV NAME|FW VER|BUS-ID ECC", "DEV NAME|Boot FW VER|BUS-ID ECC")
_TAILS = {  # and whether the last column is the UUID of `-q`, not the serial number, which the dies of a card share
    "TEMP DPM Pwr(Usage/Cap)|Mem vGCU|DEV-Util UUID": True,
    "TEMP Dpm Pwr(Usage/Cap)|Mem GCU Virt|DUsed SN": False,
    "TEMP Lpm Pwr(Usage/Cap)|Mem GCU Virt|DUsed SN": False,
}
_FIRST = re.compile(r"(?P<number>\d+)\s+(?P<name>\S.*)")
_BUS = re.compile(r"(?P<domain>[0-9a-f]{2,4}):(?P<rest>[0-9a-f]{2}:[0-9a-f]{1,2}\.[0-7])\s+\S+", re.IGNORECASE)
_SECOND = re.compile(
    r"(?P<temp>-|N/A|\d+(?:\.\d+)?)\s*(?:[℃°'�?]{0,3}C?)\s+"
    r"(?P<mode>\S+)\s+(?P<power>-|N/A|(?P<watts>\d+(?:\.\d+)?)W(?:\s*/?\s*\d+(?:\.\d+)?W)?)"
)
_MEMORY = re.compile(r"(?P<amount>\d+)\s*(?P<unit>MiB|GiB|M|G)\s+\S+")
_USED = re.compile(r"(?P<load>-|N/A|\d+(?:\.\d+)?)\s*%?\s+(?P<serial>\S+)")


def parse_query(text: str) -> tuple[Card, ...]:
    """Read `efsmi -q`. Raises: FormatError."""
    blocks: list[tuple[int, dict[str, str]]] = []
    for line in text.splitlines():
        if start := re.fullmatch(r"\s*DEV ID\s+(\d+)\s*", line):
            blocks.append((int(start[1]), {}))
        elif blocks:
            key, separator, value = line.partition(":")
            if separator:
                # `Dev`, `Dev Name` and `Device ID` all exist: keys are compared whole. The first of a name counts.
                blocks[-1][1].setdefault(key.strip(), value.strip())
    if not blocks:
        raise FormatError(f"efsmi -q printed no `DEV ID`, but {_begin(text)}")
    return tuple(_read_block(number, fields) for number, fields in blocks)


def parse_table(text: str) -> tuple[Card, ...]:
    """Read the table of a plain `efsmi`. The PCI domain in it is cut to two digits. Raises: FormatError."""
    driver = re.search(r"EFSMI:?\s+V?[\d.]+\s+Driver Ver:\s*([\w.-]+)", text)
    if driver is None:
        raise FormatError(f"efsmi's table does not begin as known, but with {_begin(text)}")
    rows = [row for line in text.splitlines() if (row := _split(line))]
    heads = [index for index, row in enumerate(rows) if _words(row) in _HEADS]
    if len(heads) != 1 or len(rows) <= heads[0] + 1 or _words(rows[heads[0] + 1]) not in _TAILS:
        raise FormatError("efsmi's table has columns that are not known: " + " / ".join(map(_words, rows[:2])))
    has_uuid, lines = _TAILS[_words(rows[heads[0] + 1])], rows[heads[0] + 2 :]
    if not lines or len(lines) % 2:
        raise FormatError(f"efsmi's table has {len(lines)} lines of cards, not two for each")
    return tuple(
        _read_lines(lines[at], lines[at + 1], driver=driver[1], has_uuid=has_uuid) for at in range(0, len(lines), 2)
    )


def _read_block(number: int, fields: dict[str, str]) -> Card:
    def need(key: str) -> str:
        if key not in fields:
            raise FormatError(f"efsmi -q: DEV ID {number} has no `{key}`")
        return fields[key]

    try:
        domain, bus, device, function = (int(need(key), 16) for key in ("Domain", "Bus", "Dev", "Func"))
    except ValueError as error:
        raise FormatError(f"efsmi -q: the PCI place of DEV ID {number} is not hexadecimal: {error}") from None
    name = need("Dev Name")
    size, usage = ("Total Size", "Used Size") if "Total Size" in fields else ("Mem Size", "Mem Usage")
    health = {"True": Health.OK, "False": Health.FAULTY}.get(fields.get("Health", ""))
    uuid = fields.get("Dev UUID", "")
    return Card(
        pci=f"{domain:04x}:{bus:02x}:{device:02x}.{function:x}",
        number=number,
        uuid=None if uuid in _UNKNOWN else f"GCU-{uuid}",
        name=name,
        arch=name_arch(name),
        memory_bytes=_size(size, need(size)),
        driver=fields.get("Ver") or None,
        health=health,
        reason=UNHEALTHY if health is Health.FAULTY else None,
        used_bytes=_size(usage, fields.get(usage, "")),
        free_bytes=_size("Free Size", fields.get("Free Size", "")),
        util_pct=_quantity("GCU Usage", fields.get("GCU Usage", "")),
        temp_c=_quantity("GCU Temp", fields.get("GCU Temp", "")),
        power_w=_quantity("Cur Power", fields.get("Cur Power", "")),
        ecc_uncorrected=_count("Total DBE", fields.get("Total DBE", "")),
    )


def _read_lines(first: list[str], second: list[str], *, driver: str, has_uuid: bool) -> Card:
    named, bus = _match(_FIRST, first[0]), _match(_BUS, first[2])
    state, memory, used = _match(_SECOND, second[0]), _match(_MEMORY, second[1]), _match(_USED, second[2])
    place, _, function = bus["rest"].lower().partition(".")
    number, _, device = place.partition(":")
    return Card(
        pci=f"{int(bus['domain'], 16):04x}:{number}:{device:0>2}.{function}",
        number=int(named["number"]),
        uuid=f"GCU-{used['serial']}" if has_uuid else None,
        name=named["name"].strip(),
        arch=name_arch(named["name"]),
        memory_bytes=int(memory["amount"]) * _UNITS[memory["unit"]],
        driver=driver,
        util_pct=None if used["load"] in _UNKNOWN else float(used["load"]),
        temp_c=None if state["temp"] in _UNKNOWN else float(state["temp"]),
        power_w=None if state["watts"] is None else float(state["watts"]),
    )


def _split(line: str) -> list[str] | None:
    """Cut a line of the table into its three cells; None for rules and for the title."""
    line = line.strip()
    if len(line) < 2 or line[0] != line[-1] or line[0] not in "|*":
        return None
    cells = [cell.strip() for cell in line[1:-1].split("|")]
    return cells if len(cells) == 3 else None


def _words(row: list[str]) -> str:
    return "|".join(" ".join(cell.split()) for cell in row)


def _match(pattern: re.Pattern[str], cell: str) -> re.Match[str]:
    found = pattern.fullmatch(cell)
    if found is None:
        raise FormatError(f"efsmi's table has a cell that is not known: {cell[:60]!r}")
    return found


def _size(key: str, text: str) -> int | None:
    if text in _UNKNOWN:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(MiB|GiB)", text)
    if found is None:
        raise FormatError(f"efsmi -q: `{key}` is {text[:60]!r}, not a size")
    return round(float(found[1]) * _UNITS[found[2]])


def _quantity(key: str, text: str) -> float | None:
    """Read a number before a unit of at most a few signs: `35 ℃` arrives as anything, depending on the locale."""
    if text in _UNKNOWN:
        return None
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*\D{0,4}", text)
    if found is None:
        raise FormatError(f"efsmi -q: `{key}` is {text[:60]!r}, not a quantity")
    return float(found[1])


def _count(key: str, text: str) -> int | None:
    if text in _UNKNOWN:
        return None
    if not text.isdigit():
        raise FormatError(f"efsmi -q: `{key}` is {text[:60]!r}, not a count")
    return int(text)


def _begin(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip(" -+*|")), "")
    return repr(line[:60]) if line else "nothing"
