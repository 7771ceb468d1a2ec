"""What the cards of ROCm (AMD) and of DTK (Hygon) have in common: which there are, who they are, when they are ill.

A card is named by its PCI address while sources are joined, and by the unique id of its chip for ever. Both come from
the driver's files, so inventory and samples name it alike without asking each other.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from xinf.core.device import Device, Distance, Health, Sample, Vendor
from xinf.device.amdgpu import CardFacts, CardReading, is_lost, read_facts
from xinf.device.health import HealthWatch, or_well
from xinf.device.host_memory import read_host_memory
from xinf.device.kfd import KfdNode, read_nodes, read_processes
from xinf.device.pci import PASSED_ON, PciFunction, find_pci_functions, name_by_address
from xinf.device.quantity import celsius, count, percent, watts
from xinf.device.reading import DeviceProcess
from xinf.device.tool import ToolError

_RECHECK_S = 60.0  # a card that came or went in between has no sample, or an empty one
COMPUTE_NODES = ("dev/kfd", "dev/mkfd")  # the second is of newer drivers of Hygon


class RocmCard(msgspec.Struct, frozen=True, kw_only=True):
    """One schedulable thing: a card, or a partition of one."""

    function: PciFunction
    node: KfdNode | None  # None: the driver has no compute for it, or hides it from this process
    facts: CardFacts  # of the driver's files
    uuid: str
    partition: int | None = None  # None: the whole card
    parent: str | None = None

    @property
    def address(self) -> str:
        """Where it is on the bus."""
        return self.function.address

    @property
    def is_unified(self) -> bool:
        """Whether it computes in the machine's memory: KFD then gives it more than the driver set aside for it.

        Since Linux 6.10 an integrated GPU allocates there if that is more (apu_prefer_gtt), and KFD's bank is the limit
        that HIP has too. Whether it has processor cores in its node tells nothing: since 5.9 it has a node of its own.
        Source: Linux amdgpu_amdkfd.c (amdgpu_amdkfd_get_local_mem_info); ROCm/rocm-systems #8475, with values of a
        Strix Halo.
        """
        own, all_bytes = self.facts.memory_bytes, self.node.memory_bytes if self.node else None
        return self.partition is None and own is not None and all_bytes is not None and all_bytes > own


def find_cards(vendor: Vendor, root: Path) -> tuple[RocmCard, ...]:
    """List the cards of a vendor that its kernel driver is bound to, in bus order. Raises: FormatError."""
    nodes = read_nodes(root)
    cards: list[RocmCard] = []
    for function in find_pci_functions(root):
        if function.vendor is vendor and function.driver is not None and function.driver not in PASSED_ON:
            mine = [node for node in nodes if _slot(node.pci) == _slot(function.address)]
            cards += _split(function, mine, read_facts(function.address, root))
    seen = [card.uuid for card in cards]
    # A unique id that two boards share names neither.
    return tuple(
        card if seen.count(card.uuid) == 1 else msgspec.structs.replace(card, uuid=_bus_uuid(card)) for card in cards
    )


class CardCache:
    """Remembers which cards there are between samples: to find them costs more than to read them."""

    def __init__(self, vendor: Vendor) -> None:
        self._vendor = vendor
        self._root: Path | None = None
        self._cards: tuple[RocmCard, ...] = ()
        self._found_at_s = 0.0

    def find(self, root: Path) -> tuple[RocmCard, ...]:
        """List the cards, looked up again once in a while. Raises: FormatError, ToolError if none has its driver.

        An empty sample would hide that a driver is loaded later: only a fault that ends has the devices listed anew.
        """
        now = time.monotonic()
        if root != self._root or now - self._found_at_s > _RECHECK_S:
            self._cards, self._root, self._found_at_s = find_cards(self._vendor, root), root, now
        if not self._cards:
            raise ToolError(f"no card of {self._vendor} has its kernel driver")
        return self._cards


def find_links(cards: Sequence[RocmCard]) -> tuple[tuple[str, str, Distance], ...]:
    """List the pairs of cards that an xGMI link joins, as Topology wants them: uuids in ascending order."""
    uuid_of = {card.node.number: card.uuid for card in cards if card.node is not None}
    pairs = {
        (min(card.uuid, uuid_of[other]), max(card.uuid, uuid_of[other]))
        for card in cards
        if card.node is not None
        for other in card.node.linked
        if other in uuid_of and uuid_of[other] != card.uuid
    }
    return tuple((first, second, Distance.LINK) for first, second in sorted(pairs))


def find_processes(cards: Sequence[RocmCard], root: Path) -> tuple[DeviceProcess, ...]:
    """List who computes on the cards through KFD, with what each holds. Raises: FormatError."""
    uuid_of = {card.node.gpu_id: card.uuid for card in cards if card.node is not None}
    return tuple(
        DeviceProcess(uuid=uuid_of[process.gpu_id], pid=process.pid, memory_bytes=process.memory_bytes)
        for process in read_processes(root)
        if process.gpu_id in uuid_of
    )


def describe_card(card: RocmCard, facts: CardFacts, *, visible: str | None, reason: str | None, root: Path) -> Device:
    """Make the inventory record. `reason`: why no engine can compute on it; None: it can."""
    function, node = card.function, card.node
    dev_nodes = [f"/{path}" for path in COMPUTE_NODES if (root / path).exists()]
    extra: dict[str, str | int] = {}
    if node is not None:
        extra["kfd_node"] = node.number
        if node.render_minor is not None:
            dev_nodes.append(f"/dev/dri/renderD{node.render_minor}")
    if card.is_unified:
        extra["memory"] = "unified"
    if card.partition is not None:
        extra["partition"] = card.partition
    return Device(
        vendor=function.vendor,
        index=0,
        uuid=card.uuid,
        name=facts.name or f"{function.vendor} {function.device_id:#06x}",
        arch=facts.arch,
        memory_bytes=facts.memory_bytes,
        driver=facts.driver,
        runtime=facts.runtime,
        pci=function.address,
        numa=function.numa,
        dev_nodes=tuple(dev_nodes),
        visible=visible,
        parent=card.parent,
        health=Health.OK if reason is None else Health.NO_DRIVER,
        reason=reason,
        extra=extra,
    )


def in_bus_order(devices: Sequence[Device]) -> tuple[Device, ...]:
    """Count the devices of a vendor along the bus."""
    ordered = sorted(devices, key=lambda device: (device.pci or "", int(device.extra.get("partition", 0))))
    return tuple(msgspec.structs.replace(device, index=index) for index, device in enumerate(ordered))


def facts_of_node(card: RocmCard) -> CardFacts:
    """Join what KFD and the card's own files say; a partition's memory is KFD's, since the files are of the card."""
    node = card.node
    if node is None:
        return card.facts
    known = CardFacts(arch=node.arch, memory_bytes=node.memory_bytes, unique_id=node.unique_id)
    return known.completed_by(card.facts)


def read_driver_version(module: str, root: Path) -> str | None:
    """Read the version of a kernel driver: its own if it was built apart, else the kernel's it belongs to."""
    for path, form in ((f"sys/module/{module}/version", "{}"), ("proc/sys/kernel/osrelease", "linux {}")):
        try:
            return form.format((root / path).read_text().strip())
        except OSError:
            continue
    return None


def read_runtime_version(paths: Sequence[str], root: Path) -> str | None:
    """Read which ROCm or DTK the host has: `6.4.1-83` is 6.4.1, `DTK-26.04-rc4` is 26.04.

    Engines in containers bring their own.
    """
    for path in paths:
        try:
            match = re.search(r"^(?:DTK-)?([0-9]+(?:\.[0-9]+)+)", (root / path).read_text(), re.MULTILINE)
        except (OSError, UnicodeDecodeError):
            continue
        if match is not None:
            return match[1]
    return None


def why_hidden(node: KfdNode) -> str | None:
    """Say why engines do not see a node that KFD shows; None: they do."""
    if node.ordinal is not None:
        return None
    path = f"/dev/dri/renderD{node.render_minor}"
    return (
        f"{path} is not open to this process: add the user to the group render, or give the container --device {path}"
    )


def why_closed(root: Path) -> str | None:
    """Say why this process cannot open what engines compute through; None: it can."""
    path = next((root / node for node in COMPUTE_NODES if (root / node).exists()), None)
    if path is None:
        return (
            "/dev/kfd is not there: load the kernel driver, or give the container --device /dev/kfd and"
            " --device /dev/dri"
        )
    if not os.access(path, os.R_OK | os.W_OK):
        return f"no permission to open /dev/{path.name}: add the user to the groups render and video"
    return None


def make_sample(card: RocmCard, reading: CardReading, watch: HealthWatch, root: Path) -> Sample:
    """Make the sample of a card from what was read."""
    health: Health | None
    reason: str | None
    temp_c, errors = celsius(reading.temp_c), count(reading.ecc_uncorrected)
    limit_c, shutdown_c = (celsius(limit) for limit in (reading.temp_limit_c, reading.temp_shutdown_c))
    if is_lost(card.address, root):
        health, reason = Health.FAULTY, f"{card.address} fell off the PCI bus: look at `dmesg`, reset or reseat it"
    else:
        health, reason = watch.judge(
            card.uuid,
            ecc_uncorrected=errors,
            temp_c=temp_c,
            temp_limit_c=limit_c,
            temp_shutdown_c=shutdown_c,
        )
    used, free = _memory(card, reading, root)
    return Sample(
        uuid=card.uuid,
        t_ns=time.time_ns(),
        memory_used_bytes=used,
        memory_free_bytes=free,
        util_pct=percent(reading.util_pct),
        temp_c=temp_c,
        power_w=watts(reading.power_w),
        ecc_uncorrected=errors,
        health=or_well(health, used, reading.util_pct, reading.power_w),
        reason=reason,
    )


def _memory(card: RocmCard, reading: CardReading, root: Path) -> tuple[int | None, int | None]:
    """Say what is used and what is free."""
    if card.partition is not None:
        return None, None  # the files count the whole card
    used, total = reading.memory_used_bytes, reading.memory_total_bytes
    if not card.is_unified:
        return used, None if used is None or total is None else max(0, total - used)
    # What was set aside for it is for the screen then. Of the machine's, what is not free is used, whoever has it: GPU
    # and processor fill the same memory.
    used, limit, left = reading.gtt_used_bytes, facts_of_node(card).memory_bytes, read_host_memory(root).available_bytes
    bounds = [None if used is None or limit is None else max(0, limit - used), left]
    free = min((bound for bound in bounds if bound is not None), default=None)
    return used if free is None or limit is None else max(0, limit - free), free


def _split(function: PciFunction, nodes: Sequence[KfdNode], facts: CardFacts) -> list[RocmCard]:
    """Make one card of a function, or one of each partition that KFD shows of it."""
    whole = RocmCard(function=function, node=nodes[0] if nodes else None, facts=facts, uuid="")
    unique_id = facts.unique_id or (whole.node.unique_id if whole.node else None)
    uuid = _bus_uuid(whole) if unique_id is None else f"GPU-{unique_id:016x}"
    if len(nodes) < 2:
        return [msgspec.structs.replace(whole, uuid=uuid)]
    return [
        msgspec.structs.replace(whole, node=node, uuid=f"{uuid}-p{n}", partition=n, parent=uuid)
        for n, node in enumerate(nodes)
    ]


def _bus_uuid(card: RocmCard) -> str:
    uuid = name_by_address(card.address)
    return uuid if card.partition is None else f"{uuid}-p{card.partition}"


def _slot(address: str) -> str:
    """Leave the function number away: drivers number partitions with it."""
    return address.partition(".")[0]
