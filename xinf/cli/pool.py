"""How commands tell of memory that devices of a host fill together, and of what engines hold that nobody planned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from xinf.core.ids import NodeName
from xinf.core.records import NodeRecord, ReplicaRecord
from xinf.core.units import format_bytes


def node_lines(nodes: Iterable[NodeRecord]) -> list[str]:
    """A line for each host whose processor and GPUs fill one memory."""
    from xinf.scheduler import find_pool

    lines = []
    for node in nodes:
        pool = find_pool(node)
        if pool is not None and pool.is_shared:
            names = " and ".join(device.selector for device in pool.devices)
            on = f" on {node.name}" if node.name else ""
            lines.append(f"{names}{on} fill one memory of {format_bytes(pool.total_bytes)}")
    return lines


def replica_lines(replica: ReplicaRecord, nodes: Sequence[NodeRecord]) -> list[str]:
    """What `xinf describe` shows of a replica in memory that others fill as well, and of what it holds unplanned."""
    node = _node_of(replica.node, nodes)
    if node is None:
        return []
    lines = []
    more = node.unplanned_bytes.get(replica.id, 0)
    if more > 0:
        how = "beyond that plan" if replica.need is not None else "that nobody could plan"
        lines.append(f"  holds       {format_bytes(more)} {how}")
    unified = [d.selector for d in node.devices if d.is_unified]
    mine = [d.selector for d in node.devices if d.is_unified and d.uuid in replica.device_uuids]
    if mine:
        lines.append("  memory of   the host, shared with the processor")
    elif unified and "cpu" in replica.devices:
        lines.append(f"  memory of   the host, shared with {' and '.join(unified)}")
    return lines


def _node_of(name: NodeName | None, nodes: Sequence[NodeRecord]) -> NodeRecord | None:
    return next((node for node in nodes if node.name == name), None)
