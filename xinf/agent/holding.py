"""What the engines of this host hold of its memory, and how much of that nobody planned.

    on the processor       what their processes make the host use
    on a unified GPU       the same, and what its driver tells of them; where that tells of no process, what they were
                           placed with once they serve, and nothing before: then nobody knows what is theirs

Whoever reads the driver reads the rest at the same moment: an engine that loads fills gigabytes between two samples,
and what is told of it late would look like somebody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from xinf.agent.process import read_private_bytes
from xinf.core.ids import ReplicaId
from xinf.device import DeviceProcess


class EngineUse(msgspec.Struct, frozen=True, kw_only=True):
    """One engine that runs here: the leader of its process group, and the accelerators it holds."""

    replica: ReplicaId
    leader_pid: int
    device_uuids: tuple[str, ...]  # empty: it runs on the processor
    is_orphan: bool = False  # its replica's record is gone, and with that what it held
    is_ready: bool = False
    need_bytes: int | None = None  # of each of its devices, as it was placed; None: nobody could plan for it


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """One engine's part of the host's memory."""

    replica: ReplicaId
    own_bytes: int | None  # None: nobody can tell
    need_bytes: int  # of that what was planned


def read_holdings(
    engines: Iterable[EngineUse],
    groups: Mapping[int, Collection[int]],
    unified: Collection[str],
    processes: Iterable[DeviceProcess],
    *,
    read_private: Callable[[int], int] = read_private_bytes,
) -> list[Holding]:
    """Read what each engine holds that is on the processor or on one of the `unified` devices (UUIDs).

    `processes`: who has how much of those devices, now.
    """
    told: dict[int, list[int | None]] = {}
    for process in processes:
        if process.uuid in unified:
            told.setdefault(process.pid, []).append(process.memory_bytes)
    holdings = []
    for engine in engines:
        n_devices = sum(uuid in unified for uuid in engine.device_uuids)
        if engine.is_orphan or (engine.device_uuids and not n_devices):
            continue
        pids = groups.get(engine.leader_pid, ())
        need = (engine.need_bytes or 0) * (n_devices or 1)
        sizes = [size for pid in pids for size in told.get(pid, ())]
        known = [size for size in sizes if size is not None]
        on_devices: int | None = sum(known)
        if n_devices and (not sizes or len(known) < len(sizes)):
            on_devices = need if engine.is_ready and engine.need_bytes is not None else None
        own = None if on_devices is None else on_devices + sum(map(read_private, pids))
        holdings.append(Holding(replica=engine.replica, own_bytes=own, need_bytes=need))
    return holdings


def total_bytes(holdings: Iterable[Holding]) -> int | None:
    """What they hold together; None where nobody can tell of one of them."""
    total = 0
    for holding in holdings:
        if holding.own_bytes is None:
            return None
        total += holding.own_bytes
    return total


def unplanned_bytes(
    holdings: Iterable[Holding], before: Mapping[ReplicaId, int], step_bytes: int
) -> dict[ReplicaId, int]:
    """What each holds beyond its need, by replica, in steps that are worth a write; unknown ones keep `before`."""
    result: dict[ReplicaId, int] = {}
    for holding in holdings:
        known = before.get(holding.replica, 0)
        more = known if holding.own_bytes is None else max(0, holding.own_bytes - holding.need_bytes)
        told = more if abs(more - known) > step_bytes else known
        if told:
            result[holding.replica] = told
    return result
