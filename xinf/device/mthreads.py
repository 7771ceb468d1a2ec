"""Moore Threads GPUs: libmtml, then `mthreads-gmi -q --json`, then its table. Only the formats are tested.

MUSA_VISIBLE_DEVICES counts as mthreads-gmi's ID does, which is the library's index.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xinf.core.device import Topology, Vendor
from xinf.device.library import LibraryError
from xinf.device.mthreads_library import Mtml
from xinf.device.mthreads_tool import parse_json, parse_table
from xinf.device.roster_probe import RosterProbe
from xinf.device.started_library import StartedLibrary
from xinf.device.vendor_tool import Form, VendorTool
from xinf.device.way import Way

_TIMEOUT_S = 5.0  # twice within the deadline of an inventory


class MthreadsProbe(RosterProbe):
    """Asks libmtml; where that does not answer, mthreads-gmi; where neither does, the PCI bus says what is there."""

    vendor = Vendor.MTHREADS
    nodes = "mtgpu."

    def __init__(self, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._library = StartedLibrary(Mtml)
        self._tool = VendorTool(
            names=("mthreads-gmi",),
            directories=("/usr/bin", "/usr/local/bin"),
            remedy="install the MUSA driver and the package mtml",
            timeout_s=timeout_s,
        )

    def inventory_ways(self, root: Path) -> Sequence[Way]:
        return [Way("libmtml", lambda: self._library.start(root).inventory()), *self._tool_ways(root)]

    def sample_ways(self, root: Path) -> Sequence[Way]:
        return [Way("libmtml", lambda: self._library.start(root).states()), *self._tool_ways(root)]

    def topology(self, root: Path) -> Topology:
        """Say how far the cards are apart; the tool's matrix is not read."""
        try:
            distances = self._library.start(root).distances()
        except LibraryError:
            return Topology()
        return Topology(pairs=tuple(sorted((*pair, distance) for pair, distance in distances)))

    def _tool_ways(self, root: Path) -> list[Way]:
        return self._tool.ways(
            root, Form(arguments=("-q", "--json"), parse=parse_json, may_be_cut=False), Form(parse=parse_table)
        )
