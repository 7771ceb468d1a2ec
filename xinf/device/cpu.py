"""The processor as a device: cores this process may use, memory it may fill, instruction sets that engines care about.

Everything is read from /proc and /sys below an injectable root; limits of a cgroup v2, the own or one around it, and
the NUMA nodes that may be used beat what the machine has. Version 1 of cgroups is not read: what it limits looks
unlimited here.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from pathlib import Path

from xinf.core.device import Device, Sample, Vendor
from xinf.core.numa_variables import VISIBLE_NODES
from xinf.device.host_memory import read_host_memory
from xinf.device.numa import NumaNode, usable_numa_nodes

# What vLLM's CPU backend and its matrix libraries choose kernels by.
_ISA = (
    *("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
# /proc/cpuinfo of arm64 names no model. Source of the numbers: util-linux, sys-utils/lscpu-arm.c.
_ARM_PARTS = {
    (0x41, 0xD0C): "ARM Neoverse-N1",
    (0x41, 0xD40): "ARM Neoverse-V1",
    (0x41, 0xD49): "ARM Neoverse-N2",
    (0x41, 0xD4F): "ARM Neoverse-V2",
    (0x48, 0xD01): "HiSilicon Kunpeng-920",
    (0xC0, 0xAC3): "Ampere-1",
}


class CpuProbe:
    """Describes the host's processors as one device."""

    def is_present(self, root: Path) -> bool:  # noqa: ARG002 - the protocol's
        return True

    def inventory(self, root: Path) -> tuple[Device, ...]:
        cgroup = _cgroup_dir(root)
        memory = read_host_memory(root).total_bytes
        limit = _read_limit(cgroup, "memory.max")
        nodes = _nodes(root)
        of_nodes = sum(node.memory_bytes for node in nodes) or None
        bounds = [value for value in (memory, limit, of_nodes) if value is not None]
        n_nodes = len(nodes) or max(1, _numa_nodes(root))
        extra: dict[str, str | int] = {"cores": _usable_cores(cgroup), "numa_nodes": n_nodes}
        if nodes:
            # An engine may come to be on any of them, and its ranks need equally much.
            extra["numa_memory_bytes"] = min(node.memory_bytes for node in nodes)
        if memory is not None and min(bounds) < memory:
            extra["memory_total_bytes"] = memory  # what GPUs that compute in it have
        name, flags = _cpuinfo(root)
        if isa := [flag for flag in _ISA if flag in flags]:
            extra["isa"] = " ".join(isa)
        device = Device(
            vendor=Vendor.CPU,
            index=0,
            uuid=host_uuid(root),
            name=name or platform.machine(),
            arch=platform.machine(),
            memory_bytes=min(bounds) if bounds else None,
            extra=extra,
        )
        return (device,)

    def sample(self, root: Path) -> tuple[Sample, ...]:
        memory = read_host_memory(root)
        total, free = memory.total_bytes, memory.available_bytes
        if nodes := _nodes(root):
            of_nodes, left = sum(node.memory_bytes for node in nodes), sum(node.free_bytes for node in nodes)
            total = of_nodes if total is None else min(total, of_nodes)
            free = left if free is None else min(free, left)
        for directory in _upwards(_cgroup_dir(root)):
            limit, used = _read_int(directory, "memory.max"), _read_int(directory, "memory.current")
            if limit is None or used is None:
                continue
            # Page cache counts into memory.current but is given back under pressure, as MemAvailable knows.
            room = max(0, limit - max(0, used - _inactive_file_bytes(directory)))
            total = limit if total is None else min(total, limit)
            free = room if free is None else min(free, room)
        return (
            Sample(
                uuid=host_uuid(root),
                t_ns=time.time_ns(),
                memory_used_bytes=None if total is None or free is None else max(0, total - free),
                memory_free_bytes=free,
                util_pct=None,
            ),
        )


def host_uuid(root: Path = Path("/")) -> str:
    """Name this host's processors the same way after every start: a digest, so that the machine id stays private."""
    for name in ("etc/machine-id", "var/lib/dbus/machine-id"):
        try:
            seed = (root / name).read_text().strip()
        except OSError:
            continue
        if seed:
            break
    else:
        seed = platform.node()
    return "CPU-" + hashlib.sha256(f"xinf {seed}".encode()).hexdigest()[:16]


def _usable_cores(cgroup: Path | None) -> int:
    """Count the cores of the affinity mask (a cpuset is in it), cut down to the tightest quota; at least one."""
    # macOS has no affinity to ask for.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for directory in _upwards(cgroup):
        try:
            quota, period = (directory / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if quota.isdigit() and period.isdigit() and int(period):
            # A part of a core is none: threads beyond the quota are all stopped together until the next period.
            cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def _cpuinfo(root: Path) -> tuple[str, frozenset[str]]:
    """Read the model name and the flags of the first processor (`flags` on x86, `Features` on arm64)."""
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "", frozenset()
    first: dict[str, str] = {}
    for line in lines:
        key, separator, value = (part.strip() for part in line.partition(":"))
        if separator:
            first.setdefault(key, value)
    name = " ".join(first.get("model name", "").split()) or _arm_name(first)
    return name, frozenset((first.get("flags") or first.get("Features", "")).split())


def _arm_name(fields: dict[str, str]) -> str:
    try:
        maker, part = int(fields["CPU implementer"], 0), int(fields["CPU part"], 0)
    except (KeyError, ValueError):
        return ""
    return _ARM_PARTS.get((maker, part), f"arm64 {maker:#04x}:{part:#05x}")


def _nodes(root: Path) -> tuple[NumaNode, ...]:
    """The NUMA nodes that engines can be on; nothing where nobody says."""
    return usable_numa_nodes(root, visible=os.environ.get(VISIBLE_NODES, ""))


def _numa_nodes(root: Path) -> int:
    """Count the NUMA nodes that have processors: the memory of some accelerators is a node without any (GB200)."""
    n_nodes = 0
    for path in (root / "sys/devices/system/node").glob("node[0-9]*"):
        try:
            n_nodes += bool((path / "cpulist").read_text().strip())
        except OSError:
            continue
    return n_nodes


def _cgroup_dir(root: Path) -> Path | None:
    """Find this process's cgroup v2 directory; None without one."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("0::"):
            # Beside version 1 (hybrid) the tree of version 2 lies one level down and has no limits of memory.
            base = root / "sys/fs/cgroup"
            directory = base / line[3:].lstrip("/")
            # Inside a container with its own cgroup namespace the path may not exist; its root is then the own one.
            return directory if directory.is_dir() else base
    return None


def _upwards(cgroup: Path | None) -> tuple[Path, ...]:
    """List a cgroup and those around it, up to the root of the tree."""
    found: list[Path] = []
    for directory in () if cgroup is None else (cgroup, *cgroup.parents):
        found.append(directory)
        if directory.name == "cgroup" and directory.parent.name == "fs":
            break
    return tuple(found)


def _read_limit(cgroup: Path | None, name: str) -> int | None:
    """Read a limit, the tightest on the way up to the root; None: unlimited or not to be read."""
    limits = [limit for directory in _upwards(cgroup) if (limit := _read_int(directory, name)) is not None]
    return min(limits, default=None)


def _read_int(directory: Path | None, name: str) -> int | None:
    """Read a number; None for `max`, or where there is none."""
    if directory is None:
        return None
    try:
        text = (directory / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _inactive_file_bytes(cgroup: Path) -> int:
    try:
        lines = (cgroup / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
