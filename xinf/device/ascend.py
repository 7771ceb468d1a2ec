"""Ascend NPUs: DCMI of the driver, then `npu-smi`, then what the PCI bus shows.

An engine is confined by the logic id (ASCEND_RT_VISIBLE_DEVICES), which only the driver knows: it is taken from DCMI or
from `npu-smi info -m`, never from a position in a list. /dev/davinciN is numbered by the physical id, another number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from xinf.core.device import Device, Distance, Health, Sample, Topology, Vendor
from xinf.device import ascend_tool
from xinf.device.ascend_chip import NpuChip, architecture_of
from xinf.device.ascend_library import Dcmi
from xinf.device.library import LibraryError
from xinf.device.pci import PciFunction, find_pci_functions, read_numa, without_driver
from xinf.device.tool import ToolError

# In servers of the same maker, with the same PCI vendor: the display of the management processor, and the compression
# engines of Kunpeng processors, which have the class of accelerators. Source of those: Linux, hisilicon/zip/zip_main.c.
_OTHERS = (0x1711, 0xA250, 0xA251)
_TOOLKIT = "usr/local/Ascend/ascend-toolkit/latest"


class AscendProbe:
    """Asks DCMI; where it does not start, npu-smi; cards that neither lists are recorded by their bus address."""

    def __init__(self) -> None:
        self._library: Dcmi | None = None  # started once: what starting it again does is the driver's secret

    def is_present(self, root: Path) -> bool:
        # Containers and modules (Atlas 200) may show the device nodes only.
        return bool(_functions(root)) or (root / "dev/davinci_manager").exists()

    def inventory(self, root: Path) -> tuple[Device, ...]:
        functions, tried = _functions(root), list[str]()
        chips: tuple[NpuChip, ...] = ()
        try:
            chips = self._start(root).chips()
        except LibraryError as error:
            tried.append(str(error))
        if not chips:
            try:
                chips = ascend_tool.read_chips(root)
            except ToolError as error:
                tried.append(str(error))
        if not chips:
            reason = "; ".join(tried) or "neither DCMI nor npu-smi lists an NPU"
            return tuple(without_driver(function, index, reason) for index, function in enumerate(functions))
        toolkit = _read_toolkit_version(root)
        by_card = sorted(chips, key=lambda chip: (chip.npu_id, chip.chip_id))
        listed = [_describe(chip, toolkit, root) for chip in by_card]
        devices = sorted([*listed, *_unlisted(functions, listed)], key=lambda device: device.pci or "~")
        return tuple(msgspec.structs.replace(device, index=index) for index, device in enumerate(devices))

    def sample(self, root: Path) -> tuple[Sample, ...]:
        """Read what the chips are doing. Raises: ToolError with what was tried."""
        tried: list[str] = []
        ways: tuple[Callable[[], tuple[Sample, ...]], ...] = (
            lambda: self._start(root).samples(),
            lambda: ascend_tool.read_samples(root),
        )
        for read in ways:
            try:
                samples = read()
            except (LibraryError, ToolError) as error:
                tried.append(str(error))
                continue
            if samples:
                return samples
        raise ToolError("; ".join(tried) or "neither DCMI nor npu-smi lists an NPU")

    def topology(self, root: Path) -> Topology:
        """Tell how far the NPUs are apart: HCCS, the bus between two dies and UB are links."""
        ways: tuple[Callable[[], tuple[tuple[str, str, Distance], ...]], ...] = (
            lambda: self._start(root).distances(),
            lambda: ascend_tool.read_distances(root, ascend_tool.read_chips(root)),
        )
        for read in ways:
            try:
                pairs = read()
            except (LibraryError, ToolError):
                continue
            if pairs:
                return Topology(pairs=tuple(sorted((min(a, b), max(a, b), distance) for a, b, distance in pairs)))
        return Topology()

    def _start(self, root: Path) -> Dcmi:
        self._library = self._library or Dcmi(root)
        return self._library


def _functions(root: Path) -> tuple[PciFunction, ...]:
    return tuple(
        function
        for function in find_pci_functions(root)
        if function.vendor is Vendor.ASCEND and function.device_id not in _OTHERS
    )


def _describe(chip: NpuChip, toolkit: str | None, root: Path) -> Device:
    bare = chip.name.removeprefix("Ascend").strip()
    extra: dict[str, str | int] = {"npu_id": chip.npu_id, "chip_id": chip.chip_id}
    if chip.physical_id is not None:
        extra["physical_id"] = chip.physical_id
    if chip.soc is not None:
        extra["soc"] = chip.soc
    if chip.cores is not None:
        extra["cores"] = chip.cores
    is_addressable = chip.logic_id is not None and (chip.physical_id is not None or not chip.has_physical_id)
    health, reason = chip.condition.health or Health.OK, chip.condition.reason
    if not is_addressable:
        health, reason = (
            Health.FAULTY,
            (
                f"the driver does not tell the physical id of NPU {chip.npu_id} chip {chip.chip_id}: an engine could be"
                " given another one's /dev/davinciN; look at `npu-smi info -m` and `dmesg`"
            ),
        )
    return Device(
        vendor=Vendor.ASCEND,
        index=0,  # given when all are in bus order
        uuid=chip.uuid,
        name=f"Ascend {bare}",
        arch=architecture_of(chip.name),
        memory_bytes=chip.memory_bytes,
        driver=chip.driver,
        runtime=toolkit,
        pci=chip.pci,
        numa=None if chip.pci is None else read_numa(chip.pci, root),
        dev_nodes=() if chip.physical_id is None else (f"/dev/davinci{chip.physical_id}",),
        visible=str(chip.logic_id) if is_addressable else None,
        health=health,
        reason=reason,
        extra=extra,
    )


def _unlisted(functions: Sequence[PciFunction], listed: Sequence[Device]) -> list[Device]:
    """Record the cards on the bus that the driver does not list; nothing can be said if it tells no addresses."""
    addresses = {device.pci for device in listed}
    if None in addresses:
        return []
    lost = [function for function in functions if function.address not in addresses]
    reason = f"the driver lists {len(listed)} other NPUs but not this one: look at `dmesg`, then reset or reseat it"
    return [
        without_driver(
            function,
            0,
            reason if function.driver is not None else "no kernel driver is bound to it: install the Ascend driver",
            Health.FAULTY if function.driver is not None else Health.NO_DRIVER,
        )
        for function in lost
    ]


def _read_toolkit_version(root: Path) -> str | None:
    """Read the version of CANN, if it is installed where its packages put it."""
    for path in sorted((root / _TOOLKIT).glob("*-linux/ascend_toolkit_install.info")):
        try:
            match = re.search(r"^version=(\S+)$", path.read_text(), re.MULTILINE)
        except (OSError, UnicodeDecodeError):
            continue
        if match is not None:
            return match[1]
    return None
