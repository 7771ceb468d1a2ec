"""What Moore Threads' mthreads-gmi prints: `mthreads-gmi -q --json`, and its table.

Sources: the JSON in SwanLab's moorethreads.py and in exporters' tests (driver 2.7.0 on S4000, 3.3.5-server on S5000;
the bus is `Bus ID` or `PCI/Bus ID`, and `Power Draw ` ends in a space); the table in users' documents (1.14.0 and
2.0.0 on S80, 2.3.2 and 2.4.1 on S5000, with and without the columns `Perf` and `ECC Mode`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from xinf.core.device import Vendor
from xinf.device.framed_table import parse_framed_table
from xinf.device.json_answer import read_json
from xinf.device.mthreads_library import name_arch
from xinf.device.pci import normalise_address
from xinf.device.quantity import is_count, size_in_bytes
from xinf.device.roster import Card, name_by_place
from xinf.device.tool import FormatError

_UNKNOWN = ("", "-", "N/A")
_UNITS = {"MiB": 1 << 20, "GiB": 1 << 30}
_ADDRESS = re.compile(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]")
_TITLE = re.compile(r"mthreads-gmi:\s*(?P<version>[\d.]+)\s+Driver Version:\s*(?P<driver>\S+)")
_COLUMNS = {
    "ID": r"[0-9]{1,18}",
    "Name": r"\S+(?: \S+)*",
    "PCIe": _ADDRESS.pattern,
    "%GPU": r"N/A|\d+%",
    "Mem": r"[0-9]{1,18}MiB\s*\(\s*[0-9]{1,18}MiB\s*\)",
    "Device Type": r"\S+",
    "Perf": r"\S+",
    "Pcie Lane Width": r"\S+",
    "Temp": r"N/A|\d+C",
    "MPC Capable": r"\S+",
    "ECC Mode": r"\S+(?: \S+)*",
}
_NEEDED = ("ID", "Name", "PCIe", "%GPU", "Mem", "Temp")


def parse_json(text: str) -> tuple[Card, ...]:
    """Read `mthreads-gmi -q --json`. Raises: FormatError."""
    answer = _strip_keys(read_json(text, "mthreads-gmi -q --json"))
    if not isinstance(answer, dict) or not isinstance(answer.get("GPU"), list):
        raise FormatError("mthreads-gmi -q --json has no list `GPU`")
    driver = answer.get("Driver Version")
    cards = [_read_gpu(entry, driver if isinstance(driver, str) else None) for entry in answer["GPU"]]
    return _check_places(cards, "mthreads-gmi -q --json")


def parse_table(text: str) -> tuple[Card, ...]:
    """Read the table of a plain `mthreads-gmi`. Raises: FormatError."""
    title = _TITLE.search(text)
    if title is None:
        raise FormatError("mthreads-gmi's table does not begin with `mthreads-gmi:` and `Driver Version:`")
    lines = [_frame(line) for line in text[title.end() :].partition("Processes:")[0].splitlines()]
    height = 3 if any("ECC Mode" in line for line in lines) else 2
    table = parse_framed_table("mthreads-gmi", "\n".join(lines), _COLUMNS, height=height, needed=_NEEDED)
    return _check_places([_read_record(record, title["driver"]) for record in table.records], "mthreads-gmi's table")


def _check_places(cards: Sequence[Card], source: str) -> tuple[Card, ...]:
    """Refuse cards at one address: the parts of a card that MPC divides, which only the library tells apart."""
    twice = [address for address, times in Counter(card.pci for card in cards).items() if times > 1]
    if twice:
        raise FormatError(f"{source} lists several cards at {twice[0]}: the parts of a divided one have no names there")
    return tuple(cards)


def _read_gpu(entry: object, driver: str | None) -> Card:
    number = _text(entry, "Index")
    if number is None or not is_count(number):
        raise FormatError(f"mthreads-gmi -q --json: a GPU has the `Index` {number!r}, not a number")
    address = _text(entry, "PCI", "Bus ID") or _text(entry, "PCI", "PCI/Bus ID")
    if address is None or not _ADDRESS.fullmatch(address):
        raise FormatError(f"mthreads-gmi -q --json: GPU {number} has the PCI `Bus ID` {address!r}, not an address")
    name = _text(entry, "Product Name")
    total = _size(entry, "FB Memory Usage", "Total")
    if name is None or total is None:
        lacking = "Product Name" if name is None else "FB Memory Usage/Total"
        raise FormatError(f"mthreads-gmi -q --json: GPU {number} has no `{lacking}`")
    pci, uuid = normalise_address(address), _text(entry, "GPU UUID")
    return Card(
        pci=pci,
        number=int(number),
        uuid=name_by_place(Vendor.MTHREADS, pci),
        name=name,
        arch=name_arch(name),
        memory_bytes=total,
        driver=driver,
        extra={} if uuid is None else {"uuid": uuid},
        used_bytes=_size(entry, "FB Memory Usage", "Used"),
        free_bytes=_size(entry, "FB Memory Usage", "Free"),
        util_pct=_quantity("%", entry, "Utilization", "Gpu"),
        temp_c=_quantity("C", entry, "Temperature", "GPU Current Temp"),
        power_w=_quantity("W", entry, "Power Readings", "Power Draw"),
    )


def _read_record(record: Mapping[str, str], driver: str) -> Card:
    pci = normalise_address(record["PCIe"])
    used, total = (size_in_bytes(int(mib), 1 << 20) for mib in re.findall(r"(\d+)MiB", record["Mem"]))
    return Card(
        pci=pci,
        number=int(record["ID"]),
        uuid=name_by_place(Vendor.MTHREADS, pci),
        name=record["Name"],
        arch=name_arch(record["Name"]),
        memory_bytes=total,
        driver=driver,
        used_bytes=used,
        util_pct=None if record["%GPU"] in _UNKNOWN else float(record["%GPU"].rstrip("%")),
        temp_c=None if record["Temp"] in _UNKNOWN else float(record["Temp"].rstrip("C")),
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
    return size_in_bytes(float(found[1]), _UNITS[found[2]])


def _quantity(unit: str, entry: object, *path: str) -> float | None:
    text = _text(entry, *path)
    if text is None:
        return None
    found = re.fullmatch(rf"(-?\d+(?:\.\d+)?)\s*{unit}?", text)
    if found is None:
        raise FormatError(f"mthreads-gmi -q --json: `{'/'.join(path)}` is {text[:60]!r}, not a number of {unit}")
    return float(found[1])


def _frame(line: str) -> str:
    """Draw the frames that the tool leaves out: the outer ones, and where it likes the first inner one of ECC Mode."""
    cells = line.split("|")
    if len(cells) == 1:
        return line  # a rule, or nothing
    return "|".join(["", *([""] if len(cells) == 2 and not cells[0].strip() else []), *cells, ""])
