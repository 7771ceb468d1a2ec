"""Intel GPUs through Level Zero's loader: the core API for what they are, Sysman for what they do.

The core API counts devices the way ZE_AFFINITY_MASK does and an engine will see them (in the default FLAT hierarchy
each tile of a card counts, and all have the card's address). Sysman lists cards in an order of its own, and says on
which tile it measures. The two are joined by PCI address. Neither makes a context on the device. Source of every
number: ze_api.h and zes_api.h of Level Zero 1.15.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from ctypes import c_double, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import msgspec

from xinf.device.intel_structs import (
    Counter,
    DeviceProperties,
    DeviceState,
    FabricPortProperties,
    FabricPortState,
    MemoryProperties,
    MemoryState,
    PciProperties,
    RasState,
    SysmanProperties,
    TypedProperties,
)
from xinf.device.intel_tile import tiles_are_devices
from xinf.device.library import LibraryError, find_function, load_library

NAMES = ("libze_loader.so.1", "libze_loader.so")
_GPU_ONLY = 1  # ZE_INIT_FLAG_GPU_ONLY
_GPU = 1  # ZE_DEVICE_TYPE_GPU
_INTEGRATED = 1  # ZE_DEVICE_PROPERTY_FLAG_INTEGRATED
_LOST = {  # ze_result_t
    0x70000001: "the driver lost it: look at `dmesg`, and reset or reboot",  # ZE_RESULT_ERROR_DEVICE_LOST
    0x70000006: "it needs a reset: `xpu-smi config -d N --reset`",  # ZE_RESULT_ERROR_DEVICE_REQUIRES_RESET
}
_REASONS = {
    # ZE_RESULT_ERROR_UNINITIALIZED
    0x78000001: "it finds no GPU driver: install the compute runtime (libze_intel_gpu.so.1), and add the user to the"
    " group that owns /dev/dri/renderD*",
    0x70010000: "no permission to open /dev/dri/renderD*: add the user to the group render",  # INSUFFICIENT_PERMISSIONS
}
_COMPUTE_ALL, _ALL = 1, 0  # ZES_ENGINE_GROUP_
_UNCORRECTABLE = 1  # ZES_RAS_ERROR_TYPE_UNCORRECTABLE
_GPU_SENSOR, _GLOBAL_SENSOR = 1, 0  # ZES_TEMP_SENSORS_
_BAD_MEMORY = {3: "has failed in part", 4: "should be replaced"}  # ZES_MEM_HEALTH_CRITICAL, _REPLACE
_WEDGED = 1  # ZES_RESET_REASON_FLAG_WEDGED
_PORT_IS_UP = (1, 2)  # ZES_FABRIC_PORT_STATUS_HEALTHY, _DEGRADED: slower, but up
_HARDWARE_ERRORS = (3, 4, 5)  # ZES_RAS_ERROR_CAT_COMPUTE, _NON_COMPUTE and _CACHE: what is stored or computed wrong

_Sizes = tuple[int, int]  # bytes used and free
# With the number of the tile that it was measured on; None as the number: on none of its own.
_Memory = tuple[int | None, _Sizes | None]
_Rate = tuple[int | None, float | None]


class LevelZeroCard(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of Level Zero's list: a card, or a tile of one."""

    address: str
    uuid: str | None  # the card's; None: it does not say
    name: str
    device_id: int
    is_integrated: bool
    memory_bytes: int | None
    driver: str | None
    visible: str | None  # its place in Level Zero's order


class TileReading(msgspec.Struct, frozen=True, kw_only=True):
    """What a tile is doing, of what differs between those of a card; None: it does not say."""

    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    util_pct: float | None = None


class LevelZeroReading(msgspec.Struct, frozen=True, kw_only=True):
    """What a card is doing; None: it does not say."""

    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    util_pct: float | None = None
    temp_c: float | None = None
    power_w: float | None = None
    ecc_uncorrected: int | None = None
    fault: str | None = None  # in words with the remedy
    tiles: dict[int, TileReading] = {}  # of those that it is told of apart

    def of_tile(self, number: int) -> LevelZeroReading:
        """Say of one tile what is known of it alone, and of the card what is the card's."""
        tile = self.tiles.get(number, TileReading())
        return msgspec.structs.replace(
            self,
            memory_used_bytes=tile.memory_used_bytes,
            memory_free_bytes=tile.memory_free_bytes,
            util_pct=tile.util_pct,
            tiles={},
        )


class LevelZero:
    """The loader, loaded. Rates are differences of counters: the first reading of a card has none."""

    def __init__(self, *, directories: Sequence[str] = (), root: Path) -> None:
        """Load it. Raises: LibraryError."""
        # An own mask would hide devices and count the rest anew, and an engine is given a mask of its own.
        os.environ.pop("ZE_AFFINITY_MASK", None)
        self._library = load_library(NAMES, directories=directories, root=root)
        self._sysman: dict[str, tuple[int, SysmanProperties]] | None = None
        self._tiles: dict[str, int] | None = None
        self._last: dict[tuple[str, int], tuple[int, int]] = {}

    def cards(self) -> dict[str, tuple[LevelZeroCard, ...]]:
        """List the GPUs by address: one entry for a card, or one for each tile in their order. Raises: LibraryError."""
        self._start("zeInit", _GPU_ONLY)
        drivers = [self._list("zeDeviceGet", driver) for driver in self._list("zeDriverGet")]
        drivers = [devices for devices in drivers if devices]
        try:
            sysman = self._find_sysman()
        except LibraryError:  # a loader older than 1.5 has no zesInit
            sysman = {}
        found: dict[str, tuple[LevelZeroCard, ...]] = {}
        for devices in drivers:
            listed: dict[str, tuple[LevelZeroCard, ...]] = {}
            for place, device in enumerate(devices):
                card = self._describe(device, str(place) if len(drivers) == 1 else None, sysman)
                if card is not None:
                    listed[card.address] = (*listed.get(card.address, ()), card)
            found = {**listed, **found}  # what a second driver lists again is no tile
        return {at: entries if at in sysman else _without_own(entries) for at, entries in found.items()}

    def tiles(self) -> dict[str, int]:
        """Count the devices that each card of Sysman's makes, by address: itself, or its tiles. Raises: LibraryError.

        A card with several makes what the core API lists of it, which is not started for others.
        """
        if self._tiles is None:
            counts = {at: int(properties.subdevices) for at, (_, properties) in self._find_sysman().items()}
            listed: dict[str, tuple[LevelZeroCard, ...]] = {}
            if any(count > 1 for count in counts.values()):
                try:
                    listed = self.cards()
                except LibraryError:  # an inventory is xpu-smi's then, which counts them like Sysman
                    listed = {}
            self._tiles = {
                at: len(listed.get(at, ())) or (max(1, count) if tiles_are_devices() else 1)
                for at, count in counts.items()
            }
        return self._tiles

    def uuids(self) -> dict[str, str]:
        """Name the cards that Sysman lists, by address. Raises: LibraryError."""
        named = {at: _uuid(properties.core.uuid) for at, (_, properties) in self._find_sysman().items()}
        return {address: uuid for address, uuid in named.items() if uuid is not None}

    def reading(self, address: str) -> LevelZeroReading:
        """Read what a card is doing; nothing if Sysman does not list it. Raises: LibraryError."""
        found = self._find_sysman().get(address)
        if found is None:
            return LevelZeroReading()
        device, has_tiles = found[0], found[1].subdevices > 1
        memory, fault = self._memory(device, has_tiles=has_tiles)
        rates = self._utilisation(device)
        whole = _measure([sizes for _, sizes in memory], [rate for _, rate in rates])
        return LevelZeroReading(
            memory_used_bytes=whole.memory_used_bytes,
            memory_free_bytes=whole.memory_free_bytes,
            util_pct=whole.util_pct,
            temp_c=self._temperature(device),
            power_w=self._power(device),
            ecc_uncorrected=self._uncorrected(device),
            fault=self._fault(device) or fault,
            tiles=_measure_tiles(memory, rates) if has_tiles else {},
        )

    def links(self) -> set[tuple[str, str]]:
        """List the pairs of addresses that an Xe Link joins, each pair in order. Raises: LibraryError."""
        owner: dict[int, str] = {}  # of an end of the fabric
        found: list[tuple[str, int]] = []
        for address, (device, _) in self._find_sysman().items():
            for port in self._list("zesDeviceEnumFabricPorts", device):
                properties = FabricPortProperties(stype=0x6)  # ZES_STRUCTURE_TYPE_FABRIC_PORT_PROPERTIES
                if self._call("zesFabricPortGetProperties", port, properties):
                    continue
                owner[properties.port.fabric] = address
                state = FabricPortState(stype=0x19)  # ZES_STRUCTURE_TYPE_FABRIC_PORT_STATE
                if not self._call("zesFabricPortGetState", port, state) and state.status in _PORT_IS_UP:
                    found.append((address, state.remote.fabric))
        pairs = {(address, owner.get(remote, address)) for address, remote in found}
        return {(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}

    def _describe(
        self, device: int, place: str | None, sysman: dict[str, tuple[int, SysmanProperties]]
    ) -> LevelZeroCard | None:
        properties = DeviceProperties(stype=0x3)  # ZE_STRUCTURE_TYPE_DEVICE_PROPERTIES
        pci = PciProperties(stype=0x10008)  # ZE_STRUCTURE_TYPE_PCI_EXT_PROPERTIES
        if self._call("zeDeviceGetProperties", device, properties) or properties.type != _GPU:
            return None
        if self._call("zeDevicePciGetPropertiesExt", device, pci):
            return None  # without an address it cannot be told which card it is
        address = str(pci.address)
        told = sysman.get(address)
        version = told[1].driver_version.decode(errors="replace").strip() if told else ""
        return LevelZeroCard(
            address=address,
            uuid=_uuid(told[1].core.uuid if told else properties.uuid),
            name=properties.name.decode(errors="replace").strip(),
            device_id=properties.device_id,
            is_integrated=bool(properties.flags & _INTEGRATED),
            memory_bytes=self._memory_bytes(device),
            driver=version if version and version != "unknown" else None,
            visible=place,
        )

    def _memory_bytes(self, device: int) -> int | None:
        count = c_uint32(0)
        if self._call("zeDeviceGetMemoryProperties", device, count, None) or not count.value:
            return None
        modules = (MemoryProperties * count.value)()
        for module in modules:
            module.stype = 0x7  # ZE_STRUCTURE_TYPE_DEVICE_MEMORY_PROPERTIES
        if self._call("zeDeviceGetMemoryProperties", device, count, modules):
            return None
        return sum(int(module.total_size) for module in modules[: count.value]) or None

    def _find_sysman(self) -> dict[str, tuple[int, SysmanProperties]]:
        """List Sysman's handles by address, once: they stay the same while the process lives."""
        if self._sysman is None:
            self._start("zesInit", 0)
            found: dict[str, tuple[int, SysmanProperties]] = {}
            for driver in self._list("zesDriverGet"):
                for device in self._list("zesDeviceGet", driver):
                    properties = SysmanProperties(stype=0x1)  # ZES_STRUCTURE_TYPE_DEVICE_PROPERTIES
                    pci = PciProperties(stype=0x2)  # ZES_STRUCTURE_TYPE_PCI_PROPERTIES
                    if self._call("zesDeviceGetProperties", device, properties):
                        continue
                    if not self._call("zesDevicePciGetProperties", device, pci):
                        found[str(pci.address)] = (device, properties)
            self._sysman = found
        return self._sysman

    def _memory(self, device: int, *, has_tiles: bool) -> tuple[list[_Memory], str | None]:
        """Read each module of memory, with its tile; and what is wrong with one of them."""
        found: list[_Memory] = []
        fault: str | None = None
        for module in self._list("zesDeviceEnumMemoryModules", device):
            tile: int | None = None
            properties = TypedProperties(stype=0xB)  # ZES_STRUCTURE_TYPE_MEM_PROPERTIES
            if has_tiles and not self._call("zesMemoryGetProperties", module, properties):
                tile = _tile_of(properties)
            state = MemoryState(stype=0x1E)  # ZES_STRUCTURE_TYPE_MEM_STATE
            if self._call("zesMemoryGetState", module, state):
                found.append((tile, None))
                continue
            if words := _BAD_MEMORY.get(state.health):
                fault = f"its memory {words}, says zesMemoryGetState"
            found.append((tile, (state.size - state.free, state.free)))
        return found, fault

    def _utilisation(self, device: int) -> list[_Rate]:
        """Say how busy each group of engines was since the last time, with its tile."""
        groups: dict[int, list[tuple[int | None, int]]] = {}
        for engine in self._list("zesDeviceEnumEngineGroups", device):
            properties = TypedProperties(stype=0x5)  # ZES_STRUCTURE_TYPE_ENGINE_PROPERTIES
            if not self._call("zesEngineGetProperties", engine, properties):
                groups.setdefault(properties.type, []).append((_tile_of(properties), engine))
        engines = groups.get(_COMPUTE_ALL) or groups.get(_ALL, [])
        return [(tile, self._rate("zesEngineGetActivity", engine)) for tile, engine in engines]

    def _power(self, device: int) -> float | None:
        card = c_void_p()
        if self._call("zesDeviceGetCardPowerDomain", device, card) or not card.value:
            return None
        return self._rate("zesPowerGetEnergyCounter", card.value)  # microjoules a microsecond are watts

    def _rate(self, name: str, handle: int) -> float | None:
        """Say how fast a counter rose since the last time; None the first time."""
        counter = Counter()
        if self._call(name, handle, counter):
            return None
        now = (int(counter.value), int(counter.timestamp_us))
        last = self._last.get((name, handle))
        self._last[name, handle] = now
        if last is None or now[1] <= last[1] or now[0] < last[0]:
            return None
        return (now[0] - last[0]) / (now[1] - last[1])

    def _temperature(self, device: int) -> float | None:
        values: dict[int, float] = {}
        for sensor in self._list("zesDeviceEnumTemperatureSensors", device):
            properties = TypedProperties(stype=0x14)  # ZES_STRUCTURE_TYPE_TEMP_PROPERTIES
            value = c_double()
            if self._call("zesTemperatureGetProperties", sensor, properties):
                continue
            if not self._call("zesTemperatureGetState", sensor, value):
                values[properties.type] = max(value.value, values.get(properties.type, value.value))
        return values.get(_GPU_SENSOR, values.get(_GLOBAL_SENSOR))

    def _uncorrected(self, device: int) -> int | None:
        total: int | None = None
        for errors in self._list("zesDeviceEnumRasErrorSets", device):
            properties = TypedProperties(stype=0xF)  # ZES_STRUCTURE_TYPE_RAS_PROPERTIES
            if self._call("zesRasGetProperties", errors, properties) or properties.type != _UNCORRECTABLE:
                continue
            state = RasState(stype=0x22)  # ZES_STRUCTURE_TYPE_RAS_STATE
            if not self._call("zesRasGetState", errors, 0, state):
                total = (total or 0) + sum(int(state.category[kind]) for kind in _HARDWARE_ERRORS)
        return total

    def _fault(self, device: int) -> str | None:
        state = DeviceState(stype=0x15)  # ZES_STRUCTURE_TYPE_DEVICE_STATE
        status = self._call("zesDeviceGetState", device, state)
        if status in _LOST:
            return _LOST[status]
        return _LOST[0x70000006] if not status and state.reset & _WEDGED else None

    def _start(self, name: str, flags: int) -> None:
        status = find_function(self._library, name)(c_uint32(flags)) & 0xFFFFFFFF
        if status:
            raise LibraryError(_REASONS.get(status, f"{name} fails with {status:#010x}"))

    def _list(self, name: str, *parent: int) -> list[int]:
        """Ask for handles the way all of Level Zero does: how many, then which. What is not supported is none."""
        count = c_uint32(0)
        if self._call(name, *parent, count, None) or not count.value:
            return []
        handles = (c_void_p * count.value)()
        if self._call(name, *parent, count, handles):
            return []
        return [int(handle) for handle in handles[: count.value] if handle]

    def _call(self, name: str, *arguments: Any) -> int:
        """Call with handles as ints and structs by reference; gives ze_result_t, 0 for success.

        A function that this loader does not have answers like one that the device does not support.
        """
        try:
            function: Callable[..., int] = find_function(self._library, name)
        except LibraryError:
            return 0x78000003  # ZE_RESULT_ERROR_UNSUPPORTED_FEATURE
        return function(*(_argument(argument) for argument in arguments)) & 0xFFFFFFFF


def _argument(value: Any) -> Any:
    if isinstance(value, int):
        return c_void_p(value)  # a handle; also the flag of zesRasGetState, whose register is as wide
    if value is None or isinstance(value, ctypes.Array):
        return value
    return ctypes.byref(value)


def _without_own(entries: tuple[LevelZeroCard, ...]) -> tuple[LevelZeroCard, ...]:
    """Take from tiles that Sysman does not know their own UUIDs, which nobody else tells; a card's is its own."""
    return entries if len(entries) == 1 else tuple(msgspec.structs.replace(entry, uuid=None) for entry in entries)


def _tile_of(properties: TypedProperties) -> int | None:
    return int(properties.subdevice_id) if properties.on_subdevice else None


def _measure(sizes: Sequence[_Sizes | None], rates: Sequence[float | None]) -> TileReading:
    """Sum up the memory, if all of it is known, and average what is known of the engines."""
    memory = [size for size in sizes if size is not None]
    is_whole = bool(memory) and len(memory) == len(sizes)
    known = [rate for rate in rates if rate is not None]
    return TileReading(
        memory_used_bytes=sum(used for used, _ in memory) if is_whole else None,
        memory_free_bytes=sum(free for _, free in memory) if is_whole else None,
        util_pct=min(100.0, 100 * sum(known) / len(known)) if known else None,
    )


def _measure_tiles(memory: Sequence[_Memory], rates: Sequence[_Rate]) -> dict[int, TileReading]:
    numbers = sorted({tile for tile, _ in (*memory, *rates) if tile is not None})
    tiles = {
        number: _measure(
            [sizes for tile, sizes in memory if tile == number], [rate for tile, rate in rates if tile == number]
        )
        for number in numbers
    }
    return {number: tile for number, tile in tiles.items() if tile != TileReading()}


def _uuid(octets: Any) -> str | None:
    """Write a UUID as xpu-smi does: last byte first."""
    text = bytes(octets)[::-1].hex()
    if not text.strip("0"):
        return None
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
