"""NVIDIA devices: NVML through nvidia-ml-py, where that is not loadable `nvidia-smi`, where neither answers the bus.

Needs the driver, neither CUDA nor torch, and makes no CUDA context. NVML is in modules of their own that are imported
when there is something to ask: the binding alone takes a fifth of what a probe of the whole host may.

    nvidia_library.py   inventory, links              nvidia_tool.py   `nvidia-smi`
    nvidia_metrics.py   samples, processes            xid.py           what an Xid means
    nvidia_events.py    Xid and its kin               nvidia_board.py  what a name tells
    nvidia_memory.py    memory that programs can have nvidia_answer.py what NVML answers
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from xinf.core.device import Device, DeviceEvent, Health, Sample, Topology, Vendor
from xinf.device.library import LibraryError
from xinf.device.pci import PciFunction, find_pci_functions, without_driver
from xinf.device.presence import has_node
from xinf.device.tool import ToolError

if TYPE_CHECKING:
    from xinf.device.reading import DeviceProcess

_TEGRA_NODES = ("dev/nvhost-gpu", "dev/nvgpu")
_KERNEL_DRIVERS = ("nvidia", None)  # None: sysfs does not show it (containers), or none is bound


class NvidiaProbe:
    """Asks NVML, then the tool; what neither lists is recorded from the PCI bus."""

    def is_present(self, root: Path) -> bool:
        return bool(find_pci_functions(root, Vendor.NVIDIA)) or has_node(Vendor.NVIDIA, root)

    def inventory(self, root: Path) -> tuple[Device, ...]:
        from xinf.device import nvidia_library

        devices: list[Device] = []
        complaints: list[str] = []  # one for each card that is there but cannot be read
        refusals: list[str] = []  # of those that should tell of any card
        try:
            devices, complaints = nvidia_library.read_devices(root)
        except LibraryError as error:
            refusals.append(str(error))
            if nvidia_library.is_absent(error):
                from xinf.device import nvidia_tool

                try:
                    devices = nvidia_tool.read_devices(root)
                except ToolError as tool_error:
                    refusals.append(str(tool_error))
        listed = {device.pci for device in devices}
        functions = [f for f in find_pci_functions(root, Vendor.NVIDIA) if f.address not in listed]
        if refusals and not devices:
            reason = "; ".join(refusals)
            others = [_unread(function, reason, Health.NO_DRIVER) for function in functions]
            others = others or _by_nodes(root, reason)
        else:
            others = _unlisted(functions, complaints, _why_unlisted(devices, root))
        return _in_bus_order(devices, others)

    def sample(self, root: Path) -> tuple[Sample, ...]:
        """Raises: LibraryError, ToolError."""
        from xinf.device import nvidia_library, nvidia_metrics

        try:
            return nvidia_metrics.read_samples(root)
        except LibraryError as error:
            if not nvidia_library.is_absent(error):
                raise
            from xinf.device import nvidia_tool

            try:
                return nvidia_tool.read_samples(root)
            except ToolError as tool_error:
                raise LibraryError(f"{error}; {tool_error}") from tool_error

    def topology(self, root: Path) -> Topology:  # noqa: ARG002 - the protocol's
        from xinf.device import nvidia_library

        try:
            return nvidia_library.read_links()
        except LibraryError:
            return Topology()  # the tool prints a matrix for people; the PCI bus says the same but NVLink

    def processes(self, root: Path) -> tuple[DeviceProcess, ...]:  # noqa: ARG002 - the protocol's
        from xinf.device import nvidia_metrics

        try:
            return nvidia_metrics.read_processes()
        except LibraryError:
            return ()  # the samples say why

    def watch(self, root: Path) -> Iterator[DeviceEvent]:
        from xinf.device import nvidia_events, nvidia_library

        try:
            nvidia_library.start()
        except LibraryError:
            return
        yield from nvidia_events.watch(root)


def _why_unlisted(listed: Sequence[Device], root: Path) -> str:
    n_cards = sum(1 for device in listed if device.parent is None)
    if 0 < sum(1 for _ in (root / "dev").glob("nvidia[0-9]*")) <= n_cards:
        return "it has no node /dev/nvidiaN here: a container shows the cards that it was given"
    return "the driver does not list it: look at `dmesg`"


def _unlisted(functions: Sequence[PciFunction], complaints: Sequence[str], otherwise: str) -> list[Device]:
    """Describe the cards that could not be read; where the bus shows no more of them, without an address.

    `otherwise`: why a card is not listed of which nobody complains.
    """
    found: list[Device] = []
    left = list(complaints)
    for function in functions:
        if left and function.driver in _KERNEL_DRIVERS:
            found.append(_unread(function, left.pop(0), Health.FAULTY))
        else:
            found.append(_unread(function, otherwise, Health.NO_DRIVER))
    for number, reason in enumerate(left):
        found.append(
            Device(
                vendor=Vendor.NVIDIA,
                index=0,
                uuid=f"NVML-unreadable-{number}",
                name="NVIDIA device",
                health=Health.FAULTY,
                reason=reason,
            )
        )
    return found


def _by_nodes(root: Path, reason: str) -> list[Device]:
    """Describe what only its device nodes show: cards in a container without a PCI bus, the GPU of a Jetson.

    Of /dev/dxg nothing is made: WSL has it for the GPU of any vendor.
    """
    found = {f"/dev/{path.name}": "NVIDIA device" for path in sorted((root / "dev").glob("nvidia[0-9]*"))}
    if not found:
        tegra = next((node for node in _TEGRA_NODES if (root / node).exists()), None)
        found = {} if tegra is None else {f"/{tegra}": _board_name(root) or "NVIDIA Tegra"}
    return [
        Device(
            vendor=Vendor.NVIDIA,
            index=0,
            uuid=f"DEV-{node.removeprefix('/dev/')}",
            name=name,
            dev_nodes=(node,),
            health=Health.NO_DRIVER,
            reason=reason,
        )
        for node, name in found.items()
    ]


def _board_name(root: Path) -> str | None:
    """Read what the board calls itself: `NVIDIA Jetson AGX Orin Developer Kit`."""
    try:
        return (root / "proc/device-tree/model").read_text().strip("\0\n ") or None
    except OSError:
        return None


def _unread(function: PciFunction, reason: str, health: Health) -> Device:
    if function.driver not in _KERNEL_DRIVERS:
        reason = f"the kernel driver {function.driver} has it, not nvidia: it is kept for something else, as for a VM"
        health = Health.NO_DRIVER
    return without_driver(function, 0, reason, health)


def _in_bus_order(devices: Sequence[Device], others: Sequence[Device]) -> tuple[Device, ...]:
    """Count the cards along the bus, then the instances of those that are split, card by card."""
    cards = [device for device in (*devices, *others) if device.parent is None]
    cards.sort(key=lambda card: card.pci or "~")
    order = {card.uuid: number for number, card in enumerate(cards)}
    instances = [device for device in devices if device.parent is not None]
    instances.sort(key=lambda found: order[str(found.parent)])
    return tuple(msgspec.structs.replace(device, index=n) for n, device in enumerate((*cards, *instances)))
