"""Scheduler, agent and real `sim` engines together: a wish becomes running processes and ends without leaving any."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from tests.agent.conftest import Bench, process_of
from xinf.agent import Agent
from xinf.agent.process import is_alive
from xinf.core.device import Health
from xinf.core.ids import DeploymentName
from xinf.core.records import NODES, DeploymentRecord, EngineSpec, NodeRecord, Phase, ReplicaRecord
from xinf.device import read_host
from xinf.meta import Mirror
from xinf.scheduler import SchedulerLoop

pytestmark = pytest.mark.e2e


@pytest.fixture
async def scheduled(bench: Bench) -> AsyncIterator[Bench]:
    await bench.start_agent()
    scheduler = asyncio.create_task(SchedulerLoop(bench.store, bench.config).run())
    yield bench
    scheduler.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await scheduler


async def wish(bench: Bench, *, replicas: int, generation: int = 1) -> None:
    record = DeploymentRecord(
        name=DeploymentName("m"),
        spec=EngineSpec(model="m", engine="sim", engine_args={"seed": generation}),
        replicas=replicas,
        generation=generation,
    )
    await bench.records.put(DeploymentRecord, "m", record)


async def until(bench: Bench, condition: Callable[[Sequence[ReplicaRecord]], bool]) -> list[ReplicaRecord]:
    await bench.replicas.wait(lambda items: condition([record for record, _ in items.values()]), 60)
    return [record for record, _ in bench.replicas.items.values()]


def ready(records: Sequence[ReplicaRecord], *, generation: int) -> int:
    return sum(r.phase is Phase.READY and r.generation == generation for r in records)


async def test_launch_update_and_remove(scheduled: Bench) -> None:
    await wish(scheduled, replicas=2)
    first = await until(scheduled, lambda rs: ready(rs, generation=1) == 2)
    assert all(r.devices == ("cpu",) for r in first)
    fewest = 2

    def is_updated(records: Sequence[ReplicaRecord]) -> bool:
        nonlocal fewest
        fewest = min(fewest, sum(r.phase is Phase.READY for r in records))
        return len(records) == 2 and ready(records, generation=2) == 2

    await wish(scheduled, replicas=2, generation=2)
    second = await until(scheduled, is_updated)
    assert fewest == 2
    assert not any(is_alive(process_of(r)) for r in first)
    await scheduled.records.delete(DeploymentRecord, "m")
    await until(scheduled, lambda rs: not rs)
    assert not any(is_alive(process_of(r)) for r in second)
    assert not list(scheduled.config.paths.replicas_dir.glob("*/custody.json"))
    assert not list(scheduled.config.paths.runtime_dir.glob("*.sock"))


async def test_engine_serves_on_while_nobody_can_read_its_card(
    bench: Bench, nvidia_root: Path, nvml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader of a vendor crashes over and over: nothing new comes to the card, what serves there is left alone."""
    monkeypatch.setattr("xinf.agent.damper.CALM_S", 0.2)
    monkeypatch.setenv("FAKE_NVML", "crash_marked")
    bench.node = msgspec.structs.replace(bench.node, devices=(await read_host(root=nvidia_root)).devices)
    settings = msgspec.structs.replace(bench.config.agent, sample_interval=0.1)
    agent = Agent(bench.store, msgspec.structs.replace(bench.config, agent=settings), bench.node, root=nvidia_root)
    nodes = Mirror(bench.store, NODES, NodeRecord)
    await nodes.start()
    loops = [asyncio.create_task(agent.run()), asyncio.create_task(SchedulerLoop(bench.store, bench.config).run())]

    def is_card(health: Health) -> bool:
        record = nodes.get(bench.node.name)
        return record is not None and record.devices[0].health is health

    spec = EngineSpec(model="m", engine="sim", device="cuda")
    try:
        wished = DeploymentRecord(name=DeploymentName("m"), spec=spec)
        await bench.records.put(DeploymentRecord, "m", wished)
        (first,) = await until(bench, lambda rs: ready(rs, generation=1) == 1)
        (tmp_path / "mark").touch()
        await nodes.wait(lambda _: is_card(Health.SILENT), 60)
        await bench.records.put(DeploymentRecord, "m", msgspec.structs.replace(wished, replicas=2))
        found = await until(bench, lambda rs: len(rs) == 2)
        (waiting,) = (r for r in found if r.id != first.id)
        assert "cuda:0 on here cannot be used: its reader ended with signal 11" in str(waiting.placement_note)
        (serving,) = (r for r in found if r.id == first.id)
        assert (serving.target, serving.phase, serving.pid) == ("run", Phase.READY, first.pid)
        (tmp_path / "mark").unlink()
        await nodes.wait(lambda _: is_card(Health.OK), 60)
        again = await bench.records.get(ReplicaRecord, first.id)
        assert again is not None
        assert (again[0].target, again[0].phase, again[0].pid) == ("run", Phase.READY, first.pid)
    finally:
        loops[1].cancel()
        await agent.stop(stop_engines=True)
        await asyncio.gather(*loops, return_exceptions=True)
        await nodes.stop()
