"""The scheduler's loop on the real store: wishes become placed replicas, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from tests.registry.planned_models import QWEN_7B
from tests.scheduler.worlds import CUDA_ENVIRONMENT, GIB, deployment, node, with_health
from xinf.core.config import Config, load
from xinf.core.device import Health
from xinf.core.errors import Unavailable
from xinf.core.ids import DeploymentName, NodeName
from xinf.core.records import (
    CordonRecord,
    DeploymentRecord,
    EventRecord,
    MeasuredRecord,
    NodeRecord,
    Phase,
    ReplicaRecord,
)
from xinf.meta import Compare, LmdbStore, Mirror, Put, Records, TxnResult, record_event
from xinf.registry import fingerprint
from xinf.scheduler import Action, SchedulerLoop, View, plan_deployment
from xinf.scheduler.chronicle import Chronicle


@pytest.fixture
def config() -> Config:
    return load(environ={}, overrides={"control.resync_interval": "1h"})  # events alone must do


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LmdbStore]:
    opened = LmdbStore.open(tmp_path, max_bytes=64 << 20, history_revisions=10_000, history_age_s=3600, no_sync=True)
    yield opened
    await opened.close()


class Control:
    """A running scheduler and what a test needs to see of it."""

    def __init__(self, store: LmdbStore, config: Config) -> None:
        self._store = store
        self._config = config
        self.records = Records(store)
        self.replicas = Mirror(store, "replicas/", ReplicaRecord)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(SchedulerLoop(self._store, self._config).run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def until(self, condition: Callable[[list[ReplicaRecord]], bool]) -> list[ReplicaRecord]:
        await self.replicas.wait(lambda items: condition([record for record, _ in items.values()]), 20)
        return [record for record, _ in self.replicas.items.values()]

    async def wish(self, record: DeploymentRecord) -> None:
        await self.records.put(DeploymentRecord, record.name, record)

    async def add_node(self, record: NodeRecord) -> None:
        await self.records.put(NodeRecord, record.name, record)

    async def move(self, phase: Phase) -> None:
        """Be the agents: move every replica to its next phase."""
        for record, _ in await self.records.list(ReplicaRecord):
            await self.records.update(ReplicaRecord, record.id, lambda r: msgspec.structs.replace(r, phase=phase))


@pytest.fixture
async def control(store: LmdbStore, config: Config) -> AsyncIterator[Control]:
    made = Control(store, config)
    await made.replicas.start()
    yield made
    await made.stop()
    await made.replicas.stop()


async def test_wish_becomes_placed_replicas(control: Control) -> None:
    control.start()
    await control.add_node(node(n_cuda=2))
    await control.wish(deployment(replicas=2))
    found = await control.until(lambda rs: len(rs) == 2 and all(r.phase is Phase.PLACED for r in rs))
    assert {r.device_uuids for r in found} == {("GPU-a-0",), ("GPU-a-1",)}
    assert all(r.id.startswith("m-") for r in found)


async def test_node_that_comes_later_takes_what_waits(control: Control) -> None:
    control.start()
    await control.wish(deployment(device="cuda"))
    (waiting,) = await control.until(lambda rs: len(rs) == 1)
    assert "no node is registered" in str(waiting.placement_note)
    await control.add_node(node(n_cuda=1))
    await control.until(lambda rs: rs[0].phase is Phase.PLACED)


async def test_nobody_is_bound_to_a_node_that_went_while_it_was_planned_for(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_plans = [0]

    def plan_and_lose(name: DeploymentName, view: View, now_s: float) -> list[Action]:
        actions = plan_deployment(name, view, now_s)
        n_plans[0] += bool(actions)
        if n_plans[0] == 1:
            view.set_node(NodeName("a"), None)
        return actions

    monkeypatch.setattr("xinf.scheduler.loop.plan_deployment", plan_and_lose)
    await control.add_node(node(n_cuda=1))
    await control.wish(deployment(device="cuda"))
    control.start()
    (waiting,) = await control.until(lambda rs: len(rs) == 1)
    assert waiting.node is None
    assert "no node is registered" in str(waiting.placement_note)


async def test_freed_device_goes_to_another_deployment(control: Control) -> None:
    control.start()
    await control.add_node(node(n_cuda=1))
    await control.wish(deployment("first", device="cuda"))
    await control.until(lambda rs: [r.phase for r in rs] == [Phase.PLACED])
    await control.wish(deployment("second", device="cuda"))
    await control.until(lambda rs: len(rs) == 2)
    await control.records.delete(DeploymentRecord, "first")
    (stopping,) = [r for r in await control.until(lambda rs: any(r.target == "stop" for r in rs)) if r.target == "stop"]
    await control.records.update(ReplicaRecord, stopping.id, lambda r: msgspec.structs.replace(r, phase=Phase.STOPPED))
    (last,) = await control.until(lambda rs: len(rs) == 1 and rs[0].phase is Phase.PLACED)
    assert last.deployment == "second"


async def test_next_scheduler_goes_on_and_creates_nothing_twice(control: Control) -> None:
    await control.add_node(node(n_cuda=4))
    await control.wish(deployment(replicas=4))
    for n in range(1, 4):
        control.start()
        await control.until(lambda rs, n=n: len(rs) >= n)  # type: ignore[misc]
        await control.stop()
    control.start()
    found = await control.until(lambda rs: len(rs) >= 4 and all(r.phase is Phase.PLACED for r in rs))
    assert len(found) == 4
    assert len({r.device_uuids for r in found}) == 4


async def test_report_of_an_agent_is_not_overwritten(control: Control) -> None:
    """A stop is decided on one state of the record and the agent reports another meanwhile: both must survive."""
    await control.add_node(node(n_cuda=1))
    await control.wish(deployment())
    control.start()
    (placed,) = await control.until(lambda rs: len(rs) == 1)
    reports = [Phase.STARTING, Phase.LOADING, Phase.WARMING, Phase.READY]

    async def report() -> None:
        for phase in reports:
            await control.records.update(
                ReplicaRecord,
                placed.id,
                lambda r, phase=phase: msgspec.structs.replace(r, phase=phase, pid=7),  # type: ignore[misc]
            )

    await asyncio.gather(report(), control.records.delete(DeploymentRecord, "m"))
    (found,) = await control.until(lambda rs: rs[0].target == "stop" and rs[0].phase is Phase.READY)
    assert found.pid == 7


async def events(control: Control, n: int) -> list[tuple[str, str, int]]:
    """Wait for so many events and give them in order of time."""
    mirror = Mirror(control.records.store, "events/", EventRecord)
    await mirror.start()
    try:
        await mirror.wait(lambda items: len(items) >= n, 20)
    finally:
        await mirror.stop()
    return [(record.kind, record.object, record.count) for _, (record, _) in sorted(mirror.items.items())]


async def test_events_say_what_happened(control: Control) -> None:
    control.start()
    await control.wish(deployment(device="cuda"))
    (waiting,) = await control.until(lambda rs: len(rs) == 1)
    await control.add_node(node(n_cuda=1))
    await control.until(lambda rs: rs[0].phase is Phase.PLACED)
    await control.move(Phase.READY)
    told = await events(control, 4)
    assert sorted(told) == sorted(
        [
            ("not_placed", waiting.id, 1),
            ("node_joined", "a", 1),
            ("placed", waiting.id, 1),
            ("ready", waiting.id, 1),
        ]
    )


async def test_replica_of_a_device_that_fails_moves(control: Control) -> None:
    control.start()
    await control.add_node(node(n_cuda=2))
    await control.wish(deployment(device="cuda"))
    (first,) = await control.until(lambda rs: [r.phase for r in rs] == [Phase.PLACED])
    await control.move(Phase.READY)
    await control.add_node(with_health(node(n_cuda=2), "GPU-a-0", Health.FAULTY))
    await control.until(lambda rs: len(rs) == 2 and all(r.node for r in rs))
    await control.move(Phase.READY)
    (stopping,) = [r for r in await control.until(lambda rs: any(r.target == "stop" for r in rs)) if r.target == "stop"]
    assert stopping.id == first.id
    await control.records.update(ReplicaRecord, first.id, lambda r: msgspec.structs.replace(r, phase=Phase.STOPPED))
    (last,) = await control.until(lambda rs: len(rs) == 1)
    assert last.device_uuids == ("GPU-a-1",)
    assert "moved" in {kind for kind, _, _ in await events(control, 6)}


async def test_cordon_is_heard_and_lifted(control: Control) -> None:
    await control.add_node(node(n_cuda=1))
    await control.records.put(CordonRecord, "a", CordonRecord(node=NodeName("a"), reason="rain"))
    control.start()
    await control.wish(deployment(device="cuda"))
    (waiting,) = await control.until(lambda rs: len(rs) == 1)
    assert waiting.placement_note == "a is cordoned: rain"
    await control.records.delete(CordonRecord, "a")
    await control.until(lambda rs: rs[0].phase is Phase.PLACED)


async def test_preempted_replica_waits_until_the_other_is_gone(control: Control) -> None:
    control.start()
    await control.add_node(node(n_cuda=1))
    await control.wish(deployment("low", device="cuda"))
    (low,) = await control.until(lambda rs: [r.phase for r in rs] == [Phase.PLACED])
    await control.wish(deployment("high", device="cuda", priority=1))
    await control.until(lambda rs: any(r.id == low.id and r.target == "stop" for r in rs))
    await control.records.update(ReplicaRecord, low.id, lambda r: msgspec.structs.replace(r, phase=Phase.STOPPED))
    found = await control.until(lambda rs: low.id not in {r.id for r in rs} and any(r.node for r in rs))
    assert {r.deployment: r.phase for r in found} == {"high": Phase.PLACED, "low": Phase.PENDING}


async def test_lower_one_gets_the_place_that_was_kept_in_vain(control: Control) -> None:
    """A place was kept for one that then found another: those who waited for it are asked again."""
    control.start()
    await control.add_node(node("a", n_cuda=1))
    await control.wish(deployment("holder", device="cuda", priority=9))
    (held,) = await control.until(lambda rs: [r.phase for r in rs] == [Phase.PLACED])
    await control.wish(deployment("high", device="cuda", priority=5))
    await control.wish(deployment("low", device="cuda"))
    await control.until(lambda rs: len(rs) == 3)
    await control.add_node(node("b", n_cuda=2))
    found = await control.until(lambda rs: all(r.phase is Phase.PLACED for r in rs))
    assert {r.node for r in found if r.id != held.id} == {"b"}


async def test_events_are_bounded(store: LmdbStore, config: Config) -> None:
    settings = msgspec.structs.replace(config.control, events_kept=5)
    for number in range(20):
        record = EventRecord(at_s=float(number), kind="xid", object="cuda:0", message=str(number))
        await record_event(store, record)
    control = Control(store, msgspec.structs.replace(config, control=settings))
    await control.replicas.start()
    control.start()
    mirror = Mirror(store, "events/", EventRecord)
    await mirror.start()
    await mirror.wait(lambda items: len(items) == 5, 20)
    assert sorted(record.at_s for record, _ in mirror.items.values()) == [15.0, 16.0, 17.0, 18.0, 19.0]
    await mirror.stop()
    await control.stop()
    await control.replicas.stop()


async def test_event_that_repeats_is_counted(store: LmdbStore) -> None:
    chronicle = Chronicle(store, n_kept=100)
    for at_s in (1.0, 2.0, 3.0):
        chronicle.add(EventRecord(at_s=at_s, kind="failed", object="m-1", message="killed", node=NodeName("a")))
    chronicle.add(EventRecord(at_s=4.0, kind="ready", object="m-1", message="serves", node=NodeName("a")))
    chronicle.add(None)
    writing = asyncio.create_task(chronicle.run())
    mirror = Mirror(store, "events/", EventRecord)
    await mirror.start()
    await mirror.wait(lambda items: any(record.kind == "ready" for record, _ in items.values()), 20)
    found = [record for _, (record, _) in sorted(mirror.items.items())]
    assert [(r.kind, r.count, r.at_s) for r in found] == [("failed", 3, 3.0), ("ready", 1, 4.0)]
    await mirror.stop()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)


class Flaky:
    """A store whose second transaction fails."""

    def __init__(self, store: LmdbStore) -> None:
        self._store = store
        self.n_txns = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def txn(self, compares: list[Compare], ops: list[Put]) -> TxnResult:
        self.n_txns += 1
        if self.n_txns == 2:
            raise Unavailable("the store is away")
        return await self._store.txn(compares, ops)


async def test_event_that_repeats_is_counted_through_an_outage(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xinf.scheduler.chronicle._RETRY_S", 0.01)
    chronicle = Chronicle(Flaky(store), n_kept=100)  # type: ignore[arg-type]
    for at_s in (1.0, 2.0, 3.0):
        chronicle.add(EventRecord(at_s=at_s, kind="failed", object="m-1", message="killed", node=NodeName("a")))
    writing = asyncio.create_task(chronicle.run())
    mirror = Mirror(store, "events/", EventRecord)
    await mirror.start()
    await mirror.wait(lambda items: any(record.at_s == 3.0 for record, _ in items.values()), 20)
    assert [record.count for record, _ in mirror.items.values()] == [3]
    await mirror.stop()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)


async def test_memory_that_others_use_is_planned_for_once_in_a_while(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xinf.scheduler.loop._MEMORY_DELAY_S", 2.0)
    planned = []

    def count(name: DeploymentName, view: View, now_s: float) -> list[Action]:
        planned.append(name)
        return plan_deployment(name, view, now_s)

    monkeypatch.setattr("xinf.scheduler.loop.plan_deployment", count)
    control.start()
    await control.add_node(node(n_cuda=1, memory=24, foreign={"GPU-a-0": 23}))
    await control.wish(msgspec.structs.replace(deployment(device="cuda"), model=QWEN_7B))
    await control.until(lambda rs: len(rs) == 1 and "used by others" in str(rs[0].placement_note))
    n_before = len(planned)
    for n in range(100):
        await control.add_node(node(n_cuda=1, memory=24, foreign={"GPU-a-0": 16 + n % 8}))
    await control.add_node(node(n_cuda=1, memory=24))
    await control.until(lambda rs: rs[0].phase is Phase.PLACED)
    assert len(planned) - n_before < 30


async def test_replica_gets_what_a_load_took_as_soon_as_that_is_known(control: Control) -> None:
    """The scheduler follows measured loads: what was estimated too high fits when another replica has shown it."""
    control.start()
    small = node(n_cuda=1, memory=17, environments=[CUDA_ENVIRONMENT])
    await control.add_node(small)
    wish = msgspec.structs.replace(deployment(device="cuda"), model=QWEN_7B, model_identity="org/m@1")
    await control.wish(wish)
    (waiting,) = await control.until(lambda rs: len(rs) == 1)
    assert "17 GiB free" in str(waiting.placement_note)
    assert waiting.need is None, "nothing is promised to it"
    digest = fingerprint("org/m@1", wish.spec, engine_version=None, device=small.devices[0])
    took = MeasuredRecord(
        fingerprint=digest, model="org/m", engine="vllm", device_bytes=15 * GIB, kv_bytes=2 * GIB,
        fixed_bytes=13 * GIB, has_peak=True, kv_blocks=1, block_tokens=16,
    )  # fmt: skip
    await control.records.put(MeasuredRecord, digest, took)
    (placed,) = await control.until(lambda rs: rs[0].phase is Phase.PLACED)
    assert placed.need is not None
    assert placed.need.is_measured
    assert placed.need.device_bytes < 16 * GIB


async def test_nodes_that_join_later_are_planned_by_what_they_are(control: Control) -> None:
    """Two cards that make the same engine take other batches: each replica carries the need of its own."""
    control.start()
    await control.wish(msgspec.structs.replace(deployment(device="cuda", replicas=2), model=QWEN_7B))
    await control.until(lambda rs: len(rs) == 2)
    await control.add_node(node("a", memories=[24]))
    await control.until(lambda rs: sum(r.phase is Phase.PLACED for r in rs) == 1)
    await control.add_node(node("b", memories=[80]))
    found = await control.until(lambda rs: all(r.phase is Phase.PLACED for r in rs))
    small, large = sorted((r for r in found if r.need is not None), key=lambda r: str(r.node))
    assert small.need is not None
    assert large.need is not None
    assert small.need.weights_bytes == large.need.weights_bytes
    assert large.need.overhead_bytes > small.need.overhead_bytes, "8192 tokens a step instead of 2048"
