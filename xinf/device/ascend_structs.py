"""The structs of DCMI that are read, both interfaces' alike.

Source: `dcmi_interface_api.h` (Huawei, Apache-2.0, in the mind-cluster and CANN driver sources), compared with
gpustack-runtime 88026d6 pydcmi; sizes and offsets are pinned by a test. Sizes of memory are in MB of 2^20.
"""

from __future__ import annotations

import ctypes

_NAME_LENGTH = 32


class ChipInfo(ctypes.Structure):
    """struct dcmi_chip_info_v2."""

    _fields_ = (
        ("chip_type", ctypes.c_char * _NAME_LENGTH),
        ("chip_name", ctypes.c_char * _NAME_LENGTH),
        ("chip_ver", ctypes.c_char * _NAME_LENGTH),
        ("aicore_cnt", ctypes.c_uint),
        ("npu_name", ctypes.c_char * _NAME_LENGTH),
    )


class PcieInfo(ctypes.Structure):
    """struct dcmi_pcie_info_all."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("venderid", "subvenderid", "deviceid", "subdeviceid")),
        ("domain", ctypes.c_int),
        *((name, ctypes.c_uint) for name in ("bdf_busid", "bdf_deviceid", "bdf_funcid")),
        ("reserve", ctypes.c_ubyte * 32),
    )


class DieId(ctypes.Structure):
    """struct dcmi_die_id."""

    _fields_ = (("soc_die", ctypes.c_uint * 5),)


class HbmInfo(ctypes.Structure):
    """struct dcmi_hbm_info; sizes in MB."""

    _fields_ = (
        ("memory_size", ctypes.c_ulonglong),
        ("freq", ctypes.c_uint),
        ("memory_usage", ctypes.c_ulonglong),
        ("temp", ctypes.c_int),
        ("bandwith_util_rate", ctypes.c_uint),
    )


class MemoryInfo(ctypes.Structure):
    """struct dcmi_get_memory_info_stru, of chips without HBM; sizes in MB."""

    _fields_ = (
        ("memory_size", ctypes.c_ulonglong),
        ("memory_available", ctypes.c_ulonglong),
        ("freq", ctypes.c_uint),
        *((name, ctypes.c_ulong) for name in ("hugepagesize", "hugepages_total", "hugepages_free")),
        ("utiliza", ctypes.c_uint),
        ("reserve", ctypes.c_ubyte * 60),
    )


class EccInfo(ctypes.Structure):
    """struct dcmi_ecc_info, with room for the fields that later drivers write behind those of the public header."""

    _fields_ = (
        ("enable_flag", ctypes.c_int),
        ("single_bit_error_cnt", ctypes.c_uint),
        ("double_bit_error_cnt", ctypes.c_uint),
        ("total_single_bit_error_cnt", ctypes.c_uint),
        ("total_double_bit_error_cnt", ctypes.c_uint),
        ("single_bit_isolated_pages_cnt", ctypes.c_uint),
        ("double_bit_isolated_pages_cnt", ctypes.c_uint),
        ("room", ctypes.c_ubyte * 36),
    )
