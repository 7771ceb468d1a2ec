"""How commands tell the state of devices, all in the same words: of whom, how, since when, why."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from xinf.core.device import Device, Health
from xinf.core.records import NodeRecord, ReplicaRecord
from xinf.core.units import format_seconds


def health_text(device: Device, now_s: float) -> str:
    """`faulty for 3m 5s, since 11-28 07:33:41: Xid 79: ...`; of a device that is well, its notice if it has one."""
    state = device.health.value.replace("_", " ")
    if device.health is not Health.OK and device.since_s is not None:
        at = time.strftime("%m-%d %H:%M:%S", time.localtime(device.since_s))
        state += f" for {format_seconds(max(0.0, now_s - device.since_s))}, since {at}"
    return f"{state}: {device.reason}" if device.reason else state


def device_lines(nodes: Iterable[NodeRecord], now_s: float) -> list[str]:
    """A line for each device that has something to tell, with its node where there is a name for it."""
    return [
        f"{device.selector}{f' on {node.name}' if node.name else ''} is {health_text(device, now_s)}"
        for node in nodes
        for device in node.devices
        if device.health is not Health.OK or device.reason
    ]


def replica_lines(replica: ReplicaRecord, nodes: Sequence[NodeRecord], now_s: float) -> list[str]:
    """A line for each device of a replica that has something to tell, as `xinf describe` shows it."""
    devices = {device.uuid: device for node in nodes if node.name == replica.node for device in node.devices}
    found = [devices[uuid] for uuid in replica.device_uuids if uuid in devices]
    return [
        f"  health      {device.selector} is {health_text(device, now_s)}"
        for device in found
        if device.health is not Health.OK or device.reason
    ]
