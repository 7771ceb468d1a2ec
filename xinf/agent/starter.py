"""Starts the guard of an engine: in a session of its own, with a clean environment, its output in a file.

The process is nobody's prisoner: no pipe and no death signal ties it to the agent, so it serves on when the agent ends.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from xinf.agent.custody import ReplicaDirectory
from xinf.core.device import DEVICE_KINDS, KIND_OF_VENDOR, Device, Vendor
from xinf.core.errors import EngineStartFailed
from xinf.core.records import EngineEnvironment, NodeRecord, ReplicaRecord

# Not for engines: our own settings, and what would make an engine environment see the packages of another.
_OWN_PREFIX = "XINF_"
_FOREIGN = ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")


class EngineProcess(subprocess.Popen[bytes]):
    """A child that may outlive this process: dropping the object is no mistake, so it does not warn of a live child."""

    def __del__(self, *_: object) -> None:
        pass


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
    for uuid in replica.device_uuids:
        device = _find(node.devices, uuid)
        if device is None:
            raise EngineStartFailed(
                f"device {uuid} is not on {node.name} any more",
                remedy="run `xinf devices`; a new launch places it elsewhere",
                cause="device_unavailable",
            )
        return KIND_OF_VENDOR[device.vendor]
    first = (replica.devices or ("cpu",))[0].partition(":")[0]
    return first if first in DEVICE_KINDS else "cpu"


def engine_environ(
    base: Mapping[str, str], environment: EngineEnvironment, replica: ReplicaRecord, node: NodeRecord
) -> dict[str, str]:
    """Make the environment of an engine process: the agent's without our settings, only its own devices visible."""
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
    nvidia = [uuid for uuid in replica.device_uuids if _is_nvidia(node.devices, uuid)]
    # By UUID: an index means something else to NVML (bus order) than to CUDA (fastest first) unless the order is set.
    environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    environ["CUDA_VISIBLE_DEVICES"] = ",".join(nvidia)
    environ.update(replica.spec.env)
    return environ


def start_guard(
    environment: EngineEnvironment, directory: ReplicaDirectory, environ: Mapping[str, str]
) -> EngineProcess:
    """Start `python -m xinf.engine.guard` on the spec that lies in `directory`.

    Raises: OSError.
    """
    command: Sequence[str] = (environment.python, "-m", "xinf.engine.guard", str(directory.spec_path))
    with directory.log_path.open("ab") as log:
        return EngineProcess(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=directory.path,
            env=dict(environ),
            start_new_session=True,
        )


def free_endpoint(address: str) -> str:
    """Find a port that nobody listens on: "10.0.0.2:40123", "[fd00::2]:40123". Somebody may take it before the shim."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as found:
        found.bind((address, 0))
        port: int = found.getsockname()[1]
    return f"[{address}]:{port}" if family == socket.AF_INET6 else f"{address}:{port}"


def _find(devices: Sequence[Device], uuid: str) -> Device | None:
    return next((device for device in devices if device.uuid == uuid), None)


def _is_nvidia(devices: Sequence[Device], uuid: str) -> bool:
    device = _find(devices, uuid)
    return device is not None and device.vendor is Vendor.NVIDIA
