"""What the scheduler tells people of what it did and saw: from actions and changed records to events.

    actions    placed, not_placed (when another constraint binds than before), preempted, moving, stays, moved
    replicas   ready, failed
    nodes      node_joined, node_away, cordoned, uncordoned

Pure, but for what was seen last. What happened while no scheduler ran is not told, except by its outcome.
"""

from __future__ import annotations

from xinf.core.ids import NodeName, ReplicaId
from xinf.core.records import CordonRecord, EventRecord, NodeRecord, Phase, ReplicaRecord
from xinf.scheduler.actions import Action, Create, Note, Place, Placement, Stop
from xinf.scheduler.verdict import Binding


class Journal:
    """Remembers what was seen last, and says what is new."""

    def __init__(self) -> None:
        self._phases: dict[ReplicaId, tuple[Phase, float | None]] = {}
        self._bindings: dict[ReplicaId, Binding | None] = {}
        self._nodes: set[NodeName] = set()
        self._cordons: dict[NodeName, bool] = {}

    def know_replica(self, replica: ReplicaRecord) -> None:
        """Take it as it is, telling nothing."""
        self._phases[replica.id] = _state(replica)

    def know_node(self, name: NodeName) -> None:
        """Take it as present, telling nothing."""
        self._nodes.add(name)

    def know_cordon(self, record: CordonRecord) -> None:
        """Take it as cordoned, telling nothing."""
        self._cordons[record.node] = record.is_draining

    def on_action(self, action: Action, replica: ReplicaRecord, now_s: float) -> EventRecord | None:
        """What is told of an action that was applied. `replica`: as it is after it."""
        match action:
            case Create() | Place():
                if action.placement is not None:
                    return self._placed(replica, action.placement, now_s)
                return self._not_placed(replica, action.binding, action.reason, now_s)
            case Note():
                if action.kind != "not_placed":
                    return _event(action.kind, replica, action.note, now_s)
                return self._not_placed(replica, action.binding, action.note, now_s)
            case Stop() if action.cause in ("moved", "preempted"):
                return _event(action.cause, replica, action.reason, now_s)
        return None

    def on_replica(self, id_: ReplicaId, replica: ReplicaRecord | None, now_s: float) -> EventRecord | None:
        """What is told of a replica whose record changed."""
        if replica is None:
            self._phases.pop(id_, None)
            self._bindings.pop(id_, None)
            return None
        before = self._phases.get(id_)
        self._phases[id_] = state = _state(replica)
        if before == state:
            return None
        failure = replica.failure
        if failure is not None and failure.at_s != (before[1] if before is not None else None):
            return _event("failed", replica, f"{failure.cause}: {failure.message}", now_s)
        if replica.phase is Phase.READY and (before is None or before[0] is not Phase.READY):
            return _event("ready", replica, f"serves on {', '.join(replica.devices)}", now_s)
        return None

    def on_node(self, name: NodeName, record: NodeRecord | None, now_s: float) -> EventRecord | None:
        """What is told of a node that came or went."""
        if (record is not None) == (name in self._nodes):
            return None
        if record is None:
            self._nodes.discard(name)
            message = "its agent has been silent too long, or was stopped; its engines may serve on"
            return EventRecord(at_s=now_s, kind="node_away", object=name, node=name, message=message)
        self._nodes.add(name)
        devices = ", ".join(device.selector for device in record.devices[:8]) or "none"
        return EventRecord(at_s=now_s, kind="node_joined", object=name, node=name, message=f"devices: {devices}")

    def on_cordon(self, name: NodeName, record: CordonRecord | None, now_s: float) -> EventRecord | None:
        """What is told of a node that was closed or opened."""
        before = self._cordons.get(name)
        if record is None:
            self._cordons.pop(name, None)
            if before is None:
                return None
            message = "new replicas may come again"
            return EventRecord(at_s=now_s, kind="uncordoned", object=name, node=name, message=message)
        self._cordons[name] = record.is_draining
        if before == record.is_draining:
            return None
        kind = "draining" if record.is_draining else "cordoned"
        message = record.reason or ("its replicas move" if record.is_draining else "no new replicas come")
        return EventRecord(at_s=now_s, kind=kind, object=name, node=name, message=message)

    def _placed(self, replica: ReplicaRecord, placement: Placement, now_s: float) -> EventRecord:
        self._bindings.pop(replica.id, None)
        return _event("placed", replica, placement.note, now_s)

    def _not_placed(
        self, replica: ReplicaRecord, binding: Binding | None, note: str, now_s: float
    ) -> EventRecord | None:
        """Values in a note change all the time; it is told again when another constraint binds."""
        if replica.id in self._bindings and self._bindings[replica.id] == binding:
            return None
        self._bindings[replica.id] = binding
        return _event("not_placed", replica, note, now_s)


def _state(replica: ReplicaRecord) -> tuple[Phase, float | None]:
    return (replica.phase, replica.failure.at_s if replica.failure is not None else None)


def _event(kind: str, replica: ReplicaRecord, message: str, now_s: float) -> EventRecord:
    return EventRecord(
        at_s=now_s,
        kind=kind,
        object=replica.id,
        node=replica.node,
        deployment=replica.deployment,
        message=message,
    )
