"""What is said of an Ascend NPU, whoever says it: its three numbers, its generation, its health.

    NPU id, chip id   the card and the chip on it: what `npu-smi -i -c` and DCMI take
    logic id          counts the chips of the host: what ASCEND_RT_VISIBLE_DEVICES takes
    physical id       N of /dev/davinciN

No two of them need to be equal: on a card with two chips the logic id is not the card's number, and the physical id
counts slots, empty ones too. The card and the chip name a chip where it has no bus address; where it has one, that and
the chip do, since a 310P card of two chips has one address.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from xinf.core.device import Health, Vendor
from xinf.device.roster import Card, name_by_place

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


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of one chip and its name; a number that is not told is None."""

    npu_id: int
    chip_id: int
    logic_id: int | None
    physical_id: int | None
    has_physical_id: bool = True  # False: this way of asking does not tell it of any chip
    name: str  # as printed


def architecture_of(name: str) -> str | None:
    """Tell the generation and variant by a chip's name: "910B3", "310P3", "910C" (A3), "950"; None: not known."""
    bare = re.split(r"-?vir", name.strip().removeprefix("Ascend").strip())[0]  # "910B3-vir10_3c_32g" is a part of one
    for pattern, architecture in _ARCHITECTURES:
        match = re.fullmatch(pattern, bare)
        if match is not None:
            return match.expand(architecture)
    return None


def identify(npu_id: int, chip_id: int, pci: str | None) -> str:
    """Name a chip by where it sits: DCMI knows a die id, but npu-smi tells it in no answer about all chips."""
    if pci is not None:
        return name_by_place(Vendor.ASCEND, pci, chip_id)
    return f"NPU-card{npu_id}-{chip_id}"  # on the processor's own bus, as that of an Atlas 200


def uuid_of_die(words: Sequence[int]) -> str | None:
    """Write a die id of five words as a UUID; None for one of zeros, which no die has."""
    return "NPU-" + "-".join(f"{word:08X}" for word in words) if any(words) else None


def describe(
    numbers: Numbers,
    *,
    pci: str | None,
    memory_bytes: int | None,
    driver: str | None,
    condition: Condition,
    extra: dict[str, str | int] | None = None,
) -> Card:
    """Describe a chip. One whose physical id is not told is shown and not offered: see the reason."""
    told: dict[str, str | int] = {"npu_id": numbers.npu_id, "chip_id": numbers.chip_id}
    if numbers.physical_id is not None:
        told["physical_id"] = numbers.physical_id
    is_told = numbers.physical_id is not None or not numbers.has_physical_id
    health, reason = condition.health, condition.reason
    if numbers.logic_id is None or not is_told:
        health = Health.FAULTY
        reason = (
            f"the driver does not tell the physical id of NPU {numbers.npu_id} chip {numbers.chip_id}: an engine could"
            " be given another one's /dev/davinciN; look at `npu-smi info -m` and `dmesg`"
        )
    return Card(
        pci=pci,
        number=numbers.logic_id if is_told else None,
        uuid=identify(numbers.npu_id, numbers.chip_id, pci),
        name=f"Ascend {numbers.name.removeprefix('Ascend').strip()}",
        arch=architecture_of(numbers.name),
        memory_bytes=memory_bytes,
        driver=driver,
        dev_nodes=() if numbers.physical_id is None else (f"/dev/davinci{numbers.physical_id}",),
        health=health,
        reason=reason,
        extra={**told, **(extra or {})},
    )


def judge(level: int, codes: Sequence[int] = ()) -> Condition:
    """Say what DCMI's health number means for new work. A warning does not stop a chip from working.

    `codes`: the errors that the chip has at present, by the numbers of the vendor's list.
    """
    if level in (0, 1):
        return Condition(Health.OK)
    if level == HEALTH_WORDS.index("UNKNOWN"):
        return Condition(None)
    word = HEALTH_WORDS[level] if 0 <= level < len(HEALTH_WORDS) else "not there or not started"
    errors = f" (errors {' '.join(f'{code:08X}' for code in codes)})" if codes else ""
    return Condition(Health.FAULTY, f"the NPU says {word}{errors}: see `npu-smi info -t health -i N -c C` and `dmesg`")
