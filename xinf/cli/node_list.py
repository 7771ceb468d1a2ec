"""`xinf nodes`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import msgspec

from xinf.cli.health import device_lines
from xinf.cli.options import ConfigFile, DataDir, Json, Server
from xinf.cli.ps import Everything, read_everything
from xinf.cli.session import open_session, run
from xinf.cli.table import print_json, print_table
from xinf.core.device import KIND_OF_VENDOR, Health
from xinf.core.ids import NodeName
from xinf.core.records import CordonRecord, NodeRecord, Phase
from xinf.core.units import format_seconds

_COLUMNS = ("NODE", "STATE", "DEVICES", "HEALTH", "READY", "LABELS", "UP")


class ListedNode(msgspec.Struct, frozen=True, kw_only=True):
    """One node; `record` None: its worker is away, and it is known by its replicas or its cordon."""

    name: NodeName
    record: NodeRecord | None
    cordon: CordonRecord | None
    n_replicas: int
    n_ready: int


def nodes(json: Json = False, data_dir: DataDir = None, server: Server = None, config: ConfigFile = None) -> None:
    """List the nodes: which are there, which take replicas, how their devices are, and since when.

    Nodes that are away are listed as long as replicas are placed there or a cordon holds.
    """
    found = run(read_everything(open_session(config, data_dir, server)))
    listed = list_nodes(found)
    if json:
        print_json(listed)
        return
    if not listed:
        print("no worker is connected: start one with `xinf worker`")
        return
    now_s = time.time()
    print_table(_COLUMNS, [_row(node, now_s) for node in listed])
    for line in device_lines(found.nodes, now_s):
        print(line)


def list_nodes(found: Everything) -> list[ListedNode]:
    """The nodes that are there and those that are known otherwise, by name."""
    records = {record.name: record for record in found.nodes}
    cordons = {cordon.node: cordon for cordon in found.cordons}
    placed = {replica.node for replica in found.replicas if replica.node is not None}
    listed = []
    for name in sorted(records.keys() | cordons.keys() | placed):
        mine = [replica for replica in found.replicas if replica.node == name]
        listed.append(
            ListedNode(
                name=name,
                record=records.get(name),
                cordon=cordons.get(name),
                n_replicas=len(mine),
                n_ready=sum(replica.phase is Phase.READY for replica in mine),
            )
        )
    return listed


def _row(node: ListedNode, now_s: float) -> Sequence[str]:
    record = node.record
    ready = f"{node.n_ready}/{node.n_replicas}"
    if record is None:
        return (node.name, ", ".join(("away", *_closed(node))), "-", "-", ready, "-", "-")
    kinds = Counter(KIND_OF_VENDOR[device.vendor] for device in record.devices)
    ill: Counter[Health] = Counter(device.health for device in record.devices if device.health is not Health.OK)
    return (
        node.name,
        ", ".join(_closed(node)) or "open",
        ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in kinds.items()) or "-",
        ", ".join(f"{ill[health]} {health.value.replace('_', ' ')}" for health in Health if health in ill) or "ok",
        ready,
        ",".join(f"{key}={value}" for key, value in record.labels.items()) or "-",
        format_seconds(max(0.0, now_s - record.started_s)),
    )


def _closed(node: ListedNode) -> list[str]:
    if node.cordon is None:
        return []
    return ["draining" if node.cordon.is_draining else "cordoned"]
