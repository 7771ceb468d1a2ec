"""Who has to go so that a replica that matters more can run: the least valuable set on any one node.

Only strictly lower priorities are asked to go, and only where their going makes room; equal ones never. Sets are
compared from their most valuable member down, so a set with a ready replica of priority 3 loses to any number of
priority 2, and of two equal beginnings the shorter is the less.

On one node: all lower ones are thought away; if that makes room, they are brought back from the most valuable down as
long as there is still room. Going never takes room away, so what cannot be brought back is the least set, exactly.

Cost: O(replicas on the node) looks at each node that is full: all of them, when the whole fleet is.
"""

from __future__ import annotations

import msgspec

from xinf.core.ids import NodeName, ReplicaId
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
    best: tuple[tuple[Value, ...], Eviction] | None = None
    for name, miss in sorted(search.misses().items()):
        if miss.binding < Binding.TAKEN:
            continue
        victims = _least_on(search.fleet.hosts[name], search, view)
        if not victims:
            continue
        cost = tuple(value for value, _ in victims)
        if best is None or cost < best[0]:
            best = (cost, Eviction(name, tuple(replica for _, replica in victims)))
    return None if best is None else best[1]


def _least_on(host: Host, search: Search, view: View) -> list[tuple[Value, ReplicaRecord]]:
    """The least valuable set on one node whose going makes room; empty if there is none."""
    kept: dict[ReplicaId, ReplicaRecord] = {}
    lower: list[tuple[Value, ReplicaRecord]] = []
    for id_, replica in search.draft.held_on(host.name).items():
        priority = view.priority_of(replica)
        if replica.target == "run" and priority is not None and priority < search.deployment.priority:
            lower.append((value_of(replica, priority), replica))
        else:
            kept[id_] = replica
    if not lower or not isinstance(search.examine(host, tally(kept.values())), Offer):
        return []
    victims = []
    for value, replica in sorted(lower, key=lambda found: found[0], reverse=True):
        kept[replica.id] = replica
        if not isinstance(search.examine(host, tally(kept.values())), Offer):
            del kept[replica.id]
            victims.append((value, replica))
    return victims
