"""What `npu-smi` prints: pure parsers, by header and key.

Layouts: the sources of npu-smi (CANN driver, 2026: npu_info_print.c) and logs of 22.0.4 to 26.0.rc1. All of them raise
FormatError, which names the command and shows what was seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from xinf.core.device import Distance
from xinf.device.ascend_chip import HEALTH_WORDS, Condition, Numbers, judge
from xinf.device.framed_table import parse_framed_table
from xinf.device.link_matrix import Link, parse_link_matrix
from xinf.device.pci import normalise_address
from xinf.device.quantity import is_count, size_in_bytes
from xinf.device.tool import FormatError

_MIB = 1 << 20
_PAIR = r"[\d.]+|NA|-"  # a number, or that there is none
_ADDRESS = r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]"
_USAGE = rf"(?:{_PAIR})\s*/\s*(?:{_PAIR})"
_COLUMNS = {
    "NPU ID": r"[0-9]{1,18}",
    "NPU": r"[0-9]{1,18}",
    "Name": r"\S+(?: \S+)*",
    "Health": "|".join((*HEALTH_WORDS, "NA")),
    "Power(W)": _PAIR,
    "Temp(C)": _PAIR,
    "Hugepages-Usage(page)": _USAGE,
    "Chip": r"\d+|NA",
    "Phy-ID": r"\d+|NA|-",
    "Device": r"\d+|NA|-",
    "Bus-Id": rf"{_ADDRESS}|NA",
    "AICore(%)": _PAIR,
    "NPU Util(%)": _PAIR,
    "Memory-Usage(MB)": _USAGE,
    "HBM-Usage(MB)": _USAGE,
}
_MAP_COLUMNS = ("NPU ID", "Slot ID", "Chip ID", "Chip Logic ID", "Chip Phy-ID", "Chip Name")
_KINDS = {
    "X": None,  # itself
    "SYS": Distance.SYS,
    "PHB": Distance.PHB,
    "PXB": Distance.PXB,
    "PIX": Distance.PIX,
    "HCCS": Distance.LINK,
    "HCCS_SW": Distance.LINK,
    "SIO": Distance.LINK,  # between the two dies of an A3 chip
    "UB": Distance.LINK,
    "NA": None,
}


class ChipRow(msgspec.Struct, frozen=True, kw_only=True):
    """A record of the table of `npu-smi info`."""

    npu_id: int
    chip_id: int
    name: str
    condition: Condition
    pci: str | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    util_pct: float | None
    temp_c: float | None
    power_w: float | None


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """The table with the version of the driver above it."""

    driver: str | None
    rows: tuple[ChipRow, ...]


def parse_mapping(text: str) -> tuple[Numbers, ...]:
    """Read `npu-smi info -m` without the cards' controllers and processors, which have a dash for a logic id."""
    lines = [re.split(r"\t+| {2,}", line.strip()) for line in text.splitlines() if line.strip()]
    header = lines[0] if lines else []
    has_logic_id = "Chip Logic ID" in header
    # An Ascend 950 numbers by NPU ID alone: it is the logic id (vllm-ascend 182b75ea, cpu_binding.md).
    is_950 = "Slot ID" in header and not has_logic_id
    is_whole = {"NPU ID", "Chip ID", "Chip Name"} <= set(header) <= set(_MAP_COLUMNS) and (has_logic_id or is_950)
    if not is_whole or len(set(header)) != len(header):
        raise FormatError(f"npu-smi info -m has an unknown header: {' | '.join(header)[:200]!r}")
    found: list[Numbers] = []
    for cells in lines[1:]:
        if len(cells) != len(header):
            raise FormatError(f"npu-smi info -m has a row that does not fit its header: {cells}")
        row = dict(zip(header, cells, strict=True))
        logic_id = row["NPU ID"] if is_950 else row["Chip Logic ID"]
        if logic_id == "-":
            continue
        physical_id = row.get("Chip Phy-ID", "-")
        found.append(
            Numbers(
                npu_id=_integer(row["NPU ID"], "npu-smi info -m"),
                chip_id=_integer(row["Chip ID"], "npu-smi info -m"),
                logic_id=_integer(logic_id, "npu-smi info -m"),
                physical_id=int(physical_id) if is_count(physical_id) else None,
                has_physical_id="Chip Phy-ID" in header,
                name=row["Chip Name"],
            )
        )
    if not found:
        raise FormatError("npu-smi info -m lists no NPU")
    return tuple(found)


def parse_table(text: str) -> Listing:
    """Read the table of `npu-smi info`, without that of the processes below it."""
    needed = ("Name", "Health", "Bus-Id", "Memory-Usage(MB)")
    table = parse_framed_table("npu-smi info", text, _COLUMNS, height=2, needed=needed, until="Process")
    rows: list[ChipRow] = []
    for record in table.records:
        number, bus = record.get("NPU", record.get("NPU ID")), record["Bus-Id"]
        if number is None:
            raise FormatError(f"npu-smi info has a table without the NPUs' numbers: {', '.join(record)}")
        used, total = _usage(record["Memory-Usage(MB)"])
        if "HBM-Usage(MB)" in record:
            used_hbm, total_hbm = _usage(record["HBM-Usage(MB)"])
            used, total = (used_hbm, total_hbm) if total_hbm else (used, total)
        word = record["Health"]
        rows.append(
            ChipRow(
                npu_id=int(number),
                chip_id=int(record.get("Chip", "0")) if is_count(record.get("Chip", "0")) else 0,
                name=record["Name"],
                condition=judge(HEALTH_WORDS.index(word)) if word in HEALTH_WORDS else Condition(None),
                pci=None if bus == "NA" else normalise_address(bus),
                memory_total_bytes=total or None,
                memory_used_bytes=used if total else None,
                util_pct=_number(record.get("AICore(%)", record.get("NPU Util(%)", "-"))),
                temp_c=_number(record.get("Temp(C)", "-")),
                power_w=_number(record.get("Power(W)", "-")),
            )
        )
    version = re.search(r"Version: *(\S+)", table.title)
    return Listing(driver=version[1] if version is not None else None, rows=tuple(rows))


def parse_topology(text: str) -> tuple[Link, ...]:
    """Read `npu-smi info -t topo`; a label is `NPU` and the card, or `Phy-ID` and the physical id."""
    return parse_link_matrix("npu-smi info -t topo", text, device=r"(?:NPU|Phy-ID)\d+", other=r"NIC\d+", kinds=_KINDS)


def parse_usages(text: str) -> Mapping[int, Mapping[str, float | None]]:
    """Read `npu-smi info -t usages -i N`: values by key for each chip, whose id ends its block."""
    blocks: dict[int, Mapping[str, float | None]] = {}
    block: dict[str, float | None] = {}
    for key, value in _key_values(text):
        if key == "Chip ID":
            blocks[_integer(value, "npu-smi info -t usages")] = block
            block = {}
        elif key not in ("NPU ID", "Chip Count"):
            block[key] = _number(value)
    if not any("Capacity(MB)" in key for chip in blocks.values() for key in chip):
        raise FormatError(f"npu-smi info -t usages has no capacity of a chip: {text.strip()[:200]!r}")
    return blocks


def parse_board(text: str) -> str | None:
    """Read the bus address from `npu-smi info -t board -i N -c C`; None for a part that is on no PCI bus."""
    values = dict(_key_values(text))
    if "Chip Name" not in values:
        raise FormatError(f"npu-smi info -t board has no Chip Name: {text.strip()[:200]!r}")
    address = values.get("PCIe Bus Info", "NA")
    if address != "NA" and not re.fullmatch(_ADDRESS, address):
        raise FormatError(f"npu-smi info -t board has no bus address in {address!r}")
    return None if address == "NA" else normalise_address(address)


def _key_values(text: str) -> list[tuple[str, str]]:
    pairs = [line.partition(":") for line in text.splitlines() if ":" in line]
    return [(" ".join(key.split()), value.strip()) for key, _, value in pairs]


def _usage(text: str) -> tuple[int | None, int | None]:
    """Read "52675/ 65536", in MiB, as used and total bytes."""
    used, total = (_number(part.strip()) for part in text.split("/"))
    return size_in_bytes(used, _MIB), size_in_bytes(total, _MIB)


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,18}(\.[0-9]+)?", text) else None


def _integer(text: str, source: str) -> int:
    if not is_count(text):
        raise FormatError(f"{source} has {text!r} for a number")
    return int(text)
