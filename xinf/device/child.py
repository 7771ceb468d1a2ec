"""What the children do: ask one vendor's probe and write the answer to standard output, a line of JSON each.

A resident child lives as long as somebody reads: the kernel ends it with its parent, and where it does not (macOS), a
write to a closed pipe does, an interval later. A library that fails is not asked twice by the same process, because
after a driver upgrade only a new process loads the new library: the child says why and ends.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import msgspec

from xinf.core.device import Topology, Vendor
from xinf.device.parent_death import die_with_parent
from xinf.device.probe import PROBES, EventProbe, LinkProbe, read_vendor
from xinf.device.reading import Inventory, Reading
from xinf.device.tool import time_for_tools


class LineWriter:
    """Writes to what was standard output, which from now on is standard error: libraries print what they like."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._writing = threading.Lock()  # the events' thread writes whole lines between those of the samples

    def write(self, content: Inventory | Reading) -> None:
        """Write one line at once; end the process if nobody reads, or if it was the word of a library that failed."""
        try:
            with self._writing:
                self._file.write(msgspec.json.encode(content) + b"\n")
                self._file.flush()
        except BrokenPipeError:
            end_at_once()
        if isinstance(content, Reading) and content.fault is not None:
            end_at_once()


def print_inventory(vendor: str, root: Path, tools_s: float) -> None:
    """Write one vendor's devices and their links; its tools have `tools_s` together."""
    die_with_parent()
    writer, probe = LineWriter(), PROBES[Vendor(vendor)]
    with time_for_tools(tools_s):
        devices = probe.inventory(root)
        topology = _read_links(probe, root) if isinstance(probe, LinkProbe) and len(devices) > 1 else Topology()
    writer.write(Inventory(devices=devices, topology=topology))


def _read_links(probe: LinkProbe, root: Path) -> Topology:
    """Ask for the vendor's own distances; devices whose links cannot be read are listed all the same."""
    try:
        return probe.topology(root)
    except Exception:  # whatever a binding raises: the PCI bus tells distances too
        return Topology()


def print_readings(vendor: str, interval_s: float, root: Path, tools_s: float) -> None:
    """Write one vendor's readings until nobody reads them or its library fails; for each, its tools have `tools_s`."""
    die_with_parent()
    name, writer = Vendor(vendor), LineWriter()
    probe = PROBES[name]
    # The first reading loads the library, before a second thread may want it too.
    writer.write(_read(name, root, tools_s))
    is_over = threading.Event()
    if isinstance(probe, EventProbe):
        threading.Thread(target=_tell_events, args=(name, probe, root, writer, is_over), daemon=True).start()
    while not is_over.wait(interval_s):
        writer.write(_read(name, root, tools_s))
    end_at_once()


def _read(vendor: Vendor, root: Path, tools_s: float) -> Reading:
    with time_for_tools(tools_s):
        return read_vendor(vendor, root)


def _tell_events(vendor: Vendor, probe: EventProbe, root: Path, writer: LineWriter, is_over: threading.Event) -> None:
    """Write events until one says that the driver changes; a library that fails here is begun anew as well."""
    try:
        for event in probe.watch(root):
            writer.write(Reading(vendor=vendor, events=(event,)))
            if event.kind == "driver":
                is_over.set()
                return
    except Exception:
        is_over.set()  # the samples say what is wrong, if anything is: a child that ends so is one miss


def end_at_once() -> None:
    """End without the interpreter's farewell: a library may hang or crash in it, and its last flush would complain."""
    os._exit(0)
