"""What an agent and an engine shim tell each other through files in the replica's directory.

    <data>/replicas/<id>/spec.json     agent -> shim    what to run and where to listen; the fetcher adds its files
                         status.json   shim -> agent    phase, failure, what the engine turned out to be
                         exit.json     guard -> agent   how the shim ended
                         engine.log    stdout and stderr of shim and engine, appended across restarts

Building an engine blocks its process for seconds to minutes and may end it at any point, so phases go through a file
that is replaced atomically, never through a call that nobody would answer. Files of an earlier start are told apart by
`start_id`.

    python -m xinf.engine.guard SPEC.JSON        the guard: subreaper, starts and outlives the shim, cleans up after it
      ├─ python -m xinf.agent.fetcher SPEC.JSON  the fetcher, for a model of a hub; once its files are here it becomes
      └─ python -m xinf.engine SPEC.JSON         the shim: gRPC server and adapter
           └─ EngineCore, workers                vLLM's own
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from xinf.core.config import RegistryConfig
from xinf.core.ids import ReplicaId
from xinf.core.records import EngineSpec, Phase, ReplicaFailure


class FetchSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How the files of a hub's model come to this host before the engine is built."""

    command: tuple[str, ...]  # of the agent's own environment; SPEC.JSON and the engine's interpreter follow
    environ: dict[str, str] = {}  # more than the engine's, and not for the engine
    registry: RegistryConfig  # the agent's


class ShimSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a shim needs to know."""

    replica: ReplicaId
    start_id: str  # of this start; echoed in status.json and exit.json
    engine: EngineSpec
    devices: tuple[str, ...]  # selectors: ("cuda:0",), ("cpu",)
    device_uuids: tuple[str, ...] = ()
    fetch: FetchSpec | None = None  # None: the files are on this host, or the engine is to find them itself
    model_path: str | None = None  # the directory of the files, once they are fetched
    listen: str  # gRPC address: "unix:/run/.../r-x.sock" or "10.0.0.2:7001"
    directory: str  # of the files above
    watchdog_timeout_s: float = 60.0
    warmup_timeout_s: float = 600.0
    drain_timeout_s: float = 30.0
    max_message_bytes: int = 40 << 20
    memory_share: float | None = None  # of each accelerator, that the engine is to take; None: as it likes
    kv_cache_bytes: int | None = None  # that the engine is to make on a processor; None: it sizes its cache itself
    log_level: str = "info"

    @property
    def status_path(self) -> Path:
        return Path(self.directory) / "status.json"

    @property
    def exit_path(self) -> Path:
        return Path(self.directory) / "exit.json"

    @property
    def loaded(self) -> EngineSpec:
        """The engine spec with the files to load in the place of the model's name, which it is still served under."""
        if self.model_path is None:
            return self.engine
        names = self.engine.served_names or (self.engine.model,)
        return msgspec.structs.replace(self.engine, model=self.model_path, served_names=names)


class ShimStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a start stands. Phases: starting, loading, warming, ready, draining, failed."""

    start_id: str
    pid: int  # of the shim
    phase: Phase
    phase_since_s: dict[str, float]  # phase -> wall-clock second it was entered
    detail: str | None = None  # "loading weights 3/7", for people
    # When files came last, as time.monotonic() of this host has it: the time for a start counts from there.
    fetched_monotonic_s: float | None = None
    failure: ReplicaFailure | None = None
    engine_version: str | None = None
    block_tokens: int | None = None
    kv_blocks: int | None = None
    max_model_len: int | None = None


class ShimExit(msgspec.Struct, frozen=True, kw_only=True):
    """How a start ended. `status`: the exit code, negative for the signal that ended it."""

    start_id: str
    status: int
    at_s: float


F = TypeVar("F", ShimSpec, ShimStatus, ShimExit)


def write_file(path: Path, content: ShimSpec | ShimStatus | ShimExit) -> None:
    """Replace `path` atomically: a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(msgspec.json.encode(content))
    temporary.replace(path)


def read_file(path: Path, kind: type[F]) -> F | None:
    """Read such a file; None if it is absent or not (yet) one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None
