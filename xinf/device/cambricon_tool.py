"""What Cambricon's `cnmon` prints: pure parsers.

    cnmon info -j    writes cnmon_info.json into its working directory, nothing of use to its output
    cnmon info       nested `key : value` text, a block for each card
    cnmon            a table; three layouts (4.20, 5.10.13, 5.10.22), the first without bus addresses

They are asked in this order; the next only where the one before is not there or has a layout that is not known here.
JSON keys are those of the text without spaces. Seen there: CnmonInfo, CardNum, ProductName, UUID, PCI.{DomainID, Bus,
Device, Function}, PhysicalMemUsage.{Total, Used}, Utilization.MLUAverage, Temperature.Chip (gpustack 0.4 and
gpustack-runtime, FlagOS kaitian); Driver and Power.Usage are formed alike and read where they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from xinf.device.cambricon_card import architecture_of, identify
from xinf.device.framed_table import parse_framed_table
from xinf.device.json_answer import read_json
from xinf.device.pci import normalise_address
from xinf.device.quantity import is_count, size_in_bytes
from xinf.device.roster import Card
from xinf.device.tool import FormatError

FILE = "cnmon_info.json"
_TOTAL = "Physical Memory Usage.Total"
_VALUE = r"\S+"
_MIB_PAIR = r"\d+ MiB *\/ *\d+ MiB|N/A"
_COLUMNS = {
    "Card": r"[0-9]{1,18}",
    "VF": _VALUE,
    "Name": _VALUE,
    "Firmware": _VALUE,
    "Inited": _VALUE,
    "Driver": _VALUE,
    "Bus-Id": r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]|N/A",
    "Util": r"\d+%|N/A",
    "Ecc-Error": r"\d+|N/A",
    "Fan": _VALUE,
    "Temp": r"-?\d+C|N/A",
    "Pwr:Usage/Cap": r"(?:\d+ W|N/A) *\/ *(?:\d+ W|N/A)",
    "Memory-Usage": _MIB_PAIR,
    "vMemory-Usage": _MIB_PAIR,
    "Mode": _VALUE,
    "SR-IOV": _VALUE,
    "Compute-Mode": _VALUE,
}
_NEEDED = ("Card", "Name", "Memory-Usage", "Util", "Temp")


def parse_json(text: str) -> tuple[Card, ...]:
    """Read cnmon_info.json."""
    content = read_json(text, f"{FILE} of cnmon")
    entries = content.get("CnmonInfo") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise FormatError(f"{FILE} of cnmon has no CnmonInfo: {text.strip()[:100]!r}")
    return tuple(_card_of_json(entry) for entry in entries)


def parse_text(text: str) -> tuple[Card, ...]:
    """Read `cnmon info`: a line `Card N` opens a card, a line without a value a section of it."""
    cards: list[tuple[int, dict[str, str]]] = []
    sections: list[tuple[int, str]] = []  # indents and names of the open sections
    for line in text.splitlines():
        opened = re.fullmatch(r"\s*Card *:? *([0-9]{1,18}) *:?\s*", line)
        if opened is not None:
            cards.append((int(opened[1]), {}))
            sections = []
            continue
        if not line.strip() or not cards:
            continue
        indent = len(line) - len(line.lstrip())
        sections = [(depth, name) for depth, name in sections if depth < indent]
        key, _, value = (part.strip() for part in line.partition(":"))
        if not value:
            sections.append((indent, key))
        else:
            cards[-1][1].setdefault(".".join([*(name for _, name in sections), key]), value)
    if not cards:
        raise FormatError(f"cnmon info opens no card: {text.strip()[:100]!r}")
    if len({_TOTAL in values for _, values in cards}) > 1:
        raise FormatError(f"cnmon info is cut off: it has {_TOTAL} of some cards, not of card {cards[-1][0]}")
    return tuple(_card_of_text(number, values) for number, values in cards)


def parse_table(text: str) -> tuple[Card, ...]:
    """Read the table that cnmon prints without arguments, up to that of the processes."""
    table = parse_framed_table("cnmon", text, _COLUMNS, height=2, needed=_NEEDED, until="Processes")
    title = re.search(r"Driver v?(\S+)", table.title)
    cards: list[Card] = []
    for record in table.records:
        number, bus = int(record["Card"]), record.get("Bus-Id", "N/A")
        used, total = (_mib(part) for part in (*record["Memory-Usage"].split("/"), "")[:2])
        pci = None if bus == "N/A" else normalise_address(bus)
        driver = record.get("Driver") or (title[1] if title is not None else None)
        cards.append(
            Card(
                number=number,
                name=record["Name"],
                uuid=identify(number, pci),
                arch=architecture_of(record["Name"]),
                dev_nodes=(f"/dev/cambricon_dev{number}",),
                memory_bytes=total or None,
                used_bytes=used if total else None,
                pci=pci,
                driver=driver.removeprefix("v") if driver is not None else None,
                util_pct=_number(record["Util"]),
                temp_c=_number(record["Temp"]),
                power_w=_number(record.get("Pwr:Usage/Cap", "").split("/")[0]),
            )
        )
    return tuple(cards)


def _card_of_json(entry: object) -> Card:
    if not isinstance(entry, dict):
        raise FormatError(f"{FILE} of cnmon has an entry that is no card: {entry!r}")
    number, name = entry.get("CardNum"), entry.get("ProductName")
    if not is_count(str(number)) or not isinstance(name, str):
        raise FormatError(f"{FILE} of cnmon has a card without CardNum or ProductName: {sorted(entry)}")
    memory, place = _section(entry, "PhysicalMemUsage"), _section(entry, "PCI")
    pci = _address([place.get(key) for key in ("DomainID", "Bus", "Device", "Function")])
    total, driver, uuid = _mib(memory.get("Total")), entry.get("Driver"), entry.get("UUID")
    return Card(
        number=int(str(number)),
        name=name,
        arch=architecture_of(name),
        uuid=identify(int(str(number)), pci),
        dev_nodes=(f"/dev/cambricon_dev{number}",),
        extra=_told_uuid(uuid if isinstance(uuid, str) else None),
        memory_bytes=total,
        used_bytes=_mib(memory.get("Used")) if total else None,
        pci=pci,
        driver=driver.removeprefix("v") if isinstance(driver, str) else None,
        util_pct=_number(_section(entry, "Utilization").get("MLUAverage")),
        temp_c=_number(_section(entry, "Temperature").get("Chip")),
        power_w=_number(_section(entry, "Power").get("Usage")),
    )


def _card_of_text(number: int, values: Mapping[str, str]) -> Card:
    name, total = values.get("Product Name"), _mib(values.get(_TOTAL))
    if name is None:
        raise FormatError(f"cnmon info has no Product Name of card {number}: {', '.join(list(values)[:8])}")
    pci = _address([values.get(f"PCI.{key}") for key in ("Domain ID", "Bus num", "Device", "Function")])
    return Card(
        number=number,
        name=name,
        arch=architecture_of(name),
        uuid=identify(number, pci),
        dev_nodes=(f"/dev/cambricon_dev{number}",),
        extra=_told_uuid(values.get("UUID")),
        memory_bytes=total,
        used_bytes=_mib(values.get("Physical Memory Usage.Used")) if total else None,
        pci=pci,
        driver=values["Driver"].removeprefix("v") if "Driver" in values else None,
        util_pct=_number(values.get("Utilization.MLU Average")),
        temp_c=_number(values.get("Temperature.Chip")),
        power_w=_number(values.get("Power.Usage")),
    )


def _told_uuid(text: str | None) -> dict[str, str | int]:
    """Keep the UUID with the prefix that cndev does not have, nor all versions of cnmon."""
    return {"uuid": f"MLU-{text.removeprefix('MLU-')}"} if text else {}


def _section(entry: Mapping[str, object], name: str) -> Mapping[str, object]:
    section = entry.get(name)
    return section if isinstance(section, dict) else {}


def _address(parts: Sequence[object]) -> str | None:
    """Join domain, bus, device and function, which are written in hexadecimal; None if one is not told."""
    texts = [part.lower().removeprefix("0x") if isinstance(part, str) else "" for part in parts]
    if not all(re.fullmatch(r"[0-9a-f]+", text) for text in texts):
        return None
    domain, bus, device, function = (int(text, 16) for text in texts)
    return f"{domain:04x}:{bus:02x}:{device:02x}.{function:x}"


def _number(value: object) -> float | None:
    """Read a number with or without its unit: 37, "37", "37 C", "37%"; None for "N/A" and what is not there."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e18 else None
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*(?:%|C|W|MiB|MB)?\s*", value) if isinstance(value, str) else None
    return float(match[1]) if match is not None else None


def _mib(value: object) -> int | None:
    return size_in_bytes(_number(value), 1 << 20)
