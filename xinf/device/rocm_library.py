"""librocm_smi64, which AMD's ROCm and Hygon's DTK both ship, through ctypes.

Only functions whose parameters are numbers and buffers that the caller measures: those have kept their signatures since
ROCm 3. The newer libamd_smi hands out structs that grew between 6.x and 7.x and are not worth the risk: all it knows
and this does not is in the driver's files. Source: rocm_smi_lib include/rocm_smi/rocm_smi.h (ROCm 6.4).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xinf.device.amdgpu import CardFacts, CardReading
from xinf.device.library import LibraryError, find_function, load_library

NAMES = ("librocm_smi64.so", "librocm_smi64.so.7", "librocm_smi64.so.1", "librocm_smi64.so.2")
_STATUS_OK = 0
_VRAM = 0  # RSMI_MEM_TYPE_VRAM
_EDGE, _JUNCTION = 0, 1  # RSMI_TEMP_TYPE_
# RSMI_TEMP_ metrics: current 0, max 1, min 2, max hyst 3, min hyst 4, critical 5, critical hyst 6, emergency 7
_TEMP_CURRENT, _TEMP_CRITICAL, _TEMP_EMERGENCY = 0, 5, 7
_BLOCKS = (1 << 0, 1 << 1, 1 << 2)  # RSMI_GPU_BLOCK_UMC, _SDMA, _GFX


class ErrorCount(ctypes.Structure):
    """rsmi_error_count_t, with room for the counters that newer releases append."""

    _fields_ = [
        ("correctable", ctypes.c_uint64),
        ("uncorrectable", ctypes.c_uint64),
        ("appended", ctypes.c_uint64 * 6),
    ]


class RocmSmi:
    """The library, loaded and started; devices are named by PCI address, whatever its own order is."""

    def __init__(self, *, directories: Sequence[str], root: Path) -> None:
        """Load and start it. Raises: LibraryError."""
        self._library = load_library(NAMES, directories=directories, root=root)
        status = find_function(self._library, "rsmi_init")(ctypes.c_uint64(0))
        if status != _STATUS_OK:
            raise LibraryError(f"librocm_smi64 does not start (status {status}): is the kernel driver loaded?")
        count = self._number("rsmi_num_monitor_devices", ctypes.c_uint32) or 0
        self._index_of = {self._address(index): index for index in range(count)}

    def facts(self, address: str) -> CardFacts:
        """Say what it knows of a card; nothing if it does not list it."""
        index = self._index_of.get(address)
        if index is None:
            return CardFacts()
        return CardFacts(
            name=self._text("rsmi_dev_name_get", index),
            memory_bytes=self._number("rsmi_dev_memory_total_get", ctypes.c_uint64, index, _VRAM) or None,
            unique_id=self._number("rsmi_dev_unique_id_get", ctypes.c_uint64, index) or None,
        )

    def reading(self, address: str) -> CardReading:
        """Say what a card is doing; nothing if it does not list it."""
        index = self._index_of.get(address)
        if index is None:
            return CardReading()
        busy = self._number("rsmi_dev_busy_percent_get", ctypes.c_uint32, index)
        microwatts = self._power(index)
        temperature, limit, shutdown = self._temperature(index)
        return CardReading(
            memory_used_bytes=self._number("rsmi_dev_memory_usage_get", ctypes.c_uint64, index, _VRAM),
            memory_total_bytes=self._number("rsmi_dev_memory_total_get", ctypes.c_uint64, index, _VRAM) or None,
            util_pct=None if busy is None else float(busy),
            temp_c=temperature,
            temp_limit_c=limit,
            temp_shutdown_c=shutdown,
            power_w=None if microwatts is None else microwatts / 1_000_000,
            ecc_uncorrected=self._uncorrected(index),
        )

    def _address(self, index: int) -> str:
        """Ask for the address: domain in bits 63..32, bus 15..8, device 7..3, function 2..0."""
        bdf = self._number("rsmi_dev_pci_id_get", ctypes.c_uint64, index)
        if bdf is None:
            return f"unknown {index}"
        return f"{bdf >> 32:04x}:{bdf >> 8 & 0xFF:02x}:{bdf >> 3 & 0x1F:02x}.{bdf & 0x7:x}"

    def _temperature(self, index: int) -> tuple[float | None, float | None, float | None]:
        """Ask one sensor for the temperature and for the limits of slowing and of shutting down."""
        for sensor in (_JUNCTION, _EDGE):
            current, *limits = (
                self._number("rsmi_dev_temp_metric_get", ctypes.c_int64, index, sensor, metric)
                for metric in (_TEMP_CURRENT, _TEMP_CRITICAL, _TEMP_EMERGENCY)
            )
            if current is not None:
                slowdown, shutdown = (limit / 1000 if limit else None for limit in limits)
                return current / 1000, slowdown, shutdown
        return None, None, None

    def _power(self, index: int) -> int | None:
        """Ask for microwatts: an average of older cards, what it draws now of MI300 and later."""
        average = self._number("rsmi_dev_power_ave_get", ctypes.c_uint64, index, 0)
        if average is not None:
            return average
        value, kind = ctypes.c_uint64(), ctypes.c_int()
        try:
            call = find_function(self._library, "rsmi_dev_power_get")
        except LibraryError:
            return None
        status = call(ctypes.c_uint32(index), ctypes.byref(value), ctypes.byref(kind))
        return int(value.value) if status == _STATUS_OK else None

    def _uncorrected(self, index: int) -> int | None:
        total: int | None = None
        try:
            call = find_function(self._library, "rsmi_dev_ecc_count_get")
        except LibraryError:
            return None
        for block in _BLOCKS:
            counts = ErrorCount()
            if call(ctypes.c_uint32(index), ctypes.c_int(block), ctypes.byref(counts)) == _STATUS_OK:
                total = (total or 0) + int(counts.uncorrectable)
        return total

    def _number(self, name: str, kind: type[Any], *arguments: int) -> int | None:
        """Call `name(arguments..., &number)`; None when this card or release has no answer."""
        value = kind()
        try:
            status = find_function(self._library, name)(*(ctypes.c_uint32(a) for a in arguments), ctypes.byref(value))
        except LibraryError:
            return None
        return int(value.value) if status == _STATUS_OK else None

    def _text(self, name: str, index: int) -> str | None:
        buffer = ctypes.create_string_buffer(256)
        try:
            status = find_function(self._library, name)(ctypes.c_uint32(index), buffer, ctypes.c_size_t(len(buffer)))
        except LibraryError:
            return None
        return buffer.value.decode(errors="replace").strip() or None if status == _STATUS_OK else None
