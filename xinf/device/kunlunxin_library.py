"""Kunlunxin's libxpuml.so by ctypes: identity, state and processes.

Source: xpuml.h as Kunlunxin's own Go binding ships it (kunlunxin/go-xpuml, Apache-2.0: architectures KL1 to KL3), and
the calls of its fork of libnvidia-container. It has the shape of NVML, with functions of its own for what NVML has not.
There is no UUID and no ECC counter in it: both are xpu-smi's alone.

The header is of XPUML 4; the library of the P800's runtime (XRE 5) was seen to have the same names, its layouts are
taken for the same only where a card's address is found twice in its struct, as numbers and as text.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

from xinf.core.device import Health, Vendor
from xinf.device.c_calls import CCalls, Handle
from xinf.device.health import or_well
from xinf.device.library import LibraryError, load_library
from xinf.device.reading import DeviceProcess
from xinf.device.roster import Card, Listing, list_readable, name_by_place
from xinf.device.started_library import check_version

_NAMES = ("libxpuml.so.1", "libxpuml.so")
_DIRECTORIES = ("/usr/local/xpu/lib64", "/usr/local/xpu/lib", "/usr/local/xpu/so", "/opt/xre/so")
_KNOWN_MAJORS = ("4", "5")
_TEXT_BYTES = 96
_MAX_PROCESSES = 100  # XPUML_DEVICE_MAX_PROCESS_COUNT
_DIE_SENSOR = 0
_TOO_MANY_BYTES = 1 << 44  # for any card; the shape that it has from NVML says all ones for "not available"
_LOST, _RESET_REQUIRED = 15, 16
_ERRORS = {
    1: "the library is not started",
    2: "an argument is invalid",
    3: "not supported",
    4: "no permission: look at the owner and mode of /dev/xpu* and /dev/xpuctrl",
    6: "not found",
    8: "a card's power cables are not properly attached",
    9: "the Kunlunxin kernel driver is not loaded: run `modprobe kunlun` and look at `dmesg`",
    10: "timed out",
    11: "the kernel found a fault of a card's interrupts",
    _LOST: "the card has fallen off the bus: look at `dmesg`, then reset or reseat it",
    _RESET_REQUIRED: "the card must be reset: `xpu-smi --xpu-reset --id=N`",
    17: "the operating system keeps the card away: look at the container's devices",
    18: "the library and the kernel driver differ in version: install both from one release of XRE and reboot",
    999: "an internal error of the driver: look at `dmesg`",
}
_STATES = {205: "it is being reset", 207: "it reports an error", 208: "it is in an exception"}  # xpumlDeviceState_t


class PciInfo(ctypes.Structure):
    """xpumlPciInfo_t."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("domain", "bus", "device", "function")),
        *((name, ctypes.c_uint) for name in ("pciDeviceId", "pciSubSystemId")),
        ("busId", ctypes.c_char * 32),
        ("reserved", ctypes.c_ulonglong * 9),
    )


class MemoryInfo(ctypes.Structure):
    """xpumlMemory_t; in bytes. L3 is the card's cache."""

    _fields_ = (
        *((f"{name}GlobalMemory", ctypes.c_ulonglong) for name in ("pageSize", "total", "free", "used")),
        *((f"{name}L3Memory", ctypes.c_ulonglong) for name in ("pageSize", "total", "free", "used")),
        ("reserved", ctypes.c_ulonglong * 8),
    )


class Utilization(ctypes.Structure):
    """xpumlUtilization_t; in per cent."""

    _fields_ = (("xpu", ctypes.c_uint), ("memory", ctypes.c_uint), ("reserved", ctypes.c_ulonglong * 15))


class ProcessInfo(ctypes.Structure):
    """xpumlProcessInfo_t; in bytes."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("usedGlobalMemory", ctypes.c_ulonglong),
        ("usedL3Memory", ctypes.c_ulonglong),
        ("root_ns_pid", ctypes.c_uint),
        ("reserved_u32", ctypes.c_uint),
        ("reserved", ctypes.c_ulonglong * 12),
    )


class Xpuml:
    """The started library. Raises: LibraryError when it cannot be started or is of a version that is not known."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._calls = CCalls(load_library(_NAMES, directories=_DIRECTORIES, root=root), _ERRORS)
        self._calls.demand("xpumlInit")
        check_version("libxpuml", self._calls.text("xpumlSystemGetXPUMLVersion", length=_TEXT_BYTES), _KNOWN_MAJORS)

    def inventory(self) -> Listing:
        """List the cards, and what kept others from being listed. Raises: LibraryError."""
        driver = (self._calls.text("xpumlSystemGetDriverVersion", length=_TEXT_BYTES) or "").partition(" ")[0] or None
        return self._read_all(lambda handle: self._describe(handle, driver))

    def states(self) -> Listing:
        """Read what the cards are doing, but for those that cannot be identified. Raises: LibraryError if none can."""
        return self._read_all(self._measure)

    def processes(self) -> tuple[DeviceProcess, ...]:
        """List who holds memory of which card, under the cards' names where each has an address of its own."""
        found: list[DeviceProcess] = []
        for handle in self._open()[0]:
            infos, count = (ProcessInfo * _MAX_PROCESSES)(), ctypes.c_uint(_MAX_PROCESSES)
            arguments = (handle.pointer, ctypes.byref(count), infos)
            if self._calls.code("xpumlDeviceGetComputeRunningProcesses", *arguments) != 0:
                continue
            uuid = name_by_place(Vendor.KUNLUNXIN, self._address(handle))
            found += [
                DeviceProcess(uuid=uuid, pid=info.pid, memory_bytes=_believed(info.usedGlobalMemory))
                for info in infos[: count.value]
            ]
        return tuple(found)

    def _open(self) -> tuple[list[Handle], list[str]]:
        return self._calls.open_all("xpumlDeviceGetCount", "xpumlDeviceGetHandleByIndex")

    def _read_all(self, read: Callable[[Handle], Card]) -> Listing:
        handles, complaints = self._open()
        return list_readable(((handle.number, handle) for handle in handles), read, complaints)

    def _describe(self, handle: Handle, driver: str | None) -> Card:
        name, minor = self._calls.text("xpumlDeviceGetName", handle.pointer, length=_TEXT_BYTES), self._minor(handle)
        serial = self._calls.text("xpumlDeviceGetSerial", handle.pointer, length=_TEXT_BYTES)
        health, reason = self._condition(handle, 0)
        pci = self._address(handle)
        return Card(
            pci=pci,
            uuid=name_by_place(Vendor.KUNLUNXIN, pci),
            # The variable takes xpu-smi's id, which is the node's number; the header warns that an index may not be.
            number=handle.number if minor == handle.number else None,
            name=name,
            arch=name_arch(name),
            memory_bytes=self._memory(handle)[0],
            driver=driver,
            dev_nodes=() if minor is None else (f"/dev/xpu{minor}",),
            health=health,
            reason=reason,
            extra={} if serial is None else {"serial": serial},
        )

    def _measure(self, handle: Handle) -> Card:
        load, heat, power = Utilization(), ctypes.c_uint(), ctypes.c_uint()
        total, free = self._memory(handle)
        minor = self._minor(handle)
        codes = [
            self._calls.code("xpumlDeviceGetUtilizationRates", handle.pointer, ctypes.byref(load)),
            self._calls.code(
                "xpumlDeviceGetTemperature", handle.pointer, ctypes.c_uint(_DIE_SENSOR), ctypes.byref(heat)
            ),
            self._calls.code("xpumlDeviceGetPowerUsage", handle.pointer, ctypes.byref(power)),
        ]
        health, reason = self._condition(
            handle, max((code for code in codes if code in (_LOST, _RESET_REQUIRED)), default=0)
        )
        pci = self._address(handle)
        return Card(
            pci=pci,
            uuid=name_by_place(Vendor.KUNLUNXIN, pci),
            arch=name_arch(self._calls.text("xpumlDeviceGetName", handle.pointer, length=_TEXT_BYTES)),
            dev_nodes=() if minor is None else (f"/dev/xpu{minor}",),
            memory_bytes=total,
            used_bytes=None if total is None or free is None else total - free,
            free_bytes=free,
            util_pct=float(load.xpu) if codes[0] == 0 and load.xpu <= 100 else None,
            temp_c=float(heat.value) if codes[1] == 0 else None,
            power_w=power.value / 1000 if codes[2] == 0 else None,
            health=or_well(health, free, *(0 for code in codes if code == 0)),
            reason=reason,
        )

    def _condition(self, handle: Handle, code: int) -> tuple[Health | None, str | None]:
        """Judge by the state that it is in, and by what a question about it came back with."""
        state = ctypes.c_int()
        told = self._calls.code("xpumlDeviceGetState", handle.pointer, ctypes.byref(state))
        for fault in (code, told):
            if fault in (_LOST, _RESET_REQUIRED):
                return Health.FAULTY, f"libxpuml: {_ERRORS[fault]}"
        if told != 0:
            return None, None
        words = _STATES.get(state.value)
        return (Health.OK, None) if words is None else (Health.FAULTY, f"libxpuml says of the card: {words}")

    def _memory(self, handle: Handle) -> tuple[int | None, int | None]:
        """Read total and free bytes; what does not add up is of another layout, or of a card that is starting."""
        memory = MemoryInfo()
        if self._calls.code("xpumlDeviceGetMemoryInfo", handle.pointer, ctypes.byref(memory)) != 0:
            return None, None
        total, free = memory.totalGlobalMemory, memory.freeGlobalMemory
        is_whole = 0 < total < _TOO_MANY_BYTES and free <= total and memory.usedGlobalMemory <= total
        return (total, free) if is_whole else (None, None)

    def _minor(self, handle: Handle) -> int | None:
        """Read N of /dev/xpuN."""
        minor, number = ctypes.c_uint(), ctypes.c_int()
        if self._calls.code("xpumlDeviceGetMinorNumber", handle.pointer, ctypes.byref(minor)) == 0:
            return minor.value
        return number.value if self._calls.code("xpumlDeviceGetId", handle.pointer, ctypes.byref(number)) == 0 else None

    def _address(self, handle: Handle) -> str:
        place = PciInfo()
        self._calls.demand("xpumlDeviceGetPciInfo", handle.pointer, ctypes.byref(place))
        text = place.busId.decode(errors="replace").lower()
        if text != f"{place.domain:08x}:{place.bus:02x}:{place.device:02x}.{place.function:x}":
            raise LibraryError(f"xpumlDeviceGetPciInfo gives the address {text!r}, so its layout is not known")
        return f"{place.domain:04x}:{place.bus:02x}:{place.device:02x}.{place.function:x}"


def _believed(size_bytes: int) -> int | None:
    return size_bytes if size_bytes < _TOO_MANY_BYTES else None


def name_arch(name: str | None) -> str | None:
    """Name the architecture by the product: "P800 OAM" and "P800 PCIe" are P800."""
    words = (name or "").split()
    return words[0] if words else None
