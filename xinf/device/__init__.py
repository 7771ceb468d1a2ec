"""What devices a host has, how far they are apart and what they are doing now.

Owns: the probes by vendor, the PCI gate before them, the inventory, the topology and the resident readers. Does not
own: what a device means to placement (xinf/scheduler) or which engine runs on it.

Invariants: no probe imports torch; nothing of a vendor runs in the process that asks (a driver that hangs or crashes
costs one child and leaves a typed record, or one late reading); identity is the UUID, never the index; what is not
known is None, never 0; the inventory reads no metric and a sample reads no inventory.

Names are loaded on first use: the children import this package too and need no event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xinf.core.first_use import names_on_first_use

if TYPE_CHECKING:
    from xinf.device.host_memory import HostMemory, read_host_memory
    from xinf.device.inventory import read_host, read_inventory
    from xinf.device.numa import NumaNode, count_numa_nodes, usable_numa_nodes
    from xinf.device.pci import PciFunction, find_pci_functions
    from xinf.device.probe import IN_PROCESS, PROBES, EventProbe, LinkProbe, Probe, ProcessProbe
    from xinf.device.reading import DeviceProcess, Inventory, Reading
    from xinf.device.stream import ReadingStream, read_once
    from xinf.device.topology import overlay, read_topology

_MODULES = {
    "host_memory": ("HostMemory", "read_host_memory"),
    "inventory": ("read_host", "read_inventory"),
    "numa": ("NumaNode", "count_numa_nodes", "usable_numa_nodes"),
    "pci": ("PciFunction", "find_pci_functions"),
    "probe": ("IN_PROCESS", "PROBES", "EventProbe", "LinkProbe", "Probe", "ProcessProbe"),
    "reading": ("DeviceProcess", "Inventory", "Reading"),
    "stream": ("ReadingStream", "read_once"),
    "topology": ("overlay", "read_topology"),
}
__getattr__ = names_on_first_use(__name__, _MODULES)


__all__ = [
    "IN_PROCESS",
    "PROBES",
    "DeviceProcess",
    "EventProbe",
    "HostMemory",
    "Inventory",
    "LinkProbe",
    "NumaNode",
    "PciFunction",
    "Probe",
    "ProcessProbe",
    "Reading",
    "ReadingStream",
    "count_numa_nodes",
    "find_pci_functions",
    "overlay",
    "read_host",
    "read_host_memory",
    "read_inventory",
    "read_once",
    "read_topology",
    "usable_numa_nodes",
]
