"""AMD devices: the driver's own files first, then librocm_smi64, then amd-smi; none needs ROCm's runtime or torch.

The files say everything that placement needs (architecture, memory, identity, links), cannot hang more than the driver
itself does, and have kept their layout for years; library and tool fill in what a driver leaves out, mostly the name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from xinf.core.device import Device, Health, Sample, Topology, Vendor
from xinf.device.amd_tool import read_list, read_metric, read_static
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
    why_hidden,
)
from xinf.device.rocm_library import RocmSmi
from xinf.device.tool import TIMEOUT_S, FormatError, ToolError, find_tool

_LIBRARIES = ("/opt/rocm/lib", "/opt/rocm/rocm_smi/lib")
_TOOLS = ("/opt/rocm/bin",)


class AmdProbe:
    """Reads AMD's cards; `timeout_s` bounds one run of amd-smi."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._watch = HealthWatch()
        self._cards = CardCache(Vendor.AMD)
        self._library: RocmSmi | None = None  # of samples; started once
        self._numbers: dict[int, str] | None = None  # of amd-smi; asked once

    def is_present(self, root: Path) -> bool:
        return bool(find_pci_functions(root, Vendor.AMD))

    def inventory(self, root: Path) -> tuple[Device, ...]:
        functions = find_pci_functions(root, Vendor.AMD)
        try:
            cards = find_cards(Vendor.AMD, root)
        except FormatError as error:
            return tuple(without_driver(f, index, str(error), Health.FAULTY) for index, f in enumerate(functions))
        facts, reasons = self._gather(cards, root)
        closed = why_closed(root)
        devices = [
            describe_card(
                card,
                facts[card.uuid],
                visible=_visible(card),
                reason=closed or _why_unusable(card, facts[card.uuid], reasons),
                root=root,
            )
            for card in cards
        ]
        found = {card.address for card in cards}
        devices += [without_driver(f, 0, _why_unbound(f)) for f in functions if f.address not in found]
        return in_bus_order(devices)

    def topology(self, root: Path) -> Topology:
        """Tell which devices an xGMI link joins. Raises: FormatError."""
        return Topology(pairs=find_links(find_cards(Vendor.AMD, root)))

    def sample(self, root: Path) -> tuple[Sample, ...]:
        """Read what the cards are doing. Raises: FormatError, ToolError."""
        cards = self._cards.find(root)
        readings = {card.address: read_reading(card.address, root) for card in cards}
        if any(reading.memory_used_bytes is None for reading in readings.values()):
            more = self._ask_for_readings(readings, root)
            readings = {at: reading.completed_by(more.get(at, CardReading())) for at, reading in readings.items()}
        return tuple(make_sample(card, readings[card.address], self._watch, root) for card in cards)

    def processes(self, root: Path) -> tuple[DeviceProcess, ...]:
        """List who computes on the cards. Raises: FormatError, ToolError."""
        return find_processes(self._cards.find(root), root)

    def _gather(self, cards: tuple[RocmCard, ...], root: Path) -> tuple[dict[str, CardFacts], list[str]]:
        """Ask one source after the other until nothing is missing; gives the facts by uuid and what went wrong."""
        host = CardFacts(
            driver=read_driver_version("amdgpu", root), runtime=read_runtime_version("opt/rocm/.info/version", root)
        )
        facts = {card.uuid: facts_of_node(card).completed_by(host) for card in cards}
        reasons: list[str] = []
        if any(one.name is None or one.memory_bytes is None for one in facts.values()):
            try:
                library = RocmSmi(directories=_LIBRARIES, root=root)
                facts = {card.uuid: facts[card.uuid].completed_by(library.facts(card.address)) for card in cards}
            except LibraryError as error:
                reasons.append(str(error))
        if any(one.arch is None or one.memory_bytes is None for one in facts.values()):
            try:
                told = read_static(self._find_tool(root), timeout_s=self._timeout_s)
                facts = {
                    card.uuid: facts[card.uuid].completed_by(told.get(card.address, CardFacts())) for card in cards
                }
            except ToolError as error:
                reasons.append(str(error))
        return facts, reasons

    def _ask_for_readings(self, addresses: Iterable[str], root: Path) -> dict[str, CardReading]:
        try:
            self._library = self._library or RocmSmi(directories=_LIBRARIES, root=root)
            return {address: self._library.reading(address) for address in addresses}
        except LibraryError:
            pass
        try:
            tool = self._find_tool(root)
            if self._numbers is None:
                self._numbers = read_list(tool, timeout_s=self._timeout_s)
            return read_metric(tool, self._numbers, timeout_s=self._timeout_s)
        except ToolError:
            return {}

    def _find_tool(self, root: Path) -> str:
        tool = find_tool("amd-smi", directories=_TOOLS, root=root)
        if tool is None:
            raise ToolError("amd-smi is not there")
        return tool


def _why_unusable(card: RocmCard, facts: CardFacts, reasons: list[str]) -> str | None:
    if card.node is not None:
        return why_hidden(card.node)
    if facts.arch is not None:
        return None
    return "; ".join(("amdgpu shows this process no compute node (KFD) for it", *reasons))


def _visible(card: RocmCard) -> str | None:
    """Say what ROCR_VISIBLE_DEVICES takes for it: the chip's unique id, or its place among KFD's GPU nodes.

    Old and integrated chips have no unique id, and the partitions of a card share one; ROCr then counts the nodes that
    it may read, in KFD's order. Source: ROCR-Runtime, HSA_AMD_AGENT_INFO_UUID in amd_gpu_agent.cpp.
    """
    if card.node is None or card.node.ordinal is None:
        return None
    is_whole = card.partition is None and card.uuid.startswith("GPU-")
    return card.uuid if is_whole else str(card.node.ordinal)


def _why_unbound(function: PciFunction) -> str:
    if function.driver is None:
        return "no kernel driver is bound to it: install amdgpu and run `modprobe amdgpu`"
    return f"the kernel driver {function.driver} is bound to it, not amdgpu: it is given to a virtual machine"
