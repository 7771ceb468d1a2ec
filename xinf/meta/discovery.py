"""How a command finds the control process of a data directory: a file in the runtime directory, checked against /proc.

`xinf serve` writes it when it answers and removes it when it ends. After kill -9 it stays; who reads it then finds the
process gone, or another one under its pid that started at another time, and takes the file for absent.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from xinf.core.errors import Unavailable
from xinf.core.paths import Paths
from xinf.meta.client import MetaClient
from xinf.meta.owner import process_start_ticks


class Discovery(msgspec.Struct, frozen=True, kw_only=True):
    """The running control process of a data directory."""

    pid: int
    pid_start_ticks: int | None  # None where there is no /proc
    target: str  # of MetaService: "unix:/run/.../control.sock"
    gateway_url: str
    data_dir: str
    version: str
    started_s: float


def write_discovery(paths: Paths, discovery: Discovery) -> None:
    """Replace the file atomically, readable by this user alone; the runtime directory is made if need be."""
    paths.make_runtime_dir()
    temporary = paths.discovery_file.with_name(f".{paths.discovery_file.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(discovery))
    temporary.replace(paths.discovery_file)


def read_discovery(paths: Paths) -> Discovery | None:
    """Read the file; None when there is none, it is unreadable, or its process is gone."""
    found = _read(paths.discovery_file)
    return found if found is not None and _is_running(found) else None


def remove_discovery(paths: Paths, pid: int) -> None:
    """Remove the file if it is that process's."""
    found = _read(paths.discovery_file)
    if found is not None and found.pid == pid:
        paths.discovery_file.unlink(missing_ok=True)


def connect(paths: Paths, server: str | None = None, *, timeout_s: float = 10.0) -> MetaClient:
    """Make a client of the control process: at `server` ("host:port"), else of this data directory. Does no call yet.

    Raises: Unavailable naming the data directory when no control process runs on it.
    """
    if server:
        return MetaClient(server, timeout_s=timeout_s)
    found = read_discovery(paths)
    if found is None:
        raise Unavailable(
            f"no control process runs on {paths.data_dir}",
            remedy="start `xinf serve`, or name another one with --server or --data-dir",
            data_dir=str(paths.data_dir),
        )
    return MetaClient(found.target, timeout_s=timeout_s)


def _read(path: Path) -> Discovery | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Discovery)
    except (OSError, msgspec.MsgspecError):
        return None


def _is_running(found: Discovery) -> bool:
    if found.pid_start_ticks is not None:
        return process_start_ticks(found.pid) == found.pid_start_ticks
    try:
        os.kill(found.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
