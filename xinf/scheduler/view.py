"""The world with what plans look up beside it, kept as records come, change and go: a plan costs what it looks at.

The loop keeps one for as long as it runs; `plan` makes one for a world that it is given.
"""

from __future__ import annotations

from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.records import CordonRecord, DeploymentRecord, MeasuredRecord, NodeRecord, ReplicaRecord
from xinf.scheduler.claims import Claims
from xinf.scheduler.host import Fleet
from xinf.scheduler.world import Rules, World


class View:
    """Deployments, the hosts they may use and what replicas hold of them. Belongs to one event loop."""

    def __init__(self, world: World, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self.deployments = dict(world.deployments)
        self.fleet = Fleet(world.nodes.values(), world.cordons)
        self.claims = Claims(world.replicas.values())
        self.measured = dict(world.measured)

    def set_deployment(self, name: DeploymentName, record: DeploymentRecord | None) -> None:
        """Take a deployment as it is now; None: it was deleted."""
        if record is None:
            self.deployments.pop(name, None)
        else:
            self.deployments[name] = record

    def set_replica(self, id_: ReplicaId, record: ReplicaRecord | None) -> None:
        """Take a replica as it is now; None: it was deleted."""
        if record is None:
            self.claims.drop(id_)
        else:
            self.claims.put(record)

    def set_node(self, name: NodeName, record: NodeRecord | None) -> None:
        """Take a node as it is now; None: it is away."""
        self.fleet.set_node(name, record)

    def set_cordon(self, name: NodeName, record: CordonRecord | None) -> None:
        """Take a node's cordon as it is now."""
        self.fleet.set_cordon(name, record)

    def set_measured(self, fingerprint: str, record: MeasuredRecord | None) -> None:
        """Take what a load took as it is known now."""
        if record is None:
            self.measured.pop(fingerprint, None)
        else:
            self.measured[fingerprint] = record

    def is_present(self, replica: ReplicaRecord) -> bool:
        """Whether a replica is on a node whose agent is there."""
        return replica.node is not None and replica.node in self.fleet.hosts

    def priority_of(self, replica: ReplicaRecord) -> int | None:
        """How much its deployment matters; None: it was deleted."""
        deployment = self.deployments.get(replica.deployment)
        return None if deployment is None else deployment.priority
