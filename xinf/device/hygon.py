"""Hygon DCUs: KFD's files (the kernel driver is a fork of AMD's), then DTK's librocm_smi64, then hy-smi.

HIP counts devices as KFD does among those that this process may use, so a device's place there is what
HIP_VISIBLE_DEVICES takes; where KFD's files are not to be seen, hy-smi's cardN, joined by PCI address, says it.
"""

from __future__ import annotations

from pathlib import Path

from xinf.core.device import Device, Health, Sample, Topology, Vendor
from xinf.device.amdgpu import CardFacts, CardReading, read_reading
from xinf.device.health import HealthWatch
from xinf.device.hygon_tool import ToolCard, parse_table, read_facts, read_readings
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
    why_hidden,
)
from xinf.device.rocm_library import RocmSmi
from xinf.device.tool import TIMEOUT_S, FormatError, ToolError, find_tool, run_tool

_LIBRARIES = ("/opt/hyhal/lib", "/opt/dtk/lib", "/opt/dtk/rocm_smi/lib")
_TOOLS = ("/opt/hyhal/bin", "/usr/local/hyhal/bin", "/opt/dtk/bin")
_NAMES = ("hy-smi", "rocm-smi")


class HygonProbe:
    """Reads Hygon's cards; `timeout_s` bounds one run of hy-smi."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._library: RocmSmi | None = None  # of samples; started once
        self._watch = HealthWatch()
        self._cards = CardCache(Vendor.HYGON)

    def is_present(self, root: Path) -> bool:
        return bool(find_pci_functions(root, Vendor.HYGON))

    def inventory(self, root: Path) -> tuple[Device, ...]:
        functions = find_pci_functions(root, Vendor.HYGON)
        try:
            cards = find_cards(Vendor.HYGON, root)
        except FormatError as error:
            return tuple(without_driver(f, index, str(error), Health.FAULTY) for index, f in enumerate(functions))
        facts, numbers, reasons = self._gather(cards, root)
        closed = why_closed(root)
        devices: list[Device] = []
        for card in cards:
            number = numbers.get(card.address)
            visible = number if card.node is None else card.node.ordinal
            devices.append(
                describe_card(
                    card,
                    facts[card.uuid],
                    visible=None if visible is None else str(visible),
                    reason=_why_unusable(card, facts[card.uuid], closed, reasons),
                    root=root,
                )
            )
        found = {card.address for card in cards}
        devices += [without_driver(f, 0, _why_unbound(f)) for f in functions if f.address not in found]
        return in_bus_order(devices)

    def topology(self, root: Path) -> Topology:
        """Tell which devices an xGMI link joins. Raises: FormatError."""
        return Topology(pairs=find_links(find_cards(Vendor.HYGON, root)))

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

    def _gather(
        self, cards: tuple[RocmCard, ...], root: Path
    ) -> tuple[dict[str, CardFacts], dict[str, int], list[str]]:
        """Ask one source after the other; gives facts by uuid, the tool's numbers by address, and what went wrong."""
        host = CardFacts(
            driver=next((read_driver_version(name, root) for name in _bound(cards)), None),
            runtime=read_runtime_version("opt/dtk/.info/version", root),
        )
        facts = {card.uuid: facts_of_node(card).completed_by(host) for card in cards}
        reasons: list[str] = []
        if any(one.name is None or one.memory_bytes is None for one in facts.values()):
            try:
                library = RocmSmi(directories=_LIBRARIES, root=root)
                facts = {card.uuid: facts[card.uuid].completed_by(library.facts(card.address)) for card in cards}
            except LibraryError as error:
                reasons.append(str(error))
        told: dict[str, ToolCard] = {}
        if any(one.name is None or one.memory_bytes is None for one in facts.values()) or any(
            card.node is None for card in cards
        ):
            try:
                told = {card.address: card for card in read_facts(self._find_tool(root), timeout_s=self._timeout_s)}
            except ToolError as error:
                reasons.append(str(error))
        facts = {card.uuid: facts[card.uuid].completed_by(_plain(told.get(card.address))) for card in cards}
        return facts, {address: card.number for address, card in told.items()}, reasons

    def _ask_for_readings(self, addresses: tuple[str, ...], root: Path) -> dict[str, CardReading]:
        try:
            self._library = self._library or RocmSmi(directories=_LIBRARIES, root=root)
            return {address: self._library.reading(address) for address in addresses}
        except LibraryError:
            pass
        try:
            tool = self._find_tool(root)
            try:
                return read_readings(tool, timeout_s=self._timeout_s)
            except FormatError:
                if len(addresses) != 1:
                    raise  # the table names cards by number only
                return {addresses[0]: parse_table(run_tool([tool], timeout_s=self._timeout_s))[0]}
        except (ToolError, KeyError):
            return {}

    def _find_tool(self, root: Path) -> str:
        tool = find_tool(*_NAMES, directories=_TOOLS, root=root)
        if tool is None:
            raise ToolError("hy-smi is not there")
        return tool


def _bound(cards: tuple[RocmCard, ...]) -> list[str]:
    return [card.function.driver for card in cards if card.function.driver is not None]


def _plain(card: ToolCard | None) -> CardFacts:
    return CardFacts() if card is None else CardFacts(name=card.name, memory_bytes=card.memory_bytes)


def _why_unusable(card: RocmCard, facts: CardFacts, closed: str | None, reasons: list[str]) -> str | None:
    """Say why no engine can compute on it. A card that library or tool know has a driver that works."""
    if closed is None and card.node is not None:
        return why_hidden(card.node)
    if closed is None and facts.memory_bytes is None:
        closed = "its driver shows this process no compute node (KFD) for it"
    return None if closed is None else "; ".join((closed, *reasons))


def _why_unbound(function: PciFunction) -> str:
    if function.driver is None:
        return "no kernel driver is bound to it: install Hygon's driver and run `modprobe hydcu`"
    return f"the kernel driver {function.driver} is bound to it, not Hygon's: it is given to a virtual machine"
