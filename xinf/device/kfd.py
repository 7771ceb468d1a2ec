"""Compute devices as the kernel's KFD driver lists them: AMD's, and Hygon's, whose driver is a fork of it.

    /sys/class/kfd/kfd/topology/nodes/N/gpu_id                   0: a processor
                                       /properties               `key value` lines; no units, decimal
                                       /mem_banks/K/properties
                                       /io_links/K/properties
    /sys/class/kfd/kfd/proc/PID/vram_<gpu_id>                    bytes

These are files of the driver: no library to load, none to hang, the same layout since Linux 4.13. Not all nodes are
open to a process in a container: some cannot be read, others have a /dev/dri/renderD* that is not there. ROCr counts
neither.
Sources: Linux drivers/gpu/drm/amd/amdkfd/kfd_topology.c; ROCR-Runtime libhsakmt/src/topology.c.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from xinf.device.tool import FormatError

_NODES = "sys/class/kfd/kfd/topology/nodes"
_PROCESSES = "sys/class/kfd/kfd/proc"
_VRAM_HEAPS = (1, 2)  # HSA_HEAPTYPE_FRAME_BUFFER_PUBLIC and _PRIVATE
_XGMI = 11  # HSA_IOLINK_TYPE_XGMI


class KfdNode(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU node. A card in partition mode (MI300X in CPX) has one node per partition."""

    number: int  # of its directory; io_links name it by this
    gpu_id: int  # names the GPU in proc/PID
    ordinal: int | None  # among the GPU nodes that are open, from 0: what ROCr and HIP count by; None: it is not open
    pci: str  # "0000:83:00.0"; of a partition with the function that the driver gave it
    partition: int
    arch: str | None  # "gfx942"
    unique_id: int | None
    memory_bytes: int | None
    render_minor: int | None  # of /dev/dri/renderD<minor>
    linked: tuple[int, ...]  # numbers of the nodes that an xGMI link leads to


def read_nodes(root: Path = Path("/")) -> tuple[KfdNode, ...]:
    """List the GPU nodes that this process may use, in KFD's order; none without the driver. Raises: FormatError."""
    directory = root / _NODES
    if not directory.is_dir():
        return ()
    nodes: list[KfdNode] = []
    n_open = 0
    for entry in sorted(directory.iterdir(), key=lambda path: int(path.name) if path.name.isdigit() else -1):
        try:
            gpu_id = int((entry / "gpu_id").read_text().strip() or 0)
            properties = _read_properties(entry) if gpu_id else {}
        except (OSError, ValueError):  # EPERM: another container's
            continue
        if gpu_id:
            is_open = _is_open(properties.get("drm_render_minor", 0), root)
            nodes.append(_describe(entry, properties, gpu_id=gpu_id, ordinal=n_open if is_open else None))
            n_open += is_open
    return tuple(nodes)


class KfdProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process that computes through KFD, and what it holds of one GPU."""

    pid: int  # as the host counts
    gpu_id: int
    memory_bytes: int


def read_processes(root: Path = Path("/")) -> tuple[KfdProcess, ...]:
    """List who holds memory of which GPU. Raises: FormatError."""
    found: list[KfdProcess] = []
    for path in sorted((root / _PROCESSES).glob("[0-9]*/vram_[0-9]*")):
        try:
            text = path.read_text().strip()
        except OSError:
            continue  # it has ended
        if not text.isdecimal():
            raise FormatError(f"KFD proc/{path.parent.name}/{path.name}: {text[:80]!r} is not a number")
        if int(text):
            gpu_id = int(path.name.removeprefix("vram_"))
            found.append(KfdProcess(pid=int(path.parent.name), gpu_id=gpu_id, memory_bytes=int(text)))
    return tuple(found)


def arch_of_version(version: int) -> str | None:
    """Write KFD's gfx_target_version as compilers do: 90402 is gfx942, 90010 is gfx90a, 110501 is gfx1151."""
    if version <= 0:
        return None
    major, minor, stepping = version // 10000, version // 100 % 100, version % 100
    return f"gfx{major}{minor:x}{stepping:x}"


def _describe(entry: Path, properties: dict[str, int], *, gpu_id: int, ordinal: int | None) -> KfdNode:
    location = properties.get("location_id")
    if location is None:
        raise FormatError(f"KFD node {entry.name} has no location_id but {', '.join(sorted(properties)) or 'nothing'}")
    bus, device, function = location >> 8 & 0xFF, location >> 3 & 0x1F, location & 0x7
    return KfdNode(
        number=int(entry.name),
        gpu_id=gpu_id,
        ordinal=ordinal,
        pci=f"{properties.get('domain', 0):04x}:{bus:02x}:{device:02x}.{function:x}",
        partition=location >> 28 & 0xF or function,  # older drivers count partitions in the function
        arch=arch_of_version(properties.get("gfx_target_version", 0)),
        unique_id=properties.get("unique_id") or None,
        memory_bytes=_read_vram_bytes(entry),
        render_minor=properties.get("drm_render_minor") or None,
        linked=_read_xgmi(entry),
    )


def _is_open(minor: int, root: Path) -> bool:
    """Whether ROCr will get at a node; a driver that does not say which render node is its own is believed."""
    return not minor or os.access(root / f"dev/dri/renderD{minor}", os.R_OK | os.W_OK)


def _read_vram_bytes(entry: Path) -> int | None:
    sizes: list[int] = []
    for bank in _entries(entry / "mem_banks"):
        properties = _read_properties(bank)
        if properties.get("heap_type") in _VRAM_HEAPS:
            sizes.append(properties.get("size_in_bytes", 0))
    return sum(sizes) or None


def _read_xgmi(entry: Path) -> tuple[int, ...]:
    links = [_read_properties(link) for link in _entries(entry / "io_links")]
    return tuple(sorted({link["node_to"] for link in links if link.get("type") == _XGMI and "node_to" in link}))


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _read_properties(entry: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in (entry / "properties").read_text().splitlines():
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not words[1].lstrip("-").isdecimal():
            raise FormatError(f"KFD {entry.parent.name}/{entry.name}/properties: {line!r} is not `key number`")
        found[words[0]] = int(words[1])
    return found
