"""What readings say of a node's devices: pure rules from readings to health, reason and memory that others use.

A device carries marks of several origins; the first that says it is not well counts, and each goes in its own way:

    event      an Xid, a lost card          until `recovered`, or until its driver was loaded anew
    inventory  as it was found              until the next inventory
    vendor     nothing can be read          until something can be read again, which asks for an inventory
    sample     the card's own state         until samples say for CALM_NS that it is well

A driver that is silent once is late; when the reader that replaced the silent one stays silent too, its devices are
marked. The marks of a card hold for its MIG instances.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from xinf.core.device import Device, DeviceEvent, Health, Vendor
from xinf.device import Inventory, Reading

MAX_LATE = 1  # readings that may fail to come in a row
CALM_NS = 60_000_000_000  # heat comes and goes; who is marked, written down and planned for must not do so with it
FOREIGN_STEP_BYTES = 256 << 20  # a change below this is not worth a write to the store
_FOREIGN_STEPS = 64  # of a host's memory, if that is more


class Mark(msgspec.Struct, frozen=True):
    """What one origin says of a device."""

    health: Health
    reason: str | None


_WELL = Mark(Health.OK, None)


class Condition:
    """The marks of a node's devices."""

    def __init__(self, devices: Iterable[Device]) -> None:
        self._found = {device.uuid: Mark(device.health, device.reason) for device in devices}
        self._by_event: dict[str, Mark] = {}
        self._by_sample: dict[str, Mark] = {}
        self._well_since_ns: dict[str, int] = {}  # of those whose mark by a sample is not over yet
        self._by_vendor: dict[Vendor, Mark] = {}
        self._reloaded: set[Vendor] = set()  # whose driver changed since the last inventory

    def take_inventory(self, devices: Iterable[Device], vendor: Vendor) -> None:
        """Note what a new inventory of one vendor found.

        What happened to a device before its driver was loaded anew is over, if it is well now.
        """
        for device in devices:
            if device.vendor is not vendor:
                continue
            self._found[device.uuid] = Mark(device.health, device.reason)
            if vendor in self._reloaded and device.health is Health.OK:
                self._by_event.pop(device.uuid, None)
                self._by_sample.pop(device.uuid, None)
        self._reloaded.discard(vendor)

    def take(self, reading: Reading) -> bool:
        """Note what a reading says; return whether the vendor's devices are to be listed anew."""
        for sample in reading.samples:
            if sample.health is not None and not self._is_calming(sample.uuid, sample.health, sample.t_ns):
                self._by_sample[sample.uuid] = Mark(sample.health, sample.reason)
        for event in reading.events:
            self._take_event(event)
        if reading.fault is not None:
            is_told = reading.misses == 0  # by the library itself, not by its silence
            if is_told or reading.misses > MAX_LATE:
                self._by_vendor[reading.vendor] = Mark(Health.FAULTY, reading.fault)
            if is_told:
                self._reloaded.add(reading.vendor)  # a library that refused answers again only to another driver
            return False
        if reading.events:
            # They come by a way of their own and do not say that samples come again.
            has_new_driver = any(event.kind == "driver" for event in reading.events)
            if has_new_driver:
                self._reloaded.add(reading.vendor)
            return has_new_driver
        return self._by_vendor.pop(reading.vendor, None) is not None

    def mark(self, devices: Sequence[Device]) -> tuple[Device, ...]:
        """Give the devices as they are now."""
        return tuple(self._mark(device) for device in devices)

    def _is_calming(self, uuid: str, health: Health, t_ns: int) -> bool:
        """Whether a device that is well now was ill a moment ago, by its samples."""
        before = self._by_sample.get(uuid, _WELL)
        if health is not Health.OK or before.health is Health.OK:
            self._well_since_ns.pop(uuid, None)
            return False
        # A clock that was set back must not prolong it.
        since_ns = min(t_ns, self._well_since_ns.get(uuid, t_ns))
        self._well_since_ns[uuid] = since_ns
        if t_ns - since_ns < CALM_NS:
            return True
        del self._well_since_ns[uuid]
        return False

    def _take_event(self, event: DeviceEvent) -> None:
        if event.kind == "recovered":
            self._by_event.pop(event.uuid, None)
        elif event.health is not Health.OK:
            self._by_event[event.uuid] = Mark(event.health, event.message)

    def _mark(self, device: Device) -> Device:
        own = tuple(filter(None, (device.uuid, device.parent)))
        marks = [self._by_event.get(uuid) for uuid in own]
        marks.append(self._found.get(device.uuid))
        marks.append(self._by_vendor.get(device.vendor))
        marks += [self._by_sample.get(uuid) for uuid in own]
        known = [mark for mark in marks if mark is not None]
        worst = next((mark for mark in known if mark.health is not Health.OK), None)
        told = worst or next((mark for mark in known if mark.reason is not None), _WELL)
        if (device.health, device.reason) == (told.health, told.reason):
            return device
        return msgspec.structs.replace(device, health=told.health, reason=told.reason)


def merge_inventory(before: Sequence[Device], now: Inventory, vendor: Vendor) -> tuple[Device, ...]:
    """Replace one vendor's devices by those that were found now; those that were lost stay, by their old names.

    A card that only the bus still shows keeps the UUID by which replicas hold it, with the bus's word on its health.
    """
    found = {device.uuid: device for device in now.devices if device.vendor is vendor}
    nameless = {device.pci: device for device in found.values() if device.pci and device.uuid.startswith("PCI-")}
    kept: list[Device] = []
    for device in before:
        if device.vendor is not vendor:
            kept.append(device)
        elif device.uuid in found:
            kept.append(msgspec.structs.replace(found.pop(device.uuid), index=device.index))
        elif device.pci in nameless and device.parent is None:
            shown = nameless[device.pci]
            found.pop(shown.uuid, None)
            kept.append(msgspec.structs.replace(device, health=shown.health, reason=shown.reason))
        elif not device.uuid.startswith("PCI-") and device.parent is None:
            kept.append(msgspec.structs.replace(device, health=Health.FAULTY, reason="it is not there any more"))
    # A device keeps the number that people know it by; new ones count on where theirs is taken.
    used = {device.index for device in kept if device.vendor is vendor}
    for device in found.values():
        index = device.index if device.index not in used else max(used) + 1
        used.add(index)
        kept.append(msgspec.structs.replace(device, index=index))
    return tuple(kept)


def foreign_step_bytes(device: Device) -> int:
    """The change of a device's memory that is worth a write: that of a large host's is never still."""
    share = (device.memory_bytes or 0) // _FOREIGN_STEPS if device.vendor is Vendor.CPU else 0
    return max(FOREIGN_STEP_BYTES, share)


def foreign_bytes(
    reading: Reading,
    own_pids: Mapping[str, Collection[int]],
    own_bytes: Mapping[str, int],
    before: Mapping[str, int],
    steps: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Say how much memory of each device others than our engines use; devices that nothing is known of keep `before`.

    `own_pids`: the processes of our engines by the device that they run on. `own_bytes`: what they use, where this
    host knows it without the driver (the processor). `steps`: the changes that count, FOREIGN_STEP_BYTES by default.

    Of a device that our engines run on, the driver must know at least one of their processes: in a container of its own
    it counts pids of another namespace, and the engine would look like somebody else.
    """
    used = {sample.uuid: sample.memory_used_bytes for sample in reading.samples}
    told: dict[str, dict[int, int | None]] = {}
    for process in reading.processes:
        told.setdefault(process.uuid, {})[process.pid] = process.memory_bytes
    result = dict(before)
    for uuid, used_bytes in used.items():
        if used_bytes is None:
            continue
        if uuid in own_bytes:
            own: int | None = own_bytes[uuid]
        elif own_pids.get(uuid):
            mine = [told.get(uuid, {}).get(pid, -1) for pid in own_pids[uuid] if pid in told.get(uuid, {})]
            own = None if not mine or None in mine else sum(size for size in mine if size is not None)
        else:
            own = 0
        if own is None:
            continue
        others = max(0, used_bytes - own)
        if abs(others - before.get(uuid, 0)) > (steps or {}).get(uuid, FOREIGN_STEP_BYTES):
            result[uuid] = others
    return {uuid: size for uuid, size in result.items() if size}
