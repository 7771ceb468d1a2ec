"""Where one more replica of a deployment runs: every node is filtered, what fits is scored, the best is bound.

    fleet ─▶ filter.py ─┬─▶ offer ─▶ score.py ─▶ the least key: Placement
                        └─▶ miss  ─▶ explain.py ─▶ note: why not there

`auto` means an accelerator if any node with the right labels has one that the engine is built for, taken or not, and
the processor otherwise: a replica never lands on a slow device because the fast one is busy for a moment.

| operation, N nodes of D devices | cost |
|---|---|
| the first Search.find | O(N x D) |
| each further one | O(N), a comparison a node, and O(D) for each node that changed since; O(1) if none did |
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from xinf.core.device import PASSING, Health, Vendor
from xinf.core.ids import NodeName
from xinf.core.records import DeploymentRecord, NodeRecord, ReplicaRecord
from xinf.core.units import format_bytes
from xinf.scheduler.actions import Placement, Refusal
from xinf.scheduler.claims import Claims, Draft, Tally
from xinf.scheduler.explain import NO_NODES, explain
from xinf.scheduler.filter import Filter
from xinf.scheduler.host import AUTO, Fleet, Host
from xinf.scheduler.score import Key, score
from xinf.scheduler.verdict import Miss, Offer, Verdict
from xinf.scheduler.world import Measured, Rules


class Search:
    """Places for one deployment on a draft of claims. Change the draft through the search: it remembers verdicts."""

    def __init__(
        self, deployment: DeploymentRecord, fleet: Fleet, draft: Draft, rules: Rules, *, measured: Measured
    ) -> None:
        self.deployment = deployment
        self.fleet = fleet
        self.draft = draft
        self._filter = Filter(deployment, rules, measured)
        self._kinds = self._kinds_wanted()
        self._offers: dict[NodeName, tuple[Key, Offer]] = {}
        self._misses: dict[NodeName, Miss] = {}
        self._stale: set[NodeName] = set(fleet.hosts)
        self._reasons: list[str] | None = None  # against the nodes that have no place; None: others than before
        self._found: Placement | Refusal | None = None  # None: something changed since

    def find(self) -> Placement | Refusal:
        """The best place now. Asked again with nothing changed, as for each of many that wait, it costs nothing."""
        if self._found is None:
            self._found = self._find()
        return self._found

    def _find(self) -> Placement | Refusal:
        self._refresh()
        if not self.fleet.hosts:
            return Refusal(note=NO_NODES)
        if self._reasons is None:
            self._reasons = explain(list(self._misses.values()))
        if not self._offers:
            binding = min(self._misses.values(), key=lambda miss: miss.rank).binding
            return Refusal(note="; ".join(self._reasons), binding=binding)
        _, offer = min(self._offers.values(), key=lambda found: found[0])
        return bind(offer, self._reasons)

    def misses(self) -> Mapping[NodeName, Miss]:
        """The nodes that have no place now, and why."""
        self._refresh()
        return self._misses

    def examine(self, host: Host, held: Tally) -> Verdict:
        """What a node of the fleet would be if this much were held of it."""
        return self._filter.examine(host, held, self._kinds)

    def add(self, replica: ReplicaRecord) -> None:
        """As if this replica, which has a place, were there."""
        self.draft.add(replica)
        self._touch(replica)

    def remove(self, replica: ReplicaRecord) -> None:
        """As if it were gone."""
        self.draft.remove(replica)
        self._touch(replica)

    def fork(self) -> Search:
        """A search that starts with what this one knows; neither changes the other."""
        self._refresh()
        forked = Search.__new__(Search)
        forked.deployment, forked.fleet = self.deployment, self.fleet
        forked.draft = self.draft.fork()
        forked._filter, forked._kinds = self._filter, self._kinds
        forked._offers, forked._misses = dict(self._offers), dict(self._misses)
        forked._stale = set()
        forked._reasons, forked._found = self._reasons, self._found
        return forked

    def _touch(self, replica: ReplicaRecord) -> None:
        if replica.node in self.fleet.hosts:
            self._stale.add(replica.node)
            self._found = None

    def _refresh(self) -> None:
        """Look at the nodes that were not looked at, or changed since."""
        for name in self._stale:
            host, tally = self.fleet.hosts[name], self.draft.on(name)
            found = self._filter.examine(host, tally, self._kinds)
            if isinstance(found, Offer):
                self._offers[name] = (score(found, self.deployment, host, tally), found)
                if self._misses.pop(name, None) is not None:
                    self._reasons = None
            else:
                self._misses[name] = found
                self._reasons = None
                self._offers.pop(name, None)
        self._stale.clear()

    def _kinds_wanted(self) -> frozenset[str]:
        """Which device kinds `auto` means here and now."""
        if self.deployment.spec.device != AUTO:
            return frozenset()
        engine = self.deployment.spec.engine
        kinds: set[str] = set()
        for host in self.fleet.hosts.values():
            if self._filter.is_labelled(host):
                kinds |= host.accelerators_for(engine)
        return frozenset(kinds or {"cpu"})


def place(
    deployment: DeploymentRecord, fleet: Fleet, claims: Claims, rules: Rules, *, measured: Measured | None = None
) -> Placement | Refusal:
    """Find the best place for one more replica of `deployment`."""
    return Search(deployment, fleet, Draft(claims), rules, measured=measured or {}).find()


def could_fit(
    deployment: DeploymentRecord,
    nodes: Mapping[NodeName, NodeRecord],
    rules: Rules | None = None,
    *,
    measured: Measured | None = None,
) -> Placement | Refusal:
    """Whether a replica would fit if all that passes had passed: other engines and programs, cordons, heat, silence."""
    return place(deployment, Fleet(map(_at_rest, nodes.values())), Claims(), rules or Rules(), measured=measured)


def _at_rest(node: NodeRecord) -> NodeRecord:
    cooled = tuple(
        msgspec.structs.replace(device, health=Health.OK) if device.health in PASSING else device
        for device in node.devices
    )
    return msgspec.structs.replace(node, devices=cooled, foreign_bytes={}, unplanned_bytes={})


def bind(offer: Offer, reasons: list[str]) -> Placement:
    """Turn an offer into a place, with the reasons for it and against the nodes that had none."""
    selectors = tuple(device.selector for device in offer.devices)
    note = f"{offer.node} has {', '.join(selectors)} free"
    if offer.need is not None and offer.spare_bytes is not None:
        need = offer.need.device_bytes
        note += f": {format_bytes(need)} of {format_bytes(need + offer.spare_bytes)}"
    if offer.n_sharers and offer.kind != "cpu":
        note += f", shared with {offer.n_sharers}"
    if offer.distance is not None:
        note += f", {offer.distance.name} between them"
    return Placement(
        node=offer.node,
        devices=selectors,
        device_uuids=tuple(device.uuid for device in offer.devices if device.vendor is not Vendor.CPU),
        note="; ".join([note, *reasons]),
        need=offer.need,
    )
