"""What a device is, whatever its vendor: the inventory record, the sample, the data types.

Inventory (slow, at start and on change) is apart from samples (every few seconds); they are joined by `uuid`, because
an index is not stable across a re-detection. What is not known is None, never 0.

    inventory  Device, Topology      how far two devices are apart does not change while they are there
    resident   Sample, DeviceEvent   what a device is doing, and what happened to it
"""

from __future__ import annotations

import re
from enum import IntEnum, StrEnum

import msgspec

from xinf.core.errors import InvalidRequest


class Vendor(StrEnum):
    """Who made the device; closed on purpose, an unknown one is not scheduled."""

    NVIDIA = "nvidia"
    AMD = "amd"
    INTEL = "intel"
    APPLE = "apple"
    ASCEND = "ascend"
    CAMBRICON = "cambricon"
    ENFLAME = "enflame"
    MTHREADS = "mthreads"
    HYGON = "hygon"
    KUNLUNXIN = "kunlunxin"
    CPU = "cpu"


class Dtype(StrEnum):
    """Data types a model's weights or activations may have."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"
    FP8_E4M3 = "fp8_e4m3"
    FP8_E5M2 = "fp8_e5m2"
    FP4 = "fp4"


class Support(StrEnum):
    """How a device computes in a data type."""

    NATIVE = "native"  # its matrix units take it
    WEIGHT_ONLY = "weight_only"  # weights are stored in it and widened before they are multiplied
    NONE = "none"
    UNKNOWN = "unknown"  # no source says


class Health(StrEnum):
    """Whether new work may go to the device, and whether what is there may stay."""

    OK = "ok"
    DEGRADED = "degraded"  # slowed down by heat: engines stay, new ones go elsewhere
    SILENT = "silent"  # nobody can read it: engines that answer stay, new ones go elsewhere
    NO_DRIVER = "no_driver"  # its driver says that it does not work, as while it is replaced: its engines move
    FAULTY = "faulty"  # its engines move

    @property
    def words(self) -> str:
        """For people, after the name of a device: `is faulty`, `has no driver`."""
        verb = "has" if self is Health.NO_DRIVER else "is"
        return f"{verb} {self.value.replace('_', ' ')}"


# What will pass without anybody's doing: such a device is there, though nothing new comes to it now.
PASSING = (Health.DEGRADED, Health.SILENT)


class Distance(IntEnum):
    """What lies between two devices: the less, the faster. The names are those of `nvidia-smi topo -m`, but LINK."""

    SELF = 0
    LINK = 5  # NVLink, xGMI, Xe Link, HCCS, MLU-Link, MtLink
    PIX = 10  # one PCIe switch
    PXB = 20  # several PCIe switches
    PHB = 30  # a PCIe host bridge
    NODE = 40  # host bridges of one NUMA node
    SYS = 50  # the link between NUMA nodes


# The prefix that `--device` takes for each vendor.
DEVICE_KINDS: dict[str, Vendor] = {
    "cuda": Vendor.NVIDIA,
    "rocm": Vendor.AMD,
    "xpu": Vendor.INTEL,
    "mps": Vendor.APPLE,
    "npu": Vendor.ASCEND,
    "mlu": Vendor.CAMBRICON,
    "gcu": Vendor.ENFLAME,
    "musa": Vendor.MTHREADS,
    "dcu": Vendor.HYGON,
    "kunlun": Vendor.KUNLUNXIN,
    "cpu": Vendor.CPU,
}
KIND_OF_VENDOR: dict[Vendor, str] = {vendor: kind for kind, vendor in DEVICE_KINDS.items()}
# Variables that tell an engine which devices are its own; all of them get the same value. Those of MPS and the
# processor are their engines' business. Source of each: docs/reference/devices.md.
VISIBLE_ENV: dict[Vendor, tuple[str, ...]] = {
    Vendor.NVIDIA: ("CUDA_VISIBLE_DEVICES",),
    Vendor.AMD: ("ROCR_VISIBLE_DEVICES",),
    Vendor.INTEL: ("ZE_AFFINITY_MASK",),
    Vendor.ASCEND: ("ASCEND_RT_VISIBLE_DEVICES",),
    Vendor.CAMBRICON: ("MLU_VISIBLE_DEVICES",),
    Vendor.ENFLAME: ("TOPS_VISIBLE_DEVICES",),
    Vendor.MTHREADS: ("MUSA_VISIBLE_DEVICES",),
    Vendor.HYGON: ("HIP_VISIBLE_DEVICES",),
    Vendor.KUNLUNXIN: ("XPU_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
}
_SELECTOR = re.compile(rf"({'|'.join(DEVICE_KINDS)})(?::([0-9]{{1,4}}))?")


class Device(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One device as the inventory found it. `index` counts within its vendor on its node, in PCI bus order."""

    vendor: Vendor
    index: int
    uuid: str
    name: str
    arch: str | None = None  # "sm_120", "gfx942", "910B3", "x86_64"
    memory_bytes: int | None = None
    driver: str | None = None
    runtime: str | None = None
    pci: str | None = None  # "0000:18:00.0": lower case, four-digit domain
    numa: int | None = None
    dev_nodes: tuple[str, ...] = ()
    # What its VISIBLE_ENV takes for it, told by the vendor's library or tool; None: an engine cannot be confined to it.
    visible: str | None = None
    parent: str | None = None  # uuid of the card that a MIG instance belongs to
    health: Health = Health.OK
    reason: str | None = None  # why it is not healthy, in words with the remedy
    since_s: float | None = None  # wall-clock second since when its health is as it is; None: since it is known
    extra: dict[str, str | int] = {}

    @property
    def selector(self) -> str:
        """The name `--device` takes for it: `cuda:0`, `cpu`."""
        kind = KIND_OF_VENDOR[self.vendor]
        return kind if self.vendor in (Vendor.CPU, Vendor.APPLE) else f"{kind}:{self.index}"

    @property
    def is_unified(self) -> bool:
        """Whether it has no memory of its own and computes in the host's, which the processor fills as well."""
        return self.extra.get("memory") == "unified"


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a device is doing now."""

    uuid: str
    t_ns: int
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    util_pct: float | None = None
    temp_c: float | None = None
    power_w: float | None = None
    ecc_uncorrected: int | None = None
    health: Health | None = None  # None: it does not say
    reason: str | None = None  # why it is not OK


class DeviceEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that happened to a device."""

    uuid: str
    t_ns: int
    # "xid", "ecc", "lost", "thermal", "driver"; "recovered": nothing is wrong any more; "found": it is lost no longer
    kind: str
    code: int | None = None  # of an Xid, of the vendor's event
    message: str  # with the remedy, for a person
    health: Health = Health.OK  # what it means for new work


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """How far each two devices of a node are apart. Pairs that nothing is known of are left out."""

    pairs: tuple[tuple[str, str, Distance], ...] = ()  # uuids in ascending order

    def between(self, a: str, b: str) -> Distance | None:
        """Find the distance of two devices in O(pairs); None: not known."""
        if a == b:
            return Distance.SELF
        key = (a, b) if a < b else (b, a)
        return next((distance for first, second, distance in self.pairs if (first, second) == key), None)


def check_selector(text: str) -> str:
    """Return what `--device` was given as it is compared: `cuda`, `cuda:0`, `cpu`, a UUID, or a list with commas.

    Kinds in lower case, without the blanks around commas; a UUID as it is.

    Raises: InvalidRequest naming the part that is wrong and what is accepted.
    """
    parts = [part.strip() for part in text.split(",")]
    for number, part in enumerate(parts):
        if _SELECTOR.fullmatch(part.lower()):
            parts[number] = part.lower()
        elif not (len(part) >= 8 and "-" in part and ":" not in part):  # no UUID either
            known = ", ".join(DEVICE_KINDS)
            raise InvalidRequest(
                f"device {part!r} is not known: use one of {known}, with :N for the N-th, or a device's UUID",
                remedy="`auto` stands alone" if part == "auto" else "`xinf devices` lists those of this host",
                param="device",
            )
    return ",".join(parts)


def is_selected(device: Device, selector: str) -> bool:
    """Whether one part of a selector means this device, by its own name or by its vendor's UUID.

    The UUID of a card means its tiles, partitions and instances too: once it is divided, it is they that compute.
    """
    if selector in (device.uuid, device.extra.get("uuid"), device.parent):
        return True
    match = _SELECTOR.fullmatch(selector)
    if match is None or DEVICE_KINDS[match[1]] is not device.vendor:
        return False
    return match[2] is None or device.vendor is Vendor.CPU or int(match[2]) == device.index
