"""What people are told, and what they are not told again."""

from __future__ import annotations

import msgspec

from tests.scheduler.worlds import holder, node
from xinf.core.ids import NodeName
from xinf.core.records import CordonRecord, EventRecord, Phase, ReplicaFailure
from xinf.scheduler import Binding, Delete, Note, Place, Placement, Stop
from xinf.scheduler.journal import Journal

REPLICA = holder("a", "GPU-a-0", name="m", devices=("cuda:0",))
PENDING = msgspec.structs.replace(REPLICA, node=None, phase=Phase.PENDING, devices=(), device_uuids=())


def told(event: EventRecord | None) -> tuple[str, str, str] | None:
    return None if event is None else (event.kind, event.object, event.message)


def note(text: str, binding: Binding) -> Note:
    return Note(replica=REPLICA.id, note=text, binding=binding)


def test_reason_is_told_when_another_constraint_binds_and_not_for_other_values() -> None:
    journal = Journal()
    first = journal.on_action(note("15 GiB free", Binding.MEMORY), PENDING, 1.0)
    assert told(first) == ("not_placed", "m-1", "15 GiB free")
    assert journal.on_action(note("14 GiB free", Binding.MEMORY), PENDING, 2.0) is None
    assert told(journal.on_action(note("taken", Binding.TAKEN), PENDING, 3.0)) == ("not_placed", "m-1", "taken")
    place = Placement(node=NodeName("a"), devices=("cuda:0",), device_uuids=("GPU-a-0",), note="a has cuda:0 free")
    placed = journal.on_action(Place(replica=REPLICA.id, placement=place, reason=place.note), REPLICA, 4.0)
    assert told(placed) == ("placed", "m-1", "a has cuda:0 free")
    assert placed is not None
    assert (placed.node, placed.deployment) == ("a", "m")


def test_stops_that_nobody_wished_for_are_told() -> None:
    journal = Journal()
    preempted = Stop(replica=REPLICA.id, reason="preempted by high", cause="preempted")
    assert told(journal.on_action(preempted, REPLICA, 1.0)) == ("preempted", "m-1", "preempted by high")
    assert journal.on_action(Stop(replica=REPLICA.id, reason="0 wished for", cause="surplus"), REPLICA, 1.0) is None
    assert journal.on_action(Delete(replica=REPLICA.id, reason="stopped"), REPLICA, 1.0) is None
    moving = Note(replica=REPLICA.id, note="cuda:0 is faulty", kind="moving")
    assert told(journal.on_action(moving, REPLICA, 1.0)) == ("moving", "m-1", "cuda:0 is faulty")


def test_ready_and_failed_are_told_once_each() -> None:
    journal = Journal()
    loading = msgspec.structs.replace(REPLICA, phase=Phase.LOADING)
    assert journal.on_replica(REPLICA.id, loading, 1.0) is None
    assert told(journal.on_replica(REPLICA.id, REPLICA, 2.0)) == ("ready", "m-1", "serves on cuda:0")
    assert journal.on_replica(REPLICA.id, REPLICA, 3.0) is None
    failure = ReplicaFailure(cause="killed", message="signal 9", remedy="", at_s=4.0)
    # The record of the failure itself was never seen: the next start had begun already.
    again = msgspec.structs.replace(loading, failure=failure)
    assert told(journal.on_replica(REPLICA.id, again, 4.0)) == ("failed", "m-1", "killed: signal 9")
    assert told(journal.on_replica(REPLICA.id, msgspec.structs.replace(REPLICA, failure=failure), 5.0)) == (
        "ready", "m-1", "serves on cuda:0",
    )  # fmt: skip


def test_what_is_known_at_the_start_is_not_told() -> None:
    journal = Journal()
    journal.know_replica(REPLICA)
    journal.know_node(NodeName("a"))
    journal.know_cordon(CordonRecord(node=NodeName("a")))
    assert journal.on_replica(REPLICA.id, REPLICA, 1.0) is None
    assert journal.on_node(NodeName("a"), node("a"), 1.0) is None
    assert journal.on_cordon(NodeName("a"), CordonRecord(node=NodeName("a")), 1.0) is None


def test_nodes_come_go_and_are_closed() -> None:
    journal = Journal()
    name = NodeName("a")
    kinds = [
        journal.on_node(name, node("a", n_cuda=1), 1.0),
        journal.on_node(name, node("a", n_cuda=2), 2.0),
        journal.on_cordon(name, CordonRecord(node=name, reason="new driver"), 3.0),
        journal.on_cordon(name, CordonRecord(node=name, is_draining=True), 4.0),
        journal.on_cordon(name, None, 5.0),
        journal.on_cordon(name, None, 6.0),
        journal.on_node(name, None, 7.0),
    ]
    assert [event and event.kind for event in kinds] == [
        "node_joined", None, "cordoned", "draining", "uncordoned", None, "node_away",
    ]  # fmt: skip
    assert kinds[0] is not None
    assert kinds[0].message == "devices: cuda:0, cpu"
