"""What readings and inventories say of a node's devices: pure rules from them to health and reason.

A device carries marks of several origins; the worst counts, of equally bad ones the first here, and each goes in its
own way:

    event      an Xid, a lost card          until `recovered`; `found`, or a sample that is well, ends what a card says
                                            that cannot be reached; a new driver ends all, if an inventory finds it well
    inventory  as it was found              until the next one, which is asked for as long as it is not well
    vendor     nothing can be read          until something can be read again, which asks for an inventory
    sample     the card's own state         until the next sample that says; where a count of memory errors grew under
                                            our eyes, until it begins anew: a reader that is new knows no growth

A device that is another card than before, in the slot that names it, is well or not by its own word: the marks of the
former are forgotten, and it is FAULTY once, so that what was placed on that one is placed anew.

What they say together goes through the Damper: worse counts at once, better after a calm time.

A driver that is silent once is late; when the reader that replaced the silent one stays silent too, its devices are
SILENT: nobody knows how they are, the engines on them know best. The same while a library or tool refuses, until an
inventory says why. The marks of a card hold for its MIG instances.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from xinf.agent.damper import WELL, Damper, Mark, Spell
from xinf.agent.occupant import Exchange, Occupants
from xinf.agent.succession import merge_inventory
from xinf.core.device import Device, DeviceEvent, Health, Sample, Vendor
from xinf.device import Inventory, Reading

MAX_LATE = 1  # readings that may fail to come in a row
# Xid 79, the GPU has fallen off the bus: what it says is over when the card answers.
_OFF_THE_BUS = ("lost", None), ("xid", 79)

_EventKey = tuple[str, int | None]  # kind and code


class Condition:
    """The devices of a node with their marks."""

    def __init__(
        self,
        devices: Iterable[Device],
        spells: Mapping[str, Spell] | None = None,
        occupants: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """`devices`: as an inventory found them. `spells`, `occupants`: what an earlier agent left."""
        self._devices = tuple(devices)
        self._occupants = Occupants(occupants)
        self._exchanges: list[Exchange] = []  # not yet told
        self._exchanged: dict[str, Mark] = {}  # not yet shown
        self._found: dict[str, Mark] = {}
        self._by_event: dict[str, dict[_EventKey, Mark]] = {}
        self._by_sample: dict[str, Mark] = {}
        self._errors: dict[str, int] = {}  # uncorrectable ones, as last counted
        self._grown_to: dict[str, int] = {}  # their count where its growth made a device faulty
        self._by_vendor: dict[Vendor, Mark] = {}
        self._reloaded: set[Vendor] = set()  # whose driver changed since an inventory found them well
        self._sampled: dict[Vendor, frozenset[str]] = {}  # whom its last reading told of
        self._damper = Damper(spells)
        self._note_found()

    @property
    def devices(self) -> tuple[Device, ...]:
        """As inventories found them, without the other marks."""
        return self._devices

    @property
    def spells(self) -> dict[str, Spell]:
        """What the next agent needs to go on."""
        return self._damper.spells

    @property
    def occupants(self) -> dict[str, dict[str, str]]:
        """Who sits in which slot, for the next agent."""
        return self._occupants.told

    def take_exchanges(self) -> list[Exchange]:
        """Give the exchanges of cards that were found since this was last asked."""
        found, self._exchanges = self._exchanges, []
        return found

    def must_list(self, vendor: Vendor) -> bool:
        """Whether an inventory is to be asked for until it finds more: one of the vendor's devices was not well."""
        return any(d.vendor is vendor and d.health is not Health.OK for d in self._devices)

    def take_inventory(self, found: Inventory, vendor: Vendor) -> None:
        """Note what a new inventory of one vendor found.

        What happened to a device before its driver was loaded anew is over, if it is well now.
        """
        self._devices = merge_inventory(self._devices, found, vendor)
        well = [d.uuid for d in self._devices if d.vendor is vendor and d.health is Health.OK]
        if vendor in self._reloaded and well:
            for uuid in well:
                self._by_event.pop(uuid, None)
                self._by_sample.pop(uuid, None)
                self._grown_to.pop(uuid, None)
            self._reloaded.discard(vendor)
        self._note_found()

    def take(self, reading: Reading) -> bool:
        """Note what a reading says; return whether the vendor's devices are to be listed anew."""
        for sample in reading.samples:
            self._take_sample(sample)
        for event in reading.events:
            self._take_event(event)
        if reading.fault is not None:
            return self._take_fault(reading, reading.fault)
        if reading.events:
            # They come by a way of their own and do not say that samples come again.
            has_new_driver = any(event.kind == "driver" for event in reading.events)
            if has_new_driver:
                self._reloaded.add(reading.vendor)
            return has_new_driver
        answers_again = self._by_vendor.pop(reading.vendor, None) is not None
        return self._has_others(reading) or answers_again

    def mark(self, now_s: float) -> tuple[Device, ...]:
        """Give the devices as they count at a time of the monotonic clock."""
        return tuple(self._mark(device, now_s) for device in self._devices)

    def _note_found(self) -> None:
        """Take the word of an inventory; what is not there any more is forgotten."""
        exchanges = self._occupants.take(self._devices)
        self._exchanges += exchanges
        self._exchanged |= {one.uuid: Mark(Health.FAULTY, one.message) for one in exchanges}
        uuids = {device.uuid for device in self._devices} - {one.uuid for one in exchanges}
        self._found = {device.uuid: Mark(device.health, device.reason) for device in self._devices}
        self._by_event = {uuid: marks for uuid, marks in self._by_event.items() if uuid in uuids}
        self._by_sample = {uuid: mark for uuid, mark in self._by_sample.items() if uuid in uuids}
        self._errors = {uuid: count for uuid, count in self._errors.items() if uuid in uuids}
        self._grown_to = {uuid: count for uuid, count in self._grown_to.items() if uuid in uuids}
        self._damper.forget_others(uuids)

    def _take_sample(self, sample: Sample) -> None:
        uuid, count = sample.uuid, sample.ecc_uncorrected
        if sample.health is Health.OK:
            self._end_events(uuid, _OFF_THE_BUS)
        before = self._errors.get(uuid)
        if count is not None:
            self._errors[uuid] = count
            if count < self._grown_to.get(uuid, 0):
                del self._grown_to[uuid]
            if before is not None and count > before and sample.health is Health.FAULTY:
                self._grown_to[uuid] = count
        is_forgotten = uuid in self._grown_to and sample.health is not Health.FAULTY
        if sample.health is not None and not is_forgotten:
            self._by_sample[uuid] = Mark(sample.health, sample.reason)

    def _take_fault(self, reading: Reading, fault: str) -> bool:
        is_told = reading.misses == 0  # by the library itself, not by its silence
        if is_told:
            self._reloaded.add(reading.vendor)  # a library that refused answers again only to another driver
        if not is_told and reading.misses <= MAX_LATE:
            return False
        before, mark = self._by_vendor.get(reading.vendor), Mark(Health.SILENT, fault)
        self._by_vendor[reading.vendor] = mark
        return is_told and mark != before  # an inventory knows whether it is the driver

    def _has_others(self, reading: Reading) -> bool:
        """Whether a reading tells of other devices than before: one was split, put in, lost or found."""
        now = frozenset(sample.uuid for sample in reading.samples)
        before = self._sampled.get(reading.vendor)
        self._sampled[reading.vendor] = now
        if before is None:
            return not now <= {device.uuid for device in self._devices}
        return now != before

    def _take_event(self, event: DeviceEvent) -> None:
        if event.kind == "recovered":
            self._by_event.pop(event.uuid, None)
        elif event.kind == "found":
            self._end_events(event.uuid, _OFF_THE_BUS)
        elif event.health is not Health.OK:
            marks = self._by_event.setdefault(event.uuid, {})
            key = (event.kind, event.code)
            marks.pop(key, None)  # the latest is told
            marks[key] = Mark(event.health, event.message)

    def _end_events(self, uuid: str, keys: Iterable[_EventKey]) -> None:
        marks = self._by_event.get(uuid)
        if marks is None:
            return
        for key in keys:
            marks.pop(key, None)
        if not marks:
            del self._by_event[uuid]

    def _mark(self, device: Device, now_s: float) -> Device:
        own = tuple(filter(None, (device.uuid, device.parent)))
        marks = [mark for uuid in own for mark in reversed(self._by_event.get(uuid, {}).values())]
        marks.append(self._exchanged.pop(device.uuid, self._found[device.uuid]))
        marks += [mark for mark in (self._by_vendor.get(device.vendor),) if mark is not None]
        marks += [self._by_sample[uuid] for uuid in own if uuid in self._by_sample]
        worst = max(marks, key=lambda mark: mark.severity)  # the first of equally bad ones
        if not worst.severity:
            worst = next((mark for mark in marks if mark.reason is not None), WELL)
        told = self._damper.show(device.uuid, worst, now_s)
        if (device.health, device.reason) == (told.health, told.reason):
            return device
        return msgspec.structs.replace(device, health=told.health, reason=told.reason)


def dated(before: Iterable[Device], now: Iterable[Device], wall_s: float) -> tuple[Device, ...]:
    """Give devices with the time since when their health is as it is; it was `before` until now."""
    known = {device.uuid: device for device in before}
    found: list[Device] = []
    for device in now:
        old = known.get(device.uuid)
        if old is not None and old.health is device.health:
            since_s = old.since_s
        else:
            since_s = None if old is None and device.health is Health.OK else wall_s
        found.append(msgspec.structs.replace(device, since_s=since_s))
    return tuple(found)
