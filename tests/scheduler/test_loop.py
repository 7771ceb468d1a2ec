"""The scheduler's loop on the real store: wishes become placed replicas, whatever happens in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from tests.scheduler.worlds import deployment, node
from xinf.core.config import Config, load
from xinf.core.records import DeploymentRecord, NodeRecord, Phase, ReplicaRecord
from xinf.meta import LmdbStore, Mirror, Records
from xinf.scheduler import SchedulerLoop


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
