"""What an engine process is put into: the interpreter that fits its devices, and variables that show it only those."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from xinf.core.device import DEVICE_KINDS, KIND_OF_VENDOR, VISIBLE_ENV, Device, Health, Vendor
from xinf.core.errors import EngineStartFailed
from xinf.core.records import EngineEnvironment, NodeRecord, ReplicaRecord

# Not for engines: our own settings, and what would make an engine environment see the packages of another.
_OWN_PREFIX = "XINF_"
_FOREIGN = frozenset(
    {
        *("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "CUDA_DEVICE_ORDER"),
        *(name for names in VISIBLE_ENV.values() for name in names),
        # They narrow down, by index, what the variables above have left.
        *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"),
    }
)
# Set but empty, these hide every device. Others take that for unset. Source: docs/reference/devices.md.
_EMPTY_HIDES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
# On a hot device engines stay, so one that ended there starts there again: slow is better than not at all.
_USABLE = (Health.OK, Health.DEGRADED)


def choose_environment(replica: ReplicaRecord, node: NodeRecord) -> EngineEnvironment:
    """Choose the engine environment for a replica's engine and devices.

    Raises: EngineStartFailed naming what the node has.
    """
    kind = device_kind(replica, node)
    for environment in node.environments:
        fits = not environment.device_kinds or kind in environment.device_kinds
        if replica.spec.engine in environment.engines and fits:
            return environment
    has = ", ".join(environment.name for environment in node.environments) or "none"
    raise EngineStartFailed(
        f"{node.name} has no environment for {replica.spec.engine} on {kind}; it has {has}",
        remedy="run `make engine`, then restart `xinf worker`",
        cause="missing_dependency",
    )


def device_kind(replica: ReplicaRecord, node: NodeRecord) -> str:
    """Which kind of device a replica was placed on: `cuda`, `cpu`.

    Raises: EngineStartFailed if a device is not there (any more) or does not work.
    """
    kind: str | None = None
    for uuid in replica.device_uuids:
        device = _find(node.devices, uuid)
        if device is None:
            raise EngineStartFailed(
                f"device {uuid} is not on {node.name} any more",
                remedy="run `xinf devices`; a new launch places it elsewhere",
                cause="device_unavailable",
            )
        if device.health not in _USABLE:
            raise EngineStartFailed(
                f"{device.selector} on {node.name} cannot be used: {device.reason or device.health}",
                remedy="see to the device; the replica starts again when it is well, or is placed elsewhere",
                cause="device_unavailable",
            )
        kind = kind or KIND_OF_VENDOR[device.vendor]
    if kind is not None:
        return kind
    first = (replica.devices or ("cpu",))[0].partition(":")[0]
    return first if first in DEVICE_KINDS else "cpu"


def engine_environ(
    base: Mapping[str, str], environment: EngineEnvironment, replica: ReplicaRecord, node: NodeRecord
) -> dict[str, str]:
    """Make the environment of an engine process: the agent's without our settings, only its own devices visible.

    Raises: EngineStartFailed if the engine cannot be confined to its devices.
    """
    own_python = environment.python == sys.executable
    environ = {
        key: value
        for key, value in base.items()
        if not key.startswith(_OWN_PREFIX) and (key not in _FOREIGN or (own_python and key == "PYTHONPATH"))
    }
    bin_dir = str(Path(environment.python).parent)
    environ["PATH"] = os.pathsep.join([bin_dir, environ.get("PATH", os.defpath)])
    # The engine appends to a file that people follow: lines must not wait in a buffer.
    environ["PYTHONUNBUFFERED"] = "1"
    environ |= visible_environ(replica, node)
    environ.update(replica.spec.env)
    return environ


def visible_environ(replica: ReplicaRecord, node: NodeRecord) -> dict[str, str]:
    """Make the variables that show an engine its own devices: by identity, never by an index that somebody counted.

    An engine on the processor is shown none. The other vendors' variables are left unset for one on an accelerator: its
    libraries cannot use their devices, and some read those variables for their own (HIP and MUSA that of CUDA).

    Raises: EngineStartFailed for a device without such an identity among several.
    """
    own = [device for uuid in replica.device_uuids if (device := _find(node.devices, uuid)) is not None]
    accelerators = [device for device in own if device.vendor in VISIBLE_ENV]
    if not accelerators:
        return dict.fromkeys(_EMPTY_HIDES, "") if not own or own[0].vendor is Vendor.CPU else {}
    vendor = accelerators[0].vendor
    n_present = sum(device.vendor is vendor for device in node.devices)
    unnamed = [device.selector for device in accelerators if device.visible is None]
    if unnamed and n_present > 1:
        raise EngineStartFailed(
            f"an engine on {node.name} cannot be confined to {', '.join(unnamed)}: nothing tells what"
            f" {VISIBLE_ENV[vendor][0]} takes for it, and there are {n_present} devices of its kind",
            remedy="run `xinf devices`; install the vendor's library and tool, or choose another device",
            cause="device_unavailable",
        )
    environ = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if vendor is Vendor.NVIDIA else {}
    if not unnamed:
        environ |= dict.fromkeys(VISIBLE_ENV[vendor], ",".join(str(device.visible) for device in accelerators))
    return environ


def _find(devices: Sequence[Device], uuid: str) -> Device | None:
    return next((device for device in devices if device.uuid == uuid), None)
