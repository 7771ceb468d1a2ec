"""Kunlunxin XPUs: libxpuml, then `xpu-smi -q`, `xpu-smi -m` and its table. Only the formats are tested.

XPU_VISIBLE_DEVICES (and CUDA_VISIBLE_DEVICES, which vLLM-Kunlun's documents set alike) counts as xpu-smi's id does.
`-q` prints no id, `-m` and the table do: they are joined by the bus address and the device node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from xinf.core.device import Topology, Vendor
from xinf.device.kunlunxin_library import Xpuml
from xinf.device.kunlunxin_tool import parse_machine, parse_query, parse_table, parse_topology
from xinf.device.library import LibraryError
from xinf.device.reading import DeviceProcess
from xinf.device.roster import Card, Listing, name_by_place
from xinf.device.roster_probe import RosterProbe
from xinf.device.started_library import StartedLibrary
from xinf.device.tool import ToolError
from xinf.device.vendor_tool import Form, VendorTool
from xinf.device.way import Way, ask_in_turn

_OF_TWO_CHIPS = ("K200",)
_TIMEOUT_S = 4.0  # three times within the deadline of an inventory


class KunlunxinProbe(RosterProbe):
    """Asks libxpuml, then xpu-smi where the PCI bus shows a Kunlunxin card; what they do not say, the bus does."""

    vendor = Vendor.KUNLUNXIN
    nodes = "xpu"

    def __init__(self, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._library = StartedLibrary(Xpuml)
        self._tool = VendorTool(
            names=("xpu_smi", "xpu-smi"),  # the second may be Intel's where both are installed
            directories=("/usr/local/bin", "/usr/local/xpu/bin", "/usr/bin"),
            remedy="install Kunlunxin's driver and runtime (XRE)",
            timeout_s=timeout_s,
        )

    def inventory_ways(self, root: Path) -> Sequence[Way]:
        query, *others = self._tool_ways(root)
        numbered = Way(query.name, lambda: _number(query.ask(), others))
        return [Way("libxpuml", lambda: self._library.start(root).inventory()), numbered, *others]

    def sample_ways(self, root: Path) -> Sequence[Way]:
        return [Way("libxpuml", lambda: self._library.start(root).states()), *self._tool_ways(root)]

    def place(self, cards: Sequence[Card], root: Path) -> Sequence[Card]:  # noqa: ARG002 (the cards tell it all)
        """Tell apart the chips that share an address: the two of a K200, also where one of them is lost."""
        times = Counter(card.pci for card in cards)
        placed: list[Card] = []
        for card in sorted(cards, key=lambda card: (card.pci or "", card.dev_nodes, card.number or 0)):
            assert card.pci is not None  # every way tells it
            part = _chip(card) if times[card.pci] > 1 or card.arch in _OF_TWO_CHIPS else None
            placed.append(msgspec.structs.replace(card, uuid=name_by_place(self.vendor, card.pci, part)))
        return placed

    def topology(self, root: Path) -> Topology:
        """Say how far the cards are apart. Only xpu-smi does, by its ids: XPU-Link is a link."""
        names = {f"XPU{device.visible}": device.uuid for device in self.listed(root) if device.visible is not None}
        try:
            links = parse_topology(self._tool.run(root, "topo", "-m"))
        except ToolError:
            return Topology()
        known = [
            (names[link.first], names[link.second], link.distance)
            for link in links
            if link.first in names and link.second in names
        ]
        return Topology(pairs=tuple(sorted((min(a, b), max(a, b), distance) for a, b, distance in known)))

    def processes(self, root: Path) -> tuple[DeviceProcess, ...]:
        """Say who holds memory of which card. Only the library does; where chips share an address nobody can."""
        try:
            return self._library.start(root).processes()
        except LibraryError:
            return ()

    def _tool_ways(self, root: Path) -> list[Way]:
        return self._tool.ways(
            root,
            Form(arguments=("-q",), parse=parse_query, may_be_cut=False),
            Form(arguments=("-m",), parse=parse_machine),
            Form(parse=parse_table),
        )


def _chip(card: Card) -> int | None:
    """Number a chip of a card of two: their nodes, /dev/xpuN, follow each other and stay when one of them is lost.

    The ids of xpu-smi count alike, but only what is there: they are taken where the node is not told.
    """
    node = next((int(path.removeprefix("/dev/xpu")) for path in card.dev_nodes), card.number)
    return None if node is None else node % 2


def _number(listing: Listing, others: Sequence[Way]) -> Listing:
    """Give the cards the tool's ids of those at the same addresses, and with the same node where both tell it."""
    complaints: list[str] = []
    numbered = ask_in_turn(others, complaints).cards if listing.cards else ()
    found: list[Card] = []
    for card in listing.cards:
        numbers = [
            other.number
            for other in numbered
            if other.pci == card.pci and (not other.dev_nodes or other.dev_nodes == card.dev_nodes)
        ]
        found.append(msgspec.structs.replace(card, number=numbers[0] if len(numbers) == 1 else None))
    said = (*listing.complaints, *(() if numbered else complaints))
    return msgspec.structs.replace(listing, cards=tuple(found), complaints=said)
