"""NVIDIA devices through NVML (nvidia-ml-py). Needs the driver, neither CUDA nor torch; makes no CUDA context.

Two numbers are called "Blackwell 10": the NVML architecture enum (10 for every Blackwell) and the compute capability of
a B200 (10.0). An RTX 5090 has enum 10 and capability 12.0, and kernels are chosen by the capability: that is `arch`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pynvml

from xinf.core.device import Device, Health, Sample, Vendor
from xinf.device.pci import find_pci_functions, normalise_address, read_numa, without_driver

T = TypeVar("T")

# A device may not answer these; it is then an unknown, not an error.
_UNKNOWN = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
    pynvml.NVML_ERROR_NOT_FOUND,
    pynvml.NVML_ERROR_UNKNOWN,
)
_INIT_FAILURES = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 is not there: install the NVIDIA driver, or start the"
    " container with the NVIDIA runtime",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA kernel driver is not loaded: run `modprobe nvidia` and look at"
    " `dmesg`",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the NVIDIA library and the loaded kernel driver differ in version,"
    " as after an upgrade: reboot or reload the driver",
    pynvml.NVML_ERROR_NO_PERMISSION: "no permission to open /dev/nvidiactl: add the user to the group that owns it",
}


class NvidiaProbe:
    """Asks NVML; where it does not answer, the PCI bus still says which cards are there."""

    def is_present(self, root: Path) -> bool:
        # WSL shows no NVIDIA function on the bus but a /dev/dxg; some containers show only the device nodes.
        nodes = ("dev/nvidiactl", "dev/dxg")
        return any(function.vendor is Vendor.NVIDIA for function in find_pci_functions(root)) or any(
            (root / node).exists() for node in nodes
        )

    def inventory(self, root: Path) -> tuple[Device, ...]:
        functions = tuple(f for f in find_pci_functions(root) if f.vendor is Vendor.NVIDIA)
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            reason = _INIT_FAILURES.get(error.value, f"NVML does not start: {error}")
            return tuple(without_driver(function, index, reason) for index, function in enumerate(functions))
        cards = [_read_card(number, root) for number in range(pynvml.nvmlDeviceGetCount())]
        cards.sort(key=lambda card: card.pci or "~")
        cards = [_with_index(card, index) for index, card in enumerate(cards)]
        instances = [instance for card in cards for instance in _read_instances(card)]
        return (*cards, *(_with_index(found, len(cards) + n) for n, found in enumerate(instances)))

    def sample(self, root: Path) -> tuple[Sample, ...]:  # noqa: ARG002 - the protocol's
        samples: list[Sample] = []
        try:
            pynvml.nvmlInit()
            for number in range(pynvml.nvmlDeviceGetCount()):
                samples.append(_read_sample(pynvml.nvmlDeviceGetHandleByIndex(number)))
        except pynvml.NVMLError:
            pass  # no sample is the honest answer; the next inventory says why
        return tuple(samples)


def _known(call: Callable[..., T], *args: Any) -> T | None:
    """Call NVML; None when this device or driver has no answer to the question."""
    try:
        return call(*args)
    except pynvml.NVMLError as error:
        if error.value in _UNKNOWN:
            return None
        raise


def _read_card(number: int, root: Path) -> Device:
    """Describe one card; one that fell off the bus becomes a faulty record and does not hide the others."""
    try:
        return _read_healthy_card(pynvml.nvmlDeviceGetHandleByIndex(number), root)
    except pynvml.NVMLError as error:
        return Device(
            vendor=Vendor.NVIDIA,
            index=number,
            uuid=f"NVML-{number}-unreadable",
            name="NVIDIA device",
            health=Health.FAULTY,
            reason=f"NVML cannot read device {number}: {error}; look at `dmesg` for Xid errors and reset or reseat it",
        )


def _read_healthy_card(handle: Any, root: Path) -> Device:
    capability = _known(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    memory = _known(pynvml.nvmlDeviceGetMemoryInfo, handle)
    pci = normalise_address(_text(pynvml.nvmlDeviceGetPciInfo(handle).busId))
    minor = _known(pynvml.nvmlDeviceGetMinorNumber, handle)
    cuda = _known(pynvml.nvmlSystemGetCudaDriverVersion_v2)
    architecture = _known(pynvml.nvmlDeviceGetArchitecture, handle)
    extra: dict[str, str | int] = {}
    if capability is not None:
        extra["compute_capability"] = f"{capability[0]}.{capability[1]}"
    if architecture is not None:
        extra["nvml_architecture"] = architecture
    total = memory.total if memory is not None else 0
    if not total:
        # WSL and parts with unified memory (GB10) report nothing or 0: what they use is the host's memory.
        extra["memory"] = "unified"
        total = _host_memory_bytes(root)
    mig = _known(pynvml.nvmlDeviceGetMigMode, handle)
    if mig is not None and mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE:
        extra["mig"] = "enabled"
    return Device(
        vendor=Vendor.NVIDIA,
        index=0,
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        arch=None if capability is None else f"sm_{capability[0]}{capability[1]}",
        memory_bytes=total,
        driver=_text(pynvml.nvmlSystemGetDriverVersion()),
        runtime=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        pci=pci,
        numa=read_numa(pci, root),
        dev_nodes=() if minor is None else (f"/dev/nvidia{minor}",),
        extra=extra,
    )


def _read_instances(card: Device) -> list[Device]:
    """List the MIG instances of a card; only they, not the card, can be used while MIG is on."""
    if card.extra.get("mig") != "enabled":
        return []
    handle = pynvml.nvmlDeviceGetHandleByUUID(card.uuid)
    found: list[Device] = []
    for slot in range(_known(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        instance = _known(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot)
        if instance is None:
            continue  # an empty slot
        memory = _known(pynvml.nvmlDeviceGetMemoryInfo, instance)
        found.append(
            Device(
                vendor=Vendor.NVIDIA,
                index=0,
                uuid=_text(pynvml.nvmlDeviceGetUUID(instance)),
                name=_text(_known(pynvml.nvmlDeviceGetName, instance) or f"{card.name} MIG"),
                arch=card.arch,
                memory_bytes=memory.total if memory is not None else None,
                driver=card.driver,
                runtime=card.runtime,
                pci=card.pci,
                numa=card.numa,
                dev_nodes=card.dev_nodes,
                parent=card.uuid,
                extra={"mig_slot": slot},
            )
        )
    return found


def _read_sample(handle: Any) -> Sample:
    memory = _known(pynvml.nvmlDeviceGetMemoryInfo, handle)
    rates = _known(pynvml.nvmlDeviceGetUtilizationRates, handle)
    milliwatts = _known(pynvml.nvmlDeviceGetPowerUsage, handle)
    temperature = _known(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
    return Sample(
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        t_ns=time.time_ns(),
        memory_used_bytes=memory.used if memory is not None and memory.total else None,
        memory_free_bytes=memory.free if memory is not None and memory.total else None,
        util_pct=None if rates is None else float(rates.gpu),
        temp_c=None if temperature is None else float(temperature),
        power_w=None if milliwatts is None else milliwatts / 1000,
        ecc_uncorrected=_known(
            pynvml.nvmlDeviceGetTotalEccErrors,
            handle,
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
        ),
    )


def _host_memory_bytes(root: Path) -> int | None:
    try:
        first = (root / "proc/meminfo").read_text().split(maxsplit=3)
        return int(first[1]) * 1024 if first[0] == "MemTotal:" else None
    except (OSError, IndexError, ValueError):
        return None


def _with_index(device: Device, index: int) -> Device:
    return msgspec.structs.replace(device, index=index)


def _text(value: str | bytes) -> str:
    """NVML strings are bytes in older bindings and str in newer ones."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
