"""The NUMA nodes of a host that engines can be bound to.

vLLM on a processor binds each rank to the processors and the memory of one node; all the ranks may have together is
what their nodes have. Nodes that have memory alone (that of some accelerators, CXL) are none of them.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from xinf.core.number_list import parse_numbers

# What can be had on a node without swapping, as vLLM adds it up. Source: vLLM 0.32,
# utils/cpu_resource_utils.py, `get_memory_node_info`.
_AVAILABLE = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")


class NumaNode(msgspec.Struct, frozen=True, kw_only=True):
    """One node. `free_bytes`: what can be had there without swapping."""

    number: int
    memory_bytes: int
    free_bytes: int


def usable_numa_nodes(root: Path = Path("/"), *, visible: str = "") -> tuple[NumaNode, ...]:
    """Find the nodes with processors and memory that this process may use, in ascending order.

    `visible`: the value of CPU_VISIBLE_MEMORY_NODES, empty for all. Nothing where the kernel tells of no nodes, or
    where one cannot be read: half of them is not what engines may have.
    """
    allowed, chosen = _allowed_nodes(root), parse_numbers(visible)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    found: list[NumaNode] = []
    for number, path in _directories(root):
        if (allowed is not None and number not in allowed) or (visible and number not in chosen):
            continue
        try:
            own_cores = parse_numbers((path / "cpulist").read_text())
            sizes = _sizes((path / "meminfo").read_text())
        except OSError:
            return ()
        if not own_cores or (cores is not None and not own_cores & cores) or sizes.get("MemTotal") == 0:
            continue
        if "MemTotal" not in sizes or "MemFree" not in sizes:
            return ()
        free_bytes = sum(sizes.get(name, 0) for name in _AVAILABLE)
        found.append(NumaNode(number=number, memory_bytes=sizes["MemTotal"], free_bytes=free_bytes))
    return tuple(found)


def count_numa_nodes(root: Path = Path("/")) -> int:
    """Count the nodes of the host, whatever they have and whoever may use them."""
    return len(_directories(root))


def _directories(root: Path) -> list[tuple[int, Path]]:
    paths = (root / "sys/devices/system/node").glob("node[0-9]*")
    return sorted((int(path.name[4:]), path) for path in paths if path.name[4:].isdecimal())


def _allowed_nodes(root: Path) -> frozenset[int] | None:
    """The nodes whose memory this process may have (a cpuset's); None: nobody says."""
    try:
        lines = (root / "proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(
        (parse_numbers(line.partition(":")[2]) for line in lines if line.startswith("Mems_allowed_list:")), None
    )


def _sizes(meminfo: str) -> dict[str, int]:
    """Read a node's meminfo, in bytes: `Node 0 MemTotal:  97421888 kB`."""
    found: dict[str, int] = {}
    for line in meminfo.splitlines():
        words = line.split()
        if len(words) == 5 and words[4] == "kB" and words[3].isdecimal():
            found[words[2].rstrip(":")] = int(words[3]) * 1024
    return found
