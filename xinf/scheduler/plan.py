"""What must change so that the replicas become what the deployments wish: pure, from the records alone.

Of one deployment with n wished replicas, each replica is in one of these sets:

    current   wished to run, of the deployment's generation, its node present (or not placed yet)
    lost      the same, but its node's lease is over; its engine may serve on, so it counts for nothing and is kept
    old       wished to run, of an earlier generation, or in a place that it has to leave (leave.py)
    stopping  aimed at stop; holds its devices until its agent says stopped, then it is deleted

    create    while current < n and current + old < n + 1       (one more than n while old ones are replaced: the surge)
    stop      old: those not ready at once, a ready one when n others are ready; or the first whose going would let the
              next one start, when nothing else does (an update in place, on a host without a free accelerator)
    stop      surplus current: the least useful first
    stop      others' of a lower priority (preempt.py), when fewer than n have places, the next has none now, nor will
              have one when everything that is stopping has stopped
    delete    stopped; lost: when n current are ready; stopping on a node that is away: its agent ends what has no
              record as soon as it is back

Repeating plan and apply reaches a fixpoint: tests/scheduler/test_plan.py and test_preempt.py walk random worlds to it.
Cost: O(replicas of the deployment x log + placements, see place.py); what others hold is looked up, not counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from xinf.core.ids import DeploymentName, ReplicaId
from xinf.core.records import DeploymentRecord, Phase, ReplicaRecord
from xinf.scheduler.actions import (
    Action,
    Create,
    Delete,
    Note,
    Place,
    Placement,
    Refusal,
    Stop,
    StopCause,
    create,
    placed,
    stopped,
)
from xinf.scheduler.leave import reason_to_leave
from xinf.scheduler.place import Search
from xinf.scheduler.preempt import Eviction, find_eviction, is_being_cleared
from xinf.scheduler.prospect import Prospect
from xinf.scheduler.value import usefulness
from xinf.scheduler.view import View
from xinf.scheduler.world import Rules, World

_SHOWN = 4  # replicas that somebody waits for
_MAX_EVICTIONS = 8  # of one plan: each looks at the whole fleet, and what one plan writes starts the next
_MAX_CREATED = 500  # of one plan: what it writes starts the next
_MAX_WAITING = 1000  # of one deployment, without a place: more of them tell nobody anything
_FOLLOWED = 16  # of those: their notes follow every value, those of the others the words
_SIZE = re.compile(r"\d[\d.]* [KMGT]?i?B")
_STILL_THERE = "it moves when another is ready to take its place"


def plan(world: World, now_s: float, rules: Rules | None = None) -> list[Action]:
    """Plan for every deployment in turn, the highest priority first, each on what the ones before leave over.

    Two creations of one plan never get the same room.
    """
    view = View(world, rules)
    replicas = dict(world.replicas)
    names = set(world.deployments) | {replica.deployment for replica in world.replicas.values()}
    actions: list[Action] = []

    def order(name: DeploymentName) -> tuple[int, str]:
        deployment = world.deployments.get(name)
        return (-deployment.priority if deployment is not None else 0, name)

    for name in sorted(names, key=order):
        for action in plan_deployment(name, view, now_s):
            actions.append(action)
            _assume(action, len(actions), replicas, view, now_s)
    return actions


def plan_deployment(name: DeploymentName, view: View, now_s: float) -> list[Action]:
    """Plan for one deployment, also for one that was deleted and has replicas left."""
    mine = sorted(view.claims.of(name), key=lambda r: (r.created_s, r.id))
    deployment = view.deployments.get(name)
    actions: list[Action] = []
    running: list[ReplicaRecord] = []
    for replica in mine:
        if replica.target == "run" and deployment is not None:
            running.append(replica)
        else:
            actions += _end(replica, view, "the deployment was deleted", "deleted")
    if deployment is not None:
        actions += _Deployment(deployment, running, view, now_s).plan()
    return actions


class _Deployment:
    """One deployment's planning: what runs for it, and the moves that bring it closer to the wish."""

    def __init__(self, deployment: DeploymentRecord, running: list[ReplicaRecord], view: View, now_s: float) -> None:
        self.deployment = deployment
        self.view = view
        self.now_s = now_s
        self.leaving = {r.id: why for r in running if (why := reason_to_leave(r, view.fleet)) is not None}
        self.old: list[ReplicaRecord] = []
        self.lost: list[ReplicaRecord] = []
        self.current: list[ReplicaRecord] = []
        for replica in running:
            self._set_of(replica).append(replica)
        # Of the generation: those that have a place, or will have one when others have stopped.
        self.n_secured = sum(r.node is not None for r in self.current)
        self.has_secured = False  # one of them was given it by this plan
        self.ended: list[ReplicaRecord] = []  # by this plan, so that their places become free
        self.n_evictions = 0
        self.is_hopeless = False  # nobody whose going would make room was found, and nothing was given back since
        self.n_planned = 0
        self.prospect = Prospect(deployment, view, now_s)

    def _set_of(self, replica: ReplicaRecord) -> list[ReplicaRecord]:
        if replica.generation != self.deployment.generation or replica.id in self.leaving:
            return self.old
        return self.current if replica.node is None or self.view.is_present(replica) else self.lost

    @property
    def n_ready(self) -> int:
        return sum(replica.phase is Phase.READY for replica in self.current)

    def plan(self) -> list[Action]:
        surplus = self._stop_surplus()
        placed_ = self._place_pending()
        stopped_ = self._stop_old()
        created = self._create_missing()
        return [*self._delete_lost(), *surplus, *stopped_, *placed_, *created, *self._note_stay()]

    def _stop_surplus(self) -> list[Action]:
        """Stop what is too much, the least useful first; of equally useful ones the youngest."""
        n_surplus = len(self.current) - self.deployment.replicas
        if n_surplus <= 0:
            return []
        order = sorted(self.current, key=lambda r: (usefulness(r), -r.created_s, r.id))
        ended = order[:n_surplus]
        self._forget(ended)
        reason = f"{self.deployment.replicas} replicas are wished for"
        return [action for replica in ended for action in _end(replica, self.view, reason, "surplus")]

    def _forget(self, ended: list[ReplicaRecord]) -> None:
        ids = {r.id for r in ended}
        self.current = [r for r in self.current if r.id not in ids]
        self.n_secured -= sum(r.node is not None for r in ended)

    def _delete_lost(self) -> list[Action]:
        """Give up lost replicas for which there is a ready one; the others may still serve."""
        n_kept = max(0, self.deployment.replicas - self.n_ready)
        # The ready ones are the likeliest to serve on, so they are kept longest.
        order = sorted(self.lost, key=lambda r: (-usefulness(r), r.created_s, r.id))
        return [Delete(replica=r.id, reason=f"node {r.node} is away and replaced") for r in order[n_kept:]]

    def _place_pending(self) -> list[Action]:
        actions: list[Action] = []
        waiting = [replica for replica in self.current if replica.node is None]
        for number, replica in enumerate(waiting):
            found = self.prospect.now.find()
            if isinstance(found, Placement):
                actions.append(Place(replica=replica.id, placement=found, reason=found.note))
                self.prospect.take(placed(replica, found, self.deployment, self.now_s))
                self._secure()
                continue
            note, stops = self._wait(replica, found)
            actions += stops
            if _is_news(note, replica.placement_note or "", is_followed=number < _FOLLOWED):
                actions.append(Note(replica=replica.id, note=note, binding=found.binding))
        return actions

    def _secure(self) -> None:
        self.n_secured += 1
        self.has_secured = True

    def _wait(self, replica: ReplicaRecord, refusal: Refusal) -> tuple[str, list[Stop]]:
        """What a replica without a place waits for: others that stop already, or that it makes stop."""
        later = self.prospect.later
        found = later.find()
        stops: list[Stop] = []
        if isinstance(found, Refusal):
            # One more than n while old ones are replaced is no reason to stop others.
            is_short = self.n_secured + len(self.old) < self.deployment.replicas
            eviction = self._evict(later) if is_short else None
            if eviction is None:
                return refusal.note, []
            stops = [self._preempt(victim) for victim in eviction.victims]
            for victim in eviction.victims:
                later.remove(victim)
            found = later.find()
            assert isinstance(found, Placement), "that is why they go"
        later.add(placed(replica, found, self.deployment, self.now_s))
        self._secure()
        going = [stop.replica for stop in stops] or self._stopping_at(found)
        return f"waits for {_listed(going)} on {found.node} to stop; {refusal.note}" if going else refusal.note, stops

    def _evict(self, later: Search) -> Eviction | None:
        """Whom it may push out, asked as seldom as possible: many may wait for the same."""
        if self.is_hopeless or self.n_evictions == _MAX_EVICTIONS:
            return None
        eviction = None if is_being_cleared(later, self.view) else find_eviction(later, self.view)
        self.is_hopeless = eviction is None
        self.n_evictions += 1
        return eviction

    def _preempt(self, victim: ReplicaRecord) -> Stop:
        over = f"priority {self.deployment.priority} over {self.view.priority_of(victim)}"
        return Stop(replica=victim.id, reason=f"preempted by {self.deployment.name}: {over}", cause="preempted")

    def _stopping_at(self, placement: Placement) -> list[ReplicaId]:
        """Who stops and holds something of a place; of one in the host's memory, all who stop there."""
        wanted = set(placement.device_uuids)
        pool = self.view.fleet.hosts[placement.node].pool
        is_of_host = not wanted or (pool is not None and not wanted.isdisjoint(pool.uuids))
        return sorted(
            {
                r.id
                for r in (*self.view.claims.stopping, *self.ended)
                if r.node == placement.node and (is_of_host or wanted & set(r.device_uuids))
            }
        )

    def _stop_old(self) -> list[Action]:
        """Retire what is old without going below n ready replicas, if the devices allow that."""
        n = self.deployment.replicas
        present = [r for r in self.old if r.node is None or self.view.is_present(r)]
        away = [r for r in self.old if r.node is not None and not self.view.is_present(r)]
        idle = [r for r in present if r.phase is not Phase.READY]
        ready = [r for r in present if r.phase is Phase.READY]
        n_dispensable = max(0, min(len(ready), self.n_ready + len(ready) - n))
        ended = [*idle, *ready[:n_dispensable]]
        suffix = ""
        if not ended and (blocking := self._find_blocking(ready)) is not None:
            ended = [blocking]
            suffix = ", on the same devices"
        actions = [
            action
            for replica in ended
            for action in _end(replica, self.view, self._why_old(replica) + suffix, self._cause_old(replica))
        ]
        if self.n_ready >= n:
            actions += [Delete(replica=r.id, reason=f"node {r.node} is away and its replica replaced") for r in away]
        # What these hold will be free: nobody else has to go for what fits there.
        self.ended = [r for r in ended if self.view.is_present(r)]
        self.prospect.expect_gone(self.ended)
        self.is_hopeless = False
        self.old = [r for r in ready if r.id not in {r.id for r in ended}]
        return actions

    def _why_old(self, replica: ReplicaRecord) -> str:
        if replica.generation != self.deployment.generation:
            return f"generation {self.deployment.generation} replaces it"
        return self.leaving[replica.id]

    def _cause_old(self, replica: ReplicaRecord) -> StopCause:
        return "replaced" if replica.generation != self.deployment.generation else "moved"

    def _find_blocking(self, ready: list[ReplicaRecord]) -> ReplicaRecord | None:
        """Find the first old one whose place the next replica would get, if it has none now and none is on its way."""
        if (
            not ready
            or self.has_secured
            or any(r.node is not None and r.phase is not Phase.READY for r in self.current)
        ):
            return None
        if any(r.deployment == self.deployment.name and self.view.is_present(r) for r in self.view.claims.stopping):
            return None
        if isinstance(self.prospect.now.find(), Placement):
            return None
        return next((old for old in ready if self.prospect.fits_without(old)), None)

    def _create_missing(self) -> list[Action]:
        """Fill up to n. For a replica that is only lost, a replacement is made when there is a place for it."""
        n = self.deployment.replicas
        n_missing = n - len(self.current)
        n_allowed = n + 1 - len(self.current) - len(self.old) if self.old else n_missing
        actions: list[Action] = []
        n_waiting = sum(r.node is None for r in self.current)
        for number in range(max(0, min(n_missing, n_allowed, _MAX_CREATED))):
            found = self.prospect.now.find()
            if isinstance(found, Placement):
                made = Create(deployment=self.deployment.name, placement=found, reason=found.note)
                self.prospect.take(self._planned(made))
                self._secure()
                actions.append(made)
                continue
            waiting = Create(deployment=self.deployment.name, placement=None, reason=found.note, binding=found.binding)
            if n_waiting == _MAX_WAITING:
                break
            n_waiting += 1
            note, stops = self._wait(self._planned(waiting), found)
            if not stops and number >= n_missing - len(self.lost):
                break
            # It is there before they go, so that what they leave is kept for it.
            actions += [msgspec.structs.replace(waiting, reason=note), *stops]
        return actions

    def _planned(self, action: Create) -> ReplicaRecord:
        """What will be created, under a name that no replica has: `list_holders` knows it by the slash."""
        self.n_planned += 1
        return create(self.deployment, ReplicaId(f"{self.deployment.name}/{self.n_planned}"), action, self.now_s)

    def _note_stay(self) -> list[Action]:
        """Say of what serves on in a place that it has to leave why it is still there, and when it may stay."""
        notes: list[Action] = []
        for replica in self.old:
            why = self.leaving.get(replica.id)
            note = f"{why}; {_STILL_THERE}"
            if why is not None and note != replica.placement_note:
                notes.append(Note(replica=replica.id, note=note, kind="moving"))
        for replica in self.current:
            if replica.node is not None and (replica.placement_note or "").endswith(_STILL_THERE):
                note = f"{replica.node} has {', '.join(replica.devices)} again"
                notes.append(Note(replica=replica.id, note=note, kind="stays"))
        return notes


def _end(replica: ReplicaRecord, view: View, reason: str, cause: StopCause) -> list[Action]:
    """Bring one replica closer to its end."""
    if replica.node is None or replica.phase is Phase.STOPPED:
        return [Delete(replica=replica.id, reason=reason)]
    if not view.is_present(replica):
        return [Delete(replica=replica.id, reason=f"{reason}; node {replica.node} is away and ends it when it is back")]
    if replica.target == "stop":
        return []
    return [Stop(replica=replica.id, reason=reason, cause=cause)]


def _assume(action: Action, number: int, replicas: dict[ReplicaId, ReplicaRecord], view: View, now_s: float) -> None:
    """Show an action's outcome to the plans that follow, so that they do not give the same room again."""
    match action:
        case Create():
            id_ = ReplicaId(f"{action.deployment}/planned-{number}")
            record = create(view.deployments[action.deployment], id_, action, now_s)
        case Place():
            before = replicas[action.replica]
            record = placed(before, action.placement, view.deployments[before.deployment], now_s)
        case Stop():
            record = stopped(replicas[action.replica], action)
        case Delete():
            del replicas[action.replica]
            view.set_replica(action.replica, None)
            return
        case Note():
            return
    replicas[record.id] = record
    view.set_replica(record.id, record)


def _is_news(note: str, before: str, *, is_followed: bool) -> bool:
    """Whether a note is worth a write: many may wait for the same, and memory that others use moves all the time."""
    if is_followed or note == before:
        return note != before
    return _SIZE.sub("", note) != _SIZE.sub("", before)


def _listed(ids: Sequence[ReplicaId]) -> str:
    more = len(ids) - _SHOWN
    return ", ".join(ids[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
