"""Enflame GCUs: libefml, then `efsmi -q`, then its table. Only the formats are tested; no card was at hand.

TOPS_VISIBLE_DEVICES counts as efsmi's DEV ID does, which is the library's index.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from xinf.core.device import Distance, Topology, Vendor
from xinf.device.enflame_library import Efml
from xinf.device.enflame_tool import parse_query, parse_table
from xinf.device.library import LibraryError
from xinf.device.pci import PciFunction
from xinf.device.roster import Card, name_by_place
from xinf.device.roster_probe import RosterProbe
from xinf.device.started_library import StartedLibrary
from xinf.device.vendor_tool import Form, VendorTool
from xinf.device.way import Way

_TIMEOUT_S = 5.0  # twice within the deadline of an inventory


class EnflameProbe(RosterProbe):
    """Asks libefml; where that does not answer, efsmi; where neither does, the PCI bus says which cards are there."""

    vendor = Vendor.ENFLAME
    nodes = "gcu"

    def __init__(self, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._library = StartedLibrary(Efml)
        self._tool = VendorTool(
            names=("efsmi",),
            directories=("/usr/bin", "/usr/local/bin", "/usr/local/efsmi"),
            remedy="install Enflame's driver package (TopsRider)",
            timeout_s=timeout_s,
        )

    def inventory_ways(self, root: Path) -> Sequence[Way]:
        return [Way("libefml", lambda: self._library.start(root).inventory()), *self._tool_ways(root)]

    def sample_ways(self, root: Path) -> Sequence[Way]:
        return [Way("libefml", lambda: self._library.start(root).states()), *self._tool_ways(root)]

    def place(self, cards: Sequence[Card], root: Path) -> Sequence[Card]:
        """Find the addresses that the table has cut to the last two digits of their domain."""
        functions = self.functions(root)
        return [_complete(card, functions) for card in cards]

    def topology(self, root: Path) -> Topology:
        """Say which cards a GCU-LARE link connects; efsmi's own topology is not read."""
        try:
            links = self._library.start(root).links()
        except LibraryError:
            return Topology()
        named = {frozenset(name_by_place(self.vendor, address) for address in link) for link in links}
        pairs = sorted(tuple(sorted(link)) for link in named if len(link) == 2)
        return Topology(pairs=tuple((first, second, Distance.LINK) for first, second in pairs))

    def _tool_ways(self, root: Path) -> list[Way]:
        return self._tool.ways(root, Form(arguments=("-q",), parse=parse_query), Form(parse=parse_table))


def _complete(card: Card, functions: Sequence[PciFunction]) -> Card:
    address = card.pci or ""
    found = [function.address for function in functions if function.address[2:] == address[2:]]
    if len(found) != 1 or found[0] == address:
        return card
    return msgspec.structs.replace(card, pci=found[0], uuid=name_by_place(Vendor.ENFLAME, found[0]))
