"""Which core runs what: the gateway under test has one to itself, everything else shares the other.

On a machine with one core everything shares it, and the results say so.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_CPUS = sorted(os.sched_getaffinity(0))
GATEWAY_CPU: tuple[int, ...] = (_CPUS[0],)
LOAD_CPU: tuple[int, ...] = (_CPUS[1],) if len(_CPUS) > 1 else GATEWAY_CPU
BOTH_CPUS: tuple[int, ...] = tuple(sorted({*GATEWAY_CPU, *LOAD_CPU}))


def pinned(command: Sequence[str], cpus: Sequence[int]) -> list[str]:
    """Give the command line that runs `command` on `cpus`, children and threads too."""
    return ["taskset", "-c", ",".join(map(str, cpus)), *command]


def pin_process(pid: int, cpus: Sequence[int]) -> None:
    """Move all threads of a process. New threads inherit from the thread that makes them."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            os.sched_setaffinity(int(task.name), cpus)
        except ProcessLookupError:
            continue  # it ended between the listing and here
