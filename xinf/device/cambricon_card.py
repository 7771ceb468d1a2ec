"""What is known of a Cambricon MLU whoever tells it: its generation, where it sits, and so what it is called.

cndev and all forms of cnmon but the table of 4.20 tell both. The kernel's driver does too, below /proc:

    /proc/driver/cambricon/mlus/0000:13:00.0/information
        Device name: MLU370-X4
        Device inode path: /dev/cambricon_dev0        its end is the card number

Source: the driver that Cambricon publishes under the GPL (4.20 and later, cndrv_proc.c: cndrv_info_device).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from xinf.core.device import Vendor
from xinf.device.pci import known_address
from xinf.device.roster import name_by_place

_CARDS = "proc/driver/cambricon/mlus"


def architecture_of(name: str) -> str | None:
    """Tell the generation by a card's name: "MLU370-X8" is an MLU370; None: not known."""
    match = re.match(r"(MLU\d{3})(?!\d)", name)
    return match[1] if match is not None else None


def identify(number: int, pci: str | None) -> str:
    """Name a card by its bus address; by its card number where nobody tells an address."""
    return name_by_place(Vendor.CAMBRICON, pci) if pci is not None else f"MLU-card{number}"


def read_places(root: Path) -> Mapping[int, str]:
    """Read the kernel driver's own list: bus addresses by card number; empty where there is none."""
    found: dict[int, str] = {}
    for path in sorted((root / _CARDS).glob("*/information")):
        address = known_address(path.parent.name)
        try:
            match = re.search(r"^Device inode path: /dev/cambricon_dev(\d+)$", path.read_text(), re.MULTILINE)
        except (OSError, UnicodeDecodeError):
            continue
        if address is not None and match is not None:
            found[int(match[1])] = address
    return found
