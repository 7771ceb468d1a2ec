"""Ascend NPUs through `npu-smi`: runs it and makes cards and distances of what it prints.

    npu-smi info -m              which chip has which logic and physical id; three layouts
    npu-smi info                 a table of all chips, one call; four layouts (910B, A3, 310P, 950)
    npu-smi info -t topo         how far they are apart
    npu-smi info -t usages -i N, -t board -i N -c C     key:value, a call for each card or chip

The table is read before the key:value forms because it is one call: sixteen chips at half a second each do not fit
into an inventory's deadline. Where its layout is not known, the key:value forms are asked instead, and so they are for
chips that it lacks while `-m` has them: it was cut off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from xinf.core.device import Device, Distance
from xinf.device.ascend_chip import Condition, Numbers, architecture_of, describe, identify
from xinf.device.ascend_layouts import (
    ChipRow,
    Listing,
    parse_board,
    parse_mapping,
    parse_table,
    parse_topology,
    parse_usages,
)
from xinf.device.quantity import size_in_bytes
from xinf.device.roster import Card
from xinf.device.tool import TIMEOUT_S, FormatError, ToolError
from xinf.device.vendor_tool import VendorTool

TOOL = VendorTool(
    names=("npu-smi",),
    directories=("/usr/local/sbin", "/usr/local/bin", "/usr/local/Ascend/driver/tools"),
    remedy="install the Ascend driver",
    timeout_s=TIMEOUT_S,
)


def read_cards(root: Path, tool: VendorTool = TOOL) -> tuple[Card, ...]:
    """List the chips that the tool numbers, as far as it tells where they are. Raises: ToolError."""
    numbers = parse_mapping(tool.run(root, "info", "-m"))
    try:
        listing = parse_table(tool.run(root, "info"))
    except FormatError:
        listing = Listing(driver=None, rows=())
    rows = {(row.npu_id, row.chip_id): row for row in listing.rows}
    lacking = [entry for entry in numbers if (entry.npu_id, entry.chip_id) not in rows]
    try:
        rows |= {(row.npu_id, row.chip_id): row for row in _list_by_keys(tool, root, lacking)}
    except ToolError:
        if not rows:
            raise
    found = [(entry, rows.get((entry.npu_id, entry.chip_id))) for entry in numbers]
    return tuple(_describe(entry, row, listing.driver) for entry, row in found if row is not None)


def read_states(root: Path, tool: VendorTool = TOOL) -> tuple[Card, ...]:
    """Read what the chips are doing, from the table. Raises: ToolError."""
    return tuple(_state(row) for row in parse_table(tool.run(root, "info")).rows)


def read_distances(
    root: Path, devices: Sequence[Device], tool: VendorTool = TOOL
) -> tuple[tuple[str, str, Distance], ...]:
    """Read how far the chips are apart. Raises: ToolError."""
    names: dict[str, str] = {}
    for device in devices:
        if "physical_id" in device.extra:
            names[f"Phy-ID{device.extra['physical_id']}"] = device.uuid
        if device.extra.get("chip_id") == 0:
            names[f"NPU{device.extra['npu_id']}"] = device.uuid
    links = parse_topology(tool.run(root, "info", "-t", "topo"))
    return tuple(
        (names[link.first], names[link.second], link.distance)
        for link in links
        if link.first in names and link.second in names
    )


def _list_by_keys(tool: VendorTool, root: Path, numbers: Sequence[Numbers]) -> list[ChipRow]:
    """Ask card by card for what the table would say of the inventory."""
    rows: list[ChipRow] = []
    usages: dict[int, Mapping[int, Mapping[str, float | None]]] = {}
    for entry in numbers:
        card, chip = str(entry.npu_id), str(entry.chip_id)
        if entry.npu_id not in usages:
            usages[entry.npu_id] = parse_usages(tool.run(root, "info", "-t", "usages", "-i", card))
        # An Ascend 950 has no chips on a card, and refuses to be asked for one.
        which = ("-i", card) if architecture_of(entry.name) == "950" else ("-i", card, "-c", chip)
        board = tool.run(root, "info", "-t", "board", *which)
        values = usages[entry.npu_id].get(entry.chip_id, {})
        capacities = (values.get(f"{kind} Capacity(MB)") for kind in ("HBM", "DDR", "Memory"))
        total = next((size_in_bytes(mib, 1 << 20) for mib in capacities if mib), None)
        rows.append(
            ChipRow(
                npu_id=entry.npu_id,
                chip_id=entry.chip_id,
                name=entry.name,
                condition=Condition(None),
                pci=parse_board(board),
                memory_total_bytes=total,
                memory_used_bytes=None,  # a rounded percentage is no number of bytes
                util_pct=values.get("Aicore Usage Rate(%)"),
                temp_c=None,
                power_w=None,
            )
        )
    return rows


def _describe(entry: Numbers, row: ChipRow, driver: str | None) -> Card:
    return describe(entry, pci=row.pci, memory_bytes=row.memory_total_bytes, driver=driver, condition=row.condition)


def _state(row: ChipRow) -> Card:
    return Card(
        pci=row.pci,
        uuid=identify(row.npu_id, row.chip_id, row.pci),
        memory_bytes=row.memory_total_bytes,
        used_bytes=row.memory_used_bytes,
        util_pct=row.util_pct,
        temp_c=row.temp_c,
        power_w=row.power_w,
        health=row.condition.health,
        reason=row.condition.reason,
    )
