"""What is said of a Cambricon MLU, whoever says it: its card number, its identity, its generation."""

from __future__ import annotations

import re

import msgspec

from xinf.core.device import Health


class MluCard(msgspec.Struct, frozen=True, kw_only=True):
    """One card as cndev or cnmon numbers it; what is not told is None."""

    number: int  # what MLU_VISIBLE_DEVICES takes, and N of /dev/cambricon_devN
    name: str
    uuid: str
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    pci: str | None = None
    driver: str | None = None
    util_pct: float | None = None
    temp_c: float | None = None
    power_w: float | None = None
    ecc_uncorrected: int | None = None
    health: Health | None = None
    reason: str | None = None


def architecture_of(name: str) -> str | None:
    """Tell the generation by a card's name: "MLU370-X8" is an MLU370; None: not known."""
    match = re.match(r"(MLU\d{3})(?!\d)", name)
    return match[1] if match is not None else None


def identify(number: int, told: str | None, pci: str | None) -> str:
    """Name a card by the UUID that is told, which lacks its prefix in cndev, or else by its place."""
    if told:
        return told if told.startswith("MLU-") else f"MLU-{told}"
    return f"MLU-{pci.replace(':', '-')}" if pci is not None else f"MLU-card{number}"
