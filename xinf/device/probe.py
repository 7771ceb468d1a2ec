"""What a vendor's probe must offer, and which probes there are.

A new vendor is one module with a class of this shape and one line in PROBES. Probes run only in the children that
`inventory` and `sampler` start, so they may load libraries that hang, crash or leave threads behind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from xinf.core.device import Device, Sample, Vendor
from xinf.device.cpu import CpuProbe
from xinf.device.enflame import EnflameProbe
from xinf.device.kunlunxin import KunlunxinProbe
from xinf.device.mthreads import MthreadsProbe
from xinf.device.nvidia import NvidiaProbe


class Probe(Protocol):
    """One vendor's way to find and read its devices."""

    def is_present(self, root: Path) -> bool:
        """Say cheaply, from files alone, whether asking the vendor's library makes sense."""

    def inventory(self, root: Path) -> tuple[Device, ...]:
        """List the devices, in bus order, with those that have no working driver; read no metric."""

    def sample(self, root: Path) -> tuple[Sample, ...]:
        """Read what the devices are doing now; what cannot be read is None."""


PROBES: dict[Vendor, Probe] = {
    Vendor.NVIDIA: NvidiaProbe(),
    Vendor.ENFLAME: EnflameProbe(),
    Vendor.MTHREADS: MthreadsProbe(),
    Vendor.KUNLUNXIN: KunlunxinProbe(),
    Vendor.CPU: CpuProbe(),
}
