"""The processor as a device: cores this process may use, memory it may fill, instruction sets that engines care about.

Everything is read from /proc and /sys below an injectable root; limits of a cgroup v2 beat what the machine has.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from pathlib import Path

from xinf.core.device import Device, Sample, Vendor

# What vLLM's CPU backend and its matrix libraries choose kernels by.
_ISA = (
    *("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "bf16", "i8mm", "sve", "sve2"),
)


class CpuProbe:
    """Describes the host's processors as one device."""

    def is_present(self, root: Path) -> bool:  # noqa: ARG002 - the protocol's
        return True

    def inventory(self, root: Path) -> tuple[Device, ...]:
        cgroup = _cgroup_dir(root)
        memory = _meminfo(root).get("MemTotal")
        limit = _read_limit(cgroup, "memory.max")
        bounds = [value for value in (memory, limit) if value is not None]
        nodes = _numa_nodes(root)
        extra: dict[str, str | int] = {"cores": _usable_cores(cgroup), "numa_nodes": max(1, nodes)}
        name, flags = _cpuinfo(root)
        if isa := [flag for flag in _ISA if flag in flags]:
            extra["isa"] = " ".join(isa)
        device = Device(
            vendor=Vendor.CPU,
            index=0,
            uuid=host_uuid(root),
            name=name or platform.processor() or platform.machine(),
            arch=platform.machine(),
            memory_bytes=min(bounds) if bounds else None,
            extra=extra,
        )
        return (device,)

    def sample(self, root: Path) -> tuple[Sample, ...]:
        cgroup = _cgroup_dir(root)
        memory = _meminfo(root)
        total, free = memory.get("MemTotal"), memory.get("MemAvailable")
        limit, used = _read_limit(cgroup, "memory.max"), _read_limit(cgroup, "memory.current")
        if limit is not None and used is not None:
            # Page cache counts into memory.current but is given back under pressure, as MemAvailable knows.
            used = max(0, used - _inactive_file_bytes(cgroup))
            free = max(0, limit - used) if free is None else min(free, max(0, limit - used))
            total = limit if total is None else min(total, limit)
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
    cores = len(os.sched_getaffinity(0))
    if cgroup is None:
        return cores
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def _meminfo(root: Path) -> dict[str, int]:
    """Read /proc/meminfo in bytes; empty where there is none (macOS)."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, int] = {}
    for line in lines:
        key, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            found[key] = int(words[0]) * 1024
    return found


def _cpuinfo(root: Path) -> tuple[str, frozenset[str]]:
    """Read the model name and the flags of the first processor (`flags` on x86, `Features` on arm64)."""
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "", frozenset()
    name, flags = "", frozenset[str]()
    for line in lines:
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name" and not name:
            name = " ".join(value.split())
        elif key in ("flags", "Features") and not flags:
            flags = frozenset(value.split())
    return name, flags


def _numa_nodes(root: Path) -> int:
    directory = root / "sys/devices/system/node"
    return len([path for path in directory.glob("node[0-9]*") if path.is_dir()])


def _cgroup_dir(root: Path) -> Path | None:
    """Find this process's cgroup v2 directory; None without one."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("0::"):
            directory = root / "sys/fs/cgroup" / line[3:].lstrip("/")
            # Inside a container with its own cgroup namespace the path may not exist; its root is then the own one.
            return directory if directory.is_dir() else root / "sys/fs/cgroup"
    return None


def _read_limit(cgroup: Path | None, name: str) -> int | None:
    """Read a limit, the tightest on the way up to the root; None: unlimited or not to be read."""
    if cgroup is None:
        return None
    tightest: int | None = None
    for directory in (cgroup, *cgroup.parents):
        try:
            text = (directory / name).read_text().strip()
        except OSError:
            if directory.name == "cgroup":
                break
            continue
        if text.isdigit() and (tightest is None or int(text) < tightest):
            tightest = int(text)
        if name == "memory.current" or directory.name == "cgroup":
            break
    return tightest


def _inactive_file_bytes(cgroup: Path | None) -> int:
    if cgroup is None:
        return 0
    try:
        lines = (cgroup / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
