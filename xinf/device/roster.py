"""The cards of a vendor as its library or tool describes them, made into devices and samples.

Devices are in bus order and numbered from 0, cards that only the bus shows are added with the reason, and identities
that two boards share are told apart.

A vendor whose library and tool do not all tell the same UUID has its cards named by their place (`name_by_place`): the
one thing that every way of asking tells. So a sample joins its device, and a replica its card, whoever answered last.
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

H = TypeVar("H")


class Card(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One card in the words of its vendor. What an answer does not say is None."""

    pci: str | None  # "0000:18:00.0"; None: on no PCI bus, or not told
    number: int | None = None  # the library's or tool's own index, which its visibility variable takes
    uuid: str | None = None  # None: its address is its name
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
) -> tuple[Device, ...]:
    """Describe the cards and those of `functions` that are not among them, for which `missing` says why.

    `nodes`: a pattern of the vendor's device nodes in /dev, one for each card that this process may open. With it a
    card that the driver has lost is told from one that a container was not given.
    """
    devices = [_make_device(vendor, card, uuid, root) for card, uuid in zip(cards, _identify(cards), strict=True)]
    listed = {device.pci for device in devices}
    for function in functions:
        # Where a card tells no address, nothing can be said of those on the bus: it may be any of them.
        if function.address not in listed and None not in listed:
            devices.append(_describe_unlisted(function, len(cards), missing, nodes, root))
    # A card goes before the instances that it was divided into: they share its address.
    devices.sort(key=lambda device: (device.pci or "~", device.parent is not None, _order(device.visible)))
    return tuple(msgspec.structs.replace(device, index=index) for index, device in enumerate(devices))


def make_samples(cards: Sequence[Card]) -> tuple[Sample, ...]:
    """Say what the cards are doing, under the identities that make_devices gave them."""
    now = time.time_ns()
    return tuple(
        Sample(
            uuid=uuid,
            t_ns=now,
            memory_used_bytes=card.used_bytes,
            memory_free_bytes=card.free_bytes if card.free_bytes is not None else _subtract(card),
            util_pct=card.util_pct,
            temp_c=card.temp_c,
            power_w=card.power_w,
            ecc_uncorrected=card.ecc_uncorrected,
            health=card.health,
            reason=card.reason,
        )
        for card, uuid in zip(cards, _identify(cards), strict=True)
    )


def _describe_unlisted(function: PciFunction, n_listed: int, missing: str, nodes: str | None, root: Path) -> Device:
    if function.driver in PASSED_ON:
        return without_driver(function, 0, f"it is bound to {function.driver}, for a virtual machine")
    if nodes is None or not n_listed:
        return without_driver(function, 0, missing)
    health = Health.NO_DRIVER
    if function.driver is None:
        reason = f"no kernel driver is bound to it: load that of {function.vendor}"
    elif sum(1 for _ in (root / "dev").glob(nodes)) <= n_listed:
        node = nodes.partition("[")[0]
        reason = f"it has no node /dev/{node}N here: a container shows the cards that it was given"
    else:
        health = Health.FAULTY
        reason = f"the driver lists {n_listed} of the cards but not this one: look at `dmesg`, then reset or reseat it"
    return without_driver(function, 0, f"{reason} ({missing})", health)


def _make_device(vendor: Vendor, card: Card, uuid: str, root: Path) -> Device:
    numa = None if card.pci is None else read_numa(card.pci, root)
    return Device(
        vendor=vendor,
        index=0,
        uuid=uuid,
        name=card.name or f"{vendor} device",
        arch=card.arch,
        memory_bytes=card.memory_bytes,
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


def _identify(cards: Sequence[Card]) -> list[str]:
    """Name each card: its own UUID, with the address where two boards answer to one, the address where it has none."""
    times = Counter(card.uuid for card in cards)
    names = []
    for card in cards:
        address = card.pci or "nowhere"
        if card.uuid is None:
            names.append(name_by_address(address))
        else:
            names.append(card.uuid if times[card.uuid] == 1 else name_by_address(address, card.uuid))
    return names


def _subtract(card: Card) -> int | None:
    if card.memory_bytes is None or card.used_bytes is None:
        return None
    return max(0, card.memory_bytes - card.used_bytes)


def _order(visible: str | None) -> int:
    return -1 if visible is None else int(visible)
