"""Follows the devices of this node while its agent runs and keeps their state in the node's record.

    readings ──▶ Condition ──▶ health, reason ──┬──▶ NodeRecord, if it differs
       │                       foreign_bytes ───┘
       └──▶ events of drivers, changes of health ──▶ EventRecord, one for each kind and device, counted
    driver changed ──▶ inventory of that vendor, one interval later

Nothing here fails the agent: a reading that cannot be handled is logged, the next one comes in seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

import msgspec

from xinf.agent.condition import Condition, foreign_bytes, foreign_step_bytes, merge_inventory
from xinf.agent.process import pids_by_group, read_private_bytes
from xinf.agent.registration import Registration
from xinf.core.device import Device, DeviceEvent, Health, Vendor
from xinf.core.errors import StoreError, Unavailable
from xinf.core.records import EventRecord
from xinf.device import Inventory, Reading, overlay
from xinf.meta import Store, record_event

logger = logging.getLogger(__name__)

_N_AT_ONCE = 8  # repetitions of an event that are written as they come
_REPEAT_S = 10.0  # between the writes of later ones: a broken link tells of itself hundreds of times a second


class _Told(msgspec.Struct, kw_only=True):
    """The last event of one kind of a device; `n_written` is the count that the store has."""

    key: str
    event: EventRecord
    n_written: int
    at_s: float  # by the monotonic clock


class EngineUse(msgspec.Struct, frozen=True, kw_only=True):
    """One engine that runs here: the leader of its process group, and the accelerators it holds."""

    leader_pid: int
    device_uuids: tuple[str, ...]  # empty: it runs on the processor


class DeviceWatcher:
    """Keeps health, reasons and foreign memory of one node's devices.

    `engines` tells what runs here now, `list_devices` asks all vendors anew.
    """

    def __init__(
        self,
        registration: Registration,
        *,
        engines: Callable[[], Iterable[EngineUse]],
        list_devices: Callable[[], Awaitable[Inventory]],
        interval_s: float,
        store: Store | None = None,
    ) -> None:
        """`store`: where events are written down for `xinf events`; None: they are only logged."""
        self._registration = registration
        self._store = store
        self._told: dict[tuple[str, str], _Told] = {}  # by device and kind
        self._engines = engines
        self._list_devices = list_devices
        self._interval_s = interval_s
        self._devices = registration.record.devices  # as inventories found them, without marks
        self._condition = Condition(self._devices)
        self._listing: dict[Vendor, asyncio.Task[None]] = {}

    async def run(self, readings: AsyncIterator[Reading]) -> None:
        """Take readings until they end or this is cancelled."""
        try:
            async for reading in readings:
                try:
                    await self.take(reading)
                except Exception:
                    logger.exception("a reading of %s could not be handled", reading.vendor)
        finally:
            for task in self._listing.values():
                task.cancel()
            await asyncio.gather(*self._listing.values(), return_exceptions=True)

    async def take(self, reading: Reading) -> None:
        """Note one reading and write the record if it changes anything."""
        for event in reading.events:
            _log_event(event)
        if self._condition.take(reading):
            self._list_later(reading.vendor)
        changed = await self._publish(reading)
        # The record first: where nothing may run any more matters at once, and each event may wait for the store.
        for event in reading.events:
            await self._tell(event.uuid, event.kind, event.message)
        await self._tell_health(changed)
        await self._tell_repeated()

    async def _publish(self, reading: Reading | None = None) -> list[Device]:
        """Write the record if it is another than before; return the devices whose health is."""
        record = self._registration.record
        devices = self._condition.mark(self._devices)
        foreign = record.foreign_bytes if reading is None else self._foreign_bytes(reading)
        changed = _log_changes(record.devices, devices)
        if devices != record.devices or foreign != record.foreign_bytes:
            await self._registration.update(devices=devices, foreign_bytes=foreign)
        return changed

    async def _tell_health(self, devices: Iterable[Device]) -> None:
        for device in devices:
            await self._tell(device.uuid, f"device_{device.health}", device.reason or "it is well again")

    async def _tell(self, uuid: str, kind: str, message: str) -> None:
        """Write an event down. What comes and goes, like heat, is one event with a count."""
        if self._store is None:
            return
        device = next((device for device in self._devices if device.uuid == uuid), None)
        name = uuid if device is None else device.selector
        event = EventRecord(
            at_s=time.time(), kind=kind, object=name, node=self._registration.record.name, message=message
        )
        before = self._told.get((uuid, kind))
        if before is None or before.event.message != message:
            await self._write_event(self._store, uuid, event, repeats=None)
            return
        before.event = msgspec.structs.replace(event, count=before.event.count + 1)
        if before.event.count <= _N_AT_ONCE:
            await self._write_event(self._store, uuid, before.event, repeats=before.key)

    async def _tell_repeated(self) -> None:
        """Write what was only counted, now and then."""
        now_s = time.monotonic()
        for (uuid, _), told in tuple(self._told.items()):
            if self._store is not None and told.event.count > told.n_written and now_s - told.at_s >= _REPEAT_S:
                await self._write_event(self._store, uuid, told.event, repeats=told.key)

    async def _write_event(self, store: Store, uuid: str, event: EventRecord, *, repeats: str | None) -> None:
        try:
            key = await record_event(store, event, repeats=repeats)
        except (StoreError, Unavailable) as error:
            logger.warning("an event is not written down: %s", error)
        else:
            self._told[uuid, event.kind] = _Told(key=key, event=event, n_written=event.count, at_s=time.monotonic())

    def _list_later(self, vendor: Vendor) -> None:
        if vendor not in self._listing:
            self._listing[vendor] = asyncio.create_task(self._list(vendor))

    async def _list(self, vendor: Vendor) -> None:
        """List one vendor's devices anew, once the driver has had a moment to come or go."""
        try:
            await asyncio.sleep(self._interval_s)
            found = await self._list_devices()
            self._devices = merge_inventory(self._devices, found, vendor)
            self._condition.take_inventory(self._devices, vendor)
            record = self._registration.record
            logger.info("the devices of %s were listed anew", vendor, extra={"kv": {"node": record.name}})
            topology = overlay(record.topology, found.topology)
            if topology != record.topology:
                await self._registration.update(topology=topology)
            await self._tell_health(await self._publish())
        except Exception:
            logger.exception("the devices of %s could not be listed anew", vendor)
        finally:
            del self._listing[vendor]

    def _foreign_bytes(self, reading: Reading) -> dict[str, int]:
        before = self._registration.record.foreign_bytes
        if not reading.samples:
            return before
        engines = tuple(self._engines())
        groups = pids_by_group() if engines else {}
        own_pids: dict[str, list[int]] = {}
        own_bytes: dict[str, int] = {}
        if reading.vendor is Vendor.CPU:
            # All engines use the host's memory, those on accelerators too.
            own = sum(read_private_bytes(pid) for engine in engines for pid in groups.get(engine.leader_pid, ()))
            own_bytes = {sample.uuid: own for sample in reading.samples}
        else:
            own_pids = _by_device(engines, groups)
        steps = {device.uuid: foreign_step_bytes(device) for device in self._devices}
        told = foreign_bytes(reading, own_pids, own_bytes, before, steps)
        return {uuid: size for uuid, size in told.items() if uuid in steps}


def _by_device(engines: Iterable[EngineUse], groups: Mapping[int, list[int]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for engine in engines:
        for uuid in engine.device_uuids:
            # The leader stands for a group that is ending or beginning: the device is ours all the same.
            found.setdefault(uuid, []).extend(groups.get(engine.leader_pid) or [engine.leader_pid])
    return found


def _log_event(event: DeviceEvent) -> None:
    values = {"device": event.uuid, "kind": event.kind, "code": event.code}
    level = logging.INFO if event.health is Health.OK else logging.WARNING
    logger.log(level, "device %s: %s", event.uuid, event.message, extra={"kv": values})


def _log_changes(before: tuple[Device, ...], now: tuple[Device, ...]) -> list[Device]:
    """Log what is new of devices; return those whose health is."""
    changed = []
    known = {device.uuid: device for device in before}
    for device in now:
        old = known.get(device.uuid)
        if old is None or (old.health, old.reason) == (device.health, device.reason):
            continue
        level = logging.INFO if device.health is Health.OK else logging.WARNING
        state = f"{device.health}: {device.reason}" if device.reason else device.health
        logger.log(level, "device %s is %s", device.selector, state, extra={"kv": {"device": device.uuid}})
        if old.health is not device.health:
            changed.append(device)
    return changed
