"""The structs of cndev that are read.

Source: `cndev.h` of driver 6 as Cambricon's device plugin and exporter ship it (Apache-2.0), compared with that of
driver 5 and with gpustack-runtime's pycndev; sizes and offsets are pinned by a test. A struct with a `version` is
refused by the library unless the caller has set it.
"""

from __future__ import annotations

import ctypes

_UUID_LENGTH = 37


class CardInfo(ctypes.Structure):
    """cndevCardInfo_t."""

    _fields_ = (("version", ctypes.c_int32), ("number", ctypes.c_uint32))


class Uuid(ctypes.Structure):
    """cndevUUID_t."""

    _fields_ = (
        ("version", ctypes.c_int32),
        ("uuid", ctypes.c_char * _UUID_LENGTH),
        ("ncsUUID64", ctypes.c_uint64),
    )


class PcieInfo(ctypes.Structure):
    """cndevPCIeInfo_t."""

    _fields_ = (
        ("version", ctypes.c_int32),
        ("subsystemId", ctypes.c_uint32),
        ("deviceId", ctypes.c_uint32),
        ("vendor", ctypes.c_uint16),
        ("subsystemVendor", ctypes.c_uint16),
        *((name, ctypes.c_uint32) for name in ("domain", "bus", "device", "function")),
        ("physicalSlot", ctypes.c_char_p),
        ("slotID", ctypes.c_int32),
    )


class PcieInfoV2(ctypes.Structure):
    """cndevPCIeInfoV2_t, without a version."""

    _fields_ = (
        ("subsystemId", ctypes.c_uint32),
        ("deviceId", ctypes.c_uint32),
        ("vendor", ctypes.c_uint16),
        ("subsystemVendor", ctypes.c_uint16),
        *((name, ctypes.c_uint32) for name in ("domain", "bus", "device", "function")),
        ("moduleId", ctypes.c_uint16),
        ("slotId", ctypes.c_uint16),
        ("reserved", ctypes.c_uint32 * 8),
    )


class MemoryInfo(ctypes.Structure):
    """cndevMemoryInfo_t; sizes in MB."""

    _fields_ = (
        ("version", ctypes.c_int32),
        ("physicalMemoryTotal", ctypes.c_int64),
        ("physicalMemoryUsed", ctypes.c_int64),
        ("virtualMemoryTotal", ctypes.c_int64),
        ("virtualMemoryUsed", ctypes.c_int64),
        ("channelNumber", ctypes.c_int64),
        ("channelMemoryUsed", ctypes.c_int64 * 20),
        ("globalMemory", ctypes.c_uint64),
    )


class MemoryInfoV2(ctypes.Structure):
    """cndevMemoryInfoV2_t, without a version; sizes in MB."""

    _fields_ = (
        ("physicalMemoryTotal", ctypes.c_int64),
        ("physicalMemoryUsed", ctypes.c_int64),
        ("reservedMemory", ctypes.c_int64),
        ("virtualMemoryTotal", ctypes.c_int64),
        ("virtualMemoryUsed", ctypes.c_int64),
        ("globalMemory", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64 * 16),
    )


class VersionInfo(ctypes.Structure):
    """cndevVersionInfo_t."""

    _fields_ = (
        ("version", ctypes.c_int32),
        *((f"mcu{part}Version", ctypes.c_uint32) for part in ("Major", "Minor", "Build")),
        *((f"driver{part}Version", ctypes.c_uint32) for part in ("Major", "Minor", "Build")),
    )


class EccInfo(ctypes.Structure):
    """cndevECCInfo_t."""

    _fields_ = (
        ("version", ctypes.c_int32),
        ("oneBitError", ctypes.c_uint64),
        ("multipleOneError", ctypes.c_uint64),
        ("multipleError", ctypes.c_uint64),
        ("multipleMultipleError", ctypes.c_uint64),
        ("correctedError", ctypes.c_uint64),
        ("uncorrectedError", ctypes.c_uint64),
        ("totalError", ctypes.c_uint64),
        ("addressForbiddenError", ctypes.c_uint64),
    )


class PowerInfo(ctypes.Structure):
    """cndevDevicePowerInfo_t, without a version; in W."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("usage", "cap", "machine", "tdp", "maxPower")),
        ("reserved", ctypes.c_int32 * 16),
    )


class TemperatureInfo(ctypes.Structure):
    """cndevTemperatureInfo_t; in °C."""

    _fields_ = (
        ("version", ctypes.c_int32),
        ("board", ctypes.c_int32),
        ("cluster", ctypes.c_int32 * 20),
        ("memoryDie", ctypes.c_int32 * 8),
        *((name, ctypes.c_int32) for name in ("chip", "airInlet", "airOutlet", "memory", "videoInput", "cpu", "isp")),
    )


class UtilizationInfo(ctypes.Structure):
    """cndevUtilizationInfo_t; in per cent."""

    _fields_ = (
        ("version", ctypes.c_int32),
        ("averageCoreUtilization", ctypes.c_int32),
        ("coreUtilization", ctypes.c_int32 * 80),
    )


class HealthState(ctypes.Structure):
    """cndevCardHealthState_t."""

    _fields_ = (
        ("version", ctypes.c_int32),
        ("health", ctypes.c_int32),
        ("deviceState", ctypes.c_int32),
        ("driverState", ctypes.c_int32),
    )


class Incident(ctypes.Structure):
    """cndevIncidentInfo_t, with cndevDiagErrorDetail_t in its place: what ails a card, in the vendor's words."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("system", "health")),
        ("msg", ctypes.c_char * 512),
        *((name, ctypes.c_uint32) for name in ("device_id", "bdf", "code", "category", "severity")),
    )


class HealthStateV2(ctypes.Structure):
    """cndevCardHealthStateV2_t, without a version."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("health", "deviceState", "driverState", "overallHealth")),
        ("incident_count", ctypes.c_uint32),
        ("incidents", Incident * 64),
        ("reserved", ctypes.c_uint32 * 8),
    )


class LinkStatus(ctypes.Structure):
    """cndevMLULinkStatus_t."""

    _fields_ = (
        ("version", ctypes.c_int32),
        ("isActive", ctypes.c_int32),
        ("serdesState", ctypes.c_int32),
        ("cableState", ctypes.c_int32),
    )


class LinkStatusV2(ctypes.Structure):
    """cndevMLULinkStatusV2_t, without a version."""

    _fields_ = (
        ("macState", ctypes.c_int32),
        ("serdesState", ctypes.c_int32),
        ("presenceState", ctypes.c_int32),
        ("serdesProgress", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32 * 7),
    )


class LinkRemote(ctypes.Structure):
    """cndevMLULinkRemoteInfo_t: who is at the other end of a port."""

    _fields_ = (
        ("version", ctypes.c_int32),
        ("mcSn", ctypes.c_uint64),
        ("baSn", ctypes.c_uint64),
        ("slotId", ctypes.c_uint32),
        ("portId", ctypes.c_uint32),
        ("devIp", ctypes.c_uint8 * 16),
        ("uuid", ctypes.c_char * _UUID_LENGTH),
        ("devIpVersion", ctypes.c_uint32),
        ("isIpValid", ctypes.c_uint32),
        ("connectType", ctypes.c_int32),
        ("ncsUUID64", ctypes.c_uint64),
        ("mac_addr", ctypes.c_uint8 * 6),
        ("port_name", ctypes.c_char * 256),
    )


class Relationship(ctypes.Structure):
    """cndevTopologyRelationship_t."""

    _fields_ = (("version", ctypes.c_int32), ("relation", ctypes.c_int32))
