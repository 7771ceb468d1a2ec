"""NVML through nvidia-ml-py: which devices there are and how they are linked.

Two numbers are called "Blackwell 10": the NVML architecture enum (10 for every Blackwell) and the compute capability of
a B200 (10.0). An RTX 5090 has enum 10 and capability 12.0, and kernels are chosen by the capability: that is `arch`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pynvml

from xinf.core.device import Device, Distance, Health, Topology, Vendor
from xinf.device.library import LibraryError
from xinf.device.nvidia_answer import known, text
from xinf.device.nvidia_board import is_tegra
from xinf.device.nvidia_memory import is_unified, read_memory, read_own_memory
from xinf.device.pci import normalise_address, read_numa
from xinf.device.topology import make_topology

_ABSENT = "libnvidia-ml.so.1 is not there: install the NVIDIA driver, or start the container with the NVIDIA runtime"
_INIT_FAILURES = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: _ABSENT,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA kernel driver is not loaded: run `modprobe nvidia` and look at"
    " `dmesg`",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the NVIDIA library and the loaded kernel driver differ in version,"
    " as after an upgrade: reboot or reload the driver",
    pynvml.NVML_ERROR_NO_PERMISSION: "no permission to open /dev/nvidiactl: add the user to the group that owns it",
}
# For a card that fell off the bus or waits to be reset.
LOST_REMEDY = "look at `dmesg` for Xid errors, then reset or reseat it"

# The host's side of vGPU: the card serves virtual machines, and there is no CUDA for the host itself.
_LENT = (pynvml.NVML_GPU_VIRTUALIZATION_MODE_HOST_VGPU, pynvml.NVML_GPU_VIRTUALIZATION_MODE_HOST_VSGA)
_LENT_REASON = "its driver gives it to virtual machines (vGPU): run the worker in one of them"
_P2P_NVLINK = 2  # NVML_P2P_CAPS_INDEX_NVLINK
_MAX_NVLINKS = 36
_DISTANCES = {
    pynvml.NVML_TOPOLOGY_INTERNAL: Distance.PIX,  # two GPUs of one board
    pynvml.NVML_TOPOLOGY_SINGLE: Distance.PIX,
    pynvml.NVML_TOPOLOGY_MULTIPLE: Distance.PXB,
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: Distance.PHB,
    pynvml.NVML_TOPOLOGY_NODE: Distance.NODE,
    pynvml.NVML_TOPOLOGY_SYSTEM: Distance.SYS,
}


def start() -> None:
    """Load and start NVML; it counts how often. Raises: LibraryError with the remedy."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise LibraryError(_INIT_FAILURES.get(error.value, f"NVML does not start: {error}")) from error


def is_absent(error: LibraryError) -> bool:
    """Whether it is the library that is missing, not a driver that refuses."""
    return str(error) == _ABSENT


def read_devices(root: Path) -> tuple[list[Device], list[str]]:
    """List the cards and their MIG instances, and why others could not be read. Raises: LibraryError."""
    start()
    found: list[Device] = []
    complaints: list[str] = []
    for number in range(_count()):
        try:
            card = _read_card(pynvml.nvmlDeviceGetHandleByIndex(number), root)
            found += [card, *_read_instances(card, root)]  # all of them or none: half a card has a complaint of its own
        except pynvml.NVMLError as error:
            complaints.append(f"NVML cannot read a device: {error}; {LOST_REMEDY}")
    return found, complaints


def read_links() -> Topology:
    """Ask for the distance of each two cards: NVLink, else what lies between them on the bus. Raises: LibraryError."""
    start()
    cards = [(uuid, handle) for handle in handles() if (uuid := read_uuid(handle)) is not None]
    pairs: list[tuple[str, str, Distance]] = []
    for (a, one), (b, other) in combinations(cards, 2):
        distance = _read_distance(one, other)
        if distance is not None:
            pairs.append((a, b, distance))
    return make_topology(pairs)


def handles() -> Iterator[Any]:
    """Go through the cards that can be reached. Raises: LibraryError."""
    for number in range(_count()):
        try:
            yield pynvml.nvmlDeviceGetHandleByIndex(number)
        except pynvml.NVMLError:
            continue  # lost, or not ours to see; the inventory and the events say which


def read_uuid(handle: Any) -> str | None:
    """Read the name of a card or an instance; None of one that is lost and never told it, or just taken apart."""
    try:
        return text(pynvml.nvmlDeviceGetUUID(handle))
    except pynvml.NVMLError:
        return None


def _count() -> int:
    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError as error:
        raise LibraryError(_INIT_FAILURES.get(error.value, f"NVML cannot list devices: {error}")) from error


def _read_card(handle: Any, root: Path) -> Device:
    capability = known(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    bus = known(pynvml.nvmlDeviceGetPciInfo, handle)  # a Jetson's GPU is on none
    pci = None if bus is None else normalise_address(text(bus.busId))
    minor = known(pynvml.nvmlDeviceGetMinorNumber, handle)
    cuda = known(pynvml.nvmlSystemGetCudaDriverVersion_v2)
    driver = known(pynvml.nvmlSystemGetDriverVersion)
    architecture = known(pynvml.nvmlDeviceGetArchitecture, handle)
    uuid, name = text(pynvml.nvmlDeviceGetUUID(handle)), text(pynvml.nvmlDeviceGetName(handle))
    extra: dict[str, str | int] = {}
    if capability is not None:
        extra["compute_capability"] = f"{capability[0]}.{capability[1]}"
    if architecture is not None:
        extra["nvml_architecture"] = architecture
    memory = read_memory(handle, root)
    if is_unified(handle):
        extra["memory"] = "unified"
    if memory.reserved_bytes:
        extra["reserved_bytes"] = memory.reserved_bytes
    if _is_split(handle):
        extra["mig"] = "enabled"
    mode = known(pynvml.nvmlDeviceGetVirtualizationMode, handle)
    if mode == pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU:
        extra["virtualization"] = "vgpu"
    is_lent = mode in _LENT
    return Device(
        vendor=Vendor.NVIDIA,
        index=0,
        uuid=uuid,
        name=name,
        arch=None if capability is None else f"sm_{capability[0]}{capability[1]}",
        memory_bytes=memory.total_bytes,
        driver=None if driver is None else text(driver),
        runtime=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        pci=pci,
        numa=None if pci is None else read_numa(pci, root),
        dev_nodes=() if minor is None else (f"/dev/nvidia{minor}",),
        # CUDA takes the UUID as NVML writes it, but of a Jetson; of a split card it would pick an instance by itself.
        visible=None if "mig" in extra or is_tegra(name) else uuid,
        health=Health.NO_DRIVER if is_lent else Health.OK,
        reason=_LENT_REASON if is_lent else None,
        extra=extra,
    )


def _is_split(handle: Any) -> bool:
    mode = known(pynvml.nvmlDeviceGetMigMode, handle)
    return mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE


def instances(handle: Any) -> Iterator[tuple[int, Any]]:
    """Go through the MIG instances of a card, by slot; some slots are empty."""
    if not _is_split(handle):
        return
    for slot in range(known(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        instance = known(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot)
        if instance is not None:
            yield slot, instance


def _read_instances(card: Device, root: Path) -> list[Device]:
    """List the MIG instances of a card; only they, not the card, can be used while MIG is on."""
    if card.extra.get("mig") != "enabled":
        return []
    found: list[Device] = []
    for slot, instance in instances(pynvml.nvmlDeviceGetHandleByUUID(card.uuid)):
        uuid = read_uuid(instance)
        if uuid is None:
            continue  # it is being taken apart
        found.append(
            Device(
                vendor=Vendor.NVIDIA,
                index=0,
                uuid=uuid,
                name=text(known(pynvml.nvmlDeviceGetName, instance) or f"{card.name} MIG"),
                arch=card.arch,
                memory_bytes=read_own_memory(instance, root).total_bytes,
                driver=card.driver,
                runtime=card.runtime,
                pci=card.pci,
                numa=card.numa,
                dev_nodes=card.dev_nodes,
                visible=uuid,
                parent=card.uuid,
                extra={"mig_slot": slot},
            )
        )
    return found


def _read_distance(one: Any, other: Any) -> Distance | None:
    try:
        if _has_nvlink(one, other):
            return Distance.LINK
        level = known(pynvml.nvmlDeviceGetTopologyCommonAncestor, one, other)
    except pynvml.NVMLError:
        return None
    return None if level is None else _DISTANCES.get(level)


def _has_nvlink(one: Any, other: Any) -> bool:
    # The index by its number: the binding's NVML_P2P_CAPS_INDEX_READ is a tuple by mistake, and so may others be.
    status = known(pynvml.nvmlDeviceGetP2PStatus, one, other, _P2P_NVLINK)
    if status is not None:
        return bool(status == pynvml.NVML_P2P_STATUS_OK)
    # Drivers without that call: a link of one card that ends at the other. Not through a switch, which is newer.
    address = normalise_address(text(pynvml.nvmlDeviceGetPciInfo(other).busId))
    for link in range(_MAX_NVLINKS):
        state = known(pynvml.nvmlDeviceGetNvLinkState, one, link)
        if state is None:
            return False
        remote = known(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, one, link) if state else None
        if remote is not None and normalise_address(text(remote.busId)) == address:
            return True
    return False
