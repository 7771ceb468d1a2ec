"""What devices a host has and what they are doing now.

Owns: the probes by vendor, the PCI gate before them, the inventory and the sampling helper. Does not own: what a
device means to placement (xinf/scheduler) or which engine runs on it.

Invariants: no probe imports torch or runs in the process that asks (a driver that hangs or crashes costs one child and
leaves a typed record); identity is the UUID, never the index; what is not known is None, never 0; the inventory reads
no metric and a sample reads no inventory.
"""

from xinf.device.inventory import read_inventory
from xinf.device.pci import PciFunction, find_pci_functions
from xinf.device.probe import PROBES, Probe
from xinf.device.process_memory import ProcessMemory, read_process_memory
from xinf.device.sampler import SampleStream

__all__ = [
    "PROBES",
    "PciFunction",
    "Probe",
    "ProcessMemory",
    "SampleStream",
    "find_pci_functions",
    "read_inventory",
    "read_process_memory",
]
