"""Level Zero's structs, as far as they are read here. A test pins their sizes and offsets.

Source of every field: ze_api.h and zes_api.h of Level Zero 1.15 (MIT), unchanged since 1.3. `stype` says to the library
which struct it is given; `next` chains extensions and stays null.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_int32, c_int64, c_uint8, c_uint32, c_uint64, c_void_p


class PciAddress(ctypes.Structure):
    """ze_pci_address_ext_t and zes_pci_address_t."""

    _fields_ = [("domain", c_uint32), ("bus", c_uint32), ("device", c_uint32), ("function", c_uint32)]

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function:x}"


class DeviceProperties(ctypes.Structure):
    """ze_device_properties_t."""

    _fields_ = [
        ("stype", c_uint32),
        ("next", c_void_p),
        ("type", c_uint32),
        ("vendor_id", c_uint32),
        ("device_id", c_uint32),
        ("flags", c_uint32),
        ("subdevice_id", c_uint32),
        ("core_clock_rate", c_uint32),
        ("max_mem_alloc_size", c_uint64),
        ("max_hardware_contexts", c_uint32),
        ("max_command_queue_priority", c_uint32),
        ("threads_per_eu", c_uint32),
        ("eu_simd_width", c_uint32),
        ("eus_per_subslice", c_uint32),
        ("subslices_per_slice", c_uint32),
        ("slices", c_uint32),
        ("timer_resolution", c_uint64),
        ("timestamp_valid_bits", c_uint32),
        ("kernel_timestamp_valid_bits", c_uint32),
        ("uuid", c_uint8 * 16),
        ("name", c_char * 256),
    ]


class MemoryProperties(ctypes.Structure):
    """ze_device_memory_properties_t."""

    _fields_ = [
        ("stype", c_uint32),
        ("next", c_void_p),
        ("flags", c_uint32),
        ("max_clock_rate", c_uint32),
        ("max_bus_width", c_uint32),
        ("total_size", c_uint64),
        ("name", c_char * 256),
    ]


class PciProperties(ctypes.Structure):
    """ze_pci_ext_properties_t, and the head of zes_pci_properties_t with room for its tail."""

    _fields_ = [
        ("stype", c_uint32),
        ("next", c_void_p),
        ("address", PciAddress),
        ("generation", c_int32),
        ("width", c_int32),
        ("max_bandwidth", c_int64),
        ("flags", c_uint8 * 8),
    ]


class SysmanProperties(ctypes.Structure):
    """zes_device_properties_t."""

    _fields_ = [
        ("stype", c_uint32),
        ("next", c_void_p),
        ("core", DeviceProperties),
        ("subdevices", c_uint32),
        ("serial_number", c_char * 64),
        ("board_number", c_char * 64),
        ("brand_name", c_char * 64),
        ("model_name", c_char * 64),
        ("vendor_name", c_char * 64),
        ("driver_version", c_char * 64),
    ]


class MemoryState(ctypes.Structure):
    """zes_mem_state_t."""

    _fields_ = [
        ("stype", c_uint32),
        ("next", c_void_p),
        ("health", c_uint32),
        ("free", c_uint64),
        ("size", c_uint64),
    ]


class TypedProperties(ctypes.Structure):
    """The head that zes_engine_, zes_ras_ and zes_temp_properties_t share, with room for the longest tail."""

    _fields_ = [
        ("stype", c_uint32),
        ("next", c_void_p),
        ("type", c_uint32),
        ("on_subdevice", c_uint8),
        ("subdevice_id", c_uint32),
        ("tail", c_uint8 * 64),
    ]


class Counter(ctypes.Structure):
    """zes_engine_stats_t (active microseconds) and zes_power_energy_counter_t (microjoules), with their clock."""

    _fields_ = [("value", c_uint64), ("timestamp_us", c_uint64)]


class RasState(ctypes.Structure):
    """zes_ras_state_t."""

    _fields_ = [("stype", c_uint32), ("next", c_void_p), ("category", c_uint64 * 7)]


class DeviceState(ctypes.Structure):
    """zes_device_state_t."""

    _fields_ = [("stype", c_uint32), ("next", c_void_p), ("reset", c_uint32), ("repaired", c_uint32)]


class FabricPortId(ctypes.Structure):
    """zes_fabric_port_id_t: of which end of the fabric, of which part of it, and of which port."""

    _fields_ = [("fabric", c_uint32), ("attach", c_uint32), ("port", c_uint8)]


class FabricPortProperties(ctypes.Structure):
    """zes_fabric_port_properties_t; a speed is bits per second and lanes."""

    _fields_ = [
        ("stype", c_uint32),
        ("next", c_void_p),
        ("model", c_char * 256),
        ("on_subdevice", c_uint8),
        ("subdevice_id", c_uint32),
        ("port", FabricPortId),
        ("max_receive_speed", c_int64 * 2),
        ("max_send_speed", c_int64 * 2),
    ]


class FabricPortState(ctypes.Structure):
    """zes_fabric_port_state_t."""

    _fields_ = [
        ("stype", c_uint32),
        ("next", c_void_p),
        ("status", c_uint32),
        ("quality_issues", c_uint32),
        ("failure_reasons", c_uint32),
        ("remote", FabricPortId),
        ("receive_speed", c_int64 * 2),
        ("send_speed", c_int64 * 2),
    ]
