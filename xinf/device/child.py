"""What the children do: ask one vendor's probe and write the answer to standard output, a line of JSON each.

A resident child lives as long as somebody reads: a write to a closed pipe ends it, so it never outlives its reader by
more than an interval. A library that fails is not asked twice by the same process, because after a driver upgrade only
a new process loads the new library: the child says why and ends.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import msgspec

from xinf.core.device import Vendor
from xinf.device.probe import PROBES, EventProbe, LinkProbe, Probe, ProcessProbe
from xinf.device.reading import Inventory, Reading

_writing = threading.Lock()  # the events' thread writes whole lines between those of the samples


def print_inventory(vendor: str, root: Path) -> None:
    """Write one vendor's devices and their links."""
    probe = PROBES[Vendor(vendor)]
    devices = probe.inventory(root)
    if isinstance(probe, LinkProbe) and len(devices) > 1:
        write_line(Inventory(devices=devices, topology=probe.topology(root)))
    else:
        write_line(Inventory(devices=devices))


def print_readings(vendor: str, interval_s: float, root: Path) -> None:
    """Write one vendor's readings until nobody reads them or its library fails."""
    name = Vendor(vendor)
    probe = PROBES[name]
    # The first reading loads the library, before a second thread may want it too.
    write_line(_read(name, probe, root))
    is_over = threading.Event()
    if isinstance(probe, EventProbe):
        threading.Thread(target=_tell_events, args=(name, probe, root, is_over), daemon=True).start()
    while not is_over.wait(interval_s):
        write_line(_read(name, probe, root))
    _end()


def write_line(content: Inventory | Reading) -> None:
    """Write one line at once; end the process if nobody reads, or if it was the word of a library that failed."""
    line = msgspec.json.encode(content) + b"\n"
    try:
        with _writing:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        _end()
    if isinstance(content, Reading) and content.fault is not None:
        _end()


def _read(vendor: Vendor, probe: Probe, root: Path) -> Reading:
    try:
        samples = probe.sample(root)
        processes = probe.processes(root) if isinstance(probe, ProcessProbe) else ()
    except Exception as error:  # the edge of this process: whatever a binding raises is the reason that people are told
        return Reading(vendor=vendor, fault=str(error) or type(error).__name__)
    return Reading(vendor=vendor, samples=samples, processes=processes)


def _tell_events(vendor: Vendor, probe: EventProbe, root: Path, is_over: threading.Event) -> None:
    """Write events until one says that the driver changes; a library that fails here is begun anew as well."""
    try:
        for event in probe.watch(root):
            write_line(Reading(vendor=vendor, events=(event,)))
            if event.kind == "driver":
                is_over.set()
                return
    except Exception:
        is_over.set()  # the samples say what is wrong, if anything is: a child that ends so is one miss


def _end() -> None:
    """End without the interpreter's farewell: a library's threads may hang, and its last flush would complain."""
    os._exit(0)
