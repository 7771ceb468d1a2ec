"""Intel GPUs through Level Zero's loader: the core API for what they are, Sysman for what they do.

The core API counts devices the way ZE_AFFINITY_MASK does and an engine will see them (in the default FLAT hierarchy
each tile of a card counts, and both have the card's address); Sysman's order is its own, so the two are joined by PCI
address. Neither makes a context on the device. Source of every number: ze_api.h and zes_api.h of Level Zero 1.15.
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


class LevelZeroCard(msgspec.Struct, frozen=True, kw_only=True):
    """One card as Level Zero lists it."""

    address: str
    uuid: str | None
    name: str
    device_id: int
    is_integrated: bool
    memory_bytes: int | None
    driver: str | None
    visible: str | None  # its places in Level Zero's order, one per tile


class LevelZeroReading(msgspec.Struct, frozen=True, kw_only=True):
    """What a card is doing; None: it does not say."""

    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    util_pct: float | None = None
    temp_c: float | None = None
    power_w: float | None = None
    ecc_uncorrected: int | None = None
    fault: str | None = None  # in words with the remedy


class LevelZero:
    """The loader, loaded. Rates are differences of counters: the first reading of a card has none."""

    def __init__(self, *, directories: Sequence[str] = (), root: Path) -> None:
        """Load it. Raises: LibraryError."""
        # An own mask would hide devices and count the rest anew, and an engine is given a mask of its own.
        os.environ.pop("ZE_AFFINITY_MASK", None)
        self._library = load_library(NAMES, directories=directories, root=root)
        self._sysman: dict[str, tuple[int, SysmanProperties]] | None = None
        self._last: dict[tuple[str, int], tuple[int, int]] = {}

    def cards(self) -> dict[str, LevelZeroCard]:
        """List the GPUs by address. Raises: LibraryError."""
        self._start("zeInit", _GPU_ONLY)
        drivers = [self._list("zeDeviceGet", driver) for driver in self._list("zeDriverGet")]
        drivers = [devices for devices in drivers if devices]
        try:
            sysman = self._find_sysman()
        except LibraryError:  # a loader older than 1.5 has no zesInit
            sysman = {}
        found: dict[str, LevelZeroCard] = {}
        for devices in drivers:
            listed: dict[str, LevelZeroCard] = {}
            for place, device in enumerate(devices):
                card = self._describe(device, str(place) if len(drivers) == 1 else None, sysman)
                if card is not None:
                    listed[card.address] = _join(listed.get(card.address), card)
            found = {**listed, **found}  # what a second driver lists again is no tile
        return found

    def uuids(self) -> dict[str, str]:
        """Name the cards that Sysman lists, by address. Raises: LibraryError."""
        named = {at: _uuid(properties.core.uuid) for at, (_, properties) in self._find_sysman().items()}
        return {address: uuid for address, uuid in named.items() if uuid is not None}

    def reading(self, address: str) -> LevelZeroReading:
        """Read what a card is doing; nothing if Sysman does not list it. Raises: LibraryError."""
        found = self._find_sysman().get(address)
        if found is None:
            return LevelZeroReading()
        device = found[0]
        used, free, fault = self._memory(device)
        return LevelZeroReading(
            memory_used_bytes=used,
            memory_free_bytes=free,
            util_pct=self._utilisation(device),
            temp_c=self._temperature(device),
            power_w=self._power(device),
            ecc_uncorrected=self._uncorrected(device),
            fault=self._fault(device) or fault,
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

    def _memory(self, device: int) -> tuple[int | None, int | None, str | None]:
        used = free = 0
        modules = self._list("zesDeviceEnumMemoryModules", device)
        fault: str | None = None
        for module in modules:
            state = MemoryState(stype=0x1E)  # ZES_STRUCTURE_TYPE_MEM_STATE
            if self._call("zesMemoryGetState", module, state):
                return None, None, fault
            if words := _BAD_MEMORY.get(state.health):
                fault = f"its memory {words}, says zesMemoryGetState"
            used, free = used + state.size - state.free, free + state.free
        return (used, free, fault) if modules else (None, None, None)

    def _utilisation(self, device: int) -> float | None:
        groups: dict[int, list[int]] = {}
        for engine in self._list("zesDeviceEnumEngineGroups", device):
            properties = TypedProperties(stype=0x5)  # ZES_STRUCTURE_TYPE_ENGINE_PROPERTIES
            if not self._call("zesEngineGetProperties", engine, properties):
                groups.setdefault(properties.type, []).append(engine)
        rates = [
            self._rate("zesEngineGetActivity", engine) for engine in groups.get(_COMPUTE_ALL) or groups.get(_ALL, [])
        ]
        known = [rate for rate in rates if rate is not None]
        return min(100.0, 100 * sum(known) / len(known)) if known else None

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


def _join(tile: LevelZeroCard | None, other: LevelZeroCard) -> LevelZeroCard:
    """Make one card of two entries with one address: its tiles."""
    if tile is None:
        return other
    sizes = (tile.memory_bytes, other.memory_bytes)
    return msgspec.structs.replace(
        tile,
        memory_bytes=None if None in sizes else sum(size for size in sizes if size is not None),
        visible=None if tile.visible is None or other.visible is None else f"{tile.visible},{other.visible}",
    )


def _uuid(octets: Any) -> str | None:
    """Write a UUID as xpu-smi does: last byte first."""
    text = bytes(octets)[::-1].hex()
    if not text.strip("0"):
        return None
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
