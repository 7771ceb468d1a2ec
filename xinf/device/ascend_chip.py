"""What is said of an Ascend NPU, whoever says it: its three numbers, its generation, its health.

    NPU id, chip id   the card and the chip on it: what `npu-smi -i -c` and DCMI take
    logic id          counts the chips of the host: what ASCEND_RT_VISIBLE_DEVICES takes
    physical id       N of /dev/davinciN

No two of them need to be equal: on a card with two chips the logic id is not the card's number, and the physical id
counts slots, empty ones too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from xinf.core.device import Health

# Names as DCMI and npu-smi write them ("910B3", "Ascend910", "310P3") to generations. "910B" alone is the first
# generation's Ascend910B, of 2019; the second has a digit behind it. Source: torch_npu NpuVariables.cpp (soc versions
# 100-104, 200-205, 220-225, 240-243, 250-255, 260) as re-typed by gpustack-runtime 88026d6 detector/ascend.py.
_ARCHITECTURES: tuple[tuple[str, str], ...] = (
    (r"310", "310"),
    (r"310(B[1-4]?|P[1-7]?)", r"310\1"),
    (r"910(A|ProA|PremiumA|B|ProB)", "910A"),
    (r"910(B[1-4](?:C|-1)?)", r"910\1"),
    (r"910(?:C|_93\d\d)?", "910C"),
    (r"(?:950|910_95)\w*", "950"),
)
# By the number that DCMI gives. Source: npu-smi of the CANN driver sources (2026), npu_common.c.
HEALTH_WORDS = ("OK", "Warning", "Alarm", "Critical", "UNKNOWN")


class Condition(msgspec.Struct, frozen=True):
    """Whether a chip can take new work. `health` None: it does not say."""

    health: Health | None
    reason: str | None = None


class NpuChip(msgspec.Struct, frozen=True, kw_only=True):
    """One chip as the library or the tool lists it."""

    npu_id: int
    chip_id: int
    logic_id: int | None
    physical_id: int | None
    has_physical_id: bool = True  # False: this way of asking does not tell it
    name: str  # as printed
    uuid: str
    soc: str | None = None  # "Ascend910_9391", where the name does not say it
    memory_bytes: int | None = None
    pci: str | None = None
    cores: int | None = None
    driver: str | None = None
    condition: Condition = Condition(None)


def architecture_of(name: str) -> str | None:
    """Tell the generation and variant by a chip's name: "910B3", "310P3", "910C" (A3), "950"; None: not known."""
    bare = name.strip().removeprefix("Ascend").strip()
    for pattern, architecture in _ARCHITECTURES:
        match = re.fullmatch(pattern, bare)
        if match is not None:
            return match.expand(architecture)
    return None


def uuid_of_die(words: Sequence[int]) -> str | None:
    """Write a die id of five words as an identity; None for one of zeros, which no die has."""
    return "NPU-" + "-".join(f"{word:08X}" for word in words) if any(words) else None


def uuid_of_place(npu_id: int, chip_id: int, pci: str | None) -> str:
    """Name a chip whose die id nobody tells by where it sits: a 310P card of two chips has one bus address."""
    return f"NPU-{pci.replace(':', '-')}-{chip_id}" if pci is not None else f"NPU-card{npu_id}-{chip_id}"


def judge(level: int) -> Condition:
    """Say what DCMI's health number means for new work. A warning does not stop a chip from working."""
    if level in (0, 1):
        return Condition(Health.OK)
    if level == HEALTH_WORDS.index("UNKNOWN"):
        return Condition(None)
    word = HEALTH_WORDS[level] if 0 <= level < len(HEALTH_WORDS) else "not there or not started"
    return Condition(Health.FAULTY, f"the NPU says {word}: see `npu-smi info -t health -i N -c C` and its error codes")
