"""Moore Threads GPUs: libmtml, then `mthreads-gmi -q --json`, then its table. Only the formats are tested.

MUSA_VISIBLE_DEVICES counts as mthreads-gmi's ID does, which is the library's index.
"""

from __future__ import annotations

from pathlib import Path

from xinf.core.device import Device, Sample, Topology, Vendor
from xinf.device.library import LibraryError
from xinf.device.mthreads_library import Mtml
from xinf.device.mthreads_tool import parse_json, parse_table
from xinf.device.pci import PciFunction, find_pci_functions
from xinf.device.roster import Card, make_devices, make_samples
from xinf.device.tool import ToolError, find_tool, run_tool

_TIMEOUT_S = 5.0  # twice within the deadline of an inventory
_DIRECTORIES = ("/usr/bin", "/usr/local/bin")


class MthreadsProbe:
    """Asks libmtml; where that does not answer, mthreads-gmi; where neither does, the PCI bus says what is there."""

    def __init__(self, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._library: Mtml | None = None  # started once in a process and never shut down
        self._refusal: str | None = None  # what it said when it did not start: it is not asked again in this process

    def is_present(self, root: Path) -> bool:
        return bool(_find(root))

    def inventory(self, root: Path) -> tuple[Device, ...]:
        try:
            library = self._start(root)
            cards, complaints = library.inventory()
            missing = "; ".join([f"libmtml {library.version} does not list it", *complaints])
        except LibraryError as error:
            cards, missing = self._ask_tool(root, [str(error)])
        return make_devices(Vendor.MTHREADS, cards, _find(root), missing=missing, root=root)

    def sample(self, root: Path) -> tuple[Sample, ...]:
        """Read what the cards are doing. Raises: ToolError with what was tried."""
        try:
            return make_samples(self._start(root).states())
        except LibraryError as error:
            cards, why = self._ask_tool(root, [str(error)])
        if not cards:
            raise ToolError(why)
        return make_samples(cards)

    def topology(self, root: Path) -> Topology:
        """Say how far the cards are apart; the tool's matrix is not read."""
        try:
            distances = self._start(root).distances()
        except LibraryError:
            return Topology()
        return Topology(pairs=tuple(sorted((*pair, distance) for pair, distance in distances)))

    def _start(self, root: Path) -> Mtml:
        if self._refusal is not None:
            raise LibraryError(self._refusal)
        if self._library is None:
            try:
                self._library = Mtml(root)
            except LibraryError as error:
                self._refusal = str(error)
                raise
        return self._library

    def _ask_tool(self, root: Path, reasons: list[str]) -> tuple[list[Card], str]:
        """List the cards as mthreads-gmi prints them, or none; and why a card of the bus is not among them."""
        tool = find_tool("mthreads-gmi", directories=_DIRECTORIES, root=root)
        if tool is None:
            return [], "; ".join([*reasons, "mthreads-gmi is not there: install the MUSA driver and the package mtml"])
        try:
            cards = parse_json(run_tool([tool, "-q", "--json"], timeout_s=self._timeout_s))
        except ToolError as error:
            reasons.append(str(error))
            try:
                cards = parse_table(run_tool([tool], timeout_s=self._timeout_s))
            except ToolError as second:
                return [], "; ".join([*reasons, str(second)])
        return list(cards), "; ".join([*reasons, "mthreads-gmi does not list it"])


def _find(root: Path) -> tuple[PciFunction, ...]:
    return find_pci_functions(root, Vendor.MTHREADS)
