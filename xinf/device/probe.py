"""What a vendor's probe must offer, and which probes there are.

A new vendor is one module with a class of this shape and one row in _HOMES. Probes run only in the children that
`inventory` and `stream` start, so they may load libraries that hang, crash or leave threads behind; those in IN_PROCESS
read nothing but files and run where they are asked.

A vendor's module is imported when its probe is asked for: a child loads its own vendor only, and a host without
accelerators none. So the first gate is here, and `is_present` is asked where it is open.

    Probe         devices and samples; every vendor
    LinkProbe     also which devices have a link of their own
    EventProbe    also tells what happens to them
    ProcessProbe  also whose processes hold how much memory
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import msgspec

from xinf.core.device import Device, DeviceEvent, Sample, Topology, Vendor
from xinf.device.pci import find_pci_functions
from xinf.device.presence import has_node
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


class _Home(msgspec.Struct, frozen=True):
    """Where a vendor's probe is."""

    module: str
    name: str
    is_here: bool = False  # whatever bus and device nodes show


_HOMES: dict[Vendor, _Home] = {
    Vendor.NVIDIA: _Home("nvidia", "NvidiaProbe"),
    Vendor.AMD: _Home("amd", "AmdProbe"),
    Vendor.INTEL: _Home("intel", "IntelProbe"),
    Vendor.APPLE: _Home("apple", "AppleProbe", is_here=sys.platform == "darwin"),
    Vendor.ASCEND: _Home("ascend", "AscendProbe"),
    Vendor.CAMBRICON: _Home("cambricon", "CambriconProbe"),
    Vendor.ENFLAME: _Home("enflame", "EnflameProbe"),
    Vendor.MTHREADS: _Home("mthreads", "MthreadsProbe"),
    Vendor.HYGON: _Home("hygon", "HygonProbe"),
    Vendor.KUNLUNXIN: _Home("kunlunxin", "KunlunxinProbe"),
    Vendor.CPU: _Home("cpu", "CpuProbe", is_here=True),
}


class _Probes(Mapping[Vendor, Probe]):
    """The probes by vendor, accelerators first; each is made when it is first asked for, and stays."""

    def __init__(self) -> None:
        self._made: dict[Vendor, Probe] = {}

    def __getitem__(self, vendor: Vendor) -> Probe:
        if vendor not in self._made:
            home = _HOMES[vendor]
            make = getattr(import_module(f"xinf.device.{home.module}"), home.name)
            self._made[vendor] = cast(Probe, make())
        return self._made[vendor]

    def __iter__(self) -> Iterator[Vendor]:
        return iter(_HOMES)

    def __len__(self) -> int:
        return len(_HOMES)


PROBES: Mapping[Vendor, Probe] = _Probes()
# Files of the kernel only: these cannot hang on a driver, and a child would cost more than all that they read.
IN_PROCESS = frozenset({Vendor.CPU})


def find_present(root: Path) -> tuple[Vendor, ...]:
    """List the vendors that make sense to ask on this host, accelerators first."""
    on_bus = {function.vendor for function in find_pci_functions(root)}
    return tuple(
        vendor
        for vendor, home in _HOMES.items()
        if (home.is_here or vendor in on_bus or has_node(vendor, root)) and PROBES[vendor].is_present(root)
    )


def read_vendor(vendor: Vendor, root: Path) -> Reading:
    """Read one vendor's devices once; a probe that raises is a reading with the reason."""
    probe = PROBES[vendor]
    try:
        samples = probe.sample(root)
        processes = probe.processes(root) if isinstance(probe, ProcessProbe) else ()
    except Exception as error:  # whatever a binding raises is the reason that people are told
        return Reading(vendor=vendor, fault=str(error) or type(error).__name__)
    return Reading(vendor=vendor, samples=samples, processes=processes)
