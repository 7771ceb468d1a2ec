"""What the ranks of one engine may have of a host's memory: vLLM on a processor binds each to one NUMA node.

Source: vLLM 0.32, v1/worker/cpu_worker.py (`init_cpu_memory_env`), utils/ompmultiprocessing.py.
"""

from __future__ import annotations

import msgspec

from xinf.core.device import Device, Vendor
from xinf.core.units import format_bytes

# Of a node, as vLLM takes of it where nobody tells it how much: on which node other programs and the kernel have
# theirs is not known here.
_MAX_SHARE = 0.92
_WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}


class Sockets(msgspec.Struct, frozen=True):
    """Several NUMA nodes that engines can be on. `node_bytes`: of the smallest, as ranks need equally much."""

    n_nodes: int
    node_bytes: int

    def usable_bytes(self, n_ranks: int) -> int:
        """What one engine may take, on all its nodes together."""
        return int(min(n_ranks, self.n_nodes) * self.node_bytes * _MAX_SHARE)

    def words(self, n_ranks: int) -> str:
        """For people: `an engine of one rank has one NUMA node, 256 GiB`."""
        ranks = f"{_word(n_ranks)} rank" + "s" * (n_ranks > 1)
        n_nodes = min(n_ranks, self.n_nodes)
        nodes = f"{_word(n_nodes)} NUMA node" + "s" * (n_nodes > 1)
        return f"an engine of {ranks} has {nodes}, {format_bytes(n_nodes * self.node_bytes)}"

    def remedy(self, n_ranks: int) -> str | None:
        """For people: `--tensor-parallel-size 2 has two`; None: it has all of them already."""
        more = min(2 * n_ranks, self.n_nodes)
        return f"--tensor-parallel-size {more} has {_word(more)}" if more > n_ranks else None


def sockets_of(device: Device) -> Sockets | None:
    """Those of a processor; None: it has one node, which is its memory, or nobody knows."""
    n_nodes, node_bytes = device.extra.get("numa_nodes"), device.extra.get("numa_memory_bytes")
    if device.vendor is not Vendor.CPU or not isinstance(n_nodes, int) or not isinstance(node_bytes, int):
        return None
    return Sockets(n_nodes, node_bytes) if n_nodes > 1 else None


def _word(count: int) -> str:
    return _WORDS.get(count, str(count))
