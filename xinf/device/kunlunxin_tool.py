"""What Kunlunxin's xpu-smi prints: `-q` (nested keys), `-m` (a line of 32 fields per card) and its table.

Intel's tool of the same name prints none of them: call these only where the PCI bus shows vendor 0x1d22.

Sources: `-q` in ZStack's GPU plugin (P800 PCIe, driver 5.0.21.26); `-m` in SwanLab's kunlunxin.py and in deployment
logs of P800 OAM (2026-09), where readers require 32 fields; the table in documents of PaddlePaddle and ERNIE (driver
5.0.21.26; in containers 515.58 with `XPU-RT Version: N/A`).
"""

from __future__ import annotations

import re
import shlex

from xinf.device.pci import normalise_address
from xinf.device.roster import Card
from xinf.device.tool import FormatError

_FIELDS = 32
# Of `-m`, counted from 0. What the others mean is not known, or not asked.
_BUS, _ID, _MINOR, _SERIAL, _TEMP, _POWER, _USED, _TOTAL, _LOAD, _NAME = 0, 1, 2, 3, 4, 8, 17, 18, 19, 21
_MOST_WATTS = 2000  # drivers of the K200 gave milliwatts here: a number above is of a unit that is not known
_UNKNOWN = ("", "-", "N/A")
_ADDRESS = re.compile(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]")
_TITLE = re.compile(r"XPU-SMI\s+Driver Version:\s*(?P<driver>[\w.-]+)\s+XPU-RT Version:\s*(?P<runtime>[\w./-]+)")
_HEADERS = (
    "XPU Name Persistence-M|Bus-Id Disp.A|Volatile Uncorr. ECC",
    "Fan Temp Perf Pwr:Usage/Cap|Memory-Usage|XPU-Util Compute M.",
    "|L3-Usage|SR-IOV M.",
)
_FIRST = re.compile(r"(?P<number>\d+)\s+(?P<name>\S.*?)\s+\S+")
_PLACE = re.compile(rf"(?P<address>{_ADDRESS.pattern})\s+\S+")
_STATE = re.compile(r"\S+\s+(?P<temp>\d+C|N/A)\s+\S+\s+(?:(?P<watts>\d+)W|N/A)\s*/\s*(?:\d+W|N/A)")
_MEMORY = re.compile(r"(?P<used>\d+)MiB\s*/\s*(?P<total>\d+)MiB")
_USE = re.compile(r"(?P<load>\d+%|N/A)\s+\S+")


def parse_query(text: str) -> tuple[Card, ...]:
    """Read `xpu-smi -q`. Raises: FormatError."""
    blocks: list[tuple[str, dict[str, str]]] = []
    common: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        if start := re.fullmatch(r"\s*XPU\s+(\S+)\s*", line):
            blocks.append((start[1], {}))
            path = []
            continue
        key, separator, value = line.partition(":")
        indent = len(line) - len(line.lstrip())
        while path and path[-1][0] >= indent:
            path.pop()
        if separator:
            fields = blocks[-1][1] if blocks else common
            fields["/".join([*(name for _, name in path), key.strip()])] = value.strip()
        elif key.strip():
            path.append((indent, key.strip()))
    if not blocks or "XPU-RT Version" not in common:
        raise FormatError(f"xpu-smi -q printed no `XPU-RT Version` and `XPU <bus id>`, but {_begin(text)}")
    return tuple(_read_block(bus, fields, common) for bus, fields in blocks)


def parse_machine(text: str) -> tuple[Card, ...]:
    """Read `xpu-smi -m`. Raises: FormatError."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise FormatError("xpu-smi -m printed nothing")
    return tuple(_read_machine_line(line) for line in lines)


def parse_table(text: str) -> tuple[Card, ...]:
    """Read the table of a plain `xpu-smi`. Raises: FormatError."""
    title = _TITLE.search(text)
    if title is None:
        raise FormatError(f"xpu-smi's table does not begin as Kunlunxin's does, but with {_begin(text)}")
    rows = [row for line in text[title.end() :].partition("Processes:")[0].splitlines() if (row := _split(line))]
    heads = tuple(_words(row) for row in rows[:3])
    if heads != _HEADERS:
        raise FormatError("xpu-smi's table has columns that are not known: " + " / ".join(heads))
    lines = rows[3:]
    if not lines or len(lines) % 3:
        raise FormatError(f"xpu-smi's table has {len(lines)} lines of cards, not three for each")
    runtime = None if title["runtime"] in _UNKNOWN else title["runtime"]
    return tuple(
        _read_table_lines(lines[at], lines[at + 1], driver=title["driver"], runtime=runtime)
        for at in range(0, len(lines), 3)
    )


def _read_block(bus: str, fields: dict[str, str], common: dict[str, str]) -> Card:
    address = fields.get("PCI/Bus Id", bus)
    if not _ADDRESS.fullmatch(address):
        raise FormatError(f"xpu-smi -q: a card has the `Bus Id` {address[:40]!r}, not an address")
    for key in ("Product Name", "Memory Usage/Total"):
        if key not in fields:
            raise FormatError(f"xpu-smi -q: XPU {bus} has no `{key}`")
    name, minor = fields["Product Name"], _number(fields, "Minor Number", "")
    architecture = fields.get("Product Architecture")
    uuid, runtime = fields.get("XPU UUID", ""), common["XPU-RT Version"]
    errors = _number(fields, "ECC Errors/Volatile/DRAM Uncorrectable", "")
    return Card(
        pci=normalise_address(address),
        uuid=None if uuid in _UNKNOWN else uuid,
        name=name,
        arch=_name_arch(name),
        memory_bytes=_size(fields, "Memory Usage/Total"),
        driver=common.get("Driver Version") or None,
        runtime=None if runtime in _UNKNOWN else runtime,
        dev_nodes=() if minor is None else (f"/dev/xpu{int(minor)}",),
        extra={"architecture": architecture} if architecture else {},
        used_bytes=_size(fields, "Memory Usage/Used"),
        free_bytes=_size(fields, "Memory Usage/Free"),
        util_pct=_number(fields, "Utilization/Xpu", "%"),
        temp_c=_number(fields, "Temperature/XPU Current Temp", "C"),
        power_w=_number(fields, "Power Readings/Power Draw", "W"),
        ecc_uncorrected=None if errors is None else int(errors),
    )


def _read_machine_line(line: str) -> Card:
    try:
        fields = shlex.split(line)
    except ValueError as error:
        raise FormatError(f"xpu-smi -m printed a line that is cut off ({error}): {line[:60]!r}") from None
    if len(fields) != _FIELDS:
        raise FormatError(f"xpu-smi -m printed {len(fields)} fields, not {_FIELDS}: {line[:60]!r}")
    numbers = {at: fields[at] for at in (_ID, _MINOR, _TEMP, _POWER, _USED, _TOTAL, _LOAD)}
    if not _ADDRESS.fullmatch(fields[_BUS]) or not all(number.isdigit() for number in numbers.values()):
        raise FormatError(f"xpu-smi -m printed fields in an order that is not known: {line[:60]!r}")
    number, minor, temp, power, used, total, load = (int(text) for text in numbers.values())
    if total == 0 or used > total or load > 100:
        raise FormatError(f"xpu-smi -m uses {used} of {total} MiB at {load} %: its fields are not in the known order")
    return Card(
        pci=normalise_address(fields[_BUS]),
        number=number,
        uuid=f"XPU-{fields[_SERIAL]}",
        name=fields[_NAME],
        arch=_name_arch(fields[_NAME]),
        memory_bytes=total << 20,
        dev_nodes=(f"/dev/xpu{minor}",),
        used_bytes=used << 20,
        util_pct=float(load),
        temp_c=float(temp),
        power_w=float(power) if power <= _MOST_WATTS else None,
    )


def _read_table_lines(first: list[str], second: list[str], *, driver: str, runtime: str | None) -> Card:
    named, place = _match(_FIRST, first[0]), _match(_PLACE, first[1])
    state, memory, use = _match(_STATE, second[0]), _match(_MEMORY, second[1]), _match(_USE, second[2])
    errors = first[2]
    return Card(
        pci=normalise_address(place["address"]),
        number=int(named["number"]),
        name=named["name"],
        arch=_name_arch(named["name"]),
        memory_bytes=int(memory["total"]) << 20,
        driver=driver,
        runtime=runtime,
        used_bytes=int(memory["used"]) << 20,
        util_pct=None if use["load"] in _UNKNOWN else float(use["load"].rstrip("%")),
        temp_c=None if state["temp"] in _UNKNOWN else float(state["temp"].rstrip("C")),
        power_w=None if state["watts"] is None else float(state["watts"]),
        ecc_uncorrected=int(errors) if errors.isdigit() else None,
    )


def _name_arch(name: str) -> str | None:
    """Name the architecture by the product: "P800 OAM" and "P800 PCIe" are P800."""
    return name.split()[0] if name.split() else None


def _size(fields: dict[str, str], key: str) -> int | None:
    number = _number(fields, key, "MiB")
    return None if number is None else int(number) << 20


def _number(fields: dict[str, str], key: str, unit: str) -> float | None:
    text = fields.get(key, "")
    if text in _UNKNOWN:
        return None
    found = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*{unit}", text)
    if found is None:
        raise FormatError(f"xpu-smi -q: `{key}` is {text[:60]!r}, not a number" + (f" of {unit}" if unit else ""))
    return float(found[1])


def _split(line: str) -> list[str] | None:
    """Cut a line of the table into its three cells; None for rules."""
    line = line.strip()
    if len(line) < 2 or line[0] != "|" or line[-1] != "|" or not re.search(r"\w", line):
        return None
    cells = [cell.strip() for cell in line[1:-1].split("|")]
    return cells if len(cells) == 3 else None


def _words(row: list[str]) -> str:
    return "|".join(" ".join(cell.split()) for cell in row)


def _match(pattern: re.Pattern[str], cell: str) -> re.Match[str]:
    found = pattern.fullmatch(cell)
    if found is None:
        raise FormatError(f"xpu-smi's table has a cell that is not known: {cell[:60]!r}")
    return found


def _begin(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip(" -+=|")), "")
    return repr(line[:60]) if line else "nothing"
