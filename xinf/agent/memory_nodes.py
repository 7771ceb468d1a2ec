"""On which NUMA nodes of its host an engine on the processor runs.

vLLM binds each rank to one node, and takes the first ones where nobody chooses: all engines of a host would be on node
0 while its other sockets idle. The agent chooses for each, and keeps it in the engine's custody, so that the next start
and the next agent count it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from xinf.agent.custody import Custody
from xinf.core.device import Vendor
from xinf.core.numa_variables import OWN_CHOICE, VISIBLE_NODES
from xinf.core.records import ReplicaRecord
from xinf.device import NumaNode, count_numa_nodes, usable_numa_nodes


def memory_nodes_of(
    replica: ReplicaRecord, environ: Mapping[str, str], others: Iterable[Custody], root: Path = Path("/")
) -> tuple[int, ...]:
    """Choose the nodes of an engine that is about to start, one for each rank; none: vLLM is left to itself.

    Where its deployment names nodes it is those. `environ`: as it would have it. `others`: the other engines that were
    started here.
    """
    if replica.spec.engine != "vllm" or Vendor.CPU not in replica.devices:
        return ()
    if any(environ.get(name) for name in OWN_CHOICE) or count_numa_nodes(root) < 2:
        return ()
    n_ranks, visible = replica.spec.tensor_parallel_size, environ.get(VISIBLE_NODES, "")
    if VISIBLE_NODES in replica.spec.env:
        return tuple(int(part) for part in visible.split(",") if part.strip().isdecimal())[:n_ranks]
    nodes = usable_numa_nodes(root, visible=visible)
    return choose_memory_nodes(nodes, n_ranks, [_taken_by(one, nodes) for one in others])


def choose_memory_nodes(nodes: Sequence[NumaNode], n_ranks: int, taken: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Those with the fewest engines, of equal ones those with the most memory free, in ascending order.

    `taken`: the nodes of each engine. None where there are fewer than ranks: vLLM says it then.
    """
    if len(nodes) < n_ranks:
        return ()
    counts = {node.number: 0 for node in nodes}
    for numbers in taken:
        for number in numbers:
            if number in counts:
                counts[number] += 1
    best = sorted(nodes, key=lambda node: (counts[node.number], -node.free_bytes, node.number))
    return tuple(sorted(node.number for node in best[:n_ranks]))


def _taken_by(start: Custody, nodes: Sequence[NumaNode]) -> tuple[int, ...]:
    """An engine on the processor whose nodes nobody chose is on the first, where vLLM puts it."""
    if start.memory_nodes is not None or start.device_uuids:
        return start.memory_nodes or ()
    return tuple(node.number for node in nodes[:1])
