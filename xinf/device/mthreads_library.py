"""Moore Threads' libmtml.so by ctypes: identity, state and MtLink.

Source: mtml_2.2.0.h and pymtml.py 2.4.3 of MooreThreads/mthreads-ml-py; the functions and MtmlPciInfo are the same in
fastfetch's header after the 1.x documentation. Of pymtml before 2.4.3 the struct was longer than the header's: only
its beginning is read here, in a buffer that takes either.

The library is never shut down: after a shutdown it does not start again in the same process (vllm-musa says so). Its
handles are kept, since asking for one again leaks (the header says so); a card that appears later is seen by the next
process.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from xinf.core.device import Distance, Health, Vendor
from xinf.device.c_calls import CCalls, Handle
from xinf.device.health import or_well
from xinf.device.library import LibraryError, load_library
from xinf.device.pci import normalise_address
from xinf.device.roster import Card, Listing, list_readable, name_by_place
from xinf.device.started_library import check_version

_NAMES = ("libmtml.so.2", "libmtml.so", "libmtml.so.1")
_DIRECTORIES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64")
_KNOWN_MAJORS = ("1", "2")
_SUCCESS, _DRIVER_FAILURE = 0, 2
_ERRORS = {
    1: "the Moore Threads driver is not loaded: run `modprobe mtgpu` and look at `dmesg`",
    2: "the driver cannot be reached: look at `dmesg` and at the permissions of /dev/mtgpu.*",
    3: "an argument is invalid",
    4: "not supported",
    5: "no permission: add the user to the groups `render` and `video`",
    6: "the buffer is too small",
    7: "not found",
    8: "the host is out of memory",
    9: "the driver is too old for the library: update it and reboot",
    10: "the driver is too new for the library: update the library (package mtml)",
    11: "timed out",
    12: "the resource is busy",
}
# MtmlMpcType, MtmlVirtRole, MtmlMemoryErrorType, MtmlEccCounterType, MtmlMemoryLocation, MtmlMtLinkState.
_MPC_PARENT, _MPC_INSTANCE = 1, 2
_VIRTUAL_OF_HOST = 1
_UNCORRECTED, _VOLATILE, _DRAM = 1, 0, 1
_LINK_DOWN = 0
_MAX_LINKS = 64  # an S5000 has 14
# MtmlDeviceTopologyLevel: internal, one switch, several, a host bridge, a NUMA node, the system.
_LEVELS = (Distance.PIX, Distance.PIX, Distance.PXB, Distance.PHB, Distance.NODE, Distance.SYS)
# Which instruction set a product has: scripts of MooreThreads/torch_musa (MP_21, MP_22; cc3.1 is mp_31).
_ARCH = {"S3000": "mp_21", "S80": "mp_21", "S80ES": "mp_21", "S90": "mp_22", "S4000": "mp_22", "S5000": "mp_31"}


class PciInfo(ctypes.Structure):
    """MtmlPciInfo."""

    _fields_ = (
        ("sbdf", ctypes.c_char * 32),
        *((field, ctypes.c_uint) for field in ("segment", "bus", "device", "pci_device_id")),
        *((field, ctypes.c_uint) for field in ("pci_subsystem_id", "bus_width")),
        *((field, ctypes.c_float) for field in ("max_speed", "current_speed")),
        *((field, ctypes.c_uint) for field in ("max_width", "current_width", "max_generation", "current_generation")),
        ("reserved", ctypes.c_int * 6),
    )


class Property(ctypes.Structure):
    """MtmlDeviceProperty."""

    _fields_ = (
        ("can_virtualize", ctypes.c_uint, 1),
        ("virtual_role", ctypes.c_uint, 3),
        ("can_mpc", ctypes.c_uint, 1),
        ("mpc_type", ctypes.c_uint, 3),
        ("can_mtlink", ctypes.c_uint, 1),
        ("reserved", ctypes.c_uint, 23),
        ("reserved2", ctypes.c_uint, 32),
    )


class LinkSpec(ctypes.Structure):
    """MtmlMtLinkSpec."""

    _fields_ = (
        *((field, ctypes.c_uint) for field in ("version", "bandwidth", "n_links")),
        ("reserved", ctypes.c_uint * 4),
    )


class LinkLayout(ctypes.Structure):
    """MtmlMtLinkLayout."""

    _fields_ = (
        ("local_link", ctypes.c_uint),
        ("remote_link", ctypes.c_uint),
        ("reserved", ctypes.c_uint * 4),
    )


@dataclass(frozen=True)
class _Handles:
    number: int
    device: ctypes.c_void_p
    gpu: ctypes.c_void_p | None
    memory: ctypes.c_void_p | None


class Mtml:
    """The started library. Raises: LibraryError when it cannot be started or is of a version that is not known."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._calls = CCalls(load_library(_NAMES, directories=_DIRECTORIES, root=root), _ERRORS)
        self._root = ctypes.c_void_p()
        self._calls.demand("mtmlLibraryInit", ctypes.byref(self._root))
        check_version("libmtml", self._calls.text("mtmlLibraryGetVersion", self._root, length=32), _KNOWN_MAJORS)
        system = ctypes.c_void_p()
        has_system = self._calls.ask("mtmlLibraryInitSystem", self._root, ctypes.byref(system))
        self._driver = self._calls.text("mtmlSystemGetDriverVersion", system, length=80) if has_system else None
        opened = self._calls.open_all("mtmlLibraryCountDevice", "mtmlLibraryInitDeviceByIndex", self._root)
        self._handles, self._complaints = [self._open(handle) for handle in opened[0]], opened[1]

    def inventory(self) -> Listing:
        """List the cards, and what kept others from being listed. Raises: LibraryError when there is none."""
        return self._read_all(self._describe)

    def states(self) -> Listing:
        """Read what the cards are doing, but for those that cannot be identified. Raises: LibraryError if none can."""
        return self._read_all(self._measure)

    def distances(self) -> list[tuple[tuple[str, str], Distance]]:
        """Say how far each two cards are apart, by their names; pairs that it does not know are left out."""
        cards: list[tuple[str, _Handles]] = []
        for handles in self._handles:
            try:
                if not self._is_foreign(handles):
                    cards.append((self._identify(handles), handles))
            except LibraryError:
                continue  # one that cannot be named has no distances
        found = []
        for (first, one), (second, other) in combinations(cards, 2):
            distance = self._distance(one.device, other.device)
            if distance is not None:
                found.append(((min(first, second), max(first, second)), distance))
        return found

    def _read_all(self, read: Callable[[_Handles], Card]) -> Listing:
        own = [(handles.number, handles) for handles in self._handles if not self._is_foreign(handles)]
        return list_readable(own, read, self._complaints)

    def _open(self, handle: Handle) -> _Handles:
        gpu, memory = ctypes.c_void_p(), ctypes.c_void_p()
        has_gpu = self._calls.ask("mtmlDeviceInitGpu", handle.pointer, ctypes.byref(gpu))
        has_memory = self._calls.ask("mtmlDeviceInitMemory", handle.pointer, ctypes.byref(memory))
        return _Handles(handle.number, handle.pointer, gpu if has_gpu else None, memory if has_memory else None)

    def _describe(self, handles: _Handles) -> Card:
        number, kind = ctypes.c_uint(), self._property(handles)
        has_number = self._calls.ask("mtmlDeviceGetIndex", handles.device, ctypes.byref(number))
        name = self._calls.text("mtmlDeviceGetName", handles.device, length=32)
        paths = (
            self._calls.text(f"mtmlDeviceGet{which}Path", handles.device, length=64)
            for which in ("Gpu", "Primary", "Render")
        )
        is_parent = kind is not None and kind.mpc_type == _MPC_PARENT
        extra: dict[str, str | int] = {"mpc": "parent"} if is_parent else {}
        uuid = self._calls.text("mtmlDeviceGetUUID", handles.device, length=48)
        if uuid is not None:
            extra["uuid"] = uuid
        return Card(
            pci=self._address(handles.device),
            # The mimic device through which a divided card is managed computes nothing: only its instances do.
            number=number.value if has_number and not is_parent else None,
            uuid=self._identify(handles),
            name=name,
            arch=name_arch(name),
            memory_bytes=self._total_bytes(handles),
            driver=self._driver,
            dev_nodes=tuple(path for path in paths if path is not None),
            parent=self._parent(handles) if kind is not None and kind.mpc_type == _MPC_INSTANCE else None,
            extra=extra,
        )

    def _measure(self, handles: _Handles) -> Card:
        used, errors = ctypes.c_ulonglong(), ctypes.c_ulonglong()
        load, heat, power = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
        kinds = (ctypes.c_uint(_UNCORRECTED), ctypes.c_uint(_VOLATILE), ctypes.c_uint(_DRAM))
        codes = [
            self._calls.code("mtmlMemoryGetUsed", handles.memory, ctypes.byref(used)),
            self._calls.code("mtmlGpuGetUtilization", handles.gpu, ctypes.byref(load)),
            self._calls.code("mtmlGpuGetTemperature", handles.gpu, ctypes.byref(heat)),
            self._calls.code("mtmlDeviceGetPowerUsage", handles.device, ctypes.byref(power)),
            self._calls.code("mtmlMemoryGetEccErrorCounter", handles.memory, *kinds, ctypes.byref(errors)),
        ]
        has_used, has_load, has_heat, has_power, has_errors = (code == _SUCCESS for code in codes)
        # One call may fail so on a card that lacks the thing; a card that is gone fails all.
        is_lost = {code for code in codes if code is not None} == {_DRIVER_FAILURE}
        return Card(
            pci=self._address(handles.device),
            uuid=self._identify(handles),
            memory_bytes=self._total_bytes(handles),
            used_bytes=used.value if has_used else None,
            util_pct=float(load.value) if has_load else None,
            temp_c=float(heat.value) if has_heat else None,
            power_w=power.value / 1000 if has_power else None,
            ecc_uncorrected=errors.value if has_errors else None,
            health=Health.FAULTY if is_lost else or_well(None, *(0 for code in codes if code == _SUCCESS)),
            reason=f"MTML: {_ERRORS[_DRIVER_FAILURE]}" if is_lost else None,
        )

    def _distance(self, one: ctypes.c_void_p, other: ctypes.c_void_p) -> Distance | None:
        if self._is_linked(one, other):
            return Distance.LINK
        level = ctypes.c_uint()
        if not self._calls.ask("mtmlDeviceGetTopologyLevel", one, other, ctypes.byref(level)):
            return None
        return _LEVELS[level.value] if level.value < len(_LEVELS) else None

    def _is_linked(self, one: ctypes.c_void_p, other: ctypes.c_void_p) -> bool:
        """Whether an MtLink joins them that is not down: one that is only wired carries nothing."""
        return any(self._is_up(one, link) for link in self._links_between(one, other))

    def _links_between(self, one: ctypes.c_void_p, other: ctypes.c_void_p) -> list[int]:
        """List the first card's MtLinks that lead to the second.

        Where the library does not relate two cards, each link is asked for its other end, as pymtml does.
        """
        count = ctypes.c_uint()
        if self._calls.ask("mtmlDeviceCountMtLinkLayouts", one, other, ctypes.byref(count)):
            layouts = (LinkLayout * min(count.value, _MAX_LINKS))()
            arguments = (one, other, ctypes.c_uint(len(layouts)), layouts)
            is_told = bool(layouts) and self._calls.ask("mtmlDeviceGetMtLinkLayouts", *arguments)
            return [layout.local_link for layout in layouts] if is_told else []
        spec = LinkSpec()
        if not self._calls.ask("mtmlDeviceGetMtLinkSpec", one, ctypes.byref(spec)):
            return []
        there = self._address(other)
        return [link for link in range(min(spec.n_links, _MAX_LINKS)) if self._end_of(one, link) == there]

    def _end_of(self, device: ctypes.c_void_p, link: int) -> str | None:
        """Ask where a link leads; None: to nothing that is here."""
        remote = ctypes.c_void_p()
        arguments = (device, ctypes.c_uint(link), ctypes.byref(remote))
        if not self._calls.ask("mtmlDeviceGetMtLinkRemoteDevice", *arguments):
            return None
        try:
            return self._address(remote)
        except LibraryError:
            return None

    def _is_up(self, device: ctypes.c_void_p, link: int) -> bool:
        state = ctypes.c_uint(_LINK_DOWN)
        arguments = (device, ctypes.c_uint(link), ctypes.byref(state))
        return self._calls.ask("mtmlDeviceGetMtLinkState", *arguments) and state.value != _LINK_DOWN

    def _is_foreign(self, handles: _Handles) -> bool:
        """Whether it is a slice of a card that the host has given to a virtual machine."""
        kind = self._property(handles)
        return kind is not None and bool(kind.virtual_role == _VIRTUAL_OF_HOST)

    def _property(self, handles: _Handles) -> Property | None:
        kind = Property()
        return kind if self._calls.ask("mtmlDeviceGetProperty", handles.device, ctypes.byref(kind)) else None

    def _parent(self, handles: _Handles) -> str | None:
        parent = ctypes.c_void_p()
        if not self._calls.ask("mtmlDeviceGetMpcParentDevice", handles.device, ctypes.byref(parent)):
            return None
        return name_by_place(Vendor.MTHREADS, self._address(parent))

    def _identify(self, handles: _Handles) -> str:
        """Name a card by its place. The instances of a divided one have a number each, for they may share its address.

        Raises: LibraryError when its place is not told.
        """
        kind, number = self._property(handles), ctypes.c_uint()
        is_instance = kind is not None and kind.mpc_type == _MPC_INSTANCE
        if is_instance:
            self._calls.demand("mtmlDeviceGetMpcInstanceIndex", handles.device, ctypes.byref(number))
        address = self._address(handles.device)
        return name_by_place(Vendor.MTHREADS, address, f"mpc{number.value}" if is_instance else None)

    def _total_bytes(self, handles: _Handles) -> int | None:
        total = ctypes.c_ulonglong()
        is_told = self._calls.ask("mtmlMemoryGetTotal", handles.memory, ctypes.byref(total))
        return (total.value or None) if is_told else None

    def _address(self, device: ctypes.c_void_p) -> str:
        room = ctypes.create_string_buffer(4 * ctypes.sizeof(PciInfo))
        self._calls.demand("mtmlDeviceGetPciInfo", device, room)
        text = PciInfo.from_buffer(room).sbdf.decode(errors="replace")
        if not re.fullmatch(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]", text):
            raise LibraryError(f"mtmlDeviceGetPciInfo gives the address {text!r}, so its layout is not known")
        return normalise_address(text)


def name_arch(name: str | None) -> str | None:
    """Name the instruction set of a product: "MTT S5000" has mp_31; None for one that no source names."""
    return _ARCH.get((name or "").removeprefix("MTT").strip())
