"""What the children say to the process that asks: one answer of an inventory, a line of a resident reader."""

from __future__ import annotations

import msgspec

from xinf.core.device import Device, DeviceEvent, Sample, Topology, Vendor


class DeviceProcess(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One process that holds memory of a device, as the driver tells."""

    uuid: str
    pid: int  # in the driver's own namespace: of another container's process it names nobody here
    memory_bytes: int | None = None


class Inventory(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The devices of one vendor or of the whole host, and how far apart they are."""

    devices: tuple[Device, ...] = ()
    topology: Topology = Topology()
    # Vendors that did not answer, and why: of what they have, only what the bus shows is in `devices`.
    silent: dict[Vendor, str] = {}


class Reading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was read of one vendor's devices at one time."""

    vendor: Vendor
    samples: tuple[Sample, ...] = ()
    events: tuple[DeviceEvent, ...] = ()
    processes: tuple[DeviceProcess, ...] = ()
    fault: str | None = None  # why nothing could be read, with the remedy
    # How often in a row the reader was silent beyond its deadline, or ended without a word.
    misses: int = 0
