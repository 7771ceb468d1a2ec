"""What a deployment may take, now and later, while others wait for places too.

    now     what is held, and the places that are kept for replicas that wait and go before: of a higher priority, or of
            an equal that is giving up a place of its own for them
    later   the same when everything that is stopping has stopped

A replica of a higher priority that waits is given, in thought, the best place that it will have later; nobody of a
lower priority gets in its way. That is what makes preemption end: a place that was cleared is kept for whom it was
cleared, however many events it takes until the last of its former holders is gone. Nothing of this is stored: it
follows from the records, so a scheduler that starts anew decides the same.
"""

from __future__ import annotations

from functools import cached_property
from itertools import groupby

from xinf.core.ids import DeploymentName
from xinf.core.records import DeploymentRecord, ReplicaRecord
from xinf.scheduler.actions import Refusal, placed
from xinf.scheduler.claims import Draft, tally
from xinf.scheduler.place import Search
from xinf.scheduler.verdict import Offer
from xinf.scheduler.view import View


class Prospect:
    """The two searches of one deployment's plan; see above."""

    def __init__(self, deployment: DeploymentRecord, view: View, now_s: float) -> None:
        self._deployment = deployment
        self._view = view
        self._now_s = now_s
        self._gone: list[ReplicaRecord] = []
        self._later: Search | None = None

    @cached_property
    def now(self) -> Search:
        """Made when somebody asks; most plans need no place."""
        draft = Draft(self._view.claims)
        for replica in _kept_places(self._deployment, self._view, self._now_s):
            draft.add(replica)
        return Search(self._deployment, self._view.fleet, draft, self._view.rules, measured=self._view.measured)

    @property
    def later(self) -> Search:
        """Made when somebody asks, from what is given away by then."""
        if self._later is None:
            self._later = self.now.fork()
            for replica in (*self._view.claims.stopping, *self._gone):
                self._later.remove(replica)
        return self._later

    def take(self, replica: ReplicaRecord) -> None:
        """A place was given away."""
        self.now.add(replica)
        if self._later is not None:
            self._later.add(replica)

    def expect_gone(self, replicas: list[ReplicaRecord]) -> None:
        """These will be stopping too when the plan is applied."""
        self._gone += replicas
        if self._later is not None:
            for replica in replicas:
                self._later.remove(replica)

    def fits_without(self, replica: ReplicaRecord) -> bool:
        """Whether there were a place on its node now, were this replica gone. Cost: O(devices), not a search."""
        host = self.now.fleet.hosts.get(replica.node) if replica.node is not None else None
        if host is None:
            return False
        others = [r for r in self.now.draft.held_on(host.name).values() if r.id != replica.id]
        return isinstance(self.now.examine(host, tally(others)), Offer)


def _kept_places(deployment: DeploymentRecord, view: View, now_s: float) -> list[ReplicaRecord]:
    """Replicas of higher priorities that wait, as if they were in the places they will have later."""
    waiting = _waiting_above(deployment, view)
    if not waiting:
        return []
    draft = Draft(view.claims)
    for replica in view.claims.stopping:
        draft.remove(replica)
    kept: list[ReplicaRecord] = []
    for name, replicas in groupby(waiting, key=lambda replica: replica.deployment):
        kept += _seat(view.deployments[DeploymentName(name)], list(replicas), draft, view, now_s)
    return kept


def _seat(
    deployment: DeploymentRecord, replicas: list[ReplicaRecord], draft: Draft, view: View, now_s: float
) -> list[ReplicaRecord]:
    """Give replicas of one deployment places on the draft, as far as there are any."""
    search = Search(deployment, view.fleet, draft, view.rules, measured=view.measured)
    seated = []
    for replica in replicas:
        found = search.find()
        if isinstance(found, Refusal):
            break  # the others want the same
        seated.append(placed(replica, found, deployment, now_s))
        search.add(seated[-1])
    return seated


def _waiting_above(deployment: DeploymentRecord, view: View) -> list[ReplicaRecord]:
    """Replicas that wait and go before, the most important first, those of one deployment together."""
    goes_before: dict[DeploymentName, bool] = {}
    waiting = []
    for replica in view.claims.pending:
        other = view.deployments.get(replica.deployment)
        if other is None or other.generation != replica.generation:
            continue
        if other.name not in goes_before:  # asked once: many may wait
            goes_before[other.name] = _goes_before(other, deployment, view)
        if goes_before[other.name]:
            waiting.append(((-other.priority, other.name, replica.created_s, replica.id), replica))
    return [replica for _, replica in sorted(waiting, key=lambda found: found[0])]


def _goes_before(other: DeploymentRecord, deployment: DeploymentRecord, view: View) -> bool:
    """Whether places are kept for the other one: of equals for the one that gave up a place of its own for it.

    Else an equal that waits would get what an update in place gave up, and the two would lose it to each other.
    """
    if other.priority != deployment.priority:
        return other.priority > deployment.priority
    if other.name == deployment.name or not _is_heir(other, view):
        return False
    return other.name < deployment.name or not _is_heir(deployment, view)


def _is_heir(deployment: DeploymentRecord, view: View) -> bool:
    """Whether one of its own replicas is on its way out of a place, or just out of it."""
    return any(r.target == "stop" and view.is_present(r) for r in view.claims.of(deployment.name))
