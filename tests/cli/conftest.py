"""A control process inside the test, and a way to type commands at it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from typer.testing import CliRunner, Result

from tests.serve.processes import Place, made_place
from xinf.cli.app import app
from xinf.core.paths import Paths
from xinf.meta import Discovery, LmdbStore, MetaServer, Records, write_discovery
from xinf.meta.owner import process_start_ticks

T = TypeVar("T")


class Control:
    """A real store behind a real MetaServer, in a thread of its own: commands make event loops themselves.

    There is no scheduler and no agent: tests write what those would.
    """

    def __init__(self, directory: Path) -> None:
        self.data_dir = directory / "data"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.run(self._open())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the store's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _open(self) -> None:
        paths = Paths(self.data_dir)
        paths.make_runtime_dir()
        self._store = LmdbStore.open(paths.meta_dir, max_bytes=64 << 20, history_revisions=1000, history_age_s=60)
        self.records = Records(self._store)
        self._server = MetaServer(self._store, gateway_url="http://127.0.0.1:1")
        target = f"unix:{paths.control_socket}"
        await self._server.start([target])
        write_discovery(
            paths,
            Discovery(
                pid=os.getpid(),
                pid_start_ticks=process_start_ticks(os.getpid()),
                target=target,
                gateway_url="http://127.0.0.1:1",
                data_dir=str(self.data_dir),
                version="0",
                started_s=0.0,
            ),
        )

    def know_gateway(self, url: str) -> None:
        """Let the control process tell of a gateway; by itself it names one that is not there."""
        self._server.gateway_url = url

    async def _close(self) -> None:
        await self._server.stop(0.1)
        await self._store.close()

    def close(self) -> None:
        self.run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture(autouse=True)
def environment(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of a test find nothing but what the test made."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    monkeypatch.setenv("DATA_DIR", str(short_dir / "data"))
    monkeypatch.setenv("XINF_AGENT_ENGINES_DIR", str(short_dir / "engines"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "XINF_CONFIG", "XINF_SERVER", "XINF_DEBUG", "XINF_API_KEY", "XINF_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def control(short_dir: Path, environment: None) -> Iterator[Control]:
    made = Control(short_dir)
    yield made
    made.close()


@pytest.fixture
def xinf() -> Callable[..., Result]:
    """`xinf("ps", "--json")` types the command; its status, output and errors come back."""

    def type_(*args: str, **options: Any) -> Result:
        return CliRunner().invoke(app, list(args), **options)

    return type_


@pytest.fixture
def xinf_json(xinf: Callable[..., Result]) -> Callable[..., Any]:
    """`xinf_json("ps")` is what `xinf ps --json` prints, decoded."""

    def type_(*args: str) -> Any:
        done = xinf(*args, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return type_


@pytest.fixture
def place() -> Iterator[Place]:
    yield from made_place()
