"""The directories of all replicas of one node: who may use them, which hold a start, which are kept for their logs."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Container, Iterator
from pathlib import Path

from xinf.agent.custody import Custody, ReplicaDirectory
from xinf.core.errors import Conflict

_KEPT = 20  # of replicas that nobody knows any more, for their logs
_LOCK = ".agent.lock"


class ReplicaDirectories:
    """All below `root`, which is made by `lock`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, name: str) -> ReplicaDirectory:
        """The directory of one replica, which may not be there yet."""
        return ReplicaDirectory(self._root / name)

    def lock(self) -> int:
        """Make sure that one agent at a time has them; the descriptor holds the lock. Raises: Conflict."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise Conflict(
                f"another agent (pid {pid}) runs the engines of {self._root.parent}",
                remedy="stop it, or use another --data-dir",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    def started(self) -> Iterator[tuple[str, Custody]]:
        """What earlier agents started here, by the replica's name, whether or not it still runs."""
        for path in self._root.iterdir():
            if path.is_dir() and (custody := ReplicaDirectory(path).read_custody()):
                yield path.name, custody

    def prune(self, known: Container[str]) -> None:
        """Remove those of replicas that are long gone; the youngest are kept for their logs. Raises: OSError."""
        gone = [
            path
            for path in self._root.iterdir()
            if path.is_dir() and path.name not in known and not (path / "custody.json").exists()
        ]
        gone.sort(key=lambda path: path.stat().st_mtime)
        for path in gone[:-_KEPT]:
            shutil.rmtree(path, ignore_errors=True)
