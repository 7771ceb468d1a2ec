"""What NVIDIA devices are doing, how they are and whose processes use them, through NVML.

How a card is, the first that holds:

    FAULTY     the driver asks for a recovery action; a row could not be remapped; uncorrectable errors since the driver
               was loaded, on a card without row remapping; the temperature at which the card turns itself off
    DEGRADED   clocks held down by heat; the temperature at which that begins
    OK         with a reason: a row or a page of memory is to be replaced at the next reset

Cards with row remapping (since Ampere) keep an uncorrectable error to the process that met it, or tell of an Xid; older
ones harm whatever runs until they are reset. Source: NVIDIA GPU Memory Error Management (docs.nvidia.com/deploy/
a100-gpu-mem-error-mgmt) and the next steps in NVIDIA/DCGM, dcgm_errors.h: volatile double-bit errors want a reset, with
pages that wait to be retired a GPU can still work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml

from xinf.core.device import Health, Sample
from xinf.device.health import or_well
from xinf.device.library import LibraryError
from xinf.device.nvidia_answer import known
from xinf.device.nvidia_library import LOST_REMEDY, handles, instances, read_uuid, start
from xinf.device.nvidia_memory import read_memory, read_own_memory
from xinf.device.reading import DeviceProcess

# Of one card, like all that NVML raises but what concerns the driver itself: the others go on.
_LOST = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)
_OF_THE_DRIVER = (
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
)
# By their numbers, as in nvml.h: older releases of the binding lack the names.
_FI_RECOVERY_ACTION = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
_RECOVERY_ACTIONS = {
    1: "the driver asks for a reset of this GPU: drain it, then `nvidia-smi --gpu-reset`",
    2: "the driver asks for a reboot of this host",
    3: "the driver asks to end everything that uses peer access to this GPU",
    4: "the driver asks to drain this GPU and then reset it: `nvidia-smi --gpu-reset`",
    5: "the driver asks to recover the IMEX domain that this GPU belongs to",
    6: "the driver asks for a reset of the bus that this GPU is on",
    7: "the driver asks for a restart of the whole system",
}
_THERMAL = 0x20 | 0x40  # nvmlClocksEventReasonSwThermalSlowdown, ...HwThermalSlowdown
_REMAP_FAILED = "a defective row of its memory could not be replaced (row remapping failed): have it swapped"
_REMAP_PENDING = "a row of its memory is to be replaced: reset it when it is idle"
_RETIRE_PENDING = "pages of its memory are to be retired: reset it when it is idle"
_UNCORRECTED = "uncorrectable errors of its memory since the driver was loaded: drain it, then `nvidia-smi --gpu-reset`"
_TOO_HOT = "it is slowed down because it is too hot: look at fans and airflow"


def read_samples(root: Path) -> tuple[Sample, ...]:
    """Read every card that answers, and the memory of MIG instances. Raises: LibraryError."""
    start()
    samples: list[Sample] = []
    for handle in handles():
        samples.extend(_read_card(handle, root))
    return tuple(samples)


def read_processes() -> tuple[DeviceProcess, ...]:
    """List the processes with a CUDA context. Raises: LibraryError."""
    start()
    found: list[DeviceProcess] = []
    for card in handles():
        try:
            for handle in (card, *(instance for _, instance in instances(card))):
                found.extend(_read_processes(handle))
        except pynvml.NVMLError:
            continue  # a card that was lost has no processes worth naming
    return tuple(found)


def read_recovery_action(handle: Any) -> str | None:
    """Say what the driver wants done to a card before it can be used again; None: nothing, or it does not say.

    Raises: NVMLError of a card that is lost.
    """
    values = known(pynvml.nvmlDeviceGetFieldValues, handle, [_FI_RECOVERY_ACTION])
    if not values or values[0].nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    action = int(values[0].value.uiVal)
    return None if action == 0 else _RECOVERY_ACTIONS.get(action, f"the driver asks for recovery action {action}")


def _read_card(handle: Any, root: Path) -> list[Sample]:
    """Read one card and its instances; none if not even its name can be read. Raises: LibraryError."""
    uuid = read_uuid(handle)
    if uuid is None:
        return []
    try:
        return [_read_metrics(handle, uuid, root), *_read_instances(handle, root)]
    except pynvml.NVMLError as error:
        if error.value in _OF_THE_DRIVER:
            raise LibraryError(f"NVML does not answer: {error}: look at `dmesg`") from error
        reason = f"the driver says `{error}`: {LOST_REMEDY if error.value in _LOST else 'look at `dmesg`'}"
        return [Sample(uuid=uuid, t_ns=time.time_ns(), health=Health.FAULTY, reason=reason)]


def _read_metrics(handle: Any, uuid: str, root: Path) -> Sample:
    memory = read_memory(handle, root)
    rates = known(pynvml.nvmlDeviceGetUtilizationRates, handle)
    milliwatts = known(pynvml.nvmlDeviceGetPowerUsage, handle)
    temperature = known(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
    uncorrected = known(
        pynvml.nvmlDeviceGetTotalEccErrors,
        handle,
        pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        pynvml.NVML_VOLATILE_ECC,
    )
    health, reason = _read_health(handle, uncorrected, temperature)
    return Sample(
        uuid=uuid,
        t_ns=time.time_ns(),
        memory_used_bytes=memory.used_bytes,
        memory_free_bytes=memory.free_bytes,
        util_pct=None if rates is None else float(rates.gpu),
        temp_c=None if temperature is None else float(temperature),
        power_w=None if milliwatts is None else milliwatts / 1000,
        ecc_uncorrected=uncorrected,
        health=or_well(health, memory.used_bytes, temperature, milliwatts, None if rates is None else rates.gpu),
        reason=reason,
    )


def _read_health(handle: Any, uncorrected: int | None, temperature: int | None) -> tuple[Health | None, str | None]:
    """Say what state a card is in, also of what happened before anybody watched.

    Reasons carry no number that moves: each new one is written to the store.
    """
    action = read_recovery_action(handle)
    if action is not None:
        return Health.FAULTY, action
    rows = known(pynvml.nvmlDeviceGetRemappedRows, handle)  # corrected, uncorrected, pending, failed
    if rows is not None and rows[3]:
        return Health.FAULTY, _REMAP_FAILED
    if rows is None and uncorrected:
        return Health.FAULTY, _UNCORRECTED
    heat = _read_heat(handle, temperature)
    if heat is not None and heat[0] is not Health.OK:
        return heat
    if rows is not None and rows[2]:
        return Health.OK, _REMAP_PENDING
    if rows is None and known(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle):
        return Health.OK, _RETIRE_PENDING
    return (None if heat is None and rows is None and uncorrected is None else Health.OK), None


def _read_heat(handle: Any, temperature: int | None) -> tuple[Health, str | None] | None:
    """Say how hot a card is by its own limits; None: it tells neither of limits nor of its clocks."""
    limits = [
        None if temperature is None else known(pynvml.nvmlDeviceGetTemperatureThreshold, handle, kind)
        for kind in (pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
    ]
    shutdown, slowdown = limits
    if temperature is not None and shutdown and temperature >= shutdown:
        return Health.FAULTY, f"it is at {shutdown} C or above, where it turns itself off: look at fans and airflow"
    reasons = known(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    if (reasons is not None and reasons & _THERMAL) or (
        temperature is not None and slowdown and temperature >= slowdown
    ):
        return Health.DEGRADED, _TOO_HOT
    return None if reasons is None and not shutdown and not slowdown else (Health.OK, None)


def _read_instances(handle: Any, root: Path) -> Iterator[Sample]:
    """Read the memory of MIG instances; the rest is told of their card only."""
    for _, instance in instances(handle):
        memory, uuid = read_own_memory(instance, root), read_uuid(instance)
        if uuid is None:
            continue  # it is being taken apart, which is no fault of its card
        yield Sample(
            uuid=uuid,
            t_ns=time.time_ns(),
            memory_used_bytes=memory.used_bytes,
            memory_free_bytes=memory.free_bytes,
        )


def _read_processes(handle: Any) -> Iterator[DeviceProcess]:
    """List those of a card or an instance; several contexts of one process are several entries."""
    uuid = read_uuid(handle)
    if uuid is None:
        return  # an instance that is being taken apart
    for process in known(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, handle) or ():
        yield DeviceProcess(uuid=uuid, pid=process.pid, memory_bytes=process.usedGpuMemory)
