"""Which accelerators the PCI bus shows, read from sysfs: the gate that decides whether a vendor library is loaded.

One readdir costs less than any vendor library and removes false positives: a library of a card that was taken out, or
the `xpu-smi` of another vendor. Source of the class prefixes: gpustack-runtime 88026d6
(display 0x03, accelerator 0x12).
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from xinf.core.device import Device, Health, Vendor

VENDOR_OF_PCI_ID: dict[int, Vendor] = {
    0x10DE: Vendor.NVIDIA,
    0x1002: Vendor.AMD,
    0x8086: Vendor.INTEL,
    0x19E5: Vendor.ASCEND,
    0xCABC: Vendor.CAMBRICON,
    0x1E36: Vendor.ENFLAME,
    0x1ED5: Vendor.MTHREADS,
    0x1D94: Vendor.HYGON,
    0x1D22: Vendor.KUNLUNXIN,
    0x2057: Vendor.KUNLUNXIN,  # of the P800 PCIe; Baidu's before
}
# Drivers that hold a card for somebody else. A list of those that may compute would not know Hygon's next name.
PASSED_ON = ("vfio-pci", "xe-vfio-pci", "nvgrace-gpu-vfio-pci", "pci-stub", "uio_pci_generic")
_ADDRESS = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])")
_CLASSES = (0x03, 0x12)  # display controllers; processing accelerators
# Kunlunxin's cards call themselves communication controllers, as `lspci -d 1d22:` of K100 to R200 shows.
_OTHER_CLASSES = {Vendor.KUNLUNXIN: 0x07}


class PciFunction(msgspec.Struct, frozen=True, kw_only=True):
    """One accelerator as the bus shows it, whether or not a driver speaks for it."""

    address: str  # "0000:18:00.0"
    vendor: Vendor
    device_id: int
    driver: str | None  # of the kernel: "nvidia", "vfio-pci"; None: none bound
    numa: int | None


def find_pci_functions(root: Path = Path("/"), vendor: Vendor | None = None) -> tuple[PciFunction, ...]:
    """List the accelerators below `root`, of one vendor or of all, by bus address; none if no PCI bus is to be seen.

    A virtual function is a part of a card that is here too, made for virtual machines or containers: it is not counted.
    In a virtual machine it is all there is, and the kernel there does not know that it is one.
    """
    found: list[PciFunction] = []
    try:
        entries = sorted((root / "sys/bus/pci/devices").iterdir(), key=lambda path: path.name)
    except OSError:  # no such bus, or one that this process may not see
        return ()
    for entry in entries:
        maker = VENDOR_OF_PCI_ID.get(_read_int(entry / "vendor") or 0)
        if maker is None or (vendor or maker) is not maker:
            continue  # most of a server's functions: their other files are not even opened
        pci_class, device_id = (_read_int(entry / name) for name in ("class", "device"))
        if pci_class is None or not _is_accelerator(maker, pci_class) or (entry / "physfn").exists():
            continue
        driver = entry / "driver"
        found.append(
            PciFunction(
                address=entry.name.lower(),
                vendor=maker,
                device_id=device_id or 0,
                driver=driver.resolve().name if driver.exists() else None,
                numa=read_numa(entry.name, root),
            )
        )
    return tuple(found)


def _is_accelerator(maker: Vendor, pci_class: int) -> bool:
    return pci_class >> 16 in (*_CLASSES, _OTHER_CLASSES.get(maker))


def without_driver(function: PciFunction, index: int, reason: str, health: Health | None = None) -> Device:
    """Describe a card that only the PCI bus knows.

    Without a word on its `health` it is silent where a kernel driver of its own is bound to it: what cannot be asked
    may serve all the same.
    """
    if health is None:
        has_driver = function.driver is not None and function.driver not in PASSED_ON
        health = Health.SILENT if has_driver else Health.NO_DRIVER
    return Device(
        vendor=function.vendor,
        index=index,
        uuid=name_by_address(function.address),
        name=f"{function.vendor} {function.device_id:#06x}",
        pci=function.address,
        numa=function.numa,
        health=health,
        reason=reason,
    )


def name_by_address(address: str, prefix: str = "PCI") -> str:
    """Name a card by where it sits, where nobody tells another name: `PCI-0000-18-00.0`."""
    return f"{prefix}-{address.replace(':', '-')}"


def read_numa(address: str, root: Path = Path("/")) -> int | None:
    """Read the NUMA node of a PCI function; None where the kernel says -1 (one node, or not known)."""
    node = _read_int(root / "sys/bus/pci/devices" / address / "numa_node")
    return node if node is not None and node >= 0 else None


def normalise_address(text: str) -> str:
    """Write a PCI address the way sysfs does: NVML's `00000000:1B:00.0` becomes `0000:1b:00.0`."""
    domain, _, rest = text.strip().lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def known_address(text: str) -> str | None:
    """Write an address that a tool printed the way sysfs does; None if it is none."""
    match = _ADDRESS.fullmatch(text.strip().lower())
    return None if match is None else f"{int(match[1], 16):04x}:{match[2]}"


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text().strip(), 0)
    except (OSError, ValueError):
        return None
