"""Cambricon MLUs through cndev (libcndev.so of the driver or of Neuware): identity, samples and links, by ctypes.

Signatures: `cndev.h` of driver 5 and 6, as Cambricon's device plugin and exporter ship it (Apache-2.0), compared with
gpustack-runtime's pycndev. Most structs open with a version that the caller sets and the library checks: 6 is offered
first, then 5. Memory is in MB of 2^20, power in W.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TypeVar

from xinf.core.device import Distance, Health
from xinf.device.c_calls import MAX_DEVICES
from xinf.device.cambricon_card import architecture_of, identify
from xinf.device.cambricon_structs import (
    CardInfo,
    EccInfo,
    HealthState,
    HealthStateV2,
    LinkRemote,
    LinkStatus,
    LinkStatusV2,
    MemoryInfo,
    MemoryInfoV2,
    PcieInfo,
    PcieInfoV2,
    PowerInfo,
    Relationship,
    TemperatureInfo,
    UtilizationInfo,
    Uuid,
    VersionInfo,
)
from xinf.device.library import LibraryError, find_function, load_library
from xinf.device.roster import Card

T = TypeVar("T", bound=ctypes.Structure)

_DIRECTORIES = ("/usr/local/neuware/lib64", "/usr/local/neuware/lib")
_VERSIONS = (6, 5)
_UNSUPPORTED_VERSION = 3
_GOOD = 1  # `health` of a card, and `deviceState`
_MAC_DOWN = 0
_MAX_PORTS = 64
_INACTIVE = 0
_DRIVER_STATES = {5: "its driver failed to start it", 6: "it is being reset", 7: "its reset failed"}
_RELATIONS = {  # cndevTopologyRelationshipEnum_t
    1: Distance.PIX,  # one board, whose chips are behind its own switch
    2: Distance.PIX,
    3: Distance.PXB,
    4: Distance.PHB,
    5: Distance.NODE,
    6: Distance.SYS,
}
_CODES = {
    1: "no driver: run `modprobe cambricon-drv` and look at `dmesg`",
    2: "the driver is too old for the library",
    3: "the library does not know this version of its interface",
    7: "unknown error",
    10: "not supported",
    12: "no devices",
    13: "no permission: add the user to the group that owns /dev/cambricon_ctl",
    17: "timed out",
    18: "the device has a problem",
}


class Cndev:
    """The started library. Raises: LibraryError when it is not there or does not start."""

    def __init__(self, root: Path) -> None:
        home = os.environ.get("NEUWARE_HOME")
        directories = _DIRECTORIES if home is None else (f"{home}/lib64", *_DIRECTORIES)
        self._library = load_library(("libcndev.so",), directories=directories, root=root)
        code = find_function(self._library, "cndevInit")(0)
        if code != 0:
            raise LibraryError(f"cndevInit: {self._words(code)}")
        self._places: dict[int, str] = {}  # told once: a card does not move, and a call may fail the next time

    def inventory(self) -> tuple[Card, ...]:
        """List the cards; no metric is read."""
        return tuple(self._describe(number, handle) for number, handle in self._handles().items())

    def states(self) -> tuple[Card, ...]:
        """Read what each card is doing."""
        return tuple(self._measure(number, handle) for number, handle in self._handles().items())

    def distances(self) -> tuple[tuple[str, str, Distance], ...]:
        """Ask how far each two cards are apart: an MLU-Link that is up is nearer than any way over PCIe."""
        cards = self._handles()
        handles = list(cards.values())
        uuids = [identify(number, self._pci(handle)) for number, handle in cards.items()]
        names = {told: uuid for uuid, handle in zip(uuids, handles, strict=True) if (told := self._uuid(handle))}
        linked = {
            (uuid, names.get(other))
            for uuid, handle in zip(uuids, handles, strict=True)
            for other in self._linked(handle)
        }
        found: list[tuple[str, str, Distance]] = []
        for i, first in enumerate(handles):
            for j, second in enumerate(handles[:i]):
                if (uuids[i], uuids[j]) in linked or (uuids[j], uuids[i]) in linked:
                    found.append((uuids[i], uuids[j], Distance.LINK))
                    continue
                answer = self._read("cndevTopologyGetRelationship", Relationship(), first, second)
                distance = _RELATIONS.get(answer.relation) if answer is not None else None
                if distance is not None:
                    found.append((uuids[i], uuids[j], distance))
        return tuple(found)

    def _handles(self) -> dict[int, int]:
        """Map the card numbers to handles; a card that gives none is left out and shows as lost on the bus."""
        cards = self._read("cndevGetDeviceCount", CardInfo())
        if cards is None:
            raise LibraryError("cndevGetDeviceCount does not answer")
        if cards.number > MAX_DEVICES:
            raise LibraryError(f"cndevGetDeviceCount gives {cards.number} cards: its layout is not known")
        try:
            resolve = find_function(self._library, "cndevGetDeviceHandleByIndex")
        except LibraryError:
            return {number: number for number in range(cards.number)}  # until driver 5 the number was the handle
        handles: dict[int, int] = {}
        for number in range(cards.number):
            handle = ctypes.c_int32()
            if resolve(number, ctypes.byref(handle)) == 0:
                handles[number] = handle.value
        return handles

    def _describe(self, number: int, handle: int) -> Card:
        version = self._read("cndevGetVersionInfo", VersionInfo(), handle)
        memory = self._memory(handle)
        state = self._state(handle)
        name, pci, uuid = self._name(handle), self._pci(handle), self._uuid(handle)
        return Card(
            number=number,
            name=name,
            arch=architecture_of(name),
            uuid=identify(number, pci),
            memory_bytes=memory.physicalMemoryTotal << 20 if memory is not None else None,
            pci=pci,
            dev_nodes=(f"/dev/cambricon_dev{number}",),
            extra={} if uuid is None else {"uuid": f"MLU-{uuid}"},
            driver=None
            if version is None
            else f"{version.driverMajorVersion}.{version.driverMinorVersion}.{version.driverBuildVersion}",
            health=_health_of(state),
            reason=_reason_of(state),
        )

    def _measure(self, number: int, handle: int) -> Card:
        memory = self._memory(handle)
        utilization = self._read("cndevGetDeviceUtilizationInfo", UtilizationInfo(), handle)
        temperature = self._read("cndevGetTemperatureInfo", TemperatureInfo(), handle)
        power = self._read("cndevGetDevicePowerInfo", PowerInfo(), handle)
        ecc = self._read("cndevGetECCInfo", EccInfo(), handle)
        state = self._state(handle)
        # A sensor that a product lacks reads as 0.
        celsius = 0 if temperature is None else temperature.chip or temperature.board
        pci = self._pci(handle)
        return Card(
            pci=pci,
            number=number,  # by which the kernel's driver tells the address, where cndev does not
            uuid=identify(number, pci),
            memory_bytes=memory.physicalMemoryTotal << 20 if memory is not None else None,
            used_bytes=memory.physicalMemoryUsed << 20 if memory is not None else None,
            util_pct=None if utilization is None else float(utilization.averageCoreUtilization),
            temp_c=float(celsius) if celsius else None,
            power_w=float(power.usage) if power is not None and power.usage else None,
            ecc_uncorrected=None if ecc is None else ecc.uncorrectedError,
            health=_health_of(state),
            reason=_reason_of(state),
        )

    def _state(self, handle: int) -> HealthState | HealthStateV2 | None:
        """Ask for the health: the second form tells incidents, the first is all that older drivers have."""
        state: HealthState | HealthStateV2 | None = self._read("cndevGetCardHealthStateV2", HealthStateV2(), handle)
        return state or self._read("cndevGetCardHealthState", HealthState(), handle)

    def _memory(self, handle: int) -> MemoryInfo | MemoryInfoV2 | None:
        memory: MemoryInfo | MemoryInfoV2 | None = self._read("cndevGetMemoryUsageV2", MemoryInfoV2(), handle)
        memory = memory or self._read("cndevGetMemoryUsage", MemoryInfo(), handle)
        return memory if memory is not None and memory.physicalMemoryTotal > 0 else None

    def _name(self, handle: int) -> str:
        try:
            ask = find_function(self._library, "cndevGetCardNameStringByDevId")
        except LibraryError:
            return "MLU"
        ask.restype = ctypes.c_char_p
        return (ask(handle) or b"MLU").decode(errors="replace")

    def _uuid(self, handle: int) -> str | None:
        """Ask for the UUID as cndev writes it, without the prefix that everybody else puts before it."""
        answer = self._read("cndevGetUUID", Uuid(), handle)
        return (answer.uuid.decode(errors="replace") or None) if answer is not None else None

    def _pci(self, handle: int) -> str | None:
        if handle not in self._places:
            place: PcieInfo | PcieInfoV2 | None = self._read("cndevGetPCIeInfoV2", PcieInfoV2(), handle)
            place = place or self._read("cndevGetPCIeInfo", PcieInfo(), handle)
            if place is None:
                return None
            address = f"{place.domain:04x}:{place.bus:02x}:{place.device:02x}.{place.function:x}"
            self._places[handle] = address
        return self._places[handle]

    def _linked(self, handle: int) -> set[str]:
        """List the uuids at the other ends of the MLU-Link ports that are up."""
        try:
            n_ports = find_function(self._library, "cndevGetMLULinkPortNumber")(handle)
        except LibraryError:
            return set()
        found: set[str] = set()
        for port in range(min(max(0, n_ports), _MAX_PORTS)):
            status = self._read("cndevGetMLULinkStatusV2", LinkStatusV2(), handle, port)
            if status is not None:
                is_up = status.macState != _MAC_DOWN
            else:
                older = self._read("cndevGetMLULinkStatus", LinkStatus(), handle, port)
                is_up = older is not None and older.isActive != _INACTIVE
            remote = self._read("cndevGetMLULinkRemoteInfo", LinkRemote(), handle, port) if is_up else None
            if remote is not None and remote.uuid:
                found.add(remote.uuid.decode(errors="replace"))
        return found

    def _read(self, name: str, answer: T, *arguments: int) -> T | None:
        """Ask a question; None when the card, or this library, has no answer."""
        try:
            ask = find_function(self._library, name)
        except LibraryError:
            return None
        if not hasattr(answer, "version"):
            return answer if ask(ctypes.byref(answer), *arguments) == 0 else None
        for version in _VERSIONS:
            answer.version = version
            code = ask(ctypes.byref(answer), *arguments)
            if code != _UNSUPPORTED_VERSION:
                return answer if code == 0 else None
        return None

    def _words(self, code: int) -> str:
        if code in _CODES:
            return f"{_CODES[code]} ({code})"
        try:
            ask = find_function(self._library, "cndevGetErrorString")
        except LibraryError:
            return f"error {code}"
        ask.restype = ctypes.c_char_p
        return f"{(ask(code) or b'unknown error').decode(errors='replace')} ({code})"


def _health_of(state: HealthState | HealthStateV2 | None) -> Health | None:
    if state is None:
        return None
    return Health.OK if state.health == _GOOD else Health.FAULTY


def _reason_of(state: HealthState | HealthStateV2 | None) -> str | None:
    if state is None or state.health == _GOOD:
        return None
    words = _DRIVER_STATES.get(state.driverState, "it has a problem")
    if isinstance(state, HealthStateV2):
        incidents = state.incidents[: min(state.incident_count, len(state.incidents))]
        told = dict.fromkeys(incident.msg.decode(errors="replace").strip() for incident in incidents)
        words = "; ".join([words, *filter(None, told)])[:300]
    return f"cndev says of the card: {words}; see `cnmon info` and `dmesg`"
