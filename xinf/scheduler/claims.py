"""What replicas hold: which devices, how much of their memory, and who waits; kept as records come, change and go.

    Claims   all replicas, by node and by deployment           follows the store
    Draft    Claims, and a few replicas added or taken away    what a plan tries out; Claims stay as they are

A replica holds its devices from `placed` until it is stopped, also while it fails and waits to restart, and while it
drains. Memory is what it was placed with, never what it happens to use.

| operation | cost |
|---|---|
| Claims.put, drop | O(1) |
| Claims.on, Draft.on | O(1); O(replicas of the node) after a change there |
| Draft.add, remove | O(replicas of the node) |
| Draft.fork | O(nodes that differ) |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.records import Phase, ReplicaRecord

CPU = "cpu"  # stands for the processor's UUID, which replicas do not carry
_Held = dict[ReplicaId, ReplicaRecord]
K = TypeVar("K", NodeName, DeploymentName)


class Use(msgspec.Struct, frozen=True):
    """What is on one device."""

    holders: tuple[ReplicaId, ...]
    counted: tuple[ReplicaId, ...]  # of them those that said what they need
    n_bytes: int  # that these need
    is_shareable: bool  # each of them shares, and said what it needs


class Tally(msgspec.Struct, frozen=True):
    """What is on one node."""

    n_replicas: int
    uses: Mapping[str, Use]  # by device UUID; CPU for the processor
    n_of: Mapping[DeploymentName, int]
    models: frozenset[str]  # that were loaded here, so that their files are on the disk


def list_holders(ids: Sequence[ReplicaId]) -> str:
    """Who is on a device, the first two by name; a name with a slash is of one that is only being placed."""
    there = [id_ for id_ in ids if "/" not in id_]
    n_more = len(ids) - len(there[:_SHOWN])
    if not there:
        return f"{n_more} placed at the same time"
    return ", ".join(there[:_SHOWN]) + (f" and {n_more} more" if n_more else "")


_SHOWN = 2
_EMPTY = Tally(0, {}, {}, frozenset())


class Claims:
    """See above. Belongs to one event loop."""

    def __init__(self, replicas: Iterable[ReplicaRecord] = ()) -> None:
        self._replicas: _Held = {}
        self._on: dict[NodeName, _Held] = {}
        self._of: dict[DeploymentName, _Held] = {}
        self._stopping: _Held = {}
        self._pending: _Held = {}
        self._tallies: dict[NodeName, Tally] = {}
        for replica in replicas:
            self.put(replica)

    def put(self, replica: ReplicaRecord) -> None:
        """Take a replica as it is now."""
        self.drop(replica.id)
        self._replicas[replica.id] = replica
        self._of.setdefault(replica.deployment, {})[replica.id] = replica
        if replica.node is None and replica.target == "run":
            self._pending[replica.id] = replica
        if replica.node is not None and _is_holding(replica):
            self._on.setdefault(replica.node, {})[replica.id] = replica
            self._tallies.pop(replica.node, None)
            if replica.target == "stop":
                self._stopping[replica.id] = replica

    def drop(self, id_: ReplicaId) -> None:
        """Forget a replica, known or not."""
        before = self._replicas.pop(id_, None)
        if before is None:
            return
        _take_out(self._of, before.deployment, id_)
        self._pending.pop(id_, None)
        self._stopping.pop(id_, None)
        if before.node is not None:
            _take_out(self._on, before.node, id_)
            self._tallies.pop(before.node, None)

    def of(self, deployment: DeploymentName) -> Iterable[ReplicaRecord]:
        """All replicas of a deployment."""
        return self._of.get(deployment, {}).values()

    @property
    def deployments(self) -> Iterable[DeploymentName]:
        """Those that have replicas."""
        return self._of.keys()

    @property
    def pending(self) -> Iterable[ReplicaRecord]:
        """Those that are to run and have no place."""
        return self._pending.values()

    def is_pending(self, id_: ReplicaId) -> bool:
        """Whether a replica is to run and has no place."""
        return id_ in self._pending

    @property
    def stopping(self) -> Iterable[ReplicaRecord]:
        """Those that hold a place and are on their way out of it."""
        return self._stopping.values()

    def held_on(self, node: NodeName) -> Mapping[ReplicaId, ReplicaRecord]:
        """The replicas that hold something of a node."""
        return self._on.get(node, {})

    def on(self, node: NodeName) -> Tally:
        """What is held of a node."""
        found = self._tallies.get(node)
        if found is None:
            held = self._on.get(node)
            if held is None:
                return _EMPTY
            found = self._tallies[node] = tally(held.values())
        return found


class Draft:
    """Claims with changes on top; see above."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._changed: dict[NodeName, _Held] = {}
        self._tallies: dict[NodeName, Tally] = {}

    def fork(self) -> Draft:
        """A draft that starts as this one is now."""
        forked = Draft(self._claims)
        forked._changed = {node: dict(held) for node, held in self._changed.items()}
        forked._tallies = dict(self._tallies)
        return forked

    def add(self, replica: ReplicaRecord) -> None:
        """As if this replica, which has a place, were there."""
        assert replica.node is not None
        self._own(replica.node)[replica.id] = replica

    def remove(self, replica: ReplicaRecord) -> None:
        """As if it were gone."""
        assert replica.node is not None
        self._own(replica.node).pop(replica.id, None)

    def held_on(self, node: NodeName) -> Mapping[ReplicaId, ReplicaRecord]:
        """The replicas that hold something of a node."""
        found = self._changed.get(node)
        return self._claims.held_on(node) if found is None else found

    def on(self, node: NodeName) -> Tally:
        """What is held of a node."""
        held = self._changed.get(node)
        if held is None:
            return self._claims.on(node)
        found = self._tallies.get(node)
        if found is None:
            found = self._tallies[node] = tally(held.values())
        return found

    def _own(self, node: NodeName) -> _Held:
        """The replicas of a node, to be changed."""
        self._tallies.pop(node, None)
        found = self._changed.get(node)
        if found is None:
            found = self._changed[node] = dict(self._claims.held_on(node))
        return found


def tally(replicas: Iterable[ReplicaRecord]) -> Tally:
    """Count what the replicas of one node hold; the same whatever their order."""
    holders: dict[str, list[ReplicaRecord]] = {}
    n_of: dict[DeploymentName, int] = {}
    models = set()
    n_replicas = 0
    for replica in replicas:
        n_replicas += 1
        n_of[replica.deployment] = n_of.get(replica.deployment, 0) + 1
        if replica.phase is Phase.READY:
            models.add(replica.spec.files)
        for uuid in replica.device_uuids or _processor(replica):
            holders.setdefault(uuid, []).append(replica)
    uses = {uuid: _use(found) for uuid, found in holders.items()}
    return Tally(n_replicas, uses, n_of, frozenset(models))


def _use(replicas: list[ReplicaRecord]) -> Use:
    return Use(
        tuple(sorted(replica.id for replica in replicas)),
        tuple(sorted(replica.id for replica in replicas if replica.need is not None)),
        sum(replica.need.device_bytes for replica in replicas if replica.need is not None),
        all(replica.shares and replica.need is not None for replica in replicas),
    )


def _processor(replica: ReplicaRecord) -> Iterator[str]:
    if CPU in replica.devices:
        yield CPU


def _is_holding(replica: ReplicaRecord) -> bool:
    return replica.phase is not Phase.STOPPED


def _take_out(index: dict[K, _Held], key: K, id_: ReplicaId) -> None:
    held = index.get(key)
    if held is not None:
        held.pop(id_, None)
        if not held:
            del index[key]
