"""The watcher of devices: from readings to the node's record in a real store, and a whole agent on a fake NVML."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.agent.conftest import WAIT_S, Bench
from tests.scheduler.worlds import deployment, holder, plan_need
from xinf.agent import Agent, describe_node
from xinf.agent.chart import Chart, read_chart
from xinf.agent.damper import CALM_S
from xinf.agent.holding import EngineUse
from xinf.agent.process import pids_by_group, read_private_bytes
from xinf.agent.registration import Registration
from xinf.agent.watcher import DeviceWatcher
from xinf.core.device import Device, DeviceEvent, Distance, Health, Sample, Topology, Vendor
from xinf.core.errors import StoreFull, Unavailable
from xinf.core.ids import LeaseId, ReplicaId
from xinf.core.records import (
    EVENTS,
    NODES,
    EventRecord,
    MemoryNeed,
    NodeRecord,
    Phase,
    decode_record,
    encode_record,
)
from xinf.device import DeviceProcess, Inventory, Reading, read_host
from xinf.meta import Compare, KeyValue, Mirror, Put, Store
from xinf.scheduler import Claims, Fleet, Placement, Refusal, Rules, place

CARD = "GPU-00000000-0000-0000-0000-000000000000"
GIB = 1 << 30
OURS = ReplicaId("ours-1")


class Watch:
    """A registered node and its watcher; the test says what is read, what an inventory finds and how time goes."""

    def __init__(self, bench: Bench, store: Store, node: NodeRecord | None = None) -> None:
        self.bench = bench
        self.registration = Registration(store, node or bench.node, ttl_s=3)
        self.engines: list[EngineUse] = []
        self.found: Inventory | Exception = Inventory(devices=bench.node.devices)
        self.n_listed = 0
        self.now_s = 1000.0
        self.watcher = DeviceWatcher(
            self.registration,
            engines=lambda: self.engines,
            list_devices=self._list,
            interval_s=0.01,
            store=store,
            chart=bench.config.paths.devices_file,
            now_s=lambda: self.now_s,
        )
        self.running = asyncio.create_task(self.registration.run())

    async def _list(self) -> Inventory:
        self.n_listed += 1
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    async def calm(self) -> None:
        """Let a calm time go by, with a reading at its end."""
        await self.watcher.take(Reading(vendor=Vendor.CPU))
        self.now_s += CALM_S
        await self.watcher.take(Reading(vendor=Vendor.CPU))

    async def close(self) -> None:
        self.running.cancel()
        await self.watcher._lister.close()
        await asyncio.gather(self.running, return_exceptions=True)

    async def stored(self) -> NodeRecord:
        found = await self.bench.store.get(NODES + self.bench.node.name)
        assert found is not None
        return decode_record(found.value, NodeRecord)

    async def until(self, condition: Callable[[NodeRecord], bool]) -> NodeRecord:
        async with asyncio.timeout(WAIT_S):
            while not condition(record := await self.stored()):
                await asyncio.sleep(0.01)
        return record


@pytest.fixture
async def watch(bench: Bench) -> AsyncIterator[Watch]:
    made = Watch(bench, bench.store)
    await asyncio.wait_for(made.registration.is_registered.wait(), WAIT_S)
    yield made
    await made.close()


def event(kind: str, health: Health = Health.OK, uuid: str = "GPU-test-0") -> Reading:
    told = DeviceEvent(uuid=uuid, t_ns=0, kind=kind, code=79, message="Xid 79: it fell off", health=health)
    return Reading(vendor=Vendor.NVIDIA, events=(told,))


def memory(uuid: str, used_bytes: int, vendor: Vendor = Vendor.NVIDIA) -> Reading:
    return Reading(vendor=vendor, samples=(Sample(uuid=uuid, t_ns=0, memory_used_bytes=used_bytes),))


async def test_event_is_in_the_record_and_recovery_takes_it_out(watch: Watch) -> None:
    await watch.watcher.take(event("xid", Health.FAULTY))
    marked = (await watch.stored()).devices
    assert [(device.health, device.reason) for device in marked[:2]] == [
        (Health.FAULTY, "Xid 79: it fell off"),
        (Health.OK, None),
    ]
    assert marked[0].since_s is not None
    await watch.watcher.take(event("recovered"))
    assert (await watch.stored()).devices == marked, "not at once: it may come again"
    await watch.calm()
    well = (await watch.stored()).devices
    assert [(device.health, device.reason) for device in well[:2]] == [(Health.OK, None)] * 2
    assert well[0].since_s is not None
    assert well[0].since_s > marked[0].since_s


async def test_record_stays_under_its_lease(watch: Watch) -> None:
    before = await watch.bench.store.get(NODES + watch.bench.node.name)
    await watch.watcher.take(event("xid", Health.FAULTY))
    after = await watch.bench.store.get(NODES + watch.bench.node.name)
    assert before is not None
    assert after is not None
    assert after.lease == before.lease is not None
    assert after.mod_revision > before.mod_revision


async def test_readings_that_change_nothing_write_nothing(watch: Watch) -> None:
    await watch.watcher.take(memory("GPU-test-0", 2 * GIB))
    before = (await watch.bench.store.status()).revision
    for used in (2 * GIB + 1, 2 * GIB + (200 << 20), 2 * GIB - (200 << 20)):
        await watch.watcher.take(memory("GPU-test-0", used))
    assert (await watch.bench.store.status()).revision == before
    assert (await watch.stored()).foreign_bytes == {"GPU-test-0": 2 * GIB}


async def test_memory_of_a_large_host_counts_in_larger_steps(watch: Watch) -> None:
    *cards, cpu = watch.bench.node.devices
    watch.watcher._condition.take_inventory(
        Inventory(devices=(*cards, msgspec.structs.replace(cpu, memory_bytes=512 * GIB))), Vendor.CPU
    )
    for used, noted in ((40, 40), (47, 40), (33, 40), (49, 49)):
        await watch.watcher.take(memory("CPU-test", used * GIB, Vendor.CPU))
        assert (await watch.stored()).foreign_bytes == {"CPU-test": noted * GIB}


async def test_device_that_the_node_does_not_have_is_left_out(watch: Watch) -> None:
    await watch.watcher.take(memory("GPU-elsewhere", 2 * GIB))
    assert (await watch.stored()).foreign_bytes == {}


async def test_what_our_engines_use_is_not_foreign(watch: Watch) -> None:
    own = read_private_bytes(os.getpid())
    assert own > 10 << 20
    group = next(group for group, pids in pids_by_group().items() if os.getpid() in pids)
    watch.engines = [EngineUse(replica=OURS, leader_pid=group, device_uuids=())]
    everything = sum(read_private_bytes(pid) for pid in pids_by_group()[group])
    await watch.watcher.take(memory("CPU-test", everything + 2 * GIB, Vendor.CPU))
    foreign = (await watch.stored()).foreign_bytes["CPU-test"]
    assert foreign == pytest.approx(2 * GIB, abs=256 << 20)


@pytest.mark.parametrize(("uuids", "is_orphan"), [(("GPU-test-0",), False), ((), True)])
async def test_memory_of_the_host_that_no_replica_holds_is_foreign(
    watch: Watch, uuids: tuple[str, ...], is_orphan: bool
) -> None:
    """Of an engine on an accelerator, which holds that alone; of one whose record is gone while it still runs."""
    group = next(group for group, pids in pids_by_group().items() if os.getpid() in pids)
    watch.engines = [EngineUse(replica=OURS, leader_pid=group, device_uuids=uuids, is_orphan=is_orphan)]
    await watch.watcher.take(memory("CPU-test", 3 * GIB, Vendor.CPU))
    assert (await watch.stored()).foreign_bytes == {"CPU-test": 3 * GIB}


@pytest.fixture
def engine_pid() -> Iterator[int]:
    """A process in a group of its own, of some megabytes: other tests share the group of this one."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as child:
        yield child.pid
        assert child.stdin is not None
        child.stdin.close()


async def test_memory_of_a_host_that_a_gpu_fills_too_is_told_with_that_gpu(
    watch: Watch, engine_pid: int, tmp_path: Path
) -> None:
    """20 GiB are in use: 6 on the GPU by our engine, a little by its process, and the rest by others."""
    (tmp_path / "proc").mkdir()
    watch.watcher._root = tmp_path
    card, *_, cpu = (msgspec.structs.replace(d, memory_bytes=32 * GIB) for d in watch.bench.node.devices)
    unified = msgspec.structs.replace(card, extra={"memory": "unified"})
    watch.watcher._condition.take_inventory(Inventory(devices=(unified,)), Vendor.NVIDIA)
    watch.watcher._condition.take_inventory(Inventory(devices=(cpu,)), Vendor.CPU)
    watch.engines = [EngineUse(replica=OURS, leader_pid=engine_pid, device_uuids=(unified.uuid,), need_bytes=4 * GIB)]

    def reading(*processes: DeviceProcess) -> Reading:
        meminfo = f"MemTotal: {32 * GIB >> 10} kB\nMemAvailable: {12 * GIB >> 10} kB\n"
        (tmp_path / "proc/meminfo").write_text(meminfo)
        sample = Sample(uuid=unified.uuid, t_ns=0, memory_used_bytes=20 * GIB)
        return Reading(vendor=Vendor.NVIDIA, samples=(sample,), processes=processes)

    await watch.watcher.take(reading())
    assert (await watch.stored()).foreign_bytes == {}, "nobody knows yet what of it is our engine's"
    await watch.watcher.take(reading(DeviceProcess(uuid=unified.uuid, pid=engine_pid, memory_bytes=6 * GIB)))
    stored = await watch.stored()
    assert stored.foreign_bytes.keys() == {unified.uuid, cpu.uuid}
    assert list(stored.foreign_bytes.values()) == pytest.approx([14 * GIB] * 2, abs=256 << 20)
    assert stored.unplanned_bytes[OURS] == pytest.approx(2 * GIB, abs=256 << 20)
    await watch.watcher.take(memory(cpu.uuid, 31 * GIB, Vendor.CPU))
    assert await watch.stored() == stored, "at that moment nobody reads what the engine has"
    watch.engines = []
    await watch.watcher.take(memory(cpu.uuid, 3 * GIB, Vendor.CPU))
    stored = await watch.stored()
    assert stored.foreign_bytes[cpu.uuid] == 3 * GIB
    assert stored.unplanned_bytes == {}


async def test_processor_of_a_container_is_told_by_itself_whatever_runs_on_the_gpu(
    watch: Watch, tmp_path: Path
) -> None:
    """What its group uses and what the host uses are different numbers: one never takes the place of the other."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {64 * GIB >> 10} kB\nMemAvailable: {4 * GIB >> 10} kB\n")
    watch.watcher._root = tmp_path
    card, *_, cpu = (msgspec.structs.replace(d, memory_bytes=64 * GIB) for d in watch.bench.node.devices)
    unified = msgspec.structs.replace(card, extra={"memory": "unified"})
    limited = msgspec.structs.replace(cpu, memory_bytes=16 * GIB, extra={"memory_total_bytes": 64 * GIB})
    watch.watcher._condition.take_inventory(Inventory(devices=(unified,)), Vendor.NVIDIA)
    watch.watcher._condition.take_inventory(Inventory(devices=(limited,)), Vendor.CPU)
    engine = EngineUse(replica=OURS, leader_pid=1 << 30, device_uuids=(unified.uuid,), is_ready=True, need_bytes=GIB)
    watch.engines = [engine]
    await watch.watcher.take(memory(unified.uuid, 60 * GIB))
    assert (await watch.stored()).foreign_bytes == {unified.uuid: 59 * GIB}
    await watch.watcher.take(memory(cpu.uuid, 3 * GIB, Vendor.CPU))
    assert (await watch.stored()).foreign_bytes == {unified.uuid: 59 * GIB, cpu.uuid: 3 * GIB}


async def test_engine_that_nobody_planned_for_is_told_with_what_it_holds(
    watch: Watch, engine_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xinf.agent.watcher.FOREIGN_STEP_BYTES", 1 << 20)
    async with asyncio.timeout(WAIT_S):
        while read_private_bytes(engine_pid) < 2 << 20:  # it begins
            await asyncio.sleep(0.01)
    watch.engines = [EngineUse(replica=OURS, leader_pid=engine_pid, device_uuids=())]
    await watch.watcher.take(memory("CPU-test", 3 * GIB, Vendor.CPU))
    assert (await watch.stored()).unplanned_bytes[OURS] >= 2 << 20
    watch.engines = [EngineUse(replica=OURS, leader_pid=engine_pid, device_uuids=(), need_bytes=GIB)]
    await watch.watcher.take(memory("CPU-test", 3 * GIB, Vendor.CPU))
    assert (await watch.stored()).unplanned_bytes == {}


class Meddler:
    """A store in which somebody else changes the record just before a transaction of the agent."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.n_edits = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def get(self, key: str) -> KeyValue | None:
        found = await self._store.get(key)
        if found is not None and self.n_edits:
            self.n_edits -= 1
            record = decode_record(found.value, NodeRecord)
            edited = msgspec.structs.replace(record, labels={"edit": str(self.n_edits)})
            compare = Compare(key, found.mod_revision)
            assert (await self._store.txn([compare], [Put(key, encode_record(edited), found.lease)])).succeeded
        return found


async def test_neither_writer_loses_what_it_wrote(bench: Bench) -> None:
    store = Meddler(bench.store)
    watch = Watch(bench, store)  # type: ignore[arg-type]
    await asyncio.wait_for(watch.registration.is_registered.wait(), WAIT_S)
    store.n_edits = 3
    await watch.watcher.take(event("xid", Health.FAULTY))
    record = await watch.stored()
    await watch.close()
    assert (record.labels, record.devices[0].health) == ({"edit": "0"}, Health.FAULTY)
    assert watch.registration.record == record


class Outage:
    """A store that fails while there is an `error`: a real one that is away says so only after ten seconds."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.error: Exception | None = None
        self.n_failed = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def get(self, key: str) -> KeyValue | None:
        self._fail()
        return await self._store.get(key)

    async def txn(self, compares: list[Compare], ops: list[Put]) -> object:
        self._fail()
        return await self._store.txn(compares, ops)

    async def keep_alive(self, lease: LeaseId) -> float:
        if isinstance(self.error, Unavailable):
            self._fail()
        return await self._store.keep_alive(lease)

    def _fail(self) -> None:
        if self.error is not None:
            self.n_failed += 1
            raise self.error


@pytest.mark.parametrize("error", [Unavailable("the store is away"), StoreFull("the disk is full")])
async def test_what_could_not_be_written_comes_with_a_later_renewal(error: Exception, bench: Bench) -> None:
    store = Outage(bench.store)
    watch = Watch(bench, store)  # type: ignore[arg-type]
    await asyncio.wait_for(watch.registration.is_registered.wait(), WAIT_S)
    store.error = error
    await watch.watcher.take(event("xid", Health.FAULTY))
    assert (await watch.stored()).devices[0].health is Health.OK
    store.error = None
    await watch.until(lambda record: record.devices[0].health is Health.FAULTY)
    await watch.close()


async def test_store_that_is_away_holds_readings_up_once_and_not_each_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Outage(bench.store)
    watch = Watch(bench, store)  # type: ignore[arg-type]
    await asyncio.wait_for(watch.registration.is_registered.wait(), WAIT_S)
    watch.running.cancel()  # its renewals ask the store as well
    store.error = Unavailable("the store is away")
    for number in range(30):
        await watch.watcher.take(event("xid", Health.FAULTY, uuid=f"GPU-test-{number % 2}"))
        await watch.watcher.take(memory("GPU-test-0", number * GIB))
    assert store.n_failed == 2, "the record, and the first event"
    store.error = None
    monkeypatch.setattr("xinf.agent.watcher._AWAY_S", 0.0)
    monkeypatch.setattr("xinf.agent.watcher._REPEAT_S", 0.0)
    await watch.watcher.take(memory("GPU-test-0", 0))
    told = [decode_record(kv.value, EventRecord) for kv in (await bench.store.list(EVENTS)).items]
    assert sorted((found.kind, found.device_uuid, found.count) for found in told) == [
        ("device_faulty", "GPU-test-0", 1), ("device_faulty", "GPU-test-1", 1),
        ("xid", "GPU-test-0", 15), ("xid", "GPU-test-1", 15),
    ]  # fmt: skip
    await watch.close()


async def test_change_does_not_wait_until_the_node_is_registered(bench: Bench) -> None:
    other = msgspec.structs.replace(bench.node, devices=(), agent_pid=1)  # of another host: it is waited out
    await bench.store.txn([], [Put(NODES + other.name, encode_record(other), await bench.store.grant(60))])
    registration = Registration(bench.store, bench.node, ttl_s=3)
    running = asyncio.create_task(registration.run())
    async with asyncio.timeout(WAIT_S):
        while not registration._writing.locked():
            await asyncio.sleep(0.01)
    await registration.update(models=("/m",))
    assert not running.done(), "it waits for the other's lease to end"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_store_that_takes_nothing_does_not_end_the_agent(bench: Bench) -> None:
    store = Outage(bench.store)
    watch = Watch(bench, store)  # type: ignore[arg-type]
    await asyncio.wait_for(watch.registration.is_registered.wait(), WAIT_S)
    store.error = StoreFull("the disk is full")
    await watch.registration.update(models=("/m",))
    n_failed = store.n_failed
    async with asyncio.timeout(WAIT_S):
        while store.n_failed == n_failed:  # the renewal tries again
            await asyncio.sleep(0.01)
    assert not watch.running.done()
    store.error = None
    await watch.until(lambda record: record.models == ("/m",))
    await watch.close()


class NoEvents:
    """A store that never gets an event written down."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def txn(self, compares: list[Compare], ops: list[Put]) -> object:
        if any(op.key.startswith(EVENTS) for op in ops):
            await asyncio.Event().wait()
        return await self._store.txn(compares, ops)


async def test_record_does_not_wait_for_events(bench: Bench) -> None:
    watch = Watch(bench, NoEvents(bench.store))  # type: ignore[arg-type]
    await asyncio.wait_for(watch.registration.is_registered.wait(), WAIT_S)
    taking = asyncio.create_task(watch.watcher.take(event("xid", Health.FAULTY)))
    await watch.until(lambda record: record.devices[0].health is Health.FAULTY)
    for task in (taking, watch.running):
        task.cancel()
    await asyncio.gather(taking, watch.running, return_exceptions=True)


async def test_new_driver_has_the_devices_listed_anew(watch: Watch) -> None:
    first, second, cpu = watch.bench.node.devices
    newer = msgspec.structs.replace(first, driver="600.10")
    distance = Topology(pairs=((first.uuid, second.uuid, Distance.LINK),))
    watch.found = Inventory(devices=(newer, second, cpu), topology=distance)
    await watch.watcher.take(event("xid", Health.FAULTY))
    await watch.watcher.take(event("driver"))
    record = await watch.until(lambda record: record.devices[0].driver == "600.10")
    await watch.calm()
    assert (await watch.stored()).devices[0].health is Health.OK, "what happened under the old driver is over"
    assert record.topology.between(first.uuid, second.uuid) is Distance.LINK


async def test_reading_that_cannot_be_handled_does_not_end_the_watch(watch: Watch) -> None:
    async def readings() -> AsyncIterator[Reading]:
        yield memory("GPU-test-0", 2 * GIB)
        yield event("xid", Health.FAULTY)

    def fail() -> list[EngineUse]:
        raise OSError("no /proc for a moment")

    watch.watcher._engines = fail
    await watch.watcher.run(readings())
    assert (await watch.stored()).devices[0].health is Health.FAULTY


@contextlib.asynccontextmanager
async def agent_on(bench: Bench, root: Path) -> AsyncIterator[Mirror[NodeRecord]]:
    """An agent on the devices of a root, as an inventory finds them now; gives the nodes as the store has them."""
    host = await read_host(root=root)
    settings = msgspec.structs.replace(bench.config.agent, sample_interval=0.1)
    config = msgspec.structs.replace(bench.config, agent=settings)
    nodes = Mirror(bench.store, NODES, NodeRecord)
    await nodes.start()
    agent = Agent(bench.store, config, msgspec.structs.replace(bench.node, devices=host.devices), root=root)
    running = asyncio.create_task(agent.run())
    try:
        yield nodes
    finally:
        await agent.stop(stop_engines=False)
        await asyncio.gather(running, return_exceptions=True)
        await nodes.stop()


def of(nodes: Mirror[NodeRecord], bench: Bench, uuid: str) -> Device | None:
    record = nodes.get(bench.node.name)
    return None if record is None else next((device for device in record.devices if device.uuid == uuid), None)


@pytest.mark.usefixtures("nvml")
async def test_node_is_told_of_with_what_others_use_of_it(
    bench: Bench, nvidia_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for a place gets one as soon as there is a node: what is read a moment later comes too late."""
    monkeypatch.setattr("xinf.agent.agent._FIRST_LOOK_S", WAIT_S)
    told: list[dict[str, int]] = []

    def hear(name: str) -> None:
        record = nodes.get(name)
        assert record is not None
        told.append(record.foreign_bytes)

    async with agent_on(bench, nvidia_root) as nodes:
        nodes.listen(hear)
        await nodes.wait(lambda _: bool(told), WAIT_S)
    assert told[0].get(CARD) == 512 << 20


async def test_agent_tells_what_engines_hold_beyond_what_they_were_placed_with(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two engines on the real processor, one planned for. A step of 1 MiB: they are small."""
    monkeypatch.setattr("xinf.agent.watcher.FOREIGN_STEP_BYTES", 1 << 20)

    def told() -> dict[ReplicaId, int]:
        record = nodes.get(bench.node.name)
        return {} if record is None else record.unplanned_bytes

    need = MemoryNeed(weights_bytes=GIB, kv_bytes=0, overhead_bytes=0)
    async with agent_on(bench, Path("/")) as nodes:
        await bench.place("blind")
        await bench.place("planned", need=need)
        await bench.until_phase("blind", Phase.READY)
        record = await bench.until_phase("planned", Phase.READY)
        await nodes.wait(lambda _: ReplicaId("blind") in told(), WAIT_S)
        assert told().keys() == {ReplicaId("blind")}
        assert 1 << 20 < told()[ReplicaId("blind")] < GIB
        for name in ("blind", record.id):
            await bench.aim_at_stop(name)
            await bench.until_phase(name, Phase.STOPPED)
        await nodes.wait(lambda _: not told(), WAIT_S)


@pytest.mark.usefixtures("nvml")
async def test_memory_of_a_gb10_is_given_away_once(
    bench: Bench, nvidia_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From what its driver and the kernel say to the scheduler's answer: 128 GiB, of which others use 28."""
    monkeypatch.setenv("FAKE_NVML", "gb10")
    meminfo = f"MemTotal: {128 * GIB >> 10} kB\nMemAvailable: {100 * GIB >> 10} kB\n"
    (nvidia_root / "proc/meminfo").write_text(meminfo)

    def is_told() -> bool:
        record = nodes.get(bench.node.name)
        return record is not None and sorted(record.foreign_bytes.values()) == [28 * GIB] * 2

    async with agent_on(bench, nvidia_root) as nodes:
        await nodes.wait(lambda _: is_told(), WAIT_S)
        record = nodes.get(bench.node.name)
    assert record is not None
    rules = Rules(judge=None, planner=plan_need)
    on_gpu = deployment("gpu", device="cuda", gib=60, engine="stand-in")
    found = place(on_gpu, Fleet([record]), Claims(), rules)
    assert isinstance(found, Placement)
    assert found.need is not None
    assert found.need.device_bytes == (100 * GIB - rules.headroom_bytes + 60 * GIB) // 2
    held = holder(record.name, *found.device_uuids, devices=found.devices)
    held = msgspec.structs.replace(held, need=found.need)
    refused = place(deployment("cpu", device="cpu", gib=30, engine="stand-in"), Fleet([record]), Claims([held]), rules)
    assert isinstance(refused, Refusal)
    assert "needs 30 GiB, 19.8 GiB of the host's memory free, shared with cuda:0" in refused.note


async def test_agent_marks_a_card_that_fell_off_the_bus(
    bench: Bench, nvidia_root: Path, nvml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_NVML_EVENTS", "8:79")

    def is_marked() -> bool:
        device = of(nodes, bench, CARD)
        return device is not None and device.health is Health.FAULTY and "fallen off the bus" in str(device.reason)

    async with agent_on(bench, nvidia_root) as nodes:
        await nodes.wait(lambda _: is_marked(), WAIT_S)


async def test_driver_upgrade_marks_the_card_under_its_name_until_it_is_done(
    bench: Bench, nvidia_root: Path, nvml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xinf.agent.damper.CALM_S", 0.2)
    monkeypatch.setenv("FAKE_NVML", "upgrade")

    def has(health: Health) -> bool:
        device = of(nodes, bench, CARD)
        return device is not None and device.health is health

    async with agent_on(bench, nvidia_root) as nodes:
        await nodes.wait(lambda _: has(Health.OK), WAIT_S)
        (tmp_path / "mark").touch()
        shutil.copy(nvml, nvml.with_name("new"))
        nvml.with_name("new").replace(nvml)
        await nodes.wait(lambda _: has(Health.NO_DRIVER), WAIT_S)
        card = of(nodes, bench, CARD)
        assert card is not None
        assert "differ in version" in str(card.reason)
        assert (card.selector, card.arch) == ("cuda:0", "sm_120"), "what is known of it stays"
        (tmp_path / "mark").unlink()  # the kernel's driver is loaded anew
        await nodes.wait(lambda _: has(Health.OK), WAIT_S)


async def test_agent_that_starts_while_the_driver_is_of_no_use_keeps_the_names(
    bench: Bench, nvidia_root: Path, nvml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with agent_on(bench, nvidia_root) as nodes:
        await nodes.wait(lambda _: of(nodes, bench, CARD) is not None, WAIT_S)
    monkeypatch.setenv("FAKE_NVML", "crash")
    monkeypatch.setattr("xinf.agent.node.read_host", functools.partial(read_host, root=nvidia_root))
    settings = msgspec.structs.replace(bench.config.agent, engines_dir=str(nvml.parent))
    node = await describe_node(msgspec.structs.replace(bench.config, agent=settings))
    assert [(device.uuid, device.health) for device in node.devices[:1]] == [(CARD, Health.SILENT)]
    assert "signal 11" in str(node.devices[0].reason)
    unwatched = msgspec.structs.replace(settings, sample_interval=0.0)
    node = await describe_node(msgspec.structs.replace(bench.config, agent=unwatched))
    assert node.devices[0].uuid.startswith("PCI-"), "nothing would end what an earlier agent said"


async def events(watch: Watch) -> list[tuple[str, str, str | None, str, int]]:
    found = [record for record, _ in await watch.bench.records.list(EventRecord)]
    return [(record.kind, record.object, record.node, record.message, record.count) for record in found]


async def test_what_happens_to_devices_is_written_down(watch: Watch) -> None:
    await watch.watcher.take(event("xid", Health.FAULTY))
    await watch.watcher.take(event("xid", Health.FAULTY))
    await watch.watcher.take(event("recovered"))
    await watch.calm()
    name = watch.bench.node.name
    assert sorted(await events(watch)) == [
        ("device_faulty", "cuda:0", name, "Xid 79: it fell off", 1),
        ("device_ok", "cuda:0", name, "it is well again", 1),
        ("recovered", "cuda:0", name, "Xid 79: it fell off", 1),
        ("xid", "cuda:0", name, "Xid 79: it fell off", 2),
    ]


async def test_heat_that_comes_and_goes_is_one_event_with_a_count(watch: Watch) -> None:
    states = [(Health.DEGRADED, "too hot"), (Health.OK, None), (Health.OK, None)] * 3
    for health, reason in states:
        hot = Sample(uuid="GPU-test-0", t_ns=0, health=health, reason=reason)
        await watch.watcher.take(Reading(vendor=Vendor.NVIDIA, samples=(hot,)))
        watch.now_s += 4 * CALM_S
    assert [(kind, message, count) for kind, _, _, message, count in sorted(await events(watch))] == [
        ("device_degraded", "too hot", 3),
        ("device_ok", "it is well again", 3),
    ]


async def test_fault_counts_before_heat(watch: Watch) -> None:
    hot = Sample(uuid="GPU-test-0", t_ns=0, health=Health.DEGRADED, reason="too hot")
    await watch.watcher.take(Reading(vendor=Vendor.NVIDIA, samples=(hot,)))
    assert (await watch.stored()).devices[0].health is Health.DEGRADED
    await watch.watcher.take(event("xid", Health.FAULTY))
    assert (await watch.stored()).devices[0].health is Health.FAULTY


async def test_storm_of_events_is_counted_and_seldom_written(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    await watch.watcher.take(event("xid"))
    before = (await watch.bench.store.status()).revision
    for _ in range(99):
        await watch.watcher.take(event("xid"))
    assert (await watch.bench.store.status()).revision - before == 7
    monkeypatch.setattr("xinf.agent.watcher._REPEAT_S", 0.0)
    await watch.watcher.take(memory("GPU-test-0", 0))
    assert [(kind, count) for kind, *_, count in await events(watch)] == [("xid", 100)]


async def test_inventory_that_fails_is_tried_again(watch: Watch) -> None:
    watch.found = RuntimeError("no process can be started")
    await watch.watcher.take(event("driver"))
    async with asyncio.timeout(WAIT_S):
        while watch.n_listed < 3:
            await asyncio.sleep(0.005)
    first, *others = watch.bench.node.devices
    watch.found = Inventory(devices=(msgspec.structs.replace(first, driver="600.10"), *others))
    await watch.until(lambda record: record.devices[0].driver == "600.10")


async def test_devices_that_an_inventory_found_ill_are_listed_until_they_are_well(bench: Bench) -> None:
    first, *others = bench.node.devices
    ill = msgspec.structs.replace(first, health=Health.NO_DRIVER, reason="run modprobe")
    watch = Watch(bench, bench.store, msgspec.structs.replace(bench.node, devices=(ill, *others)))
    watch.found = Inventory(devices=(ill, *others))
    await asyncio.wait_for(watch.registration.is_registered.wait(), WAIT_S)

    async def nothing() -> AsyncIterator[Reading]:
        while watch.n_listed < 3:
            await asyncio.sleep(0.005)
        watch.found = Inventory(devices=bench.node.devices)
        n_listed = watch.n_listed
        while watch.n_listed == n_listed:
            await asyncio.sleep(0.005)
        watch.now_s += CALM_S + 1
        yield Reading(vendor=Vendor.CPU)
        watch.now_s += CALM_S + 1
        yield Reading(vendor=Vendor.CPU)

    await asyncio.wait_for(watch.watcher.run(nothing()), WAIT_S)
    assert (await watch.stored()).devices[0].health is Health.OK
    assert [(kind, name) for kind, name, *_ in await events(watch)] == [
        ("device_no_driver", "cuda:0"), ("device_ok", "cuda:0"),
    ]  # fmt: skip
    await watch.close()


async def test_card_that_is_split_anew_is_listed_and_told(watch: Watch) -> None:
    first, second, cpu = watch.bench.node.devices
    part = msgspec.structs.replace(second, uuid="MIG-1", parent=second.uuid, index=2)
    whole = (Sample(uuid=first.uuid, t_ns=0), Sample(uuid=second.uuid, t_ns=0))
    await watch.watcher.take(Reading(vendor=Vendor.NVIDIA, samples=whole))
    assert watch.n_listed == 0
    watch.found = Inventory(devices=(first, second, part, cpu))
    await watch.watcher.take(Reading(vendor=Vendor.NVIDIA, samples=(*whole, Sample(uuid="MIG-1", t_ns=0))))
    await watch.until(lambda record: "MIG-1" in {device.uuid for device in record.devices})
    watch.found = Inventory(devices=(first, second, cpu))
    await watch.watcher.take(Reading(vendor=Vendor.NVIDIA, samples=whole))
    await watch.until(lambda record: "MIG-1" not in {device.uuid for device in record.devices})
    async with asyncio.timeout(WAIT_S):
        while len(told := await events(watch)) < 2:
            await asyncio.sleep(0.005)
    assert sorted((kind, name) for kind, name, *_ in told) == [("device_gone", "cuda:2"), ("device_new", "cuda:2")]


async def test_card_that_was_swapped_is_another(watch: Watch) -> None:
    first, second, cpu = watch.bench.node.devices
    old = msgspec.structs.replace(second, pci="0000:02:00.0")
    watch.watcher._condition.take_inventory(Inventory(devices=(first, old, cpu)), Vendor.NVIDIA)
    await watch.watcher.take(event("xid", Health.FAULTY, uuid=second.uuid))
    watch.found = Inventory(devices=(first, msgspec.structs.replace(old, uuid="GPU-new"), cpu))
    await watch.watcher.take(event("driver"))
    record = await watch.until(lambda record: "GPU-new" in {device.uuid for device in record.devices})
    new = next(device for device in record.devices if device.uuid == "GPU-new")
    assert (new.selector, new.health) == ("cuda:1", Health.OK)
    assert second.uuid not in {device.uuid for device in record.devices}


async def test_card_that_was_exchanged_under_its_name_is_told_and_kept_free_for_a_while(watch: Watch) -> None:
    first, second, cpu = watch.bench.node.devices
    former, new = (msgspec.structs.replace(second, extra={"uuid": name}) for name in ("GCU-A1", "GCU-B2"))
    for found in (former, new):
        watch.found = Inventory(devices=(first, found, cpu))
        await watch.watcher.take(event("driver"))
        record = await watch.until(lambda record, found=found: record.devices[1].extra == found.extra)
    assert (record.devices[1].health, record.devices[0].health) == (Health.FAULTY, Health.OK)

    async def told() -> list[str]:
        return [
            message
            for kind, name, _, message, _ in await events(watch)
            if (kind, name) == ("device_exchanged", "cuda:1")
        ]

    async with asyncio.timeout(WAIT_S):
        while not await told():
            await asyncio.sleep(0.01)
    assert len(await told()) == 1
    assert "another card is in its slot (GCU-B2, before GCU-A1)" in (await told())[0]
    await watch.calm()
    await watch.until(lambda record: record.devices[1].health is Health.OK)
    # The next agent knows who sat there, also after the host was booted.
    path = watch.bench.config.paths.devices_file
    chart = msgspec.json.decode(path.read_bytes(), type=Chart)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(chart, boot_id="another")))
    await watch.close()
    third = msgspec.structs.replace(second, extra={"uuid": "GCU-C3"})
    node = msgspec.structs.replace(watch.bench.node, devices=(first, third, cpu))
    again = Watch(watch.bench, watch.bench.store, node)
    assert [device.health for device in again.registration.record.devices] == [Health.OK, Health.FAULTY, Health.OK]
    await again.close()


async def test_next_agent_knows_how_the_devices_were(watch: Watch) -> None:
    await watch.watcher.take(event("xid", Health.FAULTY))
    before = (await watch.stored()).devices
    await watch.close()
    n_told = len(await events(watch))
    # Its own inventory finds the card well: an Xid is not seen there, and no sample has come yet.
    again = Watch(watch.bench, watch.bench.store)
    again.now_s = watch.now_s + 10
    assert again.registration.record.devices == before
    await asyncio.wait_for(again.registration.is_registered.wait(), WAIT_S)
    assert (await again.stored()).devices == before, "not for a moment did it count as well"

    async def one() -> AsyncIterator[Reading]:
        yield memory("GPU-test-0", 0)

    await again.watcher.run(one())
    assert len(await events(again)) == n_told, "what was told is not told again"
    await again.calm()
    assert (await again.stored()).devices[0].health is Health.OK
    await again.close()


async def test_chart_of_an_earlier_boot_says_nothing(watch: Watch) -> None:
    await watch.watcher.take(event("xid", Health.FAULTY))
    path = watch.bench.config.paths.devices_file
    chart = msgspec.json.decode(path.read_bytes(), type=Chart)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(chart, boot_id="another")))
    await watch.close()
    again = Watch(watch.bench, watch.bench.store)
    assert again.registration.record.devices == watch.bench.node.devices
    await again.close()
    for content in (b"", b"{", b"[]"):
        path.write_bytes(content)
        assert read_chart(path) is None
