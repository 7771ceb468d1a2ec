"""CPU time of processes that are not ours, from the kernel's accounting. Linux only.

The POSIX CPU clock of a process counts nanoseconds of all its threads, those that ended included; utime + stime in
/proc/<pid>/stat count in ticks of 10 ms.
"""

from __future__ import annotations

import time
from pathlib import Path

_PROCESS_CLOCK = 2  # CPUCLOCK_SCHED for a whole process, in the lowest three bits of a clock id


def cpu_s(pid: int) -> float | None:
    """CPU seconds of a process since it began; None when it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | _PROCESS_CLOCK)
    except OSError:
        return None


def children(pid: int) -> list[int]:
    """The children of a process, in no order."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(stat.rpartition(")")[2].split()[1]) == pid:  # the name in parentheses may hold anything
            found.append(int(entry.name))
    return found


def descendants(pid: int, word: bytes) -> list[int]:
    """The processes below one that have `word` among the arguments they were started with, and all below those."""
    found = []
    for child in children(pid):
        try:
            has_word = word in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += [child, *_all_below(child)] if has_word else descendants(child, word)
    return found


def _all_below(pid: int) -> list[int]:
    return [one for child in children(pid) for one in (child, *_all_below(child))]
