"""What must change so that the replicas become what the deployments wish: pure, from the records alone.

Of one deployment with n wished replicas, each replica is in one of these sets:

    current   wished to run, of the deployment's generation, its node present (or not placed yet)
    lost      the same, but its node's lease is over; its engine may serve on, so it counts for nothing and is kept
    old       wished to run, of an earlier generation
    stopping  aimed at stop; holds its devices until its agent says stopped, then it is deleted

    create    while current < n and current + old < n + 1                 (one more than n during an update: the surge)
    stop      old: those not ready at once, a ready one when n others are ready; or when only its devices would let the
              next one start (an update in place, on a host without a free accelerator)
    stop      surplus current: the least useful first
    delete    stopped; lost: when n current are ready; stopping on a node that is away: its agent ends what has no
              record as soon as it is back

Repeating plan and apply reaches a fixpoint: tests/scheduler/test_plan.py walks random worlds to it.
Cost: O(replicas log replicas + creations x placement).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.records import DeploymentRecord, NodeRecord, Phase, ReplicaRecord
from xinf.scheduler.place import Placement, Refusal, claims_of, place

# How far a replica is on its way to being useful; what is stopped first when there are too many.
_USEFULNESS = {
    Phase.STOPPED: 0,
    Phase.PENDING: 1,
    Phase.FAILED: 2,
    Phase.PLACED: 3,
    Phase.STARTING: 4,
    Phase.LOADING: 5,
    Phase.WARMING: 6,
    Phase.DRAINING: 6,
    Phase.READY: 7,
}


class World(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a plan is made from. `nodes` are those whose agents are present."""

    deployments: Mapping[DeploymentName, DeploymentRecord]
    replicas: Mapping[ReplicaId, ReplicaRecord]
    nodes: Mapping[NodeName, NodeRecord]


class Create(msgspec.Struct, frozen=True, kw_only=True):
    """Make a replica of the deployment as it is now, placed at once if a place is given."""

    deployment: DeploymentName
    placement: Placement | None
    reason: str


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Give a pending replica its place."""

    replica: ReplicaId
    placement: Placement
    reason: str


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """Aim a replica at stop; its agent drains it."""

    replica: ReplicaId
    reason: str


class Delete(msgspec.Struct, frozen=True, kw_only=True):
    """Remove the record."""

    replica: ReplicaId
    reason: str


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Write down why a replica has no place."""

    replica: ReplicaId
    note: str
    reason: str = "no place"


Action = Create | Place | Stop | Delete | Note


def plan(world: World, now_s: float) -> list[Action]:
    """Plan for every deployment in turn, each on what the ones before leave over.

    Two creations of one plan never get the same accelerator.
    """
    names = set(world.deployments) | {replica.deployment for replica in world.replicas.values()}
    actions: list[Action] = []
    for name in sorted(names):
        made = plan_deployment(name, world, now_s)
        actions += made
        world = _assume(world, made, name, now_s)
    return actions


def plan_deployment(name: DeploymentName, world: World, now_s: float) -> list[Action]:
    """Plan for one deployment, also for one that was deleted and has replicas left."""
    mine = sorted((r for r in world.replicas.values() if r.deployment == name), key=lambda r: (r.created_s, r.id))
    deployment = world.deployments.get(name)
    actions: list[Action] = []
    running: list[ReplicaRecord] = []
    for replica in mine:
        if replica.target == "run" and deployment is not None:
            running.append(replica)
        else:
            actions += _end(replica, world, "the deployment was deleted")
    if deployment is not None:
        actions += _Deployment(deployment, running, world, now_s).plan()
    return actions


class _Deployment:
    """One deployment's planning: what runs for it, and the moves that bring it closer to the wish."""

    def __init__(self, deployment: DeploymentRecord, running: list[ReplicaRecord], world: World, now_s: float) -> None:
        self.deployment = deployment
        self.world = world
        self.now_s = now_s
        self.old = [r for r in running if r.generation != deployment.generation]
        of_generation = [r for r in running if r.generation == deployment.generation]
        self.lost = [r for r in of_generation if r.node is not None and r.node not in world.nodes]
        self.current = [r for r in of_generation if r.node is None or r.node in world.nodes]

    def plan(self) -> list[Action]:
        surplus = self._stop_surplus()
        placed = self._place_pending()
        stopped = self._stop_old()
        created = self._create_missing([*placed, *surplus, *stopped])
        return [*self._delete_lost(), *surplus, *stopped, *placed, *created]

    @property
    def n_ready(self) -> int:
        return sum(replica.phase is Phase.READY for replica in self.current)

    def _stop_surplus(self) -> list[Action]:
        """Stop what is too much, the least useful first; of equally useful ones the youngest."""
        n_surplus = len(self.current) - self.deployment.replicas
        if n_surplus <= 0:
            return []
        order = sorted(self.current, key=lambda r: (_USEFULNESS[r.phase], -r.created_s, r.id))
        self.current = [r for r in self.current if r not in order[:n_surplus]]
        reason = f"{self.deployment.replicas} replicas are wished for"
        return [action for replica in order[:n_surplus] for action in _end(replica, self.world, reason)]

    def _delete_lost(self) -> list[Action]:
        """Give up lost replicas for which there is a ready one; the others may still serve."""
        n_kept = max(0, self.deployment.replicas - self.n_ready)
        # The ready ones are the likeliest to serve on, so they are kept longest.
        order = sorted(self.lost, key=lambda r: (-_USEFULNESS[r.phase], r.created_s, r.id))
        return [Delete(replica=r.id, reason=f"node {r.node} is away and replaced") for r in order[n_kept:]]

    def _place_pending(self) -> list[Action]:
        actions: list[Action] = []
        for replica in self.current:
            if replica.node is not None:
                continue
            found = self._find_place(actions)
            if isinstance(found, Placement):
                actions.append(Place(replica=replica.id, placement=found, reason=found.note))
            elif found.note != replica.placement_note:
                actions.append(Note(replica=replica.id, note=found.note))
        return actions

    def _stop_old(self) -> list[Action]:
        """Retire an earlier generation without going below n ready replicas, if the devices allow that."""
        n = self.deployment.replicas
        present = [r for r in self.old if r.node is None or r.node in self.world.nodes]
        away = [r for r in self.old if r not in present]
        idle = [r for r in present if r.phase is not Phase.READY]
        ready = [r for r in present if r.phase is Phase.READY]
        reason = f"generation {self.deployment.generation} replaces it"
        n_dispensable = max(0, min(len(ready), self.n_ready + len(ready) - n))
        ended = [*idle, *ready[:n_dispensable]]
        if not ended and ready and self._is_blocked_by(ready[0]):
            ended = ready[:1]
            reason += ", on the same devices"
        actions = [action for replica in ended for action in _end(replica, self.world, reason)]
        if self.n_ready >= n:
            actions += [Delete(replica=r.id, reason=f"node {r.node} is away and its replica replaced") for r in away]
        self.old = [r for r in ready if r not in ended]
        return actions

    def _is_blocked_by(self, old: ReplicaRecord) -> bool:
        """Whether the next replica has no place now, none is on its way, and the devices of `old` would give it one."""
        on_the_way = [r for r in self.current if r.node is not None and r.phase is not Phase.READY]
        stopping = [
            r
            for r in self.world.replicas.values()
            if r.deployment == self.deployment.name and r.target == "stop" and r.phase is not Phase.STOPPED
        ]
        if on_the_way or any(r.node in self.world.nodes for r in stopping):
            return False
        if isinstance(self._find_place([]), Placement):
            return False
        return isinstance(self._find_place([], without=old), Placement)

    def _create_missing(self, actions: list[Action]) -> list[Action]:
        """Fill up to n. For a replica that is only lost, a replacement is made when there is a place for it."""
        n = self.deployment.replicas
        n_missing = n - len(self.current)
        n_allowed = n + 1 - len(self.current) - len(self.old) if self.old else n_missing
        created: list[Action] = []
        for number in range(max(0, min(n_missing, n_allowed))):
            found = self._find_place([*actions, *created])
            replaces_lost = number >= n_missing - len(self.lost)
            if isinstance(found, Refusal) and replaces_lost:
                break
            placement = found if isinstance(found, Placement) else None
            created.append(Create(deployment=self.deployment.name, placement=placement, reason=found.note))
        return created

    def _find_place(self, actions: Iterable[Action], *, without: ReplicaRecord | None = None) -> Placement | Refusal:
        """Look for a place as if `actions` were done and `without` were gone."""
        world = _assume(self.world, actions, self.deployment.name, self.now_s)
        replicas = [r for r in world.replicas.values() if without is None or r.id != without.id]
        claims = claims_of(replicas)
        return place(self.deployment.spec, self.world.nodes, claims, deployment=self.deployment.name)


def _end(replica: ReplicaRecord, world: World, reason: str) -> list[Action]:
    """Bring one replica closer to its end."""
    if replica.node is None or replica.phase is Phase.STOPPED:
        return [Delete(replica=replica.id, reason=reason)]
    if replica.node not in world.nodes:
        return [Delete(replica=replica.id, reason=f"{reason}; node {replica.node} is away and ends it when it is back")]
    if replica.target == "stop":
        return []
    return [Stop(replica=replica.id, reason=reason)]


def _assume(world: World, actions: Iterable[Action], name: DeploymentName, now_s: float) -> World:
    """The world with placements of `actions` in it, so that the next decision does not give the same device again."""
    replicas = dict(world.replicas)
    for number, action in enumerate(actions):
        if isinstance(action, Place):
            replicas[action.replica] = placed(replicas[action.replica], action.placement, now_s)
        elif isinstance(action, Create) and action.placement is not None:
            made = create(world.deployments[name], ReplicaId(f"{name}/planned-{number}"), action, now_s)
            replicas[made.id] = made
    return World(deployments=world.deployments, replicas=replicas, nodes=world.nodes)


def create(deployment: DeploymentRecord, id_: ReplicaId, action: Create, now_s: float) -> ReplicaRecord:
    """Make the record of a new replica."""
    record = ReplicaRecord(
        id=id_,
        deployment=deployment.name,
        generation=deployment.generation,
        spec=deployment.spec,
        need=deployment.need,
        placement_note=action.reason,
        phase_since_s={Phase.PENDING: now_s},
        created_s=now_s,
    )
    return record if action.placement is None else placed(record, action.placement, now_s)


def placed(replica: ReplicaRecord, placement: Placement, now_s: float) -> ReplicaRecord:
    """The record with its place in it."""
    return msgspec.structs.replace(
        replica,
        node=placement.node,
        devices=placement.devices,
        device_uuids=placement.device_uuids,
        placement_note=placement.note,
        phase=Phase.PLACED,
        phase_since_s={**replica.phase_since_s, Phase.PLACED: now_s},
    )
