"""The cards of a vendor as its library or tool describes them, made into devices and samples.

Devices are in bus order and numbered from 0, and cards that only the bus shows are added with the reason.

Library and tool of these vendors do not all tell the same UUID, so cards are named by their place (`name_by_place`):
the one thing that every way of asking tells. So a sample joins its device, and a replica its card, whoever answered.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from xinf.core.device import KIND_OF_VENDOR, Device, Health, Sample, Vendor
from xinf.device.library import LibraryError
from xinf.device.pci import PASSED_ON, PciFunction, name_by_address, read_numa, without_driver
from xinf.device.quantity import celsius, count, is_count, percent, size_in_bytes, watts

H = TypeVar("H")


class Card(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One card in the words of its vendor. What an answer does not say is None."""

    pci: str | None  # "0000:18:00.0"; None: on no PCI bus, or not told
    uuid: str  # by its place
    number: int | None = None  # the library's or tool's own index, which its visibility variable takes
    name: str | None = None
    arch: str | None = None
    memory_bytes: int | None = None
    driver: str | None = None
    runtime: str | None = None
    numa: int | None = None  # where sysfs does not say
    dev_nodes: tuple[str, ...] = ()
    parent: str | None = None
    health: Health | None = None
    reason: str | None = None
    extra: dict[str, str | int] = {}
    used_bytes: int | None = None
    free_bytes: int | None = None
    util_pct: float | None = None
    temp_c: float | None = None
    power_w: float | None = None
    ecc_uncorrected: int | None = None


class Listing(msgspec.Struct, frozen=True):
    """The cards that one way of asking lists, and what kept others from being among them."""

    cards: tuple[Card, ...]
    complaints: tuple[str, ...] = ()
    # Whether there may be more that it did not tell of: a text that is cut between two cards looks like a whole one.
    may_be_cut: bool = False


def list_readable(
    handles: Iterable[tuple[int, H]], read: Callable[[H], Card], complaints: Sequence[str] = ()
) -> Listing:
    """Read the cards that can be read, by their numbers' handles; one that cannot does not hide the others.

    `complaints`: of those that have not even a handle. Raises: LibraryError with all of them when no card can be read.
    """
    found, said = [], list(complaints)
    for number, handle in handles:
        try:
            found.append(read(handle))
        except LibraryError as error:
            said.append(f"device {number}: {error}")
    if said and not found:
        raise LibraryError("; ".join(said))
    return Listing(tuple(found), tuple(said))


def leave_out_placeless(
    cards: Sequence[Card], functions: Callable[[], Sequence[PciFunction]], said: list[str]
) -> Sequence[Card]:
    """Leave out the cards that tell no address while others do and the bus shows more; `said` gets how many.

    It is a question that failed: under the name of a card on no bus they would be other devices than they were.
    """
    placed = [card for card in cards if card.pci is not None]
    if not placed or len(placed) == len(cards):
        return cards
    taken = {card.pci for card in placed}
    if all(function.address in taken or function.driver in PASSED_ON for function in functions()):
        return cards  # on no PCI bus, as an Ascend 950 may be
    said.append(f"{len(cards) - len(placed)} of {len(cards)} cards tell no bus address")
    return placed


def leave_out_twins(cards: Sequence[Card], said: list[str]) -> Sequence[Card]:
    """Leave out the cards that have one name, as where an address is cut: nothing tells which is which."""
    twice = sorted(uuid for uuid, times in Counter(card.uuid for card in cards).items() if times > 1)
    said += [f"several cards are listed as {uuid}" for uuid in twice]
    return [card for card in cards if card.uuid not in twice] if twice else cards


def name_by_place(vendor: Vendor, pci: str, part: int | str | None = None) -> str:
    """Name a card by its bus address, and by its number there if several may be at one: `NPU-0000-c1-00.0-0`."""
    place = name_by_address(pci, KIND_OF_VENDOR[vendor].upper())
    return place if part is None else f"{place}-{part}"


def make_devices(
    vendor: Vendor,
    cards: Sequence[Card],
    functions: Sequence[PciFunction],
    *,
    missing: str,
    root: Path,
    nodes: str | None = None,
    may_be_cut: bool = False,
) -> tuple[Device, ...]:
    """Describe the cards and those of `functions` that are not among them, for which `missing` says why.

    `nodes`: how the vendor's device nodes in /dev are called before their number, of which there is one for each card
    that this process may open. With it a card that the driver has lost is told from one that a container was not given.
    `may_be_cut`: nobody knows whether the cards are all that would have been told of; what is not among them is silent
    then, not lost.
    """
    devices = [_make_device(vendor, card, root) for card in cards]
    listed, n_cards = {device.pci for device in devices}, sum(1 for card in cards if card.parent is None)
    for function in functions:
        # Where a card tells no address, nothing can be said of those on the bus: it may be any of them.
        if function.address not in listed and None not in listed:
            health, reason = _why_unlisted(function, n_cards, nodes, root, may_be_cut=may_be_cut)
            words = missing if reason is None else f"{reason} ({missing})" if health is not None else reason
            devices.append(without_driver(function, 0, words, health))
    # A card goes before the instances that it was divided into: they share its address.
    devices.sort(key=lambda device: (device.pci or "~", device.parent is not None, _order(device.visible)))
    return tuple(msgspec.structs.replace(device, index=index) for index, device in enumerate(devices))


def make_samples(cards: Sequence[Card]) -> tuple[Sample, ...]:
    """Say what the cards are doing, under the names that make_devices gave them."""
    now = time.time_ns()
    return tuple(
        Sample(
            uuid=card.uuid,
            t_ns=now,
            memory_used_bytes=size_in_bytes(card.used_bytes, 1),
            memory_free_bytes=size_in_bytes(card.free_bytes if card.free_bytes is not None else _subtract(card), 1),
            util_pct=percent(card.util_pct),
            temp_c=celsius(card.temp_c),
            power_w=watts(card.power_w),
            ecc_uncorrected=count(card.ecc_uncorrected),
            health=card.health,
            reason=card.reason,
        )
        for card in cards
    )


def _why_unlisted(
    function: PciFunction, n_listed: int, nodes: str | None, root: Path, *, may_be_cut: bool
) -> tuple[Health | None, str | None]:
    """Say what it means that a card is not listed, while `n_listed` are; None: it is not known."""
    if function.driver in PASSED_ON:
        return None, f"it is bound to {function.driver}, for a virtual machine"
    if nodes is None or not n_listed:
        return None, None
    if function.driver is None:
        return Health.NO_DRIVER, f"no kernel driver is bound to it: load that of {function.vendor}"
    n_nodes = _count_nodes(nodes, root)
    if n_nodes <= n_listed:
        return Health.NO_DRIVER, f"it has no node /dev/{nodes}N here: a container shows the cards that it was given"
    if may_be_cut:
        return Health.SILENT, (
            f"the tool told of {n_listed} cards where {n_nodes} have a node /dev/{nodes}N: its answer may be cut, and"
            " nobody knows how the others are"
        )
    return Health.FAULTY, (
        f"the driver lists {n_listed} of the cards but not this one: look at `dmesg`, then reset or reseat it"
    )


def _count_nodes(nodes: str, root: Path) -> int:
    """Count the cards' own nodes: not `gcu0vid1`, a decoder of Enflame's, and those of parts (`cambricon_dev0vf1`).

    Moore Threads' have a dot before the number, which some releases leave out.
    """
    stem = nodes.rstrip(".")
    names = [path.name.removeprefix(stem).removeprefix(".") for path in (root / "dev").glob(f"{stem}*")]
    return sum(1 for name in names if is_count(name))


def _make_device(vendor: Vendor, card: Card, root: Path) -> Device:
    numa = None if card.pci is None else read_numa(card.pci, root)
    return Device(
        vendor=vendor,
        index=0,
        uuid=card.uuid,
        name=card.name or f"{vendor} device",
        arch=card.arch,
        memory_bytes=size_in_bytes(card.memory_bytes, 1) or None,
        driver=card.driver,
        runtime=card.runtime,
        pci=card.pci,
        numa=card.numa if numa is None else numa,
        dev_nodes=card.dev_nodes,
        visible=None if card.number is None else str(card.number),
        parent=card.parent,
        health=card.health or Health.OK,
        reason=card.reason,
        extra=card.extra,
    )


def _subtract(card: Card) -> int | None:
    if card.memory_bytes is None or card.used_bytes is None:
        return None
    return max(0, card.memory_bytes - card.used_bytes)


def _order(visible: str | None) -> int:
    return -1 if visible is None else int(visible)
