"""The cards of a vendor as its library or tool describes them, made into devices and samples.

Devices are in bus order and numbered from 0, cards that only the bus shows are added with the reason, and identities
that two dies of one card share are told apart.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from xinf.core.device import Device, Health, Sample, Vendor
from xinf.device.pci import PASSED_ON, PciFunction, read_numa, without_driver


class Card(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One card in the words of its vendor. What an answer does not say is None."""

    pci: str  # "0000:18:00.0"
    number: int | None = None  # the library's or tool's own index, which its visibility variable takes
    uuid: str | None = None
    name: str | None = None
    arch: str | None = None
    memory_bytes: int | None = None
    driver: str | None = None
    runtime: str | None = None
    numa: int | None = None  # where sysfs does not say
    dev_nodes: tuple[str, ...] = ()
    parent: str | None = None
    health: Health | None = None
    reason: str | None = None
    extra: dict[str, str | int] = {}
    used_bytes: int | None = None
    free_bytes: int | None = None
    util_pct: float | None = None
    temp_c: float | None = None
    power_w: float | None = None
    ecc_uncorrected: int | None = None


def make_devices(
    vendor: Vendor, cards: Sequence[Card], functions: Sequence[PciFunction], *, missing: str, root: Path
) -> tuple[Device, ...]:
    """Describe the cards and those of `functions` that are not among them, for which `missing` says why."""
    devices = [_make_device(vendor, card, uuid, root) for card, uuid in zip(cards, _identify(cards), strict=True)]
    listed = {device.pci for device in devices}
    for function in functions:
        if function.address not in listed:
            taken = f"it is bound to {function.driver}, for a virtual machine"
            devices.append(without_driver(function, 0, taken if function.driver in PASSED_ON else missing))
    # A card goes before the instances that it was divided into: they share its address.
    devices.sort(key=lambda device: (device.pci or "", device.parent is not None, _order(device.visible)))
    return tuple(msgspec.structs.replace(device, index=index) for index, device in enumerate(devices))


def make_samples(cards: Sequence[Card]) -> tuple[Sample, ...]:
    """Say what the cards are doing, under the identities that make_devices gave them."""
    now = time.time_ns()
    return tuple(
        Sample(
            uuid=uuid,
            t_ns=now,
            memory_used_bytes=card.used_bytes,
            memory_free_bytes=card.free_bytes if card.free_bytes is not None else _subtract(card),
            util_pct=card.util_pct,
            temp_c=card.temp_c,
            power_w=card.power_w,
            ecc_uncorrected=card.ecc_uncorrected,
            health=card.health,
            reason=card.reason,
        )
        for card, uuid in zip(cards, _identify(cards), strict=True)
    )


def _make_device(vendor: Vendor, card: Card, uuid: str, root: Path) -> Device:
    numa = read_numa(card.pci, root)
    return Device(
        vendor=vendor,
        index=0,
        uuid=uuid,
        name=card.name or f"{vendor} device",
        arch=card.arch,
        memory_bytes=card.memory_bytes,
        driver=card.driver,
        runtime=card.runtime,
        pci=card.pci,
        numa=card.numa if numa is None else numa,
        dev_nodes=card.dev_nodes,
        visible=None if card.number is None else str(card.number),
        parent=card.parent,
        health=card.health or Health.OK,
        reason=card.reason,
        extra=card.extra,
    )


def _identify(cards: Sequence[Card]) -> list[str]:
    """Name each card: its own UUID, with the address where two dies answer to one, the address where it has none."""
    times = Counter(card.uuid for card in cards)
    names = []
    for card in cards:
        place = card.pci.replace(":", "-")
        if card.uuid is None:
            names.append(f"PCI-{place}")
        else:
            names.append(card.uuid if times[card.uuid] == 1 else f"{card.uuid}-{place}")
    return names


def _subtract(card: Card) -> int | None:
    if card.memory_bytes is None or card.used_bytes is None:
        return None
    return max(0, card.memory_bytes - card.used_bytes)


def _order(visible: str | None) -> int:
    return -1 if visible is None else int(visible)
