"""What devices a host has, how far they are apart and what they are doing now.

Owns: the probes by vendor, the PCI gate before them, the inventory, the topology and the resident readers. Does not
own: what a device means to placement (xinf/scheduler) or which engine runs on it.

Invariants: no probe imports torch; nothing of a vendor runs in the process that asks (a driver that hangs or crashes
costs one child and leaves a typed record, or one late reading); identity is the UUID, never the index; what is not
known is None, never 0; the inventory reads no metric and a sample reads no inventory.

Names are loaded on first use: the children import this package too and need no event loop.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xinf.device.inventory import read_host, read_inventory
    from xinf.device.pci import PciFunction, find_pci_functions
    from xinf.device.probe import IN_PROCESS, PROBES, EventProbe, LinkProbe, Probe, ProcessProbe
    from xinf.device.reading import DeviceProcess, Inventory, Reading
    from xinf.device.stream import ReadingStream
    from xinf.device.topology import overlay, read_topology

_HOME = {
    "IN_PROCESS": "probe",
    "PROBES": "probe",
    "DeviceProcess": "reading",
    "EventProbe": "probe",
    "Inventory": "reading",
    "LinkProbe": "probe",
    "PciFunction": "pci",
    "Probe": "probe",
    "ProcessProbe": "probe",
    "Reading": "reading",
    "ReadingStream": "stream",
    "find_pci_functions": "pci",
    "overlay": "topology",
    "read_host": "inventory",
    "read_inventory": "inventory",
    "read_topology": "topology",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


__all__ = [
    "IN_PROCESS",
    "PROBES",
    "DeviceProcess",
    "EventProbe",
    "Inventory",
    "LinkProbe",
    "PciFunction",
    "Probe",
    "ProcessProbe",
    "Reading",
    "ReadingStream",
    "find_pci_functions",
    "overlay",
    "read_host",
    "read_inventory",
    "read_topology",
]
