"""Processes that may not be our children: named by pid and start time, because a pid alone is reused."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None when there is no such process, or no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])  # the command in parentheses may hold anything


def kill_group(leader: int, ticks: int) -> bool:
    """KILL the process group of a leader that started at `ticks`; False if that process is gone."""
    if start_ticks(leader) != ticks:
        return False
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True
