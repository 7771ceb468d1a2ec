"""Enflame GCUs: libefml, then `efsmi -q`, then its table. Only the formats are tested; no card was at hand.

TOPS_VISIBLE_DEVICES counts as efsmi's DEV ID does, which is the library's index.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import msgspec

from xinf.core.device import Device, Distance, Sample, Topology, Vendor
from xinf.device.enflame_library import Efml
from xinf.device.enflame_tool import parse_query, parse_table
from xinf.device.library import LibraryError
from xinf.device.pci import PciFunction, find_pci_functions
from xinf.device.roster import Card, make_devices, make_samples
from xinf.device.tool import ToolError, find_tool, run_tool

_TIMEOUT_S = 5.0  # twice within the deadline of an inventory
_DIRECTORIES = ("/usr/bin", "/usr/local/bin", "/usr/local/efsmi")


class EnflameProbe:
    """Asks libefml; where that does not answer, efsmi; where neither does, the PCI bus says which cards are there."""

    def __init__(self, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._library: Efml | None = None  # started once in a process and never shut down
        self._refusal: str | None = None  # what it said when it did not start: it is not asked again in this process

    def is_present(self, root: Path) -> bool:
        return bool(_find(root))

    def inventory(self, root: Path) -> tuple[Device, ...]:
        functions = _find(root)
        try:
            library = self._start(root)
            cards, complaints = library.inventory()
            missing = "; ".join([f"libefml {library.version} does not list it", *complaints])
        except LibraryError as error:
            cards, missing = self._ask_tool(functions, root, [str(error)])
        return make_devices(Vendor.ENFLAME, cards, functions, missing=missing, root=root)

    def sample(self, root: Path) -> tuple[Sample, ...]:
        """Read what the cards are doing. Raises: ToolError with what was tried."""
        try:
            return make_samples(self._start(root).states())
        except LibraryError as error:
            cards, why = self._ask_tool(_find(root), root, [str(error)])
        if not cards:
            raise ToolError(why)
        return make_samples(cards)

    def topology(self, root: Path) -> Topology:
        """Say which cards a GCU-LARE link connects; efsmi's own topology is not read."""
        try:
            library = self._start(root)
            links = {frozenset(pair) for pair in library.links()}
            devices = make_devices(Vendor.ENFLAME, library.inventory()[0], (), missing="", root=root)
        except LibraryError:
            return Topology()
        uuids = {device.pci: device.uuid for device in devices if device.pci is not None}
        linked = [pair for pair in combinations(sorted(uuids), 2) if frozenset(pair) in links]
        pairs = [(min(uuids[a], uuids[b]), max(uuids[a], uuids[b]), Distance.LINK) for a, b in linked]
        return Topology(pairs=tuple(sorted(pairs)))

    def _start(self, root: Path) -> Efml:
        if self._refusal is not None:
            raise LibraryError(self._refusal)
        if self._library is None:
            try:
                self._library = Efml(root)
            except LibraryError as error:
                self._refusal = str(error)
                raise
        return self._library

    def _ask_tool(self, functions: tuple[PciFunction, ...], root: Path, reasons: list[str]) -> tuple[list[Card], str]:
        """List the cards as efsmi prints them, or none; and why a card of the bus is not among them."""
        tool = find_tool("efsmi", directories=_DIRECTORIES, root=root)
        if tool is None:
            return [], "; ".join([*reasons, "efsmi is not there: install Enflame's driver package (TopsRider)"])
        try:
            cards = parse_query(run_tool([tool, "-q"], timeout_s=self._timeout_s))
            return list(cards), "; ".join([*reasons, "efsmi -q does not list it"])
        except ToolError as error:
            reasons.append(str(error))
        try:
            cards = parse_table(run_tool([tool], timeout_s=self._timeout_s))
        except ToolError as error:
            return [], "; ".join([*reasons, str(error)])
        placed = [msgspec.structs.replace(card, pci=_complete(card.pci, functions)) for card in cards]
        return placed, "; ".join([*reasons, "efsmi does not list it"])


def _find(root: Path) -> tuple[PciFunction, ...]:
    return find_pci_functions(root, Vendor.ENFLAME)


def _complete(address: str, functions: tuple[PciFunction, ...]) -> str:
    """Find the address that the table has cut to the last two digits of its domain."""
    found = [function.address for function in functions if function.address[2:] == address[2:]]
    return found[0] if len(found) == 1 else address
