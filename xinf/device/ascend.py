"""Ascend NPUs: DCMI of the driver, then `npu-smi`, then what the PCI bus shows.

An engine is confined by the logic id (ASCEND_RT_VISIBLE_DEVICES), which only the driver knows: it is taken from DCMI or
from `npu-smi info -m`, never from a position in a list. /dev/davinciN is numbered by the physical id, another number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from xinf.core.device import Distance, Topology, Vendor
from xinf.device import ascend_tool
from xinf.device.ascend_library import Dcmi
from xinf.device.library import LibraryError
from xinf.device.pci import PciFunction, find_pci_functions
from xinf.device.roster import Listing
from xinf.device.roster_probe import RosterProbe
from xinf.device.started_library import StartedLibrary
from xinf.device.tool import ToolError
from xinf.device.way import Way

# In servers of the same maker, with the same PCI vendor: the display of the management processor, and the compression
# engines of Kunpeng processors, which have the class of accelerators. Source of those: Linux, hisilicon/zip/zip_main.c.
_OTHERS = (0x1711, 0xA250, 0xA251)
_TOOLKIT = "usr/local/Ascend/ascend-toolkit/latest"


class AscendProbe(RosterProbe):
    """Asks DCMI; where it does not start, npu-smi; cards that neither lists are recorded by their bus address."""

    vendor = Vendor.ASCEND
    nodes = "davinci"

    def __init__(self) -> None:
        self._library = StartedLibrary(Dcmi)

    def functions(self, root: Path) -> tuple[PciFunction, ...]:
        found = find_pci_functions(root, self.vendor)
        return tuple(function for function in found if function.device_id not in _OTHERS)

    def is_present(self, root: Path) -> bool:
        # Containers and modules (Atlas 200) may show the device nodes only.
        return super().is_present(root) or (root / "dev/davinci_manager").exists()

    def inventory_ways(self, root: Path) -> Sequence[Way]:
        return [
            Way("DCMI", lambda: self._library.start(root).inventory()),
            Way("npu-smi", lambda: Listing(ascend_tool.read_cards(root), may_be_cut=True)),
        ]

    def sample_ways(self, root: Path) -> Sequence[Way]:
        return [
            Way("DCMI", lambda: self._library.start(root).states()),
            Way("npu-smi", lambda: Listing(ascend_tool.read_states(root))),
        ]

    def runtime(self, root: Path) -> str | None:
        """Read the version of CANN, if it is installed where its packages put it."""
        for path in sorted((root / _TOOLKIT).glob("*-linux/ascend_toolkit_install.info")):
            try:
                match = re.search(r"^version=(\S+)$", path.read_text(), re.MULTILINE)
            except (OSError, UnicodeDecodeError):
                continue
            if match is not None:
                return match[1]
        return None

    def topology(self, root: Path) -> Topology:
        """Tell how far the NPUs are apart: HCCS, the bus between two dies and UB are links."""
        ways: tuple[Callable[[], tuple[tuple[str, str, Distance], ...]], ...] = (
            lambda: self._library.start(root).distances(),
            lambda: ascend_tool.read_distances(root, self.listed(root)),
        )
        for read in ways:
            try:
                pairs = read()
            except (LibraryError, ToolError):
                continue
            if pairs:
                return Topology(pairs=tuple(sorted((min(a, b), max(a, b), distance) for a, b, distance in pairs)))
        return Topology()
