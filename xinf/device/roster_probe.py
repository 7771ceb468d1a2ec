"""What the probes share whose vendors answer with a list of cards, by a library or by the forms of a tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import msgspec

from xinf.core.device import Device, Sample, Vendor
from xinf.device.pci import PciFunction, find_pci_functions
from xinf.device.roster import Card, leave_out_placeless, leave_out_twins, make_devices, make_samples
from xinf.device.tool import ToolError
from xinf.device.way import Way, ask_in_turn


class RosterProbe:
    """Asks one way after the other; cards that none lists are recorded by their bus address."""

    vendor: ClassVar[Vendor]
    nodes: ClassVar[str]  # how the vendor's device nodes in /dev are called before their number
    _listed: tuple[Device, ...] | None = None

    def inventory_ways(self, root: Path) -> Sequence[Way]:
        """The ways to list the cards, none of which reads a metric where the vendor lets one choose."""
        raise NotImplementedError

    def sample_ways(self, root: Path) -> Sequence[Way]:
        """The ways to read what the cards are doing."""
        raise NotImplementedError

    def functions(self, root: Path) -> tuple[PciFunction, ...]:
        """The vendor's cards on the PCI bus."""
        return find_pci_functions(root, self.vendor)

    def place(self, cards: Sequence[Card], root: Path) -> Sequence[Card]:  # noqa: ARG002 (for those who need it)
        """Complete the addresses of cards whose way of asking does not tell the whole of them."""
        return cards

    def runtime(self, root: Path) -> str | None:
        """The version of the vendor's runtime, where no way of asking tells it."""

    def is_present(self, root: Path) -> bool:
        return bool(self.functions(root))

    def inventory(self, root: Path) -> tuple[Device, ...]:
        said: list[str] = []
        cards, may_be_cut = self._ask(self.inventory_ways(root), said, root)
        runtime = self.runtime(root)
        if runtime is not None:
            cards = [msgspec.structs.replace(card, runtime=runtime) for card in cards]
        self._listed = make_devices(
            self.vendor,
            cards,
            self.functions(root),
            missing="; ".join(said),
            root=root,
            nodes=self.nodes,
            may_be_cut=may_be_cut,
        )
        return self._listed

    def listed(self, root: Path) -> tuple[Device, ...]:
        """The devices of the last inventory, which a tool's answer about distances is about; the first if need be."""
        return self.inventory(root) if self._listed is None else self._listed

    def sample(self, root: Path) -> tuple[Sample, ...]:
        """Read what the cards are doing. Raises: ToolError with what was tried."""
        said: list[str] = []
        cards, _ = self._ask(self.sample_ways(root), said, root)
        if not cards:
            raise ToolError("; ".join(said))
        return make_samples(cards)

    def _ask(self, ways: Sequence[Way], said: list[str], root: Path) -> tuple[Sequence[Card], bool]:
        """List the cards, and say whether there may be others that the answer lost."""
        listing = ask_in_turn(ways, said)
        cards = leave_out_placeless(self.place(listing.cards, root), lambda: self.functions(root), said)
        return leave_out_twins(cards, said), listing.may_be_cut
