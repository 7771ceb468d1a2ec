"""Ascend NPUs through `npu-smi`: runs it and makes chips, samples and distances of what it prints.

    npu-smi info -m              which chip has which logic and physical id; three layouts
    npu-smi info                 a table of all chips, one call; four layouts (910B, A3, 310P, 950)
    npu-smi info -t topo         how far they are apart
    npu-smi info -t usages -i N, -t board -i N -c C     key:value, a call for each card or chip

The table is read before the key:value forms because it is one call: sixteen chips at half a second each do not fit
into an inventory's deadline. Where its layout is not known, the key:value forms are asked instead. The tool tells no
die id in few calls: through it a chip is named by its bus address.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from xinf.core.device import Distance, Sample
from xinf.device.ascend_chip import Condition, NpuChip, uuid_of_place
from xinf.device.ascend_layouts import (
    ChipNumbers,
    ChipRow,
    Listing,
    parse_board,
    parse_mapping,
    parse_table,
    parse_topology,
    parse_usages,
)
from xinf.device.tool import TIMEOUT_S, FormatError, ToolError, find_tool, run_tool

_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/local/Ascend/driver/tools")


def read_chips(root: Path, *, timeout_s: float = TIMEOUT_S) -> tuple[NpuChip, ...]:
    """List the chips that the tool numbers. Raises: ToolError."""
    tool = _find(root)
    numbers = parse_mapping(run_tool([tool, "info", "-m"], timeout_s=timeout_s))
    try:
        listing = parse_table(run_tool([tool, "info"], timeout_s=timeout_s))
    except FormatError:
        listing = _list_by_keys(tool, numbers, timeout_s)
    rows = {(row.npu_id, row.chip_id): row for row in listing.rows}
    return tuple(_describe(entry, rows.get((entry.npu_id, entry.chip_id)), listing.driver) for entry in numbers)


def read_samples(root: Path, *, timeout_s: float = TIMEOUT_S) -> tuple[Sample, ...]:
    """Read what the chips are doing, from the table. Raises: ToolError."""
    listing = parse_table(run_tool([_find(root), "info"], timeout_s=timeout_s))
    return tuple(_sample(row) for row in listing.rows)


def read_distances(
    root: Path, chips: Sequence[NpuChip], *, timeout_s: float = TIMEOUT_S
) -> tuple[tuple[str, str, Distance], ...]:
    """Read how far the chips are apart. Raises: ToolError."""
    by_label = {("Phy-ID", chip.physical_id): chip.uuid for chip in chips if chip.physical_id is not None}
    by_label |= {("NPU", chip.npu_id): chip.uuid for chip in chips if chip.chip_id == 0}
    links = parse_topology(run_tool([_find(root), "info", "-t", "topo"], timeout_s=timeout_s))
    return tuple(
        (by_label[link.first], by_label[link.second], link.distance)
        for link in links
        if link.first in by_label and link.second in by_label
    )


def _find(root: Path) -> str:
    tool = find_tool("npu-smi", directories=_DIRECTORIES, root=root)
    if tool is None:
        raise ToolError("npu-smi is not there: install the Ascend driver")
    return tool


def _list_by_keys(tool: str, numbers: Sequence[ChipNumbers], timeout_s: float) -> Listing:
    """Ask card by card for what the table would say of the inventory."""
    rows: list[ChipRow] = []
    usages: dict[int, Mapping[int, Mapping[str, float | None]]] = {}
    for entry in numbers:
        card, chip = str(entry.npu_id), str(entry.chip_id)
        if entry.npu_id not in usages:
            text = run_tool([tool, "info", "-t", "usages", "-i", card], timeout_s=timeout_s)
            usages[entry.npu_id] = parse_usages(text)
        board = run_tool([tool, "info", "-t", "board", "-i", card, "-c", chip], timeout_s=timeout_s)
        values = usages[entry.npu_id].get(entry.chip_id, {})
        capacities = (values.get(f"{kind} Capacity(MB)") for kind in ("HBM", "DDR", "Memory"))
        total = next((int(mib) << 20 for mib in capacities if mib), None)
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
    return Listing(driver=None, rows=tuple(rows))


def _describe(entry: ChipNumbers, row: ChipRow | None, driver: str | None) -> NpuChip:
    pci = row.pci if row is not None else None
    condition = row.condition if row is not None else Condition(None)
    return NpuChip(
        npu_id=entry.npu_id,
        chip_id=entry.chip_id,
        logic_id=entry.logic_id,
        physical_id=entry.physical_id,
        has_physical_id=entry.has_physical_id,
        name=entry.name,
        uuid=uuid_of_place(entry.npu_id, entry.chip_id, pci),
        memory_bytes=row.memory_total_bytes if row is not None else None,
        pci=pci,
        driver=driver,
        condition=condition,
    )


def _sample(row: ChipRow) -> Sample:
    total, used = row.memory_total_bytes, row.memory_used_bytes
    return Sample(
        uuid=uuid_of_place(row.npu_id, row.chip_id, row.pci),
        t_ns=time.time_ns(),
        memory_used_bytes=used,
        memory_free_bytes=None if total is None or used is None else max(0, total - used),
        util_pct=row.util_pct,
        temp_c=row.temp_c,
        power_w=row.power_w,
        health=row.condition.health,
        reason=row.condition.reason,
    )
