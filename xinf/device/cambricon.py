"""Cambricon MLUs: cndev of the driver, then `cnmon`, then what the PCI bus shows.

An engine is confined by the card number (MLU_VISIBLE_DEVICES), which is cndev's and cnmon's own; both tell it together
with the bus address, so that it is never guessed from the order on the bus.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from xinf.core.device import Topology, Vendor
from xinf.device.cambricon_card import identify, read_places
from xinf.device.cambricon_library import Cndev
from xinf.device.cambricon_tool import FILE, parse_json, parse_table, parse_text
from xinf.device.library import LibraryError
from xinf.device.roster import Card, Listing
from xinf.device.roster_probe import RosterProbe
from xinf.device.started_library import StartedLibrary
from xinf.device.vendor_tool import Form, VendorTool
from xinf.device.way import Way

_TIMEOUT_S = 4.0  # three times within the deadline of an inventory
_NEUWARE = "/usr/local/neuware"


class CambriconProbe(RosterProbe):
    """Asks cndev; where it does not start, cnmon; cards that neither lists are recorded by their bus address."""

    vendor = Vendor.CAMBRICON
    nodes = "cambricon_dev"

    def __init__(self, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._library = StartedLibrary(Cndev)
        self._tool = VendorTool(
            names=("cnmon",),
            directories=("/usr/bin", "/usr/local/bin", "/usr/local/neuware/bin"),
            remedy="install the Cambricon driver",
            timeout_s=timeout_s,
        )

    def is_present(self, root: Path) -> bool:
        # A container may show the nodes only.
        return super().is_present(root) or (root / "dev/cambricon_ctl").exists()

    def inventory_ways(self, root: Path) -> Sequence[Way]:
        return [Way("cndev", lambda: Listing(self._library.start(root).inventory())), *self._tool_ways(root)]

    def sample_ways(self, root: Path) -> Sequence[Way]:
        return [Way("cndev", lambda: Listing(self._library.start(root).states())), *self._tool_ways(root)]

    def place(self, cards: Sequence[Card], root: Path) -> Sequence[Card]:
        """Give cards of a table without addresses those that the kernel's driver has for their numbers.

        Where it tells none, the one card that is listed sits where the one on the bus is.
        """
        if all(card.pci is not None for card in cards):
            return cards
        places, functions = dict(read_places(root)), self.functions(root)
        if len(cards) == len(functions) == 1 and not places:
            places = {number: functions[0].address for number in (cards[0].number,) if number is not None}
        return [_put(card, places.get(card.number or 0)) for card in cards]

    def runtime(self, root: Path) -> str | None:
        """Read the version of Neuware, where its variable says or its packages put it."""
        home = os.environ.get("NEUWARE_HOME", _NEUWARE)
        try:
            match = re.search(r"\d+(?:\.\d+)+", (root / home.lstrip("/") / "version.txt").read_text())
        except (OSError, UnicodeDecodeError):
            return None
        return match[0] if match is not None else None

    def topology(self, root: Path) -> Topology:
        """Tell how far the cards are apart. Only cndev does: what `cnmon topo` prints was seen in pictures only."""
        try:
            pairs = self._library.start(root).distances()
        except LibraryError:
            return Topology()
        return Topology(pairs=tuple(sorted((min(a, b), max(a, b), distance) for a, b, distance in pairs)))

    def _tool_ways(self, root: Path) -> list[Way]:
        return self._tool.ways(
            root,
            Form(arguments=("info", "-j"), parse=parse_json, output=FILE, may_be_cut=False),
            Form(arguments=("info",), parse=parse_text),
            Form(parse=parse_table),
        )


def _put(card: Card, address: str | None) -> Card:
    if card.pci is not None or address is None or card.number is None:
        return card
    return msgspec.structs.replace(card, pci=address, uuid=identify(card.number, address))
