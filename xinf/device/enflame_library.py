"""Enflame's libefml.so by ctypes: the index-based calls, whose structs have not changed since 2019.

Source: efml.h of 2019 and of 2024-2025 in EnflameTechnology/gcu-exporter (vendor/go-eflib/efml) and gcushare; the
units are those that its Go wrapper reads (memory: total in bytes, used in MiB). nvtop uses the newer handle-based
calls (`efmlDeviceGet...`), and of their structs there are two layouts already: its efmlPciInfo_t starts with
busIdLegacy, that of the header does not. They are not used here.

No call shuts the library down. One object per process: the library keeps its state to itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

from xinf.core.device import Health, Vendor
from xinf.device.c_calls import MAX_DEVICES, CCalls, decode
from xinf.device.library import LibraryError, load_library
from xinf.device.roster import Card, Listing, list_readable, name_by_place
from xinf.device.started_library import check_version

_NAMES = ("libefml.so", "libefml.so.2", "libefml.so.1", "libefml.so.2.1", "libefml.so.2.0", "libefml.so.1.0.0")
_DIRECTORIES = ("/usr/lib", "/usr/local/efsmi/lib")
_KNOWN_MAJORS = ("1", "2")
_PCI_VENDOR = 0x1E36
_MAX_PORTS = 64
_TEXT_BYTES = 1024  # the calls take no length; the header's own buffers have 128
UNHEALTHY = "Enflame's driver says that the card is not healthy: see `efsmi -q` and `dmesg`, then reset or replace it"
_ERRORS = {
    1: "the library is not started",
    2: "an argument is invalid",
    3: "not supported",
    6: "the Enflame kernel driver is not loaded: load it and look at `dmesg`",
    10: "the driver's version cannot be read: look at the permissions of /dev/gcuctl",
    11: "the library and the kernel driver differ in version: install both from one TopsRider release and reboot",
    12: "no device",
    253: "timed out",
    254: "failed",
}


class DeviceInfo(ctypes.Structure):
    """efmlDeviceInfo_t."""

    _fields_ = (
        ("name", ctypes.c_char * 128),
        *((field, ctypes.c_uint32) for field in ("vendor_id", "device_id", "domain_id", "bus_id", "dev_id", "func_id")),
        ("logic_id", ctypes.c_uint32),
    )


class PowerInfo(ctypes.Structure):
    """efmlDevPowerInfo_t, in watts."""

    _fields_ = (("capability", ctypes.c_float), ("consumption", ctypes.c_float))


class MemoryInfo(ctypes.Structure):
    """efmlDevMemInfo_t: the total in bytes, what is used in MiB."""

    _fields_ = (("total_bytes", ctypes.c_uint64), ("used_mib", ctypes.c_uint32))


class ThermalInfo(ctypes.Structure):
    """efmlDevThermalInfoV2_t (chip, memory, board) and its forerunner efmlDevThermalInfo_t (chip, HBM 0, HBM 1)."""

    _fields_ = (("chip_c", ctypes.c_float), ("second_c", ctypes.c_float), ("third_c", ctypes.c_float))


class EccStatus(ctypes.Structure):
    """efmlEccStatus_t."""

    _fields_ = (
        *((field, ctypes.c_bool) for field in ("enabled", "pending", "pending_blacklist")),
        *((field, ctypes.c_uint32) for field in ("single_bit", "double_bit")),
    )


class PortInfo(ctypes.Structure):
    """efmlGcuLarePortInfo_t, and efmlEslPortInfo_t before the link was renamed."""

    _fields_ = (
        ("connected", ctypes.c_uint32),
        ("uuid", ctypes.c_char * 16),
        *((field, ctypes.c_uint32) for field in ("vendor_id", "device_id", "domain_id", "bus_id", "dev_id", "func_id")),
        *((field, ctypes.c_uint32) for field in ("port_id", "port_type", "remote_card_id")),
        ("remote_uuid", ctypes.c_char * 16),
        *((f"remote_{field}", ctypes.c_uint32) for field in ("vendor_id", "device_id", "domain_id", "bus_id")),
        *((f"remote_{field}", ctypes.c_uint32) for field in ("dev_id", "func_id", "port_id", "port_type")),
    )


class Efml:
    """The started library. Raises: LibraryError when it cannot be started or is of a version that is not known."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._calls = CCalls(load_library(_NAMES, directories=_DIRECTORIES, root=root), _ERRORS)
        self._calls.demand("EfmlInit", ctypes.c_bool(False))  # False: with the driver
        check_version("libefml", self._text("EfmlGetLibVer"), _KNOWN_MAJORS)

    def inventory(self) -> Listing:
        """List the cards, and what kept others from being listed. Raises: LibraryError."""
        driver = self._text("EfmlGetDriverVer")
        return self._read_all(lambda number: self._describe(number, driver))

    def states(self) -> Listing:
        """Read what the cards are doing, but for those that cannot be identified. Raises: LibraryError if none can."""
        return self._read_all(self._measure)

    def links(self) -> list[tuple[str, str]]:
        """List the pairs of PCI addresses that a GCU-LARE (formerly ESL) port connects. Raises: LibraryError.

        A port that leads to another host's card has an address too: only pairs of cards that are here are given.
        """
        found = []
        here_too = {_address(self._info(number)) for number in range(self._count())}
        for number in range(self._count()):
            here = _address(self._info(number))
            for family in ("GcuLare", "Esl"):
                ports = ctypes.c_uint32()
                if not self._calls.ask(f"EfmlGet{family}PortNum", ctypes.c_uint32(number), ctypes.byref(ports)):
                    continue
                for port in range(min(ports.value, _MAX_PORTS)):
                    info = PortInfo()
                    arguments = (ctypes.c_uint32(number), ctypes.c_uint32(port), ctypes.byref(info))
                    if self._calls.ask(f"EfmlGet{family}PortInfo", *arguments) and info.connected == 1:
                        found.append((here, _remote_address(info)))
                break
        return [link for link in found if link[1] in here_too]

    def _read_all(self, read: Callable[[int], Card]) -> Listing:
        return list_readable(((number, number) for number in range(self._count())), read)

    def _count(self) -> int:
        count = ctypes.c_uint32()
        self._calls.demand("EfmlGetDevCount", ctypes.byref(count))
        if count.value > MAX_DEVICES:
            raise LibraryError(f"EfmlGetDevCount gives {count.value} devices: its layout is not known")
        return count.value

    def _info(self, number: int) -> DeviceInfo:
        info = DeviceInfo()
        self._calls.demand("EfmlGetDevInfo", ctypes.c_uint32(number), ctypes.byref(info))
        if info.vendor_id != _PCI_VENDOR:
            # The one value that is known beforehand: anything else means that the struct is laid out differently.
            raise LibraryError(f"EfmlGetDevInfo gives the PCI vendor {info.vendor_id:#x}, so its layout is not known")
        return info

    def _describe(self, number: int, driver: str | None) -> Card:
        info = self._info(number)
        name = info.name.decode(errors="replace").strip()
        memory, node = MemoryInfo(), ctypes.c_int(-1)
        has_memory = self._calls.ask("EfmlGetDevMem", ctypes.c_uint32(number), ctypes.byref(memory))
        self._calls.ask("EfmlGetNumaNode", ctypes.c_uint32(number), ctypes.byref(node))
        health, reason = self._health(number)
        uuid = self._text("EfmlGetDevUuid", number)
        return Card(
            pci=_address(info),
            number=number,
            uuid=name_by_place(Vendor.ENFLAME, _address(info)),
            name=name or None,
            arch=name_arch(name),
            memory_bytes=(memory.total_bytes or None) if has_memory else None,
            driver=driver,
            numa=node.value if node.value >= 0 else None,
            health=health,
            reason=reason,
            extra={} if uuid is None else {"uuid": f"GCU-{uuid}"},
        )

    def _measure(self, number: int) -> Card:
        info, here = self._info(number), ctypes.c_uint32(number)
        memory, power, load, heat = MemoryInfo(), PowerInfo(), ctypes.c_float(), ThermalInfo()
        ecc = EccStatus()
        has_memory = self._calls.ask("EfmlGetDevMem", here, ctypes.byref(memory)) and memory.total_bytes
        has_power = self._calls.ask("EfmlGetDevPwr", here, ctypes.byref(power))
        has_load = self._calls.ask("EfmlGetDevDtuUsage", here, ctypes.byref(load))
        heats = ("EfmlGetDevTempV2", "EfmlGetDevTemp")  # the newer header has only V2
        has_heat = any(self._calls.ask(name, here, ctypes.byref(heat)) for name in heats)
        has_ecc = self._calls.ask("EfmlGetDevEccStatus", here, ctypes.byref(ecc)) and ecc.enabled
        health, reason = self._health(number)
        return Card(
            pci=_address(info),
            uuid=name_by_place(Vendor.ENFLAME, _address(info)),
            memory_bytes=memory.total_bytes if has_memory else None,
            used_bytes=memory.used_mib << 20 if has_memory else None,
            util_pct=round(load.value, 1) if has_load else None,
            temp_c=round(heat.chip_c, 1) if has_heat else None,
            power_w=round(power.consumption, 1) if has_power else None,
            ecc_uncorrected=ecc.double_bit if has_ecc else None,
            health=health,
            reason=reason,
        )

    def _health(self, number: int) -> tuple[Health | None, str | None]:
        good = ctypes.c_bool()
        if not self._calls.ask("EfmlGetDevHealth", ctypes.c_uint32(number), ctypes.byref(good)):
            return None, None
        return (Health.OK, None) if good.value else (Health.FAULTY, UNHEALTHY)

    def _text(self, name: str, *numbers: int) -> str | None:
        buffer = ctypes.create_string_buffer(_TEXT_BYTES)
        if not self._calls.ask(name, *(ctypes.c_uint32(number) for number in numbers), buffer):
            return None
        return decode(buffer.value)


def name_arch(name: str) -> str | None:
    """Name the architecture by the product, as Enflame's engines do: "Enflame S60G" and "S60" are S60G and S60."""
    words = name.removeprefix("Enflame").split()
    return words[0] if words else None


def _address(info: DeviceInfo) -> str:
    return f"{info.domain_id:04x}:{info.bus_id:02x}:{info.dev_id:02x}.{info.func_id:x}"


def _remote_address(info: PortInfo) -> str:
    return f"{info.remote_domain_id:04x}:{info.remote_bus_id:02x}:{info.remote_dev_id:02x}.{info.remote_func_id:x}"
