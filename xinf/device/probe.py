"""What a vendor's probe must offer, and which probes there are.

A new vendor is one module with a class of this shape and one line in PROBES. Probes run only in the children that
`inventory` and `stream` start, so they may load libraries that hang, crash or leave threads behind; those in IN_PROCESS
read nothing but files and run where they are asked. A module here loads no vendor library when it is imported, however
small its binding: `is_present` is asked on every host.

    Probe         devices and samples; every vendor
    LinkProbe     also which devices have a link of their own
    EventProbe    also tells what happens to them
    ProcessProbe  also whose processes hold how much memory
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from xinf.core.device import Device, DeviceEvent, Sample, Topology, Vendor
from xinf.device.amd import AmdProbe
from xinf.device.apple import AppleProbe
from xinf.device.ascend import AscendProbe
from xinf.device.cambricon import CambriconProbe
from xinf.device.cpu import CpuProbe
from xinf.device.enflame import EnflameProbe
from xinf.device.hygon import HygonProbe
from xinf.device.intel import IntelProbe
from xinf.device.kunlunxin import KunlunxinProbe
from xinf.device.mthreads import MthreadsProbe
from xinf.device.nvidia import NvidiaProbe
from xinf.device.reading import DeviceProcess, Reading


class Probe(Protocol):
    """One vendor's way to find and read its devices."""

    def is_present(self, root: Path) -> bool:
        """Say cheaply, from files alone, whether asking the vendor's library makes sense."""

    def inventory(self, root: Path) -> tuple[Device, ...]:
        """List the devices, in bus order, with those that have no working driver; read no metric."""

    def sample(self, root: Path) -> tuple[Sample, ...]:
        """Read what the devices are doing now; what cannot be read is None.

        May raise: the message then tells people why nothing can be read, and a new child tries again.
        """


@runtime_checkable
class LinkProbe(Probe, Protocol):
    """A vendor that knows more of distances than the PCI bus shows."""

    def topology(self, root: Path) -> Topology:
        """List the pairs of devices whose distance the vendor tells; it beats what the bus says."""


@runtime_checkable
class EventProbe(Probe, Protocol):
    """A vendor whose library tells what happens to its devices."""

    def watch(self, root: Path) -> Iterator[DeviceEvent]:
        """Yield events as they come. Runs in a thread of its own and blocks; ends where there is nothing to wait for.

        A `driver` event is the last: the child lets go of the driver and a new one begins.
        """


@runtime_checkable
class ProcessProbe(Probe, Protocol):
    """A vendor whose library tells which processes hold memory of its devices."""

    def processes(self, root: Path) -> tuple[DeviceProcess, ...]:
        """List them, as far as they can be told."""


PROBES: dict[Vendor, Probe] = {
    Vendor.NVIDIA: NvidiaProbe(),
    Vendor.AMD: AmdProbe(),
    Vendor.INTEL: IntelProbe(),
    Vendor.APPLE: AppleProbe(),
    Vendor.ASCEND: AscendProbe(),
    Vendor.CAMBRICON: CambriconProbe(),
    Vendor.ENFLAME: EnflameProbe(),
    Vendor.MTHREADS: MthreadsProbe(),
    Vendor.HYGON: HygonProbe(),
    Vendor.KUNLUNXIN: KunlunxinProbe(),
    Vendor.CPU: CpuProbe(),
}
# Files of the kernel only: these cannot hang on a driver, and a child would cost more than all that they read.
IN_PROCESS = frozenset({Vendor.CPU})


def read_vendor(vendor: Vendor, root: Path) -> Reading:
    """Read one vendor's devices once; a probe that raises is a reading with the reason."""
    probe = PROBES[vendor]
    try:
        samples = probe.sample(root)
        processes = probe.processes(root) if isinstance(probe, ProcessProbe) else ()
    except Exception as error:  # whatever a binding raises is the reason that people are told
        return Reading(vendor=vendor, fault=str(error) or type(error).__name__)
    return Reading(vendor=vendor, samples=samples, processes=processes)
