"""How far devices are apart on the PCI bus, read from where sysfs keeps them; what the vendors know lies over it.

    /sys/devices/pci0000:16/0000:16:01.0/0000:17:00.0/0000:18:00.0/0000:19:00.0     a GPU below a switch
                 │           │            │            └ the switch's port down to it
                 │           │            └ the switch's port up
                 │           └ root port
                 └ host bridge

    the paths part below                  distance
    a port up of a switch, at once        PIX     one bridge on either way
    any other bridge                      PXB
    a host bridge                         PHB
    nothing in common                     NODE or SYS, by the kernel's NUMA nodes

Source of the levels: `nvidia-smi topo -m` and NVML's nvmlGpuTopologyLevel_t, whose numbers Distance has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

from xinf.core.device import Device, Distance, Topology


def read_topology(devices: Sequence[Device], root: Path = Path("/")) -> Topology:
    """Measure the distances of all devices that are on the PCI bus, in O(devices²).

    Pairs are left out where the kernel does not tell, and those of one card: the instances of a split one.
    """
    placed = sorted({device.uuid: device for device in devices if device.pci}.items())
    paths = {uuid: _bus_path(str(device.pci), root) for uuid, device in placed}
    has_one_node = _has_one_node(root)
    pairs: list[tuple[str, str, Distance]] = []
    for (first, a), (second, b) in combinations(placed, 2):
        if a.pci == b.pci:
            continue
        distance = _bus_distance(paths[first], paths[second]) or _node_distance(a, b, has_one_node=has_one_node)
        if distance is not None:
            pairs.append((first, second, distance))
    return Topology(pairs=tuple(pairs))


def overlay(base: Topology, *better: Topology) -> Topology:
    """Lay what vendors know over what the bus shows; a pair of theirs replaces that of the bus."""
    found = {(first, second): distance for first, second, distance in _all_pairs((base, *better))}
    return Topology(pairs=tuple((first, second, distance) for (first, second), distance in sorted(found.items())))


def make_topology(distances: Iterable[tuple[str, str, Distance]]) -> Topology:
    """Make a topology of pairs in any order of their devices."""
    return overlay(Topology(pairs=tuple((min(a, b), max(a, b), distance) for a, b, distance in distances)))


def _all_pairs(topologies: Sequence[Topology]) -> Iterable[tuple[str, str, Distance]]:
    return (pair for topology in topologies for pair in topology.pairs)


def _bus_path(address: str, root: Path) -> tuple[str, ...]:
    """Name what lies between the host bridge and the device, both included; empty where sysfs does not show it."""
    try:
        parts = (root / "sys/bus/pci/devices" / address).resolve(strict=True).parts
    except OSError:
        return ()
    bridges = [number for number, part in enumerate(parts) if part.startswith("pci") and ":" in part]
    return parts[bridges[0] :] if bridges else ()


def _bus_distance(a: tuple[str, ...], b: tuple[str, ...]) -> Distance | None:
    """Compare two paths; None where they have nothing in common or one is not known."""
    n_common = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        n_common += 1
    if n_common == 0:
        return None
    if n_common == 1:
        return Distance.PHB
    # Down from the last bridge in common: at most the switch's own port, then the device.
    return Distance.PIX if max(len(a), len(b)) - n_common <= 2 else Distance.PXB


def _node_distance(a: Device, b: Device, *, has_one_node: bool) -> Distance | None:
    if has_one_node:
        return Distance.NODE
    if a.numa is None or b.numa is None:
        return None
    return Distance.NODE if a.numa == b.numa else Distance.SYS


def _has_one_node(root: Path) -> bool:
    """Whether the host has no more than one NUMA node; a kernel that shows none does not say so.

    Nodes without processors do not count: they are the memory of cards (GH200 and GB200 have one or more for each).
    """
    directory = root / "sys/devices/system/node"
    return len([path for path in directory.glob("node[0-9]*") if _has_processors(path)]) == 1


def _has_processors(node: Path) -> bool:
    try:
        return bool((node / "cpulist").read_text().strip())
    except OSError:
        return False
