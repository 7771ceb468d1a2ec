"""A real gateway (Granian, its workers) over a real store (LMDB, MetaServer) and real sim shims; no control loops.

The test writes the records that scheduler and agent would write, so it says exactly when a replica is ready, draining
or gone. It proves the gateway's part; that the real loops write such records is proved in tests/e2e.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import psutil

from tests.children import living_children
from tests.ports import free_port
from xinf.core.config import Config, load, to_environ
from xinf.core.ids import DeploymentName, ReplicaId
from xinf.core.records import DeploymentRecord, EngineSpec, Phase, ReplicaRecord, RoutingPolicy
from xinf.core.shim import ShimSpec, ShimStatus, read_file, write_file
from xinf.meta import LmdbStore, MetaServer, Records

T = TypeVar("T")
DEADLINE_S = 30.0
# Every front that the suite in tests/gateway/fronts runs over: values of `gateway.front`. This is the one list.
FRONTS = ("granian", "granian-rsgi", "direct")
DEFAULT_FRONT = "granian"


def wait_for(condition: Callable[[], Any], *, what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Poll until `condition()` is truthy and return it."""
    end_s = time.monotonic() + deadline_s
    while time.monotonic() < end_s:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what} did not happen within {deadline_s:.0f} s")


class StoreThread:
    """LmdbStore and MetaServer on an event loop of their own."""

    def __init__(self, directory: Path, target: str) -> None:
        self._directory = directory
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="store")
        self._thread.start()
        self.call(self._open())

    def call(self, awaitable: Awaitable[T]) -> T:
        async def run() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(DEADLINE_S)

    async def _open(self) -> None:
        self._store = LmdbStore.open(
            self._directory, max_bytes=64 << 20, history_revisions=10_000, history_age_s=3600.0, no_sync=True
        )
        self.records = Records(self._store)
        self._server = MetaServer(self._store)
        await self._server.start([self._target])

    async def _shut(self) -> None:
        await self._server.stop(0.0)
        await self._store.close()

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self.call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()


class Engine:
    """One shim process and its replica record."""

    def __init__(self, record: ReplicaRecord, directory: Path, process: subprocess.Popen[bytes]) -> None:
        self.record = record
        self.directory = directory
        self.process = process

    @property
    def id(self) -> ReplicaId:
        return self.record.id

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)


class GatewayStack:
    """`with GatewayStack(...) as stack:` gives a gateway; `deploy` adds models with their engines."""

    def __init__(
        self, *, workers: int = 1, overrides: dict[str, object] | None = None, front: str = DEFAULT_FRONT
    ) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="xg", dir="/tmp"))
        self.port = free_port()
        is_tls = "gateway.tls_cert" in (overrides or {})
        self.url = f"http{'s' if is_tls else ''}://127.0.0.1:{self.port}"
        self._meta_target = f"unix:{self.dir}/meta.sock"
        self.engines: dict[str, Engine] = {}
        self._sockets: list[socket.socket] = []
        self.store = StoreThread(self.dir / "meta", self._meta_target)
        self.config: Config = load(
            environ={},
            overrides={
                "data_dir": str(self.dir / "data"),
                "gateway.port": self.port,
                "gateway.workers": workers,
                **({} if front == DEFAULT_FRONT else {"gateway.front": front}),
                **(overrides or {}),
            },
        )
        self._environ = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(self.dir),
            "XINF_EFFECTIVE_CONFIG": to_environ(self.config),
            "XINF_META_TARGET": self._meta_target,
        }
        self.gateway: subprocess.Popen[bytes]
        self.client = httpx.Client(base_url=self.url, timeout=DEADLINE_S, verify=not is_tls)

    def __enter__(self) -> GatewayStack:
        try:
            self.start_gateway()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def reopen_store(self) -> None:
        """Bring a closed store back, as a restarted control process does."""
        self.store = StoreThread(self.dir / "meta", self._meta_target)

    def start_process(self) -> None:
        """Start the gateway's master; it need not serve yet when this returns."""
        with (self.dir / "gateway.log").open("ab") as log:
            self.gateway = subprocess.Popen(
                [sys.executable, "-m", "xinf.gateway"],
                env=self._environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_gateway(self) -> None:
        """Start the gateway and wait for its first answer."""
        self.start_process()

        def answers() -> bool:
            assert self.gateway.poll() is None, self.log()
            with contextlib.suppress(httpx.TransportError):
                return self.client.get("/healthz").status_code == 200
            return False

        wait_for(answers, what="the gateway's first answer")

    def connect(self, *, receive_buffer_bytes: int | None = None, segment_bytes: int | None = None) -> socket.socket:
        """Open a plain connection, closed with the stack at the latest.

        A small receive buffer makes a client that does not read stall its server soon; small segments, which keep the
        server's send buffer small too, make it sooner still.
        """
        raw = socket.socket()
        self._sockets.append(raw)
        if receive_buffer_bytes is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        if segment_bytes is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment_bytes)
        raw.settimeout(DEADLINE_S)
        raw.connect(("127.0.0.1", self.port))
        return raw

    def log(self) -> str:
        return (self.dir / "gateway.log").read_text(errors="replace")

    # ---- records -----------------------------------------------------------------------------------------------

    def deploy(
        self, name: str, *, replicas: int = 1, max_waiting: int | None = None, **engine_args: Any
    ) -> list[Engine]:
        """Start engines and write the records; returns when the gateway has Links to all of them."""
        spec = EngineSpec(model=f"sim/{name}", engine="sim", served_names=(name,), engine_args=engine_args)
        record = DeploymentRecord(
            name=DeploymentName(name), spec=spec, replicas=replicas, max_waiting=max_waiting, created_s=time.time()
        )
        self.store.call(self.store.records.create(DeploymentRecord, name, record))
        wait_for(lambda: self.client.get(f"/v1/models/{name}").status_code in (200, 401), what=f"{name} known")
        engines = [self._start_engine(name, spec, n) for n in range(replicas)]
        for engine in engines:
            self._publish(engine)
        if engines:
            self.wait_ready(name)
        return engines

    def publish(self, name: str, address: str) -> ReplicaId:
        """Write the records of a deployment whose one engine somebody else runs; returns when its Links are up."""
        spec = EngineSpec(model=f"sim/{name}", engine="sim", served_names=(name,))
        record = DeploymentRecord(name=DeploymentName(name), spec=spec, replicas=1, created_s=time.time())
        self.store.call(self.store.records.create(DeploymentRecord, name, record))
        replica = ReplicaRecord(
            id=ReplicaId(f"{name}-0"),
            deployment=DeploymentName(name),
            generation=1,
            spec=spec,
            phase=Phase.READY,
            address=address,
        )
        self.store.call(self.store.records.create(ReplicaRecord, replica.id, replica))
        n_workers = self.config.gateway.workers
        wait_for(lambda: self.metric("xinf_link_up", replica=replica.id) == n_workers, what=f"links to {replica.id}")
        return replica.id

    def add_engine(self, name: str) -> Engine:
        """Start one more engine of a deployment and publish it."""
        found = self.store.call(self.store.records.get(DeploymentRecord, name))
        assert found is not None
        n_before = sum(engine.record.deployment == name for engine in self.engines.values())
        engine = self._start_engine(name, found[0].spec, n_before)
        self._publish(engine)
        return engine

    def restart_engine(self, engine: Engine) -> Engine:
        """Start a dead engine in place, as the agent does: same replica, same address, another process."""
        shutil.rmtree(engine.directory)
        started = self._start_process(engine.record)
        self.engines[engine.id] = started
        self.set_phase(started, pid=started.process.pid, phase=Phase.STARTING)
        self._publish(started)
        return started

    def set_policy(self, name: str, policy: RoutingPolicy) -> None:
        """Change how a deployment is routed."""

        def change(record: DeploymentRecord) -> DeploymentRecord:
            return msgspec.structs.replace(record, policy=policy)

        self.store.call(self.store.records.update(DeploymentRecord, name, change))

    def set_phase(self, engine: Engine, **changes: Any) -> None:
        """Change an engine's replica record, as agent and scheduler do."""

        def change(record: ReplicaRecord) -> ReplicaRecord:
            return msgspec.structs.replace(record, **changes)

        engine.record, _ = self.store.call(self.store.records.update(ReplicaRecord, engine.id, change))

    def wait_ready(self, name: str) -> None:
        """Wait until this many Links are up as the deployment has ready replicas, in every worker that answers."""
        ids = [e.id for e in self.engines.values() if e.record.deployment == name and e.process.poll() is None]

        def linked() -> bool:
            return all(self.metric("xinf_link_up", replica=replica) == self.config.gateway.workers for replica in ids)

        wait_for(linked, what=f"links to {ids}")

    def _start_engine(self, name: str, spec: EngineSpec, number: int) -> Engine:
        replica = ReplicaId(f"{name}-{number}")
        record = ReplicaRecord(
            id=replica,
            deployment=DeploymentName(name),
            generation=1,
            spec=spec,
            phase=Phase.STARTING,
            address=f"unix:{self.dir}/{replica}.sock",
        )
        engine = self.engines[replica] = self._start_process(record)
        record = msgspec.structs.replace(record, pid=engine.process.pid)
        self.store.call(self.store.records.create(ReplicaRecord, replica, record))
        return engine

    def _start_process(self, record: ReplicaRecord) -> Engine:
        directory = self.dir / record.id
        directory.mkdir()
        shim = ShimSpec(
            replica=record.id,
            start_id="1",
            engine=record.spec,
            devices=("cpu",),
            listen=record.address or "",
            directory=str(directory),
            drain_timeout_s=20.0,
        )
        write_file(directory / "spec.json", shim)
        with (directory / "engine.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "xinf.engine", str(directory / "spec.json")],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return Engine(record, directory, process)

    def _publish(self, engine: Engine) -> None:
        """Wait until the shim is ready and say so in its record."""

        def ready() -> bool:
            assert engine.process.poll() is None, (engine.directory / "engine.log").read_text()
            status = read_file(engine.directory / "status.json", ShimStatus)
            return status is not None and status.phase == Phase.READY

        wait_for(ready, what=f"{engine.id} ready")
        self.set_phase(engine, phase=Phase.READY)

    # ---- questions ---------------------------------------------------------------------------------------------

    def metric(self, name: str, **labels: str) -> float:
        """One sample of /metrics, summed over labels that are not given; 0 if it is not there."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(label in sample for label in wanted):
                total += float(value)
        return total

    def has(self, name: str) -> bool:
        """Whether the gateway knows a deployment of this name."""
        return self.client.get(f"/v1/models/{name}").status_code == 200

    @property
    def admin_headers(self) -> dict[str, str]:
        """What opens the admin routes."""
        (file,) = self.dir.glob("xinf-*/admin.key")
        return {"authorization": f"Bearer {file.read_text()}"}

    def admin(self, path: str) -> httpx.Response:
        """GET an admin route."""
        return self.client.get(f"/admin/{path}", headers=self.admin_headers)

    def workers(self) -> list[psutil.Process]:
        """The processes that serve: the master's children that live."""
        return living_children(self.gateway.pid)

    def worker_bytes(self) -> int:
        """Resident memory of all workers."""
        return sum(process.memory_info().rss for process in self.workers())

    def engine_load(self, engine: Engine) -> float:
        """Requests that the gateway has open on an engine."""
        return self.metric("xinf_replica_in_flight", replica=engine.id)

    def close(self) -> None:
        self.client.close()
        for raw in self._sockets:
            raw.close()
        gateway = getattr(self, "gateway", None)
        if gateway is not None and gateway.poll() is None:
            gateway.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                gateway.wait(10)
            if gateway.poll() is None:
                gateway.kill()
                gateway.wait(10)
        for engine in self.engines.values():
            if engine.process.poll() is None:
                engine.kill()
        self.store.close()
        shutil.rmtree(self.dir, ignore_errors=True)
