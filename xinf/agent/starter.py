"""Starts the engine of a replica: what it is told in its directory, and its guard in a session of its own.

The process is nobody's prisoner: no pipe and no death signal ties it to the agent, so it serves on when the agent ends.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from xinf.agent.custody import Custody, ReplicaDirectory, read_oom_kills
from xinf.agent.memory import StartMemory, granted_cache_bytes
from xinf.agent.memory_nodes import memory_nodes_of
from xinf.agent.process import identify, kill_group
from xinf.agent.surroundings import choose_environment, engine_environ
from xinf.core.clock import Clock
from xinf.core.config import Config, RegistryConfig
from xinf.core.errors import EngineStartFailed, XinfError
from xinf.core.ids import ReplicaId
from xinf.core.numa_variables import VISIBLE_NODES
from xinf.core.records import EngineEnvironment, EngineSpec, NodeRecord, ReplicaFailure, ReplicaRecord
from xinf.core.shim import FetchSpec, ShimSpec
from xinf.registry import Hub, reference_of

# With one of these an engine takes its files from elsewhere, or in a way of its own. Source: vLLM 0.32, `LoadConfig`.
_OWN_FILES = frozenset({"download_dir", "load_format", "model_loader_extra_config"})


class EngineProcess(subprocess.Popen[bytes]):
    """A child that may outlive this process: dropping the object is no mistake, so it does not warn of a live child."""

    def __del__(self, *_: object) -> None:
        pass


class Starter:
    """Starts engines of one node."""

    def __init__(self, config: Config, clock: Clock, root: Path = Path("/")) -> None:
        self._config = config
        self._root = root
        self._clock = clock

    def start(
        self,
        record: ReplicaRecord,
        directory: ReplicaDirectory,
        memory: StartMemory,
        node: NodeRecord,
        *,
        others: Iterable[Custody] = (),
    ) -> tuple[Custody, EngineProcess]:
        """Write down that it is started, start it, and write down which process it is.

        `memory`: of its devices, as it was looked at just before. `others`: engines that were started here.
        Raises: OSError, EngineStartFailed, InvalidRequest.
        """
        environment = choose_environment(record, node)
        environ = engine_environ(os.environ, environment, record, node)
        memory_nodes = memory_nodes_of(record, environ, others, self._root)
        if memory_nodes and VISIBLE_NODES not in record.spec.env:
            environ[VISIBLE_NODES] = ",".join(str(number) for number in memory_nodes)
        custody = Custody(
            replica=record.id,
            start_id=secrets.token_hex(8),
            started_s=self._clock.now_s(),
            monotonic_s=self._clock.monotonic_s(),
            address=self._address(record.id),
            device_uuids=record.device_uuids,
            oom_kills=read_oom_kills(),
            memory_nodes=memory_nodes,
        )
        fetch = fetch_spec(record.spec, self._config.registry, environ)
        directory.begin(self._shim_spec(record, custody, directory, memory, fetch))
        directory.write_custody(custody)
        child = start_guard(environment, directory, environ)
        # The child is ours and not reaped, so its pid is its own even if it is dead already.
        process = identify(child.pid)
        assert process is not None
        custody = msgspec.structs.replace(custody, pid=process.pid, start_ticks=process.start_ticks)
        try:
            directory.write_custody(custody)
        except OSError:
            kill_group(process, directory.path)  # what is not written down must not run
            child.wait()
            raise
        return custody, child

    def _shim_spec(
        self,
        record: ReplicaRecord,
        custody: Custody,
        directory: ReplicaDirectory,
        memory: StartMemory,
        fetch: FetchSpec | None,
    ) -> ShimSpec:
        return ShimSpec(
            replica=record.id,
            start_id=custody.start_id,
            engine=record.spec,
            devices=record.devices,
            device_uuids=record.device_uuids,
            fetch=fetch,
            listen=custody.address,
            directory=str(directory.path),
            watchdog_timeout_s=self._config.engine.watchdog_timeout,
            warmup_timeout_s=self._config.engine.warmup_timeout,
            drain_timeout_s=self._config.agent.drain_timeout,
            memory_share=memory.share,
            kv_cache_bytes=granted_cache_bytes(record),
            log_level=self._config.log_level,
        )

    def _address(self, id_: ReplicaId) -> str:
        """Where the shim is to listen: a socket file, or a port where other hosts are to reach it."""
        if self._config.agent.address:
            return free_endpoint(self._config.agent.address)
        self._config.paths.make_runtime_dir()
        return f"unix:{self._config.paths.socket(id_)}"


def start_failure(error: OSError | XinfError, now_s: float) -> ReplicaFailure:
    """A start that did not even become a process."""
    if isinstance(error, XinfError):
        cause = error.fields.get("cause") if isinstance(error, EngineStartFailed) else None
        remedy = error.remedy or "correct the configuration"
        return ReplicaFailure(cause=str(cause or "crashed"), message=error.message, remedy=remedy, at_s=now_s)
    cause = "missing_dependency" if isinstance(error, FileNotFoundError) else "crashed"
    return ReplicaFailure(
        cause=cause,
        message=f"the engine process cannot be started: {error}",
        remedy="build the engine environment again with `make engine`, and look at the data directory",
        at_s=now_s,
    )


def fetch_spec(spec: EngineSpec, registry: RegistryConfig, environ: Mapping[str, str]) -> FetchSpec | None:
    """How a model of a hub is to be fetched, by this interpreter; None for a path, and where the engine does it.

    `environ`: the engine's. Raises: InvalidRequest if the model names nothing.
    """
    reference = reference_of(spec)
    names = {name.removeprefix("--").replace("-", "_") for name in spec.engine_args}
    if reference is None or (reference.hub is Hub.HUGGINGFACE and names & _OWN_FILES):
        return None
    own_path = os.environ.get("PYTHONPATH")
    more = {"PYTHONPATH": own_path} if own_path and "PYTHONPATH" not in environ else {}
    return FetchSpec(command=(sys.executable, "-P", "-m", "xinf.agent.fetcher"), environ=more, registry=registry)


def start_guard(
    environment: EngineEnvironment, directory: ReplicaDirectory, environ: Mapping[str, str]
) -> EngineProcess:
    """Start `python -m xinf.engine.guard` on the spec that lies in `directory`.

    Raises: OSError.
    """
    command: Sequence[str] = (environment.python, "-m", "xinf.engine.guard", str(directory.spec_path))
    with directory.log_path.open("ab") as log:
        return EngineProcess(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=directory.path,
            env=dict(environ),
            start_new_session=True,
        )


def free_endpoint(address: str) -> str:
    """Find a port that nobody listens on: "10.0.0.2:40123", "[fd00::2]:40123". Somebody may take it before the shim."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as found:
        found.bind((address, 0))
        port: int = found.getsockname()[1]
    return f"[{address}]:{port}" if family == socket.AF_INET6 else f"{address}:{port}"
