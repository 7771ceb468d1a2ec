"""Who owns a data directory: an flock that dies with its process, in a file that says who that is.

LMDB itself lets a second process open the file, and two writers with tables of leases of their own would expire each
other's keys. The kernel drops the lock however the owner ends; what the file says is only for the message.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

import msgspec

from xinf.core.errors import StoreError, StoreHeld

OWNER_FILE = "owner.lock"


class Owner(msgspec.Struct, frozen=True):
    """The process that holds the lock; `start_ticks` tells a reused pid apart."""

    pid: int
    start_ticks: int | None
    since_s: float


class OwnerLock:
    """The lock of one directory, held from construction to `release`."""

    def __init__(self, directory: Path, now_s: float) -> None:
        """Take the lock. Raises: StoreHeld naming the process that has it."""
        path = directory / OWNER_FILE
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(
                f"cannot open {path}: {error.strerror}", remedy="check the owner and mode of the data directory"
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise _held(directory, read_owner(directory)) from None
        except OSError as error:
            os.close(self._fd)
            raise StoreError(
                f"cannot lock {path}: {error.strerror}", remedy="put the data directory on a local file system"
            ) from error
        owner = Owner(os.getpid(), process_start_ticks(os.getpid()), now_s)
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, msgspec.json.encode(owner), 0)

    def release(self) -> None:
        """Give the directory up; a second call does nothing."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def read_owner(directory: Path) -> Owner | None:
    """Read who holds the directory, None if nobody says so. Says nothing about whether the lock is held."""
    try:
        return msgspec.json.decode((directory / OWNER_FILE).read_bytes(), type=Owner)
    except (OSError, msgspec.MsgspecError):
        return None


def process_start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat, None when there is no such process, or it is a zombie, or no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the command in parentheses may hold spaces and parentheses
    return None if fields[0] in "ZX" else int(fields[19])


def _held(directory: Path, owner: Owner | None) -> StoreHeld:
    if owner is None:
        return StoreHeld(
            f"{directory} is held by another process",
            remedy="stop it, or use another data directory",
            directory=str(directory),
        )
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.since_s))
    return StoreHeld(
        f"{directory} is held by process {owner.pid} since {since}",
        remedy=f"stop process {owner.pid}, or use another data directory",
        directory=str(directory),
        pid=owner.pid,
        since_s=owner.since_s,
    )
