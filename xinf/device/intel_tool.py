"""What Intel's xpu-smi prints as JSON. Kunlunxin has another program of that name, whose answer is refused.

    xpu-smi discovery -j         {"device_list": [{"device_id": 0, "pci_bdf_address": ..., "uuid": ...}]}   no memory
    xpu-smi discovery -d N -j    {"device_id": 0, ..., "memory_physical_size_byte": number or string, of all tiles,
                                  "number_of_tiles": number or string}
    xpu-smi stats -d N -j        {"device_level": [{"metrics_type": "XPUM_STATS_POWER", "value": 87.2}],
                                  "tile_level": [{"tile_id": 0, "data_list": [the same]}]}

The prefix of metrics is XPUM_STATS_ or XPU_STATS_, by release; of a card with tiles some are told per tile only.
Sources: intel/xpumanager doc/CLI_user_guide.md, and public logs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import msgspec

from xinf.device.intel_library import LevelZeroReading, TileReading
from xinf.device.json_answer import read_json
from xinf.device.pci import known_address
from xinf.device.tool import FormatError, ToolError, run_tool

_METRIC = re.compile(r"XPUM?_STATS_(\w+)")
_MIB = 1 << 20
_N_TILES = range(1, 17)  # two is the most that there was; what is beyond is no number of tiles
_UNCORRECTABLE = ("RAS_ERROR_CAT_CACHE_ERRORS_UNCORRECTABLE", "RAS_ERROR_CAT_NON_COMPUTE_ERRORS_UNCORRECTABLE")


class ToolCard(msgspec.Struct, frozen=True, kw_only=True):
    """A card as xpu-smi lists it."""

    number: int
    address: str
    uuid: str | None
    name: str | None
    memory_bytes: int | None = None
    driver: str | None = None
    n_tiles: int = 1


def read_cards(tool: str, *, timeout_s: float) -> tuple[ToolCard, ...]:
    """Ask what cards there are, with their memory. Raises: ToolError."""
    return tuple(read_detail(tool, card, timeout_s=timeout_s) for card in read_listed(tool, timeout_s=timeout_s))


def read_listed(tool: str, *, timeout_s: float) -> tuple[ToolCard, ...]:
    """Ask what cards there are, without their memory and tiles: one run for all. Raises: ToolError."""
    return parse_discovery(run_tool([tool, "discovery", "-j"], timeout_s=timeout_s))


def read_detail(tool: str, card: ToolCard, *, timeout_s: float) -> ToolCard:
    """Ask for a card's memory and tiles. Raises: ToolError."""
    return parse_detail(run_tool([tool, "discovery", "-d", str(card.number), "-j"], timeout_s=timeout_s), card)


def read_stats(tool: str, number: int, *, timeout_s: float) -> LevelZeroReading:
    """Ask what a card is doing. Raises: ToolError."""
    return parse_stats(run_tool([tool, "stats", "-d", str(number), "-j"], timeout_s=timeout_s))


def parse_discovery(text: str) -> tuple[ToolCard, ...]:
    """Read the list of physical cards; functions made for virtual machines are left out. Raises: ToolError."""
    content = _object(text)
    entries = content.get("device_list")
    if not isinstance(entries, list):
        raise FormatError(f"xpu-smi discovery: no device_list but {', '.join(content)}")
    return tuple(
        _card(entry)
        for entry in entries
        if not (isinstance(entry, dict) and entry.get("device_function_type") == "virtual")
    )


def parse_detail(text: str, card: ToolCard) -> ToolCard:
    """Add what `discovery -d N` says to an entry of the list. Raises: ToolError."""
    content = _object(text)
    if "memory_physical_size_byte" not in content:
        raise FormatError(f"xpu-smi discovery -d: no memory_physical_size_byte but {', '.join(content)}")
    size, driver = _number(content["memory_physical_size_byte"]), content.get("driver_version")
    n_tiles = _number(content.get("number_of_tiles"))
    return msgspec.structs.replace(
        card,
        memory_bytes=int(size) if size else None,
        driver=driver if isinstance(driver, str) and driver else None,
        n_tiles=int(n_tiles) if n_tiles is not None and n_tiles in _N_TILES else 1,
    )


def parse_stats(text: str) -> LevelZeroReading:
    """Read the statistics of one card and of its tiles. Raises: ToolError."""
    content = _object(text)
    if not content.keys() & {"device_level", "tile_level"}:
        raise FormatError(f"xpu-smi stats: neither device_level nor tile_level but {', '.join(content)}")
    whole = _metrics(content.get("device_level", []))
    parts = [(tile.get("tile_id"), _metrics(tile.get("data_list", []))) for tile in _objects(content.get("tile_level"))]
    tiles = [metrics for _, metrics in parts]
    if not whole and not any(tiles):
        raise FormatError("xpu-smi stats: no metric of the name XPUM_STATS_ or XPU_STATS_")

    def told(name: str) -> list[float]:
        """Find a metric of the card, else those of its tiles."""
        return [whole[name]] if name in whole else [tile[name] for tile in tiles if name in tile]

    used, busy, watts, heat = (
        told(name) for name in ("MEMORY_USED", "GPU_UTILIZATION", "POWER", "GPU_CORE_TEMPERATURE")
    )
    errors = [value for name in _UNCORRECTABLE for value in told(name)]
    return LevelZeroReading(
        memory_used_bytes=int(sum(used) * _MIB) if used else None,
        util_pct=sum(busy) / len(busy) if busy else None,
        temp_c=max(heat) if heat else None,
        power_w=sum(watts) if watts else None,
        ecc_uncorrected=int(sum(errors)) if errors else None,
        tiles={int(number): _tile(metrics) for told, metrics in parts if (number := _number(told)) is not None},
    )


def _object(text: str) -> dict[str, object]:
    try:
        content = read_json(text, "xpu-smi")
    except FormatError as error:
        raise FormatError(f"{error}, so not Intel's xpu-smi") from None
    if not isinstance(content, dict):
        raise FormatError(f"xpu-smi: not a JSON object: {text.strip()[:120]!r}")
    if "error" in content:
        raise ToolError(f"xpu-smi says: {content['error']}")
    return content


def _card(entry: object) -> ToolCard:
    if not isinstance(entry, dict):
        raise FormatError(f"xpu-smi discovery: {entry!r} is not a device")
    number, address = _number(entry.get("device_id")), known_address(str(entry.get("pci_bdf_address")))
    if number is None or address is None:
        raise FormatError(f"xpu-smi discovery: a device has no device_id or pci_bdf_address, but {', '.join(entry)}")
    uuid, name = entry.get("uuid"), entry.get("device_name")
    return ToolCard(
        number=int(number),
        address=address,
        uuid=uuid if isinstance(uuid, str) and uuid.strip("0-") else None,
        name=name if isinstance(name, str) and name else None,
    )


def _metrics(entries: object) -> dict[str, float]:
    found: dict[str, float] = {}
    for entry in _objects(entries):
        match = _METRIC.fullmatch(str(entry.get("metrics_type")))
        value = _number(entry.get("value"))
        if match and value is not None:
            found[match[1]] = value
    return found


def _tile(metrics: dict[str, float]) -> TileReading:
    used = metrics.get("MEMORY_USED")
    return TileReading(
        memory_used_bytes=None if used is None else int(used * _MIB), util_pct=metrics.get("GPU_UTILIZATION")
    )


def _objects(entries: object) -> Iterable[dict[str, object]]:
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
