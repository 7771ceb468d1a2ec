"""Follows the devices of this node while its agent runs and keeps their state in the node's record.

    readings ──▶ Condition ──▶ health, reason ──┬──▶ NodeRecord, if it differs; the chart for the next agent
       │        foreign_bytes, unplanned_bytes ─┘
       └──▶ events of drivers, changes of health ──▶ EventRecord, one for each kind and device, counted
    driver changed, something not well ──▶ Lister ──▶ inventory of that vendor

Nothing here fails the agent: a reading that cannot be handled is logged, the next one comes in seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Set
from pathlib import Path

import msgspec

from xinf.agent.chart import read_chart, read_occupants, write_chart
from xinf.agent.condition import Condition, dated
from xinf.agent.foreign import FOREIGN_STEP_BYTES, foreign_bytes, foreign_step_bytes
from xinf.agent.holding import EngineUse, read_holdings, total_bytes, unplanned_bytes
from xinf.agent.lister import Lister
from xinf.agent.process import pids_by_group
from xinf.agent.registration import Registration
from xinf.core.device import Device, DeviceEvent, Health, Sample, Vendor
from xinf.core.errors import StoreError, Unavailable
from xinf.core.ids import ReplicaId
from xinf.core.records import EventRecord
from xinf.device import Inventory, Reading, overlay, read_host_memory
from xinf.meta import Store, record_event

logger = logging.getLogger(__name__)

_N_AT_ONCE = 8  # repetitions of an event that are written as they come
_REPEAT_S = 10.0  # between the writes of later ones: a broken link tells of itself hundreds of times a second
_AWAY_S = 60.0  # between two tries of a store that gives no answer: each holds the readings up for seconds


class _Told(msgspec.Struct, kw_only=True):
    """The last event of one kind of a device; `n_written` is the count that the store has."""

    key: str | None  # None: the store has not got it
    event: EventRecord
    n_written: int
    at_s: float  # by the monotonic clock


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
        chart: Path | None = None,
        now_s: Callable[[], float] = time.monotonic,
        root: Path = Path("/"),
    ) -> None:
        """Take the devices of the node's record for what an inventory found, and mark them there as they count.

        `store`: where events are written down for `xinf events`; None: they are only logged. `chart`: the file that
        agents leave to each other; None: nothing is left. `now_s`: a clock that runs on from one agent to the next.
        `root`: below it is the /proc that tells of the host's memory.
        """
        self._registration = registration
        self._store = store
        self._told: dict[tuple[str, str], _Told] = {}  # by device and kind
        self._away_s: float | None = None  # when the store last gave no answer
        self._engines = engines
        self._list_devices = list_devices
        self._chart = chart
        self._now_s = now_s
        self._root = root
        before = None if chart is None else read_chart(chart)
        spells = None if before is None else before.spells
        occupants = None if chart is None else read_occupants(chart)
        self._condition = Condition(registration.record.devices, spells, occupants)
        self._lister = Lister(self._list, first_s=interval_s)
        known = () if before is None else before.devices
        devices = dated(known, self._condition.mark(self._now_s()), time.time())
        # What the agent before told of need not be told again.
        told = {device.uuid: device.health for device in known}
        self._news = [d for d in devices if told.get(d.uuid, Health.OK) is not d.health]
        registration.preset(devices=devices)

    async def run(self, readings: AsyncIterator[Reading]) -> None:
        """Take readings until they end or this is cancelled."""
        try:
            self._keep_chart()
            await self._tell_others()
            await self._tell_health(self._news)
            for vendor in {device.vendor for device in self._condition.devices}:
                if self._condition.must_list(vendor):
                    self._lister.ask(vendor)
            async for reading in readings:
                try:
                    await self.take(reading)
                except Exception:
                    logger.exception("a reading of %s could not be handled", reading.vendor)
        finally:
            await self._lister.close()

    def foresee(self, readings: Iterable[Reading]) -> None:
        """Note the memory that others use before the node is there: whoever waits for a place is given one at once."""
        for reading in readings:
            foreign, unplanned = self._memory(reading)
            self._registration.preset(foreign_bytes=foreign, unplanned_bytes=unplanned)

    async def take(self, reading: Reading) -> None:
        """Note one reading and write the record if it changes anything."""
        for event in reading.events:
            _log_event(event)
        if self._condition.take(reading):
            self._lister.ask(reading.vendor)
        changed = await self._publish(reading)
        # The record first: where nothing may run any more matters at once, and each event may wait for the store.
        names = {device.uuid: device.selector for device in self._condition.devices}
        for event in reading.events:
            await self._tell(event.uuid, names.get(event.uuid, event.uuid), event.kind, event.message)
        await self._tell_health(changed)
        await self._tell_repeated()

    async def _publish(self, reading: Reading | None = None) -> list[Device]:
        """Write the record if it is another than before; return the devices whose health is."""
        record = self._registration.record
        devices = dated(record.devices, self._condition.mark(self._now_s()), time.time())
        known = (record.foreign_bytes, record.unplanned_bytes)
        foreign, unplanned = known if reading is None else self._memory(reading)
        changed = _log_changes(record.devices, devices)
        if devices != record.devices or (foreign, unplanned) != known:
            await self._registration.update(devices=devices, foreign_bytes=foreign, unplanned_bytes=unplanned)
        if devices != record.devices:
            self._keep_chart()
        return changed

    def _keep_chart(self) -> None:
        if self._chart is None:
            return
        try:
            devices, condition = self._registration.record.devices, self._condition
            write_chart(self._chart, devices, condition.spells, condition.occupants)
        except OSError as error:
            logger.warning("the next agent will not know how the devices were: %s", error)

    async def _tell_health(self, devices: Iterable[Device]) -> None:
        for device in devices:
            message = device.reason or "it is well again"
            await self._tell(device.uuid, device.selector, f"device_{device.health}", message)

    async def _tell_exchange(self, before: Iterable[Device], now: Iterable[Device]) -> None:
        """Tell which devices an inventory found for the first time, and which it did not find any more."""
        old, new = ({device.uuid: device for device in devices} for devices in (before, now))
        for uuid in old.keys() - new.keys():
            await self._tell(uuid, old[uuid].selector, "device_gone", f"{old[uuid].name} ({uuid}) was taken out")
        for uuid in new.keys() - old.keys():
            await self._tell(uuid, new[uuid].selector, "device_new", f"{new[uuid].name} ({uuid}) is there now")

    async def _tell_others(self) -> None:
        """Tell which devices are other cards than they were, under the names of their slots."""
        names = {device.uuid: device.selector for device in self._condition.devices}
        for exchange in self._condition.take_exchanges():
            await self._tell(exchange.uuid, names[exchange.uuid], "device_exchanged", exchange.message)

    async def _tell(self, uuid: str, name: str, kind: str, message: str) -> None:
        """Write an event down. What comes and goes, like heat, is one event with a count."""
        if self._store is None:
            return
        event = EventRecord(
            at_s=time.time(),
            kind=kind,
            object=name,
            node=self._registration.record.name,
            device_uuid=uuid,
            message=message,
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
        """Write an event down, or keep it for later: the last of its kind, as long as the store is away."""
        before = self._told.get((uuid, event.kind))
        n_written = before.n_written if before is not None and repeats is not None else 0
        key, now_s = repeats, time.monotonic()
        if self._away_s is None or now_s - self._away_s >= _AWAY_S:
            try:
                key, n_written = await record_event(store, event, repeats=repeats), event.count
                self._away_s = None
            except (StoreError, Unavailable) as error:
                self._away_s = time.monotonic()
                logger.warning("an event is written down later: %s", error)
        self._told[uuid, event.kind] = _Told(key=key, event=event, n_written=n_written, at_s=now_s)

    async def _list(self, vendor: Vendor) -> bool:
        """List one vendor's devices anew; return whether all of them are well."""
        found = await self._list_devices()
        self._condition.take_inventory(found, vendor)
        record = self._registration.record
        logger.info("the devices of %s were listed anew", vendor, extra={"kv": {"node": record.name}})
        topology = overlay(record.topology, found.topology)
        if topology != record.topology:
            await self._registration.update(topology=topology)
        changed = await self._publish()
        await self._tell_exchange(record.devices, self._registration.record.devices)
        await self._tell_others()
        await self._tell_health(changed)
        return not self._condition.must_list(vendor)

    def _memory(self, reading: Reading) -> tuple[dict[str, int], dict[ReplicaId, int]]:
        """Say what others use of each device, and what engines hold of the host's memory beyond their needs."""
        record = self._registration.record
        if not reading.samples:
            return record.foreign_bytes, record.unplanned_bytes
        devices = self._condition.devices
        unified = {device.uuid for device in devices if device.is_unified}
        engines = tuple(self._engines())
        is_pooled = any(sample.uuid in unified for sample in reading.samples)
        if reading.vendor is Vendor.CPU and self._is_told_elsewhere(engines, unified):
            return record.foreign_bytes, record.unplanned_bytes
        groups = pids_by_group() if engines else {}
        steps = {device.uuid: foreign_step_bytes(device) for device in devices}
        samples, own_bytes, unplanned = reading.samples, {}, record.unplanned_bytes
        if is_pooled or reading.vendor is Vendor.CPU:
            # Of cards with memory of their own the engines use the host's too, and hold none of it.
            holdings = read_holdings(engines, groups, unified if is_pooled else (), reading.processes)
            own = total_bytes(holdings)
            of_host = {*unified, *(device.uuid for device in devices if device.vendor is Vendor.CPU)}
            samples = (*samples, *(self._sample_host() if is_pooled else ()))
            samples = tuple(sample for sample in samples if own is not None or sample.uuid not in of_host)
            own_bytes = {} if own is None else dict.fromkeys(of_host, own)
            # An engine is stiller than a host, and many small errors would be a large one.
            unplanned = unplanned_bytes(holdings, record.unplanned_bytes, FOREIGN_STEP_BYTES)
            apart = {e.replica for e in engines if not e.is_orphan} - {holding.replica for holding in holdings}
            unplanned |= {id_: size for id_, size in record.unplanned_bytes.items() if id_ in apart}
        told = foreign_bytes(
            msgspec.structs.replace(reading, samples=samples),
            _by_device(engines, groups),
            own_bytes,
            record.foreign_bytes,
            steps,
        )
        return {uuid: size for uuid, size in told.items() if uuid in steps}, unplanned

    def _is_told_elsewhere(self, engines: Iterable[EngineUse], unified: Set[str]) -> bool:
        """Whether the processor's memory is told of when a GPU is read that computes in it, with what engines have."""
        return self._open_processor() is not None and any(not unified.isdisjoint(e.device_uuids) for e in engines)

    def _sample_host(self) -> tuple[Sample, ...]:
        """The processor's memory at this moment, where that is the host's and the kernel tells."""
        processor, host = self._open_processor(), read_host_memory(self._root)
        if processor is None or host.total_bytes is None or host.available_bytes is None:
            return ()
        used = max(0, host.total_bytes - host.available_bytes)
        return (Sample(uuid=processor.uuid, t_ns=time.time_ns(), memory_used_bytes=used),)

    def _open_processor(self) -> Device | None:
        """The processor, unless it may fill less than the host has: what its group uses is another number then."""
        processor = next((device for device in self._condition.devices if device.vendor is Vendor.CPU), None)
        return None if processor is None or "memory_total_bytes" in processor.extra else processor


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
