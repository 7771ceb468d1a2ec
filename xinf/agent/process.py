"""Processes that may not be our children: who they are, whether they live, what is left of their group.

A pid alone names nobody: it is reused. A process is (pid, start time), field 22 of /proc/<pid>/stat, and nothing is
ever signalled whose start time differs. A zombie is dead. The kernel does not reuse a pid as long as a group or session
of that number has a member, so if the pid belongs to somebody else now, the whole group of ours is gone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

_PROC = Path("/proc")


class ProcessId(msgspec.Struct, frozen=True, kw_only=True):
    """One process, told apart from a later one with the same pid."""

    pid: int
    start_ticks: int


class ProcessStat(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of /proc/<pid>/stat that matter here."""

    state: str
    group: int
    session: int
    start_ticks: int

    @property
    def is_dead(self) -> bool:
        return self.state in "ZXx"


def read_stat(pid: int) -> ProcessStat | None:
    """Read a process; None if there is none of that pid."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The second field is the command in brackets and may itself hold spaces and brackets.
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessStat(state=fields[0], group=int(fields[2]), session=int(fields[3]), start_ticks=int(fields[19]))


def identify(pid: int) -> ProcessId | None:
    """Name the process that has this pid now, dead or alive; None if there is none."""
    stat = read_stat(pid)
    return None if stat is None else ProcessId(pid=pid, start_ticks=stat.start_ticks)


def is_alive(process: ProcessId) -> bool:
    """Whether this very process runs; a zombie and a namesake do not count."""
    stat = read_stat(process.pid)
    return stat is not None and stat.start_ticks == process.start_ticks and not stat.is_dead


def began_monotonic_s(process: ProcessId) -> float:
    """When a process began, as time.monotonic() would have said it; time that the host slept counts as its age."""
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - process.start_ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - age_s


def group_members(leader: ProcessId, directory: Path) -> tuple[ProcessId, ...]:
    """List what lives of the group that `leader` was started to lead, itself included.

    `directory`: their working directory. It is asked for only once the leader itself is gone without a trace, when
    nothing else tells its group from a later one of the same number.
    """
    stat = read_stat(leader.pid)
    if stat is not None and stat.start_ticks != leader.start_ticks:
        return ()
    found: list[ProcessId] = []
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        member = read_stat(int(entry.name))
        if member is None or member.group != leader.pid or member.is_dead:
            continue
        if stat is None and not (member.start_ticks >= leader.start_ticks and _works_in(entry, directory)):
            continue
        found.append(ProcessId(pid=int(entry.name), start_ticks=member.start_ticks))
    return tuple(found)


def pids_by_group() -> dict[int, list[int]]:
    """List the processes of every group, in one walk of /proc."""
    found: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (stat := read_stat(int(entry.name))) and not stat.is_dead:
            found.setdefault(stat.group, []).append(int(entry.name))
    return found


def read_private_bytes(pid: int) -> int:
    """Read how much memory a process makes the host use: what is no file's, and what it shares; 0 once it is gone.

    Memory shared by two processes is counted for both: that is a few MiB between the processes of an engine.
    """
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def find_by_argument(argument: str) -> ProcessId | None:
    """Find the session leader that was started with exactly this argument: a start whose pid was never written down."""
    wanted = os.fsencode(argument)
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        stat = read_stat(int(entry.name)) if wanted in arguments else None
        if stat is not None and stat.session == int(entry.name) and not stat.is_dead:
            return ProcessId(pid=int(entry.name), start_ticks=stat.start_ticks)
    return None


def send_signal(process: ProcessId, number: signal.Signals) -> bool:
    """Signal this very process; False if it is gone. A namesake is never hit: the pidfd is opened before the check."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def kill_group(leader: ProcessId, directory: Path) -> int:
    """Kill what is left of a group; return how many were alive. Repeat until none is: a member may fork meanwhile."""
    members = group_members(leader, directory)
    return sum(send_signal(member, signal.SIGKILL) for member in members)


def kill_followers(leader: ProcessId, directory: Path) -> int:
    """Kill a group except its leader, which then cleans up what its members started elsewhere."""
    members = group_members(leader, directory)
    return sum(send_signal(member, signal.SIGKILL) for member in members if member.pid != leader.pid)


class ExitWatch:
    """Calls back on the event loop, once, when a process ends, be it our child or not."""

    def __init__(self, process: ProcessId, on_exit: Callable[[], None]) -> None:
        self._on_exit = on_exit
        self._descriptor: int | None = None
        self._loop = asyncio.get_running_loop()
        try:
            self._descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            self._loop.call_soon(on_exit)
            return
        if not is_alive(process):
            self.close()
            self._loop.call_soon(on_exit)
            return
        self._loop.add_reader(self._descriptor, self._ended)

    def close(self) -> None:
        """Stop watching."""
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _ended(self) -> None:
        self.close()
        self._on_exit()


def _works_in(entry: Path, directory: Path) -> bool:
    try:
        return (entry / "cwd").readlink() == directory
    except OSError:
        return False
