"""A store, one node and its agent, with engines that are stand-ins or the real `sim`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

import xinf
from xinf.agent import Agent
from xinf.agent.custody import ReplicaDirectory
from xinf.agent.process import ProcessId, group_members, is_alive, kill_group
from xinf.core.clock import Clock, SystemClock
from xinf.core.config import Config, load
from xinf.core.device import Device, Vendor
from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.records import ArgValue, EngineEnvironment, EngineSpec, MemoryNeed, NodeRecord, Phase, ReplicaRecord
from xinf.meta import LmdbStore, Mirror, Records, Store

WAIT_S = 30.0
# Where the xinf under test was imported from; engines run elsewhere and must find the same one.
PACKAGE_HOME = Path(xinf.__file__).parent.parent
FAKE_NVML = Path(__file__).resolve().parent.parent / "device" / "fake" / "nvml.c"


class Bench:
    """What a test of the agent works with. `engine` is "stand-in" or "sim"."""

    def __init__(self, config: Config, store: LmdbStore, interpreter: Path) -> None:
        self.config = config
        self.store = store
        self.store_of_agent: Store = store
        self.records = Records(store)
        self.replicas = Mirror(store, "replicas/", ReplicaRecord)
        cards = tuple(
            Device(
                vendor=Vendor.NVIDIA,
                index=i,
                uuid=f"GPU-test-{i}",
                name="card that is not there",
                visible=f"GPU-test-{i}",
            )
            for i in range(2)
        )
        cpu = Device(vendor=Vendor.CPU, index=0, uuid="CPU-test", name="cpu")
        environments = (
            EngineEnvironment(name="stand-in", python=str(interpreter), engines=("stand-in",), device_kinds=()),
            EngineEnvironment(name="builtin", python=sys.executable, engines=("sim",), device_kinds=()),
        )
        self.node = NodeRecord(
            name=NodeName("here"),
            address="",
            devices=(*cards, cpu),
            environments=environments,
            agent_pid=os.getpid(),
            started_s=time.time(),
        )
        self.clock: Clock = SystemClock()
        self.agent: Agent | None = None
        self.running: asyncio.Task[None] | None = None

    def make_agent(self, **settings: object) -> Agent:
        """Make an agent; `settings` replace those of the configuration's agent section."""
        agent_config = msgspec.structs.replace(self.config.agent, **settings)
        config = msgspec.structs.replace(self.config, agent=agent_config)
        return Agent(self.store_of_agent, config, self.node, clock=self.clock)

    async def start_agent(self, **settings: object) -> None:
        """Start an agent as a task and wait until it is registered."""
        self.agent = self.make_agent(**settings)
        self.running = asyncio.create_task(self.agent.run())
        await asyncio.wait_for(self.agent.is_ready.wait(), WAIT_S)

    async def stop_agent(self, *, stop_engines: bool = False) -> None:
        if self.agent is not None and self.running is not None:
            await self.agent.stop(stop_engines=stop_engines)
            with contextlib.suppress(asyncio.CancelledError):
                await self.running
            self.agent = None

    async def place(
        self,
        name: str,
        *,
        engine: str = "stand-in",
        card: int | None = None,
        shares: bool = False,
        need: MemoryNeed | None = None,
        **args: ArgValue,
    ) -> None:
        """Be the scheduler: a replica placed on this node."""
        record = ReplicaRecord(
            id=ReplicaId(name),
            deployment=DeploymentName("m"),
            generation=1,
            spec=EngineSpec(model="m", engine=engine, device="cpu", engine_args=args),
            node=self.node.name,
            devices=("cpu",) if card is None else (f"cuda:{card}",),
            device_uuids=() if card is None else (f"GPU-test-{card}",),
            need=need,
            shares=shares,
            phase=Phase.PLACED,
            phase_since_s={Phase.PLACED: time.time()},
        )
        await self.records.create(ReplicaRecord, record.id, record)

    async def aim_at_stop(self, name: str) -> None:
        await self.records.update(ReplicaRecord, name, lambda r: msgspec.structs.replace(r, target="stop"))

    async def until(self, name: str, condition: Callable[[ReplicaRecord], bool]) -> ReplicaRecord:
        """Wait until a replica's record is as wanted, and give it."""

        def holds(items: object) -> bool:
            record = self.replicas.get(name)
            return record is not None and condition(record)

        try:
            await self.replicas.wait(holds, WAIT_S)
        except Exception:
            log = self.directory(name).log_tail(40)
            print(f"{name} stays {self.replicas.get(name)}", *log, sep="\n")
            raise
        record = self.replicas.get(name)
        assert record is not None
        return record

    async def until_phase(self, name: str, phase: Phase) -> ReplicaRecord:
        return await self.until(name, lambda record: record.phase is phase)

    def directory(self, name: str) -> ReplicaDirectory:
        return ReplicaDirectory(self.config.paths.replicas_dir / name)

    def members(self, record: ReplicaRecord) -> tuple[ProcessId, ...]:
        return group_members(process_of(record), self.directory(record.id).path)


def process_of(record: ReplicaRecord) -> ProcessId:
    assert record.pid is not None
    assert record.pid_start_ticks is not None
    return ProcessId(pid=record.pid, start_ticks=record.pid_start_ticks)


async def until_dead(process: ProcessId) -> None:
    async with asyncio.timeout(WAIT_S):
        while is_alive(process):
            await asyncio.sleep(0.01)


@pytest.fixture
def interpreter(tmp_path: Path) -> Path:
    """An `interpreter` that runs the stand-in, whatever module it is told to run."""
    path = tmp_path / "python"
    script = Path(__file__).with_name("stand_in.py")
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{PACKAGE_HOME}" exec "{sys.executable}" -P "{script}" "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
async def bench(short_dir: Path, interpreter: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE_HOME))
    settings = {
        "data_dir": str(short_dir / "data"),
        "control.resync_interval": "1h",  # events and the agent's own waits must do
        "agent.lease_ttl": "3s",
        "agent.drain_timeout": "5s",
        "agent.backoff_initial": "50ms",
        "agent.backoff_max": "400ms",
    }
    config = load(environ={}, overrides=settings)
    (short_dir / "data").mkdir()
    store = LmdbStore.open(
        config.paths.meta_dir, max_bytes=64 << 20, history_revisions=10_000, history_age_s=3600, no_sync=True
    )
    made = Bench(config, store, interpreter)
    await made.replicas.start()
    yield made
    await made.stop_agent()
    await made.replicas.stop()
    await store.close()
    for path in config.paths.replicas_dir.glob("*/custody.json"):
        directory = ReplicaDirectory(path.parent)
        custody = directory.read_custody()
        if custody is not None and custody.process is not None:
            kill_group(custody.process, directory.path)


@pytest.fixture
def nvidia_root(tmp_path: Path) -> Path:
    """A root with one NVIDIA card on its bus."""
    directory = tmp_path / "sys/bus/pci/devices/0000:1b:00.0"
    directory.mkdir(parents=True)
    for name, text in (("vendor", "0x10de"), ("class", "0x030200"), ("device", "0x2b85"), ("numa_node", "0")):
        (directory / name).write_text(f"{text}\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:       131072 kB\nMemAvailable:    65536 kB\n")
    return tmp_path


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake library, in a directory of its own that a test may change; `FAKE_NVML_MARK` names a file beside it."""
    library = tmp_path / "lib" / "libnvidia-ml.so.1"
    library.parent.mkdir()
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(FAKE_NVML)], check=True, timeout=60)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    monkeypatch.setenv("FAKE_NVML_MARK", str(tmp_path / "mark"))
    monkeypatch.setenv("FAKE_NVML", "5090")
    return library
