"""CPU time and memory of processes that are not ours, from the kernel's accounting.

CPU: the POSIX CPU clock of a process counts nanoseconds of all its threads, those that ended included. The sum over
/proc/<pid>/task/*/schedstat would lose threads that end between two readings, and utime + stime in /proc/<pid>/stat
counts in ticks of 10 ms.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from xinf.bench import cpu_s


def schedstat_cpu_s(pid: int) -> float:
    """CPU seconds of the threads that live now: what `xinf.bench.cpu_s` is compared with in the tests."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total_ns += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            continue  # it ended between the listing and here
    return total_ns / 1e9


def total_cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds of several processes; one that is gone counts as 0."""
    return sum(cpu_s(pid) or 0.0 for pid in pids)


def machine_ticks() -> tuple[int, int]:
    """Ticks that all cores together were busy (stolen time too), and all ticks, since the machine started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]  # idle, and waiting for disks
    return sum(fields) - idle, sum(fields)


def machine_busy_share(seconds: float) -> float:
    """How busy all cores together are, watched for a while: 1 when none of them has a pause."""
    busy, total = machine_ticks()
    time.sleep(seconds)
    busy_then, total_then = machine_ticks()
    return (busy_then - busy) / max(1, total_then - total)


def parents() -> dict[int, int]:
    """The parent of every process there is."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])  # the name in parentheses may hold anything
    return found


def tree(root: int) -> tuple[int, ...]:
    """A process and all that descend from it, itself first."""
    parent_of = parents()
    found = [root] if root in parent_of else []
    for pid in found:  # grows while it is read
        found += [child for child, parent in parent_of.items() if parent == pid and child not in found]
    return tuple(found)


def rss_bytes(pids: Iterable[int]) -> int:
    """Resident memory of several processes, pages shared among them counted in each."""
    total = 0
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:"))
    return total
