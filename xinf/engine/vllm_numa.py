"""Keeps an engine on the processors of the NUMA nodes that it was told to be on.

vLLM 0.32 binds threads to nodes only where ranks are processes of their own. In this process it takes the memory of the
node of the first processor that it may use, whatever CPU_VISIBLE_MEMORY_NODES says, and threads run anywhere.
Source: v1/worker/cpu_worker.py, v1/executor/multiproc_executor.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from pathlib import Path

from xinf.core.numa_variables import OWN_CHOICE, VISIBLE_NODES
from xinf.core.number_list import parse_numbers


def bind_to_nodes(environ: Mapping[str, str]) -> None:
    """Bind all threads of this process, and those that they will start, before libraries count the processors."""
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = os.sched_getaffinity(0)
    cores = cores_to_use(environ, allowed)
    if cores == allowed:
        return
    for task in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(task.name), cores)
        except ProcessLookupError:  # it has ended meanwhile
            continue


def cores_to_use(environ: Mapping[str, str], allowed: Set[int], root: Path = Path("/")) -> Set[int]:
    """Of the allowed processors those of the nodes that are named; all where none are, or where none would be left."""
    if any(environ.get(name) for name in OWN_CHOICE):
        return allowed
    cores: set[int] = set()
    for number in parse_numbers(environ.get(VISIBLE_NODES, "")):
        try:
            cores |= parse_numbers((root / f"sys/devices/system/node/node{number}/cpulist").read_text())
        except OSError:
            continue
    return (cores & allowed) or allowed
