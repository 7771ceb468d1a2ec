"""Which device of a new inventory is which of the old one: pure.

    the same UUID                                   it
    only the bus shows something in its slot        it, by its old name, with the bus's word on its health
    a card that tells neither its name nor a slot   one of those that are lost, as in a container without a bus
    another UUID in its slot                        another: the old one was taken out and is forgotten
    parts of it alone                               it was divided (AMD), and is forgotten
    nothing                                         a card is lost, and stays so that people are told why; a MIG
                                                    instance was taken apart, and is forgotten
    its whole vendor did not answer                 it, as it was, silent

Replicas hold devices by their UUID and people by their number, so neither may change because of who was asked, or when.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from xinf.core.device import Device, Health, Vendor
from xinf.device import Inventory

# How UUIDs begin that are made of a slot or a device node alone, and those of cards that NVML counts but cannot read.
_NAMELESS = ("PCI-", "DEV-", "NVML-unreadable-")
LOST = "it is not there any more"


def merge_inventory(before: Sequence[Device], now: Inventory, vendor: Vendor) -> tuple[Device, ...]:
    """Replace one vendor's devices by those that were found now, as said above."""
    reason = now.silent.get(vendor)
    if reason is not None:
        now = _with_silent(before, now, vendor, reason)
    found = {device.uuid: device for device in now.devices if device.vendor is vendor}
    divided = {device.parent for device in found.values()}
    known = {device.uuid for device in before if device.vendor is vendor}
    nameless = {device.pci: device for device in found.values() if device.pci and device.uuid.startswith(_NAMELESS)}
    unplaced = [device for device in found.values() if not device.pci and device.uuid.startswith(_NAMELESS)]
    newcomers = {
        device.pci: device
        for device in found.values()
        if device.pci and device.parent is None and device.uuid not in known and device.pci not in nameless
    }
    kept: list[Device] = []
    numbers: dict[str, int] = {}  # of newcomers that take a slot over
    for device in before:
        if device.vendor is not vendor:
            kept.append(device)
        elif device.uuid in found:
            kept.append(msgspec.structs.replace(found.pop(device.uuid), index=device.index))
        elif device.pci in nameless:
            shown = nameless[device.pci]
            found.pop(shown.uuid, None)
            kept.append(msgspec.structs.replace(device, health=shown.health, reason=shown.reason))
        elif device.uuid in divided:
            continue
        elif device.pci in newcomers and device.parent is None:
            numbers[newcomers[device.pci].uuid] = device.index
        elif not device.uuid.startswith(_NAMELESS) and device.parent is None:
            reason = LOST
            if unplaced:
                shown = unplaced.pop(0)
                found.pop(shown.uuid)
                reason = shown.reason or LOST
            kept.append(msgspec.structs.replace(device, health=Health.FAULTY, reason=reason))
    return _numbered(kept, list(found.values()), vendor, numbers)


def resume(before: Sequence[Device], now: Inventory) -> tuple[Device, ...]:
    """Take up where an earlier agent left: the host as it was found now, under the names that devices had then.

    What is not there at all any more is forgotten: whoever took it out has ended the agent for it, or the host's boot.
    """
    vendors = {device.vendor for device in (*before, *now.devices)} | set(now.silent)
    merged: Sequence[Device] = before
    for vendor in vendors:
        merged = merge_inventory(merged, now, vendor)
    there = [device for device in merged if device.reason != LOST]
    order = {vendor: number for number, vendor in enumerate(Vendor)}
    return tuple(sorted(there, key=lambda device: (order[device.vendor], device.index)))


def _with_silent(before: Sequence[Device], now: Inventory, vendor: Vendor, reason: str) -> Inventory:
    """What is known of a vendor that did not answer: what was, and what the bus shows beside it."""
    slots = {device.pci for device in before if device.vendor is vendor and device.pci}
    was = [
        device
        if device.health in (Health.FAULTY, Health.NO_DRIVER)
        else msgspec.structs.replace(device, health=Health.SILENT, reason=reason)
        for device in before
        if device.vendor is vendor
    ]
    new = [device for device in now.devices if device.vendor is not vendor or device.pci not in slots]
    return Inventory(devices=(*was, *new))


def _numbered(
    kept: list[Device], found: Sequence[Device], vendor: Vendor, numbers: Mapping[str, int]
) -> tuple[Device, ...]:
    """Add what is new. A device keeps the number that people know it by; new ones count on where theirs is taken."""
    used = {device.index for device in kept if device.vendor is vendor} | set(numbers.values())
    for device in found:
        index = numbers.get(device.uuid, device.index)
        if device.uuid not in numbers and index in used:
            index = max(used) + 1
        used.add(index)
        kept.append(msgspec.structs.replace(device, index=index))
    return tuple(kept)
