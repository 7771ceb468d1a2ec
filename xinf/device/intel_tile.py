"""Tiles of Intel's cards (a Max 1550 has two): whether they are devices, and their names.

    ZE_FLAT_DEVICE_HIERARCHY    what Level Zero lists, ZE_AFFINITY_MASK counts, and an engine takes for one device
    FLAT (unset), COMBINED      each tile
    COMPOSITE                   each card

Sysman and xpu-smi list cards in all of them. Level Zero gives a tile a UUID of its own, which those two do not tell: a
tile is named after its card. Source: the Level Zero specification, "Device Hierarchy" and "Sysman Device Mapping".
"""

from __future__ import annotations

import os


def tiles_are_devices() -> bool:
    """Whether an engine that inherits our environment takes each tile for a device, as far as that tells."""
    return os.environ.get("ZE_FLAT_DEVICE_HIERARCHY") != "COMPOSITE"


def name_tiles(uuid: str, n_tiles: int) -> tuple[str, ...]:
    """Name the devices that a card makes: the card itself, or its tiles in their order: `<uuid>-t0`."""
    return (uuid,) if n_tiles == 1 else tuple(f"{uuid}-t{number}" for number in range(n_tiles))
