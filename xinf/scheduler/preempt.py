"""Who has to go so that a replica that matters more can run: the least valuable set on any one node.

Only strictly lower priorities are asked to go, and only where their going makes room; equal ones never. Sets are
compared from their most valuable member down, so one replica of priority 3 is worth more than any number of
priority 2, and of two equal beginnings the shorter is the less.

On one node: all lower ones are thought away; if that makes room, they are brought back from the most valuable down as
long as there is still room. Going never takes room away, so what cannot be brought back is the least set, exactly.

Nodes are tried in the order of the least that anybody there could lose, until that is more than the best set found.
Cost: O(replicas on full nodes), and as many looks at each node that is tried as lower ones are on it.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from xinf.core.ids import NodeName
from xinf.core.records import ReplicaRecord
from xinf.scheduler.claims import tally
from xinf.scheduler.host import Host
from xinf.scheduler.place import Search
from xinf.scheduler.value import Value, value_of
from xinf.scheduler.verdict import Binding, Offer
from xinf.scheduler.view import View


class Eviction(msgspec.Struct, frozen=True):
    """Who goes from where, the most valuable first."""

    node: NodeName
    victims: tuple[ReplicaRecord, ...]


def find_eviction(search: Search, view: View) -> Eviction | None:
    """Find whom the search's deployment, which has no place now, may push out; None: nobody who would make room."""
    candidates = sorted(_candidates(search, view), key=lambda found: (found.lower[0][0], found.host.name))
    best: tuple[tuple[Value, ...], Eviction] | None = None
    for candidate in candidates:
        if best is not None and candidate.lower[0][0] > best[0][0]:
            break  # whoever goes there, or on any node after it, matters more
        victims = _least(candidate, search)
        cost = tuple(value for value, _ in victims)
        if victims and (best is None or cost < best[0]):
            best = (cost, Eviction(candidate.host.name, tuple(replica for _, replica in victims)))
    return None if best is None else best[1]


def is_being_cleared(search: Search, view: View) -> bool:
    """Whether somebody lower stops already where it would fit, did others not use memory for the moment.

    What others use moves, most of all while engines end: as long as one ends there nobody else goes. When it has ended
    and there still is no room, the next may.
    """
    hosts = {}
    for replica in view.claims.stopping:
        priority = view.priority_of(replica)
        if priority is None or priority < search.deployment.priority:
            hosts[replica.node] = search.fleet.hosts.get(replica.node) if replica.node is not None else None
    misses = search.misses()
    for name, host in hosts.items():
        miss = misses.get(name) if name is not None else None
        if host is None or miss is None or miss.binding is not Binding.MEMORY:
            continue
        resting = Host(msgspec.structs.replace(host.record, foreign_bytes={}, unplanned_bytes={}), host.cordon)
        if isinstance(search.examine(resting, search.draft.on(host.name)), Offer):
            return True
    return False


class _Candidate(msgspec.Struct, frozen=True):
    """A node on which somebody of a lower priority is. `lower`: the least valuable first."""

    host: Host
    lower: list[tuple[Value, ReplicaRecord]]
    kept: list[ReplicaRecord]  # the others


def _candidates(search: Search, view: View) -> Iterator[_Candidate]:
    """The nodes that are full, and not useless for other reasons."""
    for name, miss in search.misses().items():
        if miss.binding < Binding.TAKEN:
            continue
        kept: list[ReplicaRecord] = []
        lower: list[tuple[Value, ReplicaRecord]] = []
        for replica in search.draft.held_on(name).values():
            priority = view.priority_of(replica)
            if replica.target == "run" and priority is not None and priority < search.deployment.priority:
                lower.append((value_of(replica, priority), replica))
            else:
                kept.append(replica)
        if lower:
            yield _Candidate(search.fleet.hosts[name], sorted(lower, key=lambda found: found[0]), kept)


def _least(candidate: _Candidate, search: Search) -> list[tuple[Value, ReplicaRecord]]:
    """The least valuable set on one node whose going makes room, the most valuable first; empty if there is none."""
    kept = list(candidate.kept)
    if not isinstance(search.examine(candidate.host, tally(kept)), Offer):
        return []
    victims = []
    for value, replica in reversed(candidate.lower):
        kept.append(replica)
        if not isinstance(search.examine(candidate.host, tally(kept)), Offer):
            kept.pop()
            victims.append((value, replica))
    return victims
