"""Intel's discrete GPUs: Level Zero first, then xpu-smi, with the xe and i915 drivers' files as help.

The graphics of a processor and its NPU have Intel's vendor number and the same PCI classes, but no memory of their own
and no engine that xinf starts: they are not devices here. Told apart by their PCI device number where it is known, else
by the PCI address that Intel always gives them and by the NPU's driver; where Level Zero answers, its own flag has the
last word. A card with tiles is a device for each of them, since an engine has the memory of one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import msgspec

from xinf.core.device import Device, Distance, Health, Sample, Topology, Vendor
from xinf.device.health import HealthWatch, or_well
from xinf.device.intel_library import LevelZero, LevelZeroCard, LevelZeroReading
from xinf.device.intel_tile import name_tiles, tiles_are_devices
from xinf.device.intel_tool import ToolCard, read_cards, read_detail, read_listed, read_stats
from xinf.device.library import LibraryError
from xinf.device.pci import PASSED_ON, PciFunction, find_pci_functions, name_by_address, without_driver
from xinf.device.quantity import celsius, count, percent, size_in_bytes, watts
from xinf.device.tool import TIMEOUT_S, ToolError, find_tool
from xinf.device.topology import make_topology

_DRIVERS = ("xe", "i915")
_GRAPHICS_OF_PROCESSOR, _NPU_OF_PROCESSOR = "0000:00:02.", "0000:00:0b."
_NPU_DRIVER = "intel_vpu"
_LIBRARIES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/lib")
_TOOLS = ("/usr/bin", "/opt/xpum/bin")
# By PCI device number, first and last. Source: Linux include/drm/intel/pciids.h (0755a4e, 2026).
_ARCHITECTURES = (
    (0x0B69, 0x0BE5, "pvc"),  # Data Center GPU Max
    (0x4905, 0x4909, "dg1"),
    (0x5690, 0x56C2, "dg2"),  # Arc A, Data Center GPU Flex
    (0x674C, 0x6750, "cri"),  # Crescent Island
    (0xE200, 0xE22F, "bmg"),  # Arc B
)
# The graphics of processors since Skylake, by the same source: a virtual machine may show them at any address.
_INTEGRATED = (
    (0x1902, 0x193D),  # Skylake
    (0x3E90, 0x3EA9),  # Coffee, Whiskey Lake
    (0x4541, 0x4571),  # Elkhart Lake
    (0x4626, 0x46D4),  # Alder Lake
    (0x4C80, 0x4C9A),  # Rocket Lake
    (0x4E51, 0x4E71),  # Jasper Lake
    (0x5902, 0x593B),  # Kaby Lake
    (0x6420, 0x64B0),  # Lunar Lake
    (0x7D40, 0x7DD5),  # Meteor Lake, Arrow Lake
    (0x8A50, 0x8A71),  # Ice Lake
    (0x9A40, 0x9AF8),  # Tiger Lake
    (0x9B21, 0x9BF6),  # Comet Lake
    (0xA720, 0xA7AD),  # Raptor Lake
    (0xB080, 0xB0B0),  # Panther Lake
    (0xB640, 0xB640),  # Arrow Lake
    (0xD740, 0xD75F),  # Nova Lake
    (0xFD80, 0xFD81),  # Wildcat Lake
)


class IntelProbe:
    """Reads Intel's discrete GPUs; `timeout_s` bounds one run of xpu-smi."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._watch = HealthWatch()
        self._library: LevelZero | None = None  # kept for the counters of the last reading
        self._listed: tuple[ToolCard, ...] = ()
        self._n_tiles: dict[str, int] = {}  # by address, of xpu-smi; asked once
        self._addresses: tuple[str, ...] = ()

    def is_present(self, root: Path) -> bool:
        return bool(_functions(root))

    def inventory(self, root: Path) -> tuple[Device, ...]:
        functions = _functions(root)
        reasons: list[str] = []
        cards: dict[str, tuple[LevelZeroCard, ...]] = {}
        told: dict[str, ToolCard] = {}
        try:
            cards = LevelZero(directories=_LIBRARIES, root=root).cards()
        except LibraryError as error:
            reasons.append(f"Level Zero: {error}")
        functions = tuple(f for f in functions if f.address not in cards or not cards[f.address][0].is_integrated)
        if any(_is_unknown(cards.get(function.address, ())) for function in functions):
            try:
                told = {card.address: card for card in read_cards(self._find_tool(root), timeout_s=self._timeout_s)}
            except ToolError as error:
                reasons.append(str(error))
        devices = [
            device
            for function in functions
            for device in _describe(
                function, cards.get(function.address, ()), told.get(function.address), reasons, root
            )
        ]
        return tuple(msgspec.structs.replace(device, index=index) for index, device in enumerate(devices))

    def topology(self, root: Path) -> Topology:
        """Tell which cards an Xe Link joins, with all their tiles, and the tiles of one card.

        Nothing where Level Zero does not start: the tool is not asked.
        """
        try:
            library = LevelZero(directories=_LIBRARIES, root=root)
            uuids, links, tiles = library.uuids(), library.links(), library.tiles()
        except LibraryError:
            return Topology()
        names = {at: name_tiles(uuids.get(at) or _bus_uuid(at), n_tiles) for at, n_tiles in tiles.items()}
        pairs = [pair for tiles_of_card in names.values() for pair in combinations(tiles_of_card, 2)]
        pairs += [(one, other) for first, second in links for one in names[first] for other in names[second]]
        return make_topology((one, other, Distance.LINK) for one, other in pairs)

    def sample(self, root: Path) -> tuple[Sample, ...]:
        """Read what the cards are doing. Raises: ToolError."""
        # A card that comes later is sampled by the next child.
        self._addresses = addresses = self._addresses or tuple(function.address for function in _functions(root))
        try:
            if self._library is None:
                self._library = LevelZero(directories=_LIBRARIES, root=root)
            uuids, tiles = self._library.uuids(), self._library.tiles()
            readings = {address: self._library.reading(address) for address in addresses}
            if all(reading == LevelZeroReading() for reading in readings.values()):
                raise LibraryError("Level Zero lists none of the cards")
        except LibraryError:
            uuids, tiles, readings = self._ask_tool(root)
        return tuple(
            self._make_sample(uuid, reading)
            for address in addresses
            if address in readings
            for uuid, reading in _split(
                uuids.get(address) or _bus_uuid(address), tiles.get(address, 1), readings[address]
            )
        )

    def _ask_tool(self, root: Path) -> tuple[dict[str, str], dict[str, int], dict[str, LevelZeroReading]]:
        """Ask xpu-smi: identity and number of tiles once, then one run per card. Raises: ToolError."""
        tool = self._find_tool(root)
        if not self._listed:
            self._listed = read_listed(tool, timeout_s=self._timeout_s)
        readings = {card.address: read_stats(tool, card.number, timeout_s=self._timeout_s) for card in self._listed}
        for card in self._listed if tiles_are_devices() else ():
            if card.address not in self._n_tiles and len(readings[card.address].tiles) > 1:
                self._n_tiles[card.address] = read_detail(tool, card, timeout_s=self._timeout_s).n_tiles
        uuids = {card.address: card.uuid for card in self._listed if card.uuid is not None}
        return uuids, self._n_tiles, readings

    def _make_sample(self, uuid: str, reading: LevelZeroReading) -> Sample:
        temp_c, errors = celsius(reading.temp_c), count(reading.ecc_uncorrected)
        health, reason = self._watch.judge(uuid, ecc_uncorrected=errors, temp_c=temp_c)
        if reading.fault is not None:
            health, reason = Health.FAULTY, reading.fault
        return Sample(
            uuid=uuid,
            t_ns=time.time_ns(),
            memory_used_bytes=size_in_bytes(reading.memory_used_bytes, 1),
            memory_free_bytes=size_in_bytes(reading.memory_free_bytes, 1),
            util_pct=percent(reading.util_pct),
            temp_c=temp_c,
            power_w=watts(reading.power_w),
            ecc_uncorrected=errors,
            health=or_well(health, reading.memory_used_bytes, reading.util_pct, reading.power_w),
            reason=reason,
        )

    def _find_tool(self, root: Path) -> str:
        tool = find_tool("xpu-smi", directories=_TOOLS, root=root)
        if tool is None:
            raise ToolError("xpu-smi is not there")
        return tool


def _functions(root: Path) -> tuple[PciFunction, ...]:
    """List the functions that may be a discrete GPU."""
    return tuple(
        function
        for function in find_pci_functions(root)
        if function.vendor is Vendor.INTEL and _may_be_discrete(function)
    )


def _may_be_discrete(function: PciFunction) -> bool:
    if function.driver == _NPU_DRIVER:
        return False
    if _arch_of(function.device_id) is not None:
        return True  # also where a virtual machine shows it at a processor's address
    if any(first <= function.device_id <= last for first, last in _INTEGRATED):
        return False
    if function.driver is not None and function.driver not in (*_DRIVERS, *PASSED_ON):
        return False  # of the class too, and no GPU: FPGA cards (dfl-pci)
    return not function.address.startswith((_GRAPHICS_OF_PROCESSOR, _NPU_OF_PROCESSOR))


def _arch_of(device_id: int) -> str | None:
    return next((arch for first, last, arch in _ARCHITECTURES if first <= device_id <= last), None)


def _is_unknown(entries: Sequence[LevelZeroCard]) -> bool:
    """Whether Level Zero leaves out a card, its memory, or of one with tiles the name."""
    is_nameless = len(entries) > 1 and entries[0].uuid is None
    return not entries or is_nameless or any(entry.memory_bytes is None for entry in entries)


def _split(uuid: str, n_tiles: int, reading: LevelZeroReading) -> Iterator[tuple[str, LevelZeroReading]]:
    """Say what each device that a card makes is doing, by its name."""
    for number, name in enumerate(name_tiles(uuid, n_tiles)):
        yield name, reading if n_tiles == 1 else reading.of_tile(number)


def _describe(
    function: PciFunction, entries: Sequence[LevelZeroCard], told: ToolCard | None, reasons: list[str], root: Path
) -> tuple[Device, ...]:
    """Describe a card, or each of its tiles; not yet numbered."""
    if not entries and told is None:
        return (without_driver(function, 0, _why_unknown(function, reasons)),)
    n_tiles = len(entries) or (told.n_tiles if told is not None and tiles_are_devices() else 1)
    if told is not None and told.memory_bytes is not None:
        told = msgspec.structs.replace(told, memory_bytes=told.memory_bytes // n_tiles)
    devices = tuple(_describe_one(function, entry, told, root) for entry in entries or (None,) * n_tiles)
    if n_tiles == 1:
        return devices
    card = devices[0].uuid  # the parent: no engine can take it while its tiles are devices
    return tuple(
        msgspec.structs.replace(device, uuid=name, parent=card, extra={"tile": number, "tiles": n_tiles})
        for number, (name, device) in enumerate(zip(name_tiles(card, n_tiles), devices, strict=True))
    )


def _describe_one(function: PciFunction, card: LevelZeroCard | None, told: ToolCard | None, root: Path) -> Device:
    facts = [source for source in (card, told) if source is not None]
    uuids, names, sizes, drivers = (
        [value for source in facts if (value := getattr(source, field)) is not None]
        for field in ("uuid", "name", "memory_bytes", "driver")
    )
    return Device(
        vendor=Vendor.INTEL,
        index=0,
        uuid=str(uuids[0]) if uuids else _bus_uuid(function.address),
        name=str(names[0]) if names else f"intel {function.device_id:#06x}",
        arch=_arch_of(function.device_id),
        memory_bytes=sizes[0] if sizes else None,
        driver=str(drivers[0]) if drivers else function.driver,
        pci=function.address,
        numa=function.numa,
        dev_nodes=_dev_nodes(function.address, root),
        # xpu-smi numbers cards its own way: only Level Zero itself says what its mask takes.
        visible=None if card is None else card.visible,
    )


def _why_unknown(function: PciFunction, reasons: list[str]) -> str:
    if function.driver is None:
        return "no kernel driver is bound to it: it needs xe or i915"
    if function.driver not in _DRIVERS:
        return f"the kernel driver {function.driver} is bound to it, not xe or i915: it is given to a virtual machine"
    return "; ".join(reasons) or "neither Level Zero nor xpu-smi lists it"


def _dev_nodes(address: str, root: Path) -> tuple[str, ...]:
    directory = root / "sys/bus/pci/devices" / address / "drm"
    return tuple(f"/dev/dri/{path.name}" for path in sorted(directory.glob("renderD*")))


def _bus_uuid(address: str) -> str:
    return name_by_address(address)
