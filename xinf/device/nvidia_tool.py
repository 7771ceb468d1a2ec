"""`nvidia-smi` where NVML's library cannot be loaded into this process: comma-separated values with a header.

    uuid, name, memory.total [MiB], memory.reserved [MiB], pci.bus_id, driver_version, compute_cap, mig.mode.current
    GPU-…, NVIDIA GeForce RTX 5090, 32607, 495, 00000000:1B:00.0, 595.84, 12.0, [N/A]

Columns are found by their names in the header, values are read by the unit that stands there. A tool that does not know
a column says so by name and is asked again without it. MIG instances are in `nvidia-smi -L` only, without their memory.
What the driver keeps for itself (memory.reserved) is no program's memory: see nvidia_memory.py.
"""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from xinf.core.device import Device, Sample, Vendor
from xinf.device.host_memory import read_host_memory
from xinf.device.nvidia_board import is_integrated, is_of_windows, is_tegra
from xinf.device.pci import normalise_address, read_numa
from xinf.device.tool import FormatError, ToolError, find_tool, run_tool

_TOOL = "nvidia-smi"
_DIRECTORIES = ("/usr/lib/wsl/lib", "/usr/local/nvidia/bin", "/usr/bin")
_MEMORY = ("memory.total", "memory.reserved")
_DEVICE_COLUMNS = ("uuid", "name", *_MEMORY, "pci.bus_id", "driver_version", "compute_cap", "mig.mode.current")
_SAMPLE_COLUMNS = (
    "uuid", "name", *_MEMORY, "memory.used", "memory.free", "utilization.gpu", "temperature.gpu", "power.draw",
)  # fmt: skip
_NEEDED = "uuid"
_UNITS = {"MiB": 1 << 20, "KiB": 1 << 10, "GiB": 1 << 30, "B": 1, "%": 1, "W": 1, "": 1}
_UNKNOWN = re.compile(
    r"\[?(n/?a|not supported|not available|unknown error|requested functionality.*)\]?", re.IGNORECASE
)
_REFUSED = re.compile(r'Field "([^"]+)" is not a valid field')
_CARD_LINE = re.compile(r"GPU \d+: .* \(UUID: (GPU-[0-9a-f-]+)\)\s*")
_INSTANCE_LINE = re.compile(r"\s+MIG (\S+)\s+Device\s+(\d+): \(UUID: (MIG-[^)\s]+)\)\s*")

Row = dict[str, str | float | None]


def read_devices(root: Path) -> list[Device]:
    """List the cards and their MIG instances. Raises: ToolError, FormatError."""
    cards = parse_devices(_query(_DEVICE_COLUMNS), root)
    if not any("mig" in card.extra for card in cards):
        return cards
    return [*cards, *parse_instances(run_tool([_find(), "-L"]), cards)]


def read_samples(root: Path) -> tuple[Sample, ...]:
    """Read what the cards do. Raises: ToolError, FormatError."""
    return parse_samples(_query(_SAMPLE_COLUMNS), root)


def parse_devices(printed: str, root: Path = Path("/")) -> list[Device]:
    """Read the answer to a query of devices. Raises: FormatError."""
    return [_card(row, root) for row in parse_table(printed)]


def parse_samples(printed: str, root: Path = Path("/")) -> tuple[Sample, ...]:
    """Read the answer to a query of metrics. Raises: FormatError."""
    now_ns, host = time.time_ns(), read_host_memory(root)
    samples: list[Sample] = []
    for row in parse_table(printed):
        total, used, free = _total(row, root), _whole(row.get("memory.used")), _whole(row.get("memory.free"))
        if total is not None and free is not None:
            used = max(0, total - free)
        if free is None and is_integrated(str(row.get("name"))):
            free = host.available_bytes
            used = None if free is None or host.total_bytes is None else host.total_bytes - free
        samples.append(
            Sample(
                uuid=str(row[_NEEDED]),
                t_ns=now_ns,
                memory_used_bytes=used,
                memory_free_bytes=free,
                util_pct=_number(row.get("utilization.gpu")),
                temp_c=_number(row.get("temperature.gpu")),
                power_w=_number(row.get("power.draw")),
            )
        )
    return tuple(samples)


def parse_instances(printed: str, cards: Sequence[Device]) -> list[Device]:
    """Read the MIG instances of `nvidia-smi -L`. Raises: FormatError naming a line that is not known."""
    by_uuid = {card.uuid: card for card in cards}
    card: Device | None = None
    found: list[Device] = []
    for line in printed.splitlines():
        if match := _CARD_LINE.fullmatch(line):
            card = by_uuid.get(match[1])
        elif (match := _INSTANCE_LINE.fullmatch(line)) and card is not None:
            profile, slot, uuid = match.groups()
            found.append(
                msgspec.structs.replace(
                    card,
                    uuid=uuid,
                    name=f"{card.name} MIG {profile}",
                    memory_bytes=None,
                    visible=uuid,
                    parent=card.uuid,
                    extra={"mig_slot": int(slot)},
                )
            )
        elif line.strip():
            raise FormatError(f"{_TOOL} -L printed a line that is not known here: {line.strip()[:200]!r}")
    return found


def parse_table(printed: str) -> list[Row]:
    """Read comma-separated values by their header; sizes in bytes, what the tool does not know as None.

    Raises: FormatError naming what was seen.
    """
    lines = [fields for fields in csv.reader(printed.splitlines(), skipinitialspace=True) if fields]
    if not lines:
        raise FormatError(f"{_TOOL} printed nothing")
    header = [_column(field) for field in lines[0]]
    if _NEEDED not in (name for name, _ in header):
        raise FormatError(f"{_TOOL} printed a header that is not known here: {', '.join(lines[0])[:200]!r}")
    rows: list[Row] = []
    for fields in lines[1:]:
        if len(fields) != len(header):
            raise FormatError(f"{_TOOL} printed {len(fields)} fields below {len(header)} columns: {fields!r:.200}")
        pairs = zip(header, fields, strict=True)
        row: Row = {name: _value(field.strip(), name, unit) for (name, unit), field in pairs}
        if row[_NEEDED] is None:
            raise FormatError(f"{_TOOL} printed a device without a UUID: {fields!r:.200}")
        rows.append(row)
    if not rows:
        raise FormatError(f"{_TOOL} printed a header and no device")
    return rows


def _query(columns: Sequence[str]) -> str:
    """Run a query, without the columns that this release of the tool refuses. Raises: ToolError."""
    tool, asked = _find(), list(columns)
    while True:
        try:
            return run_tool([tool, f"--query-gpu={','.join(asked)}", "--format=csv,nounits"])
        except ToolError as error:
            refused = _REFUSED.search(str(error))
            if refused is None or refused[1] == _NEEDED or refused[1] not in asked:
                raise
            asked.remove(refused[1])


def _find() -> str:
    tool = find_tool(_TOOL, directories=_DIRECTORIES)
    if tool is None:
        raise ToolError(f"{_TOOL} is not there")
    return tool


def _column(field: str) -> tuple[str, str]:
    """Take a column's name and unit apart: `memory.total [MiB]`."""
    name, _, unit = field.strip().partition(" ")
    return name, unit.strip().strip("[]")


def _value(text: str, name: str, unit: str) -> str | float | None:
    if not text or _UNKNOWN.fullmatch(text):
        return None
    if not unit and name not in ("temperature.gpu",):
        return text
    if unit not in _UNITS:
        raise FormatError(f"{_TOOL} gives {name} in {unit!r}, which is not known here")
    try:
        return float(text) * _UNITS[unit]
    except ValueError:
        raise FormatError(f"{_TOOL} gives {name} as {text!r}, which is no number") from None


def _card(row: Row, root: Path) -> Device:
    uuid, capability = str(row[_NEEDED]), row.get("compute_cap")
    pci = None if row.get("pci.bus_id") is None else _address(str(row["pci.bus_id"]))
    is_split = row.get("mig.mode.current") == "Enabled"
    extra: dict[str, str | int] = {"source": _TOOL}
    if capability is not None:
        extra["compute_capability"] = str(capability)
    if is_split:
        extra["mig"] = "enabled"
    name, memory = str(row.get("name") or "NVIDIA device"), _total(row, root) or None
    if memory is not None and (reserved := _reserved(row, root)):
        extra["reserved_bytes"] = reserved
    if memory is None and is_integrated(name):
        extra["memory"] = "unified"
        memory = read_host_memory(root).total_bytes
    return Device(
        vendor=Vendor.NVIDIA,
        index=0,
        uuid=uuid,
        name=name,
        arch=None if capability is None else f"sm_{str(capability).replace('.', '')}",
        memory_bytes=memory,
        driver=None if row.get("driver_version") is None else str(row["driver_version"]),
        pci=pci,
        numa=None if pci is None else read_numa(pci, root),
        visible=None if is_split or is_tegra(name) else uuid,
        extra=extra,
    )


def _total(row: Row, root: Path) -> int | None:
    """What programs can have of a card."""
    total = _whole(row.get("memory.total"))
    return None if total is None else max(0, total - _reserved(row, root))


def _reserved(row: Row, root: Path) -> int:
    return 0 if is_of_windows(root) else _whole(row.get("memory.reserved")) or 0


def _address(text: str) -> str:
    try:
        return normalise_address(text)
    except ValueError:
        raise FormatError(f"{_TOOL} gives a PCI address as {text!r}, which is none") from None


def _number(value: str | float | None) -> float | None:
    return value if isinstance(value, float) else None


def _whole(value: str | float | None) -> int | None:
    return int(value) if isinstance(value, float) else None
