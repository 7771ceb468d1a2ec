"""The memory of an NVIDIA device that programs can have, through NVML: what CUDA calls its total.

    total  ├─ reserved ─┼───────── used ─────────┼──────── free ────────┤   nvmlDeviceGetMemoryInfo_v2
                        ├───────────── CUDA's total ────────────────────┤

The reserve is the driver's own (0.2 to 1.1 GiB), and no runtime gives it out or counts it. Seen:

    H100 80GB      81559 MiB, 551 reserved (other drivers 454), CUDA 79.11 GiB = 81008 MiB
    A10            23028 MiB, 517 reserved, CUDA 21.98 GiB = 22511 MiB (mayooot/detect-gpu #3)
    RTX PRO 6000   95.59 GiB, CUDA 94.97 GiB (ollama/ollama #18201)

`used` is told without the reserve by some drivers and with it by others (NVML's manuals of R525 and R590 differ), so
that it is taken from the other three. Drivers before 510 have no second version: there the total of the first one is
CUDA's (A100 40GB: 40536 MiB instead of 40960). On WSL CUDA counts the whole card, so that the reserve is used there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pynvml

from xinf.device.host_memory import read_host_memory
from xinf.device.nvidia_answer import UNKNOWN, known
from xinf.device.nvidia_board import is_of_windows


class CardMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What programs have and can have of a card or an instance, in bytes; None: it does not say."""

    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    reserved_bytes: int = 0  # beside the total


def read_memory(handle: Any, root: Path) -> CardMemory:
    """Read the memory; of the host, where that is the card's, whoever uses it. Raises: NVMLError of a lost card."""
    if is_unified(handle):
        host = read_host_memory(root)
        used = None
        if host.total_bytes is not None and host.available_bytes is not None:
            used = host.total_bytes - host.available_bytes
        return CardMemory(total_bytes=host.total_bytes, used_bytes=used, free_bytes=host.available_bytes)
    return read_own_memory(handle, root)


def read_own_memory(handle: Any, root: Path) -> CardMemory:
    """Read what a card or an instance has itself: no part of a card is the host's, if it does not tell of its own."""
    parts = None
    if not is_of_windows(root):
        parts = known(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    if parts is not None:
        total = max(0, parts.total - parts.reserved)
        used = max(0, total - parts.free)
        return CardMemory(total_bytes=total, used_bytes=used, free_bytes=parts.free, reserved_bytes=parts.reserved)
    memory = known(pynvml.nvmlDeviceGetMemoryInfo, handle)
    if memory is None:
        return CardMemory()
    return CardMemory(total_bytes=memory.total, used_bytes=memory.used, free_bytes=memory.free)


def is_unified(handle: Any) -> bool:
    """Whether a card has no memory of its own: GB10 and Jetsons do not support the question, WSL may answer 0.

    Any other failure says nothing: a card whose memory cannot be read is not taken for one with the host's.
    Source: XuehaiPan/nvitop #208 and leptonai/gpud #1170 (GB10, drivers 580), with values.
    """
    try:
        return not pynvml.nvmlDeviceGetMemoryInfo(handle).total
    except pynvml.NVMLError as error:
        if error.value in UNKNOWN:
            return bool(error.value == pynvml.NVML_ERROR_NOT_SUPPORTED)
        raise
