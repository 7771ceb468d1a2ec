"""What Enflame's efsmi prints: `efsmi -q` (a `key : value` per line) and its tables.

Sources: `-q` in ZStack's GPU plugin (driver 1.4.3.4; older drivers say `Mem Size` and `Mem Usage`); tables in a
monitor of 2023 (1.20.0, with `*` for a frame), PaddleCustomDevice (1.2.0.301), vllm-gcu docs/installation.md
(1.4.0.505) and FlagTree's documents (1.6.3.12, 1.7.2.14). `efsmi -q --json-format` exists from some 1.4 on; of its
layout only the memory part is public, so it is not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from xinf.core.device import Health, Vendor
from xinf.device.enflame_library import UNHEALTHY, name_arch
from xinf.device.framed_table import parse_framed_table
from xinf.device.quantity import is_count, size_in_bytes
from xinf.device.roster import Card, name_by_place
from xinf.device.tool import FormatError

_UNKNOWN = ("", "-", "N/A")
_UNITS = {"MiB": 1 << 20, "GiB": 1 << 30, "M": 1 << 20, "G": 1 << 30}
_NUMBER = r"\d+(?:\.\d+)?"
_VALUE = r"\S+"
# The columns of all versions. Source of each: the module's docstring.
_COLUMNS = {
    "DEV": r"[0-9]{1,18}",
    "NAME": r"\S+(?: \S+)*",
    "FW VER": _VALUE,
    "Boot FW VER": _VALUE,
    "BUS-ID": r"[0-9a-fA-F]{2,4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{1,2}\.[0-7]",
    "ECC": _VALUE,
    "TEMP": rf"-|N/A|{_NUMBER}\s*[℃°'\ufffd?]{{0,3}}C?",  # what became of the sign depends on the locale
    "DPM": _VALUE,
    "Dpm": _VALUE,
    "Lpm": _VALUE,
    "Pwr(Usage/Cap)": rf"-|N/A|{_NUMBER}W(?:\s*/?\s*{_NUMBER}W)?",
    "Mem": r"[0-9]{1,18}\s*(?:MiB|GiB|M|G)",
    "vGCU": _VALUE,
    "GCU Virt": _VALUE,
    "DUsed": rf"-|N/A|{_NUMBER}\s*%?",
    "DEV-Util": rf"-|N/A|{_NUMBER}\s*%?",
    "SN": _VALUE,  # of the board, which its dies share
    "UUID": _VALUE,
}
_NEEDED = ("DEV", "NAME", "BUS-ID", "TEMP", "Pwr(Usage/Cap)", "Mem")


def parse_query(text: str) -> tuple[Card, ...]:
    """Read `efsmi -q`. Raises: FormatError."""
    blocks: list[tuple[int, dict[str, str]]] = []
    for line in text.splitlines():
        if start := re.fullmatch(r"\s*DEV ID\s+([0-9]{1,18})\s*", line):
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
    table = parse_framed_table("efsmi", text, _COLUMNS, height=2, needed=_NEEDED)
    return tuple(_read_record(record, driver=driver[1]) for record in table.records)


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
    pci = f"{domain:04x}:{bus:02x}:{device:02x}.{function:x}"
    return Card(
        pci=pci,
        number=number,
        uuid=name_by_place(Vendor.ENFLAME, pci),
        name=name,
        arch=name_arch(name),
        memory_bytes=_size(size, need(size)),
        driver=fields.get("Ver") or None,
        health=health,
        reason=UNHEALTHY if health is Health.FAULTY else None,
        extra={} if uuid in _UNKNOWN else {"uuid": f"GCU-{uuid}"},
        used_bytes=_size(usage, fields.get(usage, "")),
        free_bytes=_size("Free Size", fields.get("Free Size", "")),
        util_pct=_quantity("GCU Usage", fields.get("GCU Usage", "")),
        temp_c=_quantity("GCU Temp", fields.get("GCU Temp", "")),
        power_w=_quantity("Cur Power", fields.get("Cur Power", "")),
        ecc_uncorrected=_count("Total DBE", fields.get("Total DBE", "")),
    )


def _read_record(record: Mapping[str, str], *, driver: str) -> Card:
    used = record["DUsed"] if "DUsed" in record else record["DEV-Util"]  # of one place in all versions
    domain, bus, place = record["BUS-ID"].lower().split(":")
    device, _, function = place.partition(".")
    pci = f"{int(domain, 16):04x}:{bus}:{device:0>2}.{function}"
    size = re.fullmatch(r"(\d+)\s*(\w+)", record["Mem"])
    assert size is not None  # its column's pattern
    return Card(
        pci=pci,
        number=int(record["DEV"]),
        uuid=name_by_place(Vendor.ENFLAME, pci),
        name=record["NAME"],
        arch=name_arch(record["NAME"]),
        memory_bytes=size_in_bytes(float(size[1]), _UNITS[size[2]]),
        driver=driver,
        util_pct=_leading_number(used),
        temp_c=_leading_number(record["TEMP"]),
        power_w=_leading_number(record["Pwr(Usage/Cap)"]),
        extra={"uuid": f"GCU-{record['UUID']}"} if "UUID" in record else {},
    )


def _leading_number(text: str) -> float | None:
    number = re.match(_NUMBER, text)
    return None if number is None else float(number[0])


def _size(key: str, text: str) -> int | None:
    if text in _UNKNOWN:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(MiB|GiB)", text)
    if found is None:
        raise FormatError(f"efsmi -q: `{key}` is {text[:60]!r}, not a size")
    return size_in_bytes(float(found[1]), _UNITS[found[2]])


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
    if not is_count(text):
        raise FormatError(f"efsmi -q: `{key}` is {text[:60]!r}, not a count")
    return int(text)


def _begin(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip(" -+*|")), "")
    return repr(line[:60]) if line else "nothing"
