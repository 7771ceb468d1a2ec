"""The files of one replica on this host, and what the agent must remember about its process to find it again.

    <data>/replicas/<id>/custody.json    agent -> next agent: which process was started here, for what
                         the others      xinf/core/shim.py

custody.json is written before the process is started (without a pid) and again when it has one, so that whatever moment
an agent dies at, the next one finds the process.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from pathlib import Path

import msgspec

from xinf.agent.process import ProcessId, began_monotonic_s, find_by_argument
from xinf.core.ids import ReplicaId
from xinf.core.shim import ShimExit, ShimSpec, ShimStatus, read_file, write_file

MAX_LOG_BYTES = 16 << 20  # above this a start begins a new log and keeps one old one
_TAIL_BYTES = 64 << 10
_MAX_LINE = 400
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Custody(msgspec.Struct, frozen=True, kw_only=True):
    """One start of an engine. `pid` and `start_ticks` are None between the intention and the process."""

    replica: ReplicaId
    start_id: str
    started_s: float  # since the epoch, for people
    monotonic_s: float | None = None  # the same moment by time.monotonic(), which all processes of a host share
    address: str
    device_uuids: tuple[str, ...] = ()
    pid: int | None = None
    start_ticks: int | None = None
    oom_kills: int | None = None  # the kernel's count when it was started
    # NUMA nodes that it was told to be on, none where it was not told; None: started by an agent that did not choose
    memory_nodes: tuple[int, ...] | None = None

    @property
    def process(self) -> ProcessId | None:
        if self.pid is None or self.start_ticks is None:
            return None
        return ProcessId(pid=self.pid, start_ticks=self.start_ticks)


class ReplicaDirectory:
    """The directory of one replica."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log_path = path / "engine.log"
        self.spec_path = path / "spec.json"
        self._custody_path = path / "custody.json"

    def make(self) -> None:
        """Create the directory, for this user alone: specs may carry tokens in `env`."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read_custody(self) -> Custody | None:
        """Read what was started here, None for nothing.

        What was not written down is looked for: the pid, and of an agent before this one when the process began.
        """
        try:
            custody = msgspec.json.decode(self._custody_path.read_bytes(), type=Custody)
        except (OSError, msgspec.MsgspecError):
            return None
        known = custody
        if custody.process is None and (found := find_by_argument(str(self.spec_path))):
            custody = msgspec.structs.replace(custody, pid=found.pid, start_ticks=found.start_ticks)
        if custody.monotonic_s is None and custody.process is not None:
            custody = msgspec.structs.replace(custody, monotonic_s=began_monotonic_s(custody.process))
        if custody is not known:
            # A disk that a model has filled keeps no agent from its engines: it is looked for again the next time.
            with contextlib.suppress(OSError):
                self.write_custody(custody)
        return custody

    def write_custody(self, custody: Custody) -> None:
        temporary = self._custody_path.with_name(f".custody.{os.getpid()}")
        temporary.write_bytes(msgspec.json.encode(custody))
        temporary.replace(self._custody_path)

    def drop_custody(self) -> None:
        """Forget the start: its process group is gone and has been reported."""
        self._custody_path.unlink(missing_ok=True)

    def begin(self, spec: ShimSpec) -> None:
        """Prepare a start: the spec in place, the files of the last start gone, the log not too long."""
        self.make()
        spec.status_path.unlink(missing_ok=True)
        spec.exit_path.unlink(missing_ok=True)
        if self.log_path.exists() and self.log_path.stat().st_size > MAX_LOG_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        write_file(self.spec_path, spec)

    def read_status(self, start_id: str) -> ShimStatus | None:
        """Read the shim's status; None if it has written none for this start."""
        found = read_file(self.path / "status.json", ShimStatus)
        return found if found is not None and found.start_id == start_id else None

    def read_exit(self, start_id: str) -> ShimExit | None:
        """Read how the shim ended; None if its guard did not live to write that."""
        found = read_file(self.path / "exit.json", ShimExit)
        return found if found is not None and found.start_id == start_id else None

    def log_tail(self, n_lines: int) -> tuple[str, ...]:
        """Read the last lines of the log, without colours."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, self.log_path.stat().st_size - _TAIL_BYTES))
                lines = deque(log.read().decode(errors="replace").splitlines(), maxlen=n_lines)
        except OSError:
            return ()
        return tuple(_ANSI.sub("", line)[:_MAX_LINE] for line in lines if line.strip())


def read_oom_kills() -> int | None:
    """Read how many processes the kernel has killed for want of memory since it started."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
