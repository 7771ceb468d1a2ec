"""What the amdgpu kernel driver says of a card in sysfs: name and memory, and what it is doing now.

    /sys/bus/pci/devices/<address>/mem_info_vram_total, mem_info_vram_used     bytes
                                  /mem_info_gtt_used                           bytes of the machine's that it has mapped
                                  /gpu_busy_percent
                                  /unique_id                                   16 hexadecimal digits without 0x
                                  /product_name                                from the board's own memory; may be empty
                                  /hwmon/hwmonN/temp*_input, power1_*          milli-degrees, microwatts
                                               /temp*_crit, temp*_emergency    where it is slowed down, and shut down
                                  /ras/<block>_err_count                       "ue: 0" and "ce: 0"

Hygon's driver is a fork of this one and has the same files where it has them at all.
Sources: Linux Documentation/gpu/amdgpu (driver-misc, thermal, ras): `emergency` is the shutdown of the chip.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from xinf.device.tool import FormatError

# Junction is the hottest point, by which the card throttles; edge is all that older cards have.
_TEMPERATURES = ("junction", "edge")
_RAS_LINE = re.compile(r"(ue|ce|de):\s*(\d+)")


class CardFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What one source knows of a card; None: it does not say."""

    name: str | None = None
    arch: str | None = None
    memory_bytes: int | None = None
    unique_id: int | None = None
    driver: str | None = None
    runtime: str | None = None

    def completed_by(self, other: CardFacts) -> CardFacts:
        """Take from another source what is missing here."""
        missing = {field: getattr(other, field) for field in self.__struct_fields__ if getattr(self, field) is None}
        return msgspec.structs.replace(self, **missing)


class CardReading(msgspec.Struct, frozen=True, kw_only=True):
    """What a card is doing; None: not said."""

    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    gtt_used_bytes: int | None = None  # of the machine's memory
    util_pct: float | None = None
    temp_c: float | None = None
    temp_limit_c: float | None = None  # at which the card slows itself down
    temp_shutdown_c: float | None = None  # at which it turns itself off
    power_w: float | None = None
    ecc_uncorrected: int | None = None  # since the driver was loaded

    def completed_by(self, other: CardReading) -> CardReading:
        """Take from another source what is missing here."""
        missing = {field: getattr(other, field) for field in self.__struct_fields__ if getattr(self, field) is None}
        return msgspec.structs.replace(self, **missing)


def read_facts(address: str, root: Path) -> CardFacts:
    """Read the facts of a card. Raises: FormatError."""
    directory = _directory(address, root)
    unique_id = _read_text(directory / "unique_id")
    try:
        identity = int(unique_id, 16) if unique_id else None
    except ValueError:
        raise FormatError(f"{address}/unique_id: {unique_id!r} is not hexadecimal") from None
    name = _read_text(directory / "product_name")
    return CardFacts(
        name=name if name and name != "N/A" else None,
        memory_bytes=_read_int(directory / "mem_info_vram_total") or None,
        unique_id=identity or None,
    )


def read_reading(address: str, root: Path) -> CardReading:
    """Read what a card is doing. Raises: FormatError."""
    directory = _directory(address, root)
    busy = _read_int(directory / "gpu_busy_percent")
    temperature, limit, shutdown = _read_temperature(directory)
    return CardReading(
        memory_used_bytes=_read_int(directory / "mem_info_vram_used"),
        memory_total_bytes=_read_int(directory / "mem_info_vram_total") or None,
        gtt_used_bytes=_read_int(directory / "mem_info_gtt_used"),
        util_pct=None if busy is None else float(busy),
        temp_c=temperature,
        temp_limit_c=limit,
        temp_shutdown_c=shutdown,
        power_w=_read_power(directory),
        ecc_uncorrected=_read_uncorrected(directory),
    )


def is_lost(address: str, root: Path) -> bool:
    """Whether a card fell off the bus: reads of its configuration space then give ones only."""
    try:
        with (_directory(address, root) / "config").open("rb") as file:
            return file.read(4) == b"\xff\xff\xff\xff"
    except OSError:
        return False


def _directory(address: str, root: Path) -> Path:
    return root / "sys/bus/pci/devices" / address


def _read_temperature(directory: Path) -> tuple[float | None, float | None, float | None]:
    """Read the temperature, the critical and the shutdown limit of the first sensor in the order of _TEMPERATURES."""
    sensors: dict[str, Path] = {}
    for label in directory.glob("hwmon/hwmon*/temp*_label"):
        sensors[_read_text(label) or ""] = label
    for name in _TEMPERATURES:
        if name in sensors:
            sensor = sensors[name]
            stem = sensor.name.removesuffix("_label")
            current, *limits = (
                _read_int(sensor.with_name(f"{stem}_{kind}")) for kind in ("input", "crit", "emergency")
            )
            slowdown, shutdown = (limit / 1000 if limit else None for limit in limits)
            return None if current is None else current / 1000, slowdown, shutdown
    return None, None, None


def _read_power(directory: Path) -> float | None:
    for name in ("power1_average", "power1_input"):  # of which a card has one
        for path in directory.glob(f"hwmon/hwmon*/{name}"):
            if (microwatts := _read_int(path)) is not None:
                return microwatts / 1_000_000
    return None


def _read_uncorrected(directory: Path) -> int | None:
    """Add up the uncorrectable errors of all blocks; None where the card has no RAS."""
    total: int | None = None
    for path in sorted(directory.glob("ras/*_err_count")):
        text = _read_text(path)
        if text is None:
            continue  # a block that this card does not have
        counts = dict(_RAS_LINE.findall(text))
        if "ue" not in counts:
            raise FormatError(f"{path.parent.parent.name}/ras/{path.name}: no `ue:` in {text[:80]!r}")
        total = (total or 0) + int(counts["ue"])
    return total


def _read_text(path: Path) -> str | None:
    try:
        # A board's own memory may hold anything for a name.
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _read_int(path: Path) -> int | None:
    text = _read_text(path)
    if text is None or text == "":
        return None
    try:
        return int(text)
    except ValueError:
        raise FormatError(f"{path.parent.name}/{path.name}: {text[:80]!r} is not a number") from None
