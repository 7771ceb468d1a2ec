"""How the cards of ROCm (AMD) and of DTK (Hygon) are asked: the driver's files, then librocm_smi64, then the tool.

The files say everything that placement needs (architecture, memory, identity, links), cannot hang more than the driver
itself does, and have kept their layout for years; library and tool fill in what a driver leaves out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from xinf.core.device import Device, Health, Sample, Topology, Vendor
from xinf.device.amdgpu import CardFacts, CardReading, read_reading
from xinf.device.health import HealthWatch
from xinf.device.library import LibraryError
from xinf.device.pci import PciFunction, find_pci_functions, without_driver
from xinf.device.reading import DeviceProcess
from xinf.device.rocm import (
    CardCache,
    RocmCard,
    describe_card,
    facts_of_node,
    find_cards,
    find_links,
    find_processes,
    in_bus_order,
    make_sample,
    read_driver_version,
    read_runtime_version,
    why_closed,
)
from xinf.device.rocm_library import RocmSmi
from xinf.device.tool import TIMEOUT_S, FormatError, ToolError

Told = Mapping[str, CardFacts]  # by address


class RocmProbe(ABC):
    """Reads the cards of one vendor; `timeout_s` bounds one run of its tool."""

    vendor: ClassVar[Vendor]
    libraries: ClassVar[tuple[str, ...]]  # where its librocm_smi64 may lie
    runtime: ClassVar[tuple[str, ...]]  # the files that may have the version of its ROCm

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._watch = HealthWatch()
        self._cards = CardCache(self.vendor)
        self._library: RocmSmi | None = None  # of samples; started once

    def is_present(self, root: Path) -> bool:
        return bool(find_pci_functions(root, self.vendor))

    def inventory(self, root: Path) -> tuple[Device, ...]:
        functions = find_pci_functions(root, self.vendor)
        try:
            cards = find_cards(self.vendor, root)
        except FormatError as error:
            return tuple(without_driver(f, index, str(error), Health.SILENT) for index, f in enumerate(functions))
        facts, told, reasons = self._gather(cards, root)
        closed = why_closed(root)
        devices = [
            describe_card(
                card,
                facts[card.uuid],
                visible=self._visible(card, told.get(card.address)),
                reason=self._why_unusable(card, facts[card.uuid], closed, reasons),
                root=root,
            )
            for card in cards
        ]
        found = {card.address for card in cards}
        devices += [without_driver(f, 0, self._why_unbound(f)) for f in functions if f.address not in found]
        return in_bus_order(devices)

    def topology(self, root: Path) -> Topology:
        """Tell which devices an xGMI link joins. Raises: FormatError."""
        return Topology(pairs=find_links(find_cards(self.vendor, root)))

    def sample(self, root: Path) -> tuple[Sample, ...]:
        """Read what the cards are doing. Raises: FormatError, ToolError."""
        cards = self._cards.find(root)
        readings = {card.address: read_reading(card.address, root) for card in cards}
        if any(reading.memory_used_bytes is None for reading in readings.values()):
            more = self._ask_for_readings(tuple(readings), root)
            readings = {at: reading.completed_by(more.get(at, CardReading())) for at, reading in readings.items()}
        return tuple(make_sample(card, readings[card.address], self._watch, root) for card in cards)

    def processes(self, root: Path) -> tuple[DeviceProcess, ...]:
        """List who computes on the cards. Raises: FormatError, ToolError."""
        return find_processes(self._cards.find(root), root)

    def _gather(self, cards: Sequence[RocmCard], root: Path) -> tuple[dict[str, CardFacts], Told, list[str]]:
        """Ask one source after the other until nothing is missing.

        Gives the facts by uuid, what the tool said by address, and what went wrong.
        """
        drivers = [card.function.driver for card in cards if card.function.driver is not None]
        host = CardFacts(
            driver=next((read_driver_version(driver, root) for driver in drivers), None),
            runtime=read_runtime_version(self.runtime, root),
        )
        facts = {card.uuid: facts_of_node(card).completed_by(host) for card in cards}
        reasons: list[str] = []
        if any(one.name is None or one.memory_bytes is None for one in facts.values()):
            try:
                library = RocmSmi(directories=self.libraries, root=root)
                facts = {card.uuid: facts[card.uuid].completed_by(library.facts(card.address)) for card in cards}
            except LibraryError as error:
                reasons.append(str(error))
        told: Told = {}
        if any(self._needs_tool(card, facts[card.uuid]) for card in cards):
            try:
                told = self._ask_for_facts(root)
            except ToolError as error:
                reasons.append(str(error))
        facts = {card.uuid: facts[card.uuid].completed_by(told.get(card.address, CardFacts())) for card in cards}
        return facts, told, reasons

    def _ask_for_readings(self, addresses: Sequence[str], root: Path) -> Mapping[str, CardReading]:
        try:
            self._library = self._library or RocmSmi(directories=self.libraries, root=root)
            return {address: self._library.reading(address) for address in addresses}
        except LibraryError:
            pass
        try:
            return self._ask_tool_for_readings(addresses, root)
        except ToolError:
            return {}

    @abstractmethod
    def _needs_tool(self, card: RocmCard, facts: CardFacts) -> bool:
        """Whether something is missing that only the tool may know."""

    @abstractmethod
    def _ask_for_facts(self, root: Path) -> Told:
        """Ask the tool what cards there are. Raises: ToolError."""

    @abstractmethod
    def _ask_tool_for_readings(self, addresses: Sequence[str], root: Path) -> Mapping[str, CardReading]:
        """Ask the tool what the cards are doing, by address. Raises: ToolError."""

    @abstractmethod
    def _visible(self, card: RocmCard, told: CardFacts | None) -> str | None:
        """Say what the vendor's variable takes for it."""

    @abstractmethod
    def _why_unusable(self, card: RocmCard, facts: CardFacts, closed: str | None, reasons: Sequence[str]) -> str | None:
        """Say why no engine can compute on it. `closed`: why none on any; `reasons`: what went wrong so far."""

    @abstractmethod
    def _why_unbound(self, function: PciFunction) -> str:
        """Say why a card of the bus is not its driver's."""
