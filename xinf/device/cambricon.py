"""Cambricon MLUs: cndev of the driver, then `cnmon`, then what the PCI bus shows.

An engine is confined by the card number (MLU_VISIBLE_DEVICES), which is cndev's and cnmon's own; both tell it together
with the UUID or the bus address, so that it is never guessed from the order on the bus.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from xinf.core.device import Device, Health, Sample, Topology, Vendor
from xinf.device import cambricon_tool
from xinf.device.cambricon_card import MluCard, architecture_of
from xinf.device.cambricon_library import Cndev
from xinf.device.library import LibraryError
from xinf.device.pci import PciFunction, find_pci_functions, read_numa, without_driver
from xinf.device.tool import ToolError

_NEUWARE_VERSION = "usr/local/neuware/version.txt"


class CambriconProbe:
    """Asks cndev; where it does not start, cnmon; cards that neither lists are recorded by their bus address."""

    def __init__(self) -> None:
        self._library: Cndev | None = None  # started once: what starting it again does is the driver's secret

    def is_present(self, root: Path) -> bool:
        # A container may show the nodes only.
        return bool(find_pci_functions(root, Vendor.CAMBRICON)) or (root / "dev/cambricon_ctl").exists()

    def inventory(self, root: Path) -> tuple[Device, ...]:
        functions, tried = find_pci_functions(root, Vendor.CAMBRICON), list[str]()
        cards: tuple[MluCard, ...] = ()
        try:
            cards = self._start(root).cards()
        except LibraryError as error:
            tried.append(str(error))
        if not cards:
            try:
                cards = cambricon_tool.read_cards(root)
            except ToolError as error:
                tried.append(str(error))
        if not cards:
            reason = "; ".join(tried) or "neither cndev nor cnmon lists a card"
            return tuple(without_driver(function, index, reason) for index, function in enumerate(functions))
        neuware = _read_neuware_version(root)
        listed = [_describe(_place(card, cards, functions), neuware, root) for card in cards]
        devices = sorted([*listed, *_unlisted(functions, listed)], key=lambda device: device.pci or "~")
        return tuple(msgspec.structs.replace(device, index=index) for index, device in enumerate(devices))

    def sample(self, root: Path) -> tuple[Sample, ...]:
        """Read what the cards are doing. Raises: ToolError with what was tried."""
        tried: list[str] = []
        ways: tuple[Callable[[], tuple[MluCard, ...]], ...] = (
            lambda: self._start(root).samples(),
            lambda: cambricon_tool.read_cards(root),
        )
        for read in ways:
            try:
                cards = read()
            except (LibraryError, ToolError) as error:
                tried.append(str(error))
                continue
            if cards:
                return tuple(_sample(card) for card in cards)
        raise ToolError("; ".join(tried) or "neither cndev nor cnmon lists a card")

    def topology(self, root: Path) -> Topology:
        """Tell how far the cards are apart. Only cndev does: what `cnmon topo` prints was seen in pictures only."""
        try:
            pairs = self._start(root).distances()
        except LibraryError:
            return Topology()
        return Topology(pairs=tuple(sorted((min(a, b), max(a, b), distance) for a, b, distance in pairs)))

    def _start(self, root: Path) -> Cndev:
        self._library = self._library or Cndev(root)
        return self._library


def _place(card: MluCard, cards: Sequence[MluCard], functions: Sequence[PciFunction]) -> MluCard:
    """Give the one card of a tool that tells no address the one address there is."""
    if card.pci is None and len(cards) == len(functions) == 1:
        return msgspec.structs.replace(card, pci=functions[0].address)
    return card


def _describe(card: MluCard, neuware: str | None, root: Path) -> Device:
    return Device(
        vendor=Vendor.CAMBRICON,
        index=0,  # given when all are in bus order
        uuid=card.uuid,
        name=card.name,
        arch=architecture_of(card.name),
        memory_bytes=card.memory_total_bytes,
        driver=card.driver,
        runtime=neuware,
        pci=card.pci,
        numa=None if card.pci is None else read_numa(card.pci, root),
        dev_nodes=(f"/dev/cambricon_dev{card.number}",),
        visible=str(card.number),
        health=card.health or Health.OK,
        reason=card.reason,
    )


def _sample(card: MluCard) -> Sample:
    total, used = card.memory_total_bytes, card.memory_used_bytes
    return Sample(
        uuid=card.uuid,
        t_ns=time.time_ns(),
        memory_used_bytes=used,
        memory_free_bytes=None if total is None or used is None else max(0, total - used),
        util_pct=card.util_pct,
        temp_c=card.temp_c,
        power_w=card.power_w,
        ecc_uncorrected=card.ecc_uncorrected,
        health=card.health,
        reason=card.reason,
    )


def _unlisted(functions: Sequence[PciFunction], listed: Sequence[Device]) -> list[Device]:
    """Record the cards on the bus that the driver does not list; nothing can be said if it tells no addresses."""
    addresses = {device.pci for device in listed}
    if None in addresses:
        return []
    reason = f"the driver lists {len(listed)} other MLUs but not this one: look at `dmesg`, then reset or reseat it"
    return [
        without_driver(
            function,
            0,
            reason if function.driver is not None else "no kernel driver is bound to it: install the Cambricon driver",
            Health.FAULTY if function.driver is not None else Health.NO_DRIVER,
        )
        for function in functions
        if function.address not in addresses
    ]


def _read_neuware_version(root: Path) -> str | None:
    try:
        match = re.search(r"\d+(?:\.\d+)+", (root / _NEUWARE_VERSION).read_text())
    except (OSError, UnicodeDecodeError):
        return None
    return match[0] if match is not None else None
