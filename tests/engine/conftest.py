"""One shim in the process of the test, for tests of the protocol: real gRPC on a Unix socket, no process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.link_client import shim_spec
from xinf.core.errors import Unavailable
from xinf.core.records import Phase
from xinf.core.shim import ShimSpec
from xinf.engine.adapter import Adapter
from xinf.engine.intake import Intake
from xinf.engine.server import EngineServer
from xinf.engine.service import EngineService, engine_info
from xinf.engine.sim_adapter import SimAdapter
from xinf.engine.status import StatusFile


class ServedShim:
    """What `process.Shim` wires together, without its signals and its exit."""

    def __init__(self, spec: ShimSpec, adapter: Adapter) -> None:
        self.spec = spec
        self.adapter = adapter
        self.intake = Intake(adapter, lambda: None)
        self.status = StatusFile(spec)
        self.server: EngineServer

    async def start(self) -> None:
        self.adapter.build(lambda _: None)
        description = await self.adapter.open()
        info = engine_info(self.spec.replica, description)
        service = EngineService(info, self.adapter, self.intake, self.status, self.drain)
        self.server = EngineServer(
            service,
            listen=self.spec.listen,
            directory=Path(self.spec.directory),
            max_message_bytes=self.spec.max_message_bytes,
        )
        await self.server.start()
        self.status.enter(Phase.READY)
        self.intake.open()
        await self.server.set_serving(True)

    async def drain(self, timeout_s: float) -> int:
        self.intake.refuse(Unavailable("draining"))
        return await self.intake.wait_empty(timeout_s)

    async def stop(self) -> None:
        self.intake.fail_all(Unavailable("the test is over"))
        await self.server.stop(flush_s=2.0)
        await self.adapter.close()


Serve = Callable[..., Any]


@pytest.fixture
async def serve(short_dir: Path) -> AsyncIterator[Serve]:
    """`await serve(step_ms=5)` serves a sim engine, `await serve(adapter=...)` an adapter of the test's own."""
    served: list[ServedShim] = []

    async def start(*, adapter: Adapter | None = None, **arguments: Any) -> ServedShim:
        spec = shim_spec(short_dir, **arguments)
        shim = ServedShim(spec, adapter or SimAdapter(spec))
        await shim.start()
        served.append(shim)
        return shim

    yield start
    async with asyncio.timeout(30):
        for shim in served:
            await shim.stop()
