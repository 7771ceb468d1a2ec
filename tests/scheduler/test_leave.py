"""Replicas on devices that fail and nodes that are closed: who moves, who stays, what serves meanwhile."""

from __future__ import annotations

import msgspec
import pytest

from tests.scheduler.worlds import Simulation, deployment, node, with_health, world
from xinf.core.device import Health
from xinf.core.ids import NodeName
from xinf.core.records import CordonRecord, NodeRecord, Phase
from xinf.scheduler import Note, Stop


def settled(*nodes: NodeRecord, **wish: object) -> Simulation:
    simulation = Simulation(world([deployment(device="cuda", **wish)], nodes))  # type: ignore[arg-type]
    simulation.settle()
    simulation.lowest_ready = 10**9
    return simulation


def cordon(name: str, *, is_draining: bool = False) -> CordonRecord:
    return CordonRecord(node=NodeName(name), is_draining=is_draining)


@pytest.mark.parametrize("health", [Health.FAULTY, Health.NO_DRIVER])
def test_replica_of_a_faulty_device_moves_without_a_gap(health: Health) -> None:
    simulation = settled(node(n_cuda=2))
    (first,) = simulation.ready()
    simulation.set_nodes(with_health(node(n_cuda=2), first.device_uuids[0], health))
    actions = simulation.plan_once()
    assert not [a for a in actions if isinstance(a, Stop)], "it serves until the next one does"
    simulation.settle()
    (moved,) = simulation.of()
    assert moved.device_uuids == ("GPU-a-1",)
    assert simulation.lowest_ready == 1


def test_reason_is_on_the_replica_that_moves() -> None:
    simulation = settled(node("a", n_cuda=1), node("b", n_cuda=1))
    (first,) = simulation.ready()
    spare = "b" if first.node == "a" else "a"
    broken = with_health(
        node(str(first.node), n_cuda=1), first.device_uuids[0], Health.FAULTY, "Xid 79: fell off the bus"
    )
    simulation.set_nodes(broken, node(spare, n_cuda=1))
    why = f"cuda:0 on {first.node} is faulty: Xid 79: fell off the bus"
    (note,) = (a for a in simulation.plan_once() if isinstance(a, Note))
    assert (note.note, note.kind) == (f"{why}; it moves when another is ready to take its place", "moving")
    stops = []
    for _ in range(20):
        stops += [a for a in simulation.plan_once() if isinstance(a, Stop)]
        simulation.agents_step()
    assert [(stop.replica, stop.reason, stop.cause) for stop in stops] == [(first.id, why, "moved")]


def test_one_that_serves_stays_where_there_is_no_other_place() -> None:
    simulation = settled(node(n_cuda=1))
    (first,) = simulation.ready()
    simulation.set_nodes(with_health(node(n_cuda=1), "GPU-a-0", Health.FAULTY))
    simulation.settle()
    assert [r.id for r in simulation.ready()] == [first.id]
    (waiting,) = (r for r in simulation.of() if r.id != first.id)
    assert waiting.placement_note == "cuda:0 on a cannot be used: Xid 79"
    simulation.set_nodes(node(n_cuda=1))
    simulation.settle()
    assert [(r.id, r.placement_note) for r in simulation.of()] == [(first.id, "a has cuda:0 again")]


def test_one_that_does_not_serve_leaves_a_faulty_device_at_once() -> None:
    simulation = settled(node(n_cuda=1))
    simulation.edit(replicas={r.id: msgspec.structs.replace(r, phase=Phase.FAILED) for r in simulation.of()})
    simulation.set_nodes(with_health(node(n_cuda=1), "GPU-a-0", Health.FAULTY))
    assert [a.cause for a in simulation.plan_once() if isinstance(a, Stop)] == ["moved"]
    simulation.settle()
    assert [r.phase for r in simulation.of()] == [Phase.PENDING]
    simulation.set_nodes(node(n_cuda=1))
    simulation.settle()
    assert len(simulation.ready()) == 1


def test_degraded_device_keeps_its_replicas_and_gets_no_new_one() -> None:
    simulation = settled(node(n_cuda=2), replicas=1)
    (first,) = simulation.ready()
    hot = with_health(node(n_cuda=2), first.device_uuids[0], Health.DEGRADED, "too hot")
    simulation.set_nodes(hot)
    assert simulation.plan_once() == []
    simulation.set_deployment(deployment(device="cuda", replicas=3))
    simulation.settle()
    assert sorted(r.device_uuids for r in simulation.ready()) == [("GPU-a-0",), ("GPU-a-1",)]
    assert first.id in {r.id for r in simulation.ready()}


def test_device_that_is_gone_is_left() -> None:
    simulation = settled(node(n_cuda=2))
    (first,) = simulation.ready()
    assert first.device_uuids == ("GPU-a-0",)
    whole = node(n_cuda=2)
    simulation.set_nodes(msgspec.structs.replace(whole, devices=whole.devices[1:]))
    simulation.settle()
    assert [r.device_uuids for r in simulation.of()] == [("GPU-a-1",)]


def test_replicas_of_a_fault_move_one_by_one() -> None:
    simulation = settled(node("a", n_cuda=2), node("b", n_cuda=2), replicas=2)
    assert {r.node for r in simulation.ready()} == {"a", "b"}
    broken = [
        with_health(with_health(node(n, n_cuda=2), f"GPU-{n}-0", Health.FAULTY), f"GPU-{n}-9", Health.OK) for n in "ab"
    ]
    simulation.set_nodes(*broken)
    simulation.settle()
    assert {r.device_uuids for r in simulation.of()} == {("GPU-a-1",), ("GPU-b-1",)}
    assert simulation.lowest_ready == 2


def test_engine_over_two_devices_moves_onto_the_one_that_is_left_to_it() -> None:
    """Its own second device is free only when it goes: an update in place, at the price of a gap."""
    simulation = settled(node(n_cuda=3), tensor_parallel_size=2)
    simulation.set_nodes(with_health(node(n_cuda=3), "GPU-a-0", Health.FAULTY))
    simulation.settle()
    assert [r.device_uuids for r in simulation.of()] == [("GPU-a-1", "GPU-a-2")]


def test_cordoned_node_keeps_what_it_has_and_gets_nothing_new() -> None:
    simulation = settled(node("a", n_cuda=2), node("b", n_cuda=1), replicas=2)
    simulation.set_cordons(cordon("a"))
    assert simulation.plan_once() == []
    simulation.set_deployment(deployment(device="cuda", replicas=3))
    simulation.settle()
    (waiting,) = (r for r in simulation.of() if r.phase is Phase.PENDING)
    assert str(waiting.placement_note).startswith("1 cuda needed on b, 0 of 1 free")
    assert "a is cordoned" in str(waiting.placement_note)
    simulation.set_cordons()
    simulation.settle()
    assert len(simulation.ready()) == 3


def test_drained_node_is_left_without_a_gap() -> None:
    simulation = settled(node("a", n_cuda=2), node("b", n_cuda=2), replicas=2)
    simulation.set_cordons(cordon("a", is_draining=True))
    simulation.settle()
    assert {r.node for r in simulation.of()} == {"b"}
    assert simulation.lowest_ready == 2


def test_drained_node_keeps_what_has_no_other_place() -> None:
    simulation = settled(node("a", n_cuda=1))
    simulation.set_cordons(cordon("a", is_draining=True))
    simulation.settle()
    (serving,) = simulation.ready()
    assert serving.placement_note == "a is being drained; it moves when another is ready to take its place"


def test_cordon_of_a_node_that_is_away_holds_when_it_is_back() -> None:
    simulation = Simulation(world([deployment(device="cuda")], [], cordons=[cordon("a")]))
    simulation.settle()
    simulation.set_nodes(node("a", n_cuda=1))
    simulation.settle()
    assert [r.placement_note for r in simulation.of()] == ["a is cordoned"]


def test_replica_that_serves_stays_on_a_device_that_nobody_can_read() -> None:
    simulation = settled(node(n_cuda=2))
    (first,) = simulation.ready()
    silent = with_health(node(n_cuda=2), first.device_uuids[0], Health.SILENT, "the driver did not answer")
    simulation.set_nodes(silent)
    assert simulation.plan_once() == []
    simulation.set_deployment(deployment(device="cuda", replicas=3))
    simulation.settle()
    assert sorted(r.device_uuids for r in simulation.ready()) == [("GPU-a-0",), ("GPU-a-1",)]
    assert first.id in {r.id for r in simulation.ready()}


@pytest.mark.parametrize("phase", [Phase.PLACED, Phase.STARTING, Phase.LOADING, Phase.WARMING])
def test_replica_that_may_come_to_serve_is_not_taken_off_a_silent_device(phase: Phase) -> None:
    simulation = settled(node(n_cuda=2))
    (first,) = simulation.ready()
    simulation.edit(replicas={first.id: msgspec.structs.replace(first, phase=phase)})
    simulation.set_nodes(with_health(node(n_cuda=2), first.device_uuids[0], Health.SILENT))
    assert simulation.plan_once() == []


def test_replica_that_failed_leaves_a_silent_device() -> None:
    simulation = settled(node(n_cuda=2))
    (first,) = simulation.ready()
    simulation.edit(replicas={first.id: msgspec.structs.replace(first, phase=Phase.FAILED)})
    simulation.set_nodes(with_health(node(n_cuda=2), first.device_uuids[0], Health.SILENT, "no answer"))
    stops = [a for a in simulation.plan_once() if isinstance(a, Stop)]
    assert [(stop.cause, stop.reason) for stop in stops] == [("moved", "cuda:0 on a is silent: no answer")]
    simulation.settle()
    assert [r.device_uuids for r in simulation.ready()] == [("GPU-a-1",)]


def test_silence_of_every_accelerator_sends_nobody_to_the_processor() -> None:
    """`auto` means an accelerator where there is one: a driver that hangs has not taken it away."""
    simulation = Simulation(world([deployment(device="auto", replicas=2)], [node(n_cuda=2)]))
    simulation.settle()
    assert sorted(r.devices for r in simulation.ready()) == [("cuda:0",), ("cuda:1",)]
    silent = with_health(with_health(node(n_cuda=2), "GPU-a-0", Health.SILENT), "GPU-a-1", Health.SILENT)
    simulation.set_nodes(silent)
    simulation.set_deployment(deployment(device="auto", replicas=3))
    simulation.settle()
    assert [r.placement_note for r in simulation.of() if r.phase is Phase.PENDING] == [
        "cuda:0 on a cannot be used: Xid 79"
    ]
    assert len(simulation.ready()) == 2
