"""The structs of NVML as three parties lay them out: the binding, the fake library, and nvml.h as pinned here.

Proves that the fake and the binding cannot drift apart; the numbers are those of nvml.h for CUDA 12 and 13 on 64 bits.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import pynvml
import pytest

# struct of the binding, its size, a field late in it, that field's offset
LAYOUTS = [
    ("nvmlPciInfo_t", 68, "busId", 36),
    ("c_nvmlMemory_t", 24, "used", 16),
    ("c_nvmlMemory_v2_t", 40, "reserved", 16),
    ("c_nvmlEventData_t", 32, "eventData", 16),
    ("c_nvmlFieldValue_t", 40, "value", 32),
    ("c_nvmlProcessInfo_v3_t", 24, "usedGpuMemory", 8),
    ("c_nvmlSystemEventSetWaitRequest_v1_t", 32, "data", 16),
]


@pytest.mark.parametrize(("name", "size", "field", "offset"), LAYOUTS)
def test_binding_lays_out_as_the_header(name: str, size: int, field: str, offset: int) -> None:
    struct = getattr(pynvml, name)
    assert (ctypes.sizeof(struct), getattr(struct, field).offset) == (size, offset)


def test_fake_lays_out_as_the_header(fake_nvml: Path) -> None:
    library = ctypes.CDLL(str(fake_nvml / "libnvidia-ml.so.1"))
    found = list((ctypes.c_ulong * (2 * len(LAYOUTS))).in_dll(library, "fake_layout"))
    assert found == [number for _, size, _, offset in LAYOUTS for number in (size, offset)]
