"""Scheduler, agent and real `sim` engines together: a wish becomes running processes and ends without leaving any."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from tests.agent.conftest import Bench, process_of
from xinf.agent.process import is_alive
from xinf.core.ids import DeploymentName
from xinf.core.records import DeploymentRecord, EngineSpec, Phase, ReplicaRecord
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
