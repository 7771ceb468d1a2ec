"""Who goes for whom, who waits for whom, and that it ends."""

from __future__ import annotations

import sys
from itertools import combinations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.worlds import RULES, Simulation, deployment, holder, node, world
from xinf.core.ids import DeploymentName, ReplicaId
from xinf.core.records import Phase, ReplicaRecord
from xinf.scheduler import (
    Action,
    Binding,
    Claims,
    Create,
    Fleet,
    Place,
    Placement,
    Refusal,
    Stop,
    View,
    World,
    place,
    plan,
    plan_deployment,
)
from xinf.scheduler.claims import Draft
from xinf.scheduler.place import Search
from xinf.scheduler.preempt import Eviction, find_eviction
from xinf.scheduler.value import Value, value_of


def stopped_by(actions: list[Action]) -> dict[str, str]:
    return {a.replica: a.reason for a in actions if isinstance(a, Stop) and a.cause == "preempted"}


def victims(start: World, name: str = "high") -> list[str]:
    """Whom a replica of `name` would push out."""
    view = View(start, RULES)
    search = Search(view.deployments[DeploymentName(name)], view.fleet, Draft(view.claims), view.rules, measured={})
    assert isinstance(search.find(), Refusal)
    found = find_eviction(search, view)
    return [] if found is None else [replica.id for replica in found.victims]


def full(*held: ReplicaRecord, n_cuda: int = 2, priorities: dict[str, int] | None = None, **high: object) -> World:
    """A node that is full, and a deployment of priority 5 that wants it."""
    priorities = priorities or {}
    low = [deployment(r.deployment, priority=priorities.get(r.deployment, 0)) for r in held]
    wish = deployment("high", priority=5, device="cuda", **high)  # type: ignore[arg-type]
    return world([*low, wish], [node(n_cuda=n_cuda, memory=24)], held)


def test_least_valuable_one_goes() -> None:
    start = full(holder("a", "GPU-a-0", name="x"), holder("a", "GPU-a-1", name="y"), priorities={"x": 1, "y": 2})
    assert victims(start) == ["x-1"]


def test_one_that_does_not_serve_yet_goes_before_one_that_does() -> None:
    start = full(holder("a", "GPU-a-0", name="x"), holder("a", "GPU-a-1", name="y", phase=Phase.LOADING))
    assert victims(start) == ["y-1"]


@pytest.mark.parametrize("priority", [5, 6])
def test_equal_and_higher_ones_stay(priority: int) -> None:
    start = full(holder("a", "GPU-a-0", name="x"), n_cuda=1, priorities={"x": priority})
    assert victims(start) == []
    assert stopped_by(plan(start, 1.0)) == {}


def test_nobody_goes_where_it_would_not_help() -> None:
    held = (holder("a", "GPU-a-0", name="x"), holder("a", "GPU-a-1", name="equal"))
    start = full(*held, priorities={"equal": 5}, tensor_parallel_size=2)
    assert victims(start) == []
    assert stopped_by(plan(full(holder("a", "GPU-a-0", name="x"), n_cuda=1, gib=25), 1.0, RULES)) == {}, (
        "it is too large anyway"
    )


def test_as_many_go_as_are_needed_and_no_more() -> None:
    held = [holder("a", f"GPU-a-{i}", name=f"x{i}") for i in range(4)]
    start = full(*held, n_cuda=4, tensor_parallel_size=2, priorities={"x0": 3, "x1": 1, "x2": 2, "x3": 4})
    assert victims(start) == ["x2-1", "x1-1"]


def test_any_number_of_low_ones_goes_before_one_that_matters_more() -> None:
    low = [holder("b", "GPU-b-0", name=f"s{i}", gib=5, shares=True) for i in range(3)]
    held = (holder("a", "GPU-a-0", name="x"), *low)
    wish = deployment("high", priority=5, device="cuda")
    others = [deployment("x", priority=2), *(deployment(f"s{i}", priority=1) for i in range(3))]
    start = world([wish, *others], [node("a", n_cuda=1, memory=24), node("b", n_cuda=1, memory=24)], held)
    assert sorted(victims(start)) == ["s0-1", "s1-1", "s2-1"]


def test_only_what_makes_room_on_a_shared_device_goes() -> None:
    held = [
        holder("a", "GPU-a-0", name="small", gib=4, shares=True),
        holder("a", "GPU-a-0", name="large", gib=12, shares=True),
    ]
    start = full(*held, n_cuda=1, gib=10, shares=True, priorities={"small": 1, "large": 1})
    assert victims(start) == ["large-1"]


def test_memory_of_the_processor_is_made_room_in_too() -> None:
    held = [holder("a", devices=("cpu",), name=n, gib=10) for n in ("x", "y")]
    low = [deployment(r.deployment, device="cpu") for r in held]
    high = deployment("high", priority=1, device="cpu", gib=8)
    start = world([*low, high], [node(cpu_memory=24)], held)
    assert len(victims(start)) == 1


def test_preempted_one_makes_room_and_waits_and_comes_back() -> None:
    simulation = Simulation(world([deployment("low", device="cuda")], [node(n_cuda=1)]))
    simulation.settle()
    (first,) = simulation.ready("low")
    simulation.set_deployment(deployment("high", device="cuda", priority=3))
    actions = simulation.plan_once()
    assert stopped_by(actions) == {first.id: "preempted by high: priority 3 over 0"}
    assert simulation.world.replicas[first.id].placement_note == "preempted by high: priority 3 over 0"
    (waiting,) = simulation.of("high")
    assert str(waiting.placement_note).startswith(f"waits for {first.id} on a to stop; 1 cuda needed on a, 0 of 1 free")
    simulation.settle()
    assert len(simulation.ready("high")) == 1
    (low,) = simulation.of("low")
    assert low.phase is Phase.PENDING
    assert f"cuda:0 has {waiting.id}" in str(low.placement_note)
    assert simulation.n_preempted == 1
    simulation.edit(deployments={DeploymentName("low"): deployment("low", device="cuda")})
    simulation.settle()
    assert [r.id for r in simulation.ready("low")] == [low.id]


def test_place_that_is_being_cleared_is_kept_from_lower_ones() -> None:
    """Two have to go for one; what the first of them leaves is nobody else's."""
    simulation = Simulation(world([deployment("low", replicas=2, device="cuda")], [node(n_cuda=2)]))
    simulation.settle()
    simulation.set_deployment(deployment("high", device="cuda", priority=1, tensor_parallel_size=2))
    assert len(stopped_by(simulation.plan_once())) == 2
    assert simulation.agents_step(), "one of the two has stopped"
    # The lower one is asked first now, whatever the order of events.
    view = View(simulation.world, RULES)
    made = plan_deployment(DeploymentName("low"), view, 1.0)
    assert not [a for a in made if isinstance(a, Place) or (isinstance(a, Create) and a.placement is not None)]
    simulation.settle()
    assert len(simulation.ready("high")) == 1
    assert simulation.n_preempted == 2


def test_nobody_is_stopped_for_what_becomes_free_by_itself() -> None:
    going = holder("a", "GPU-a-0", name="gone", target="stop", phase=Phase.DRAINING)
    start = full(holder("a", "GPU-a-1", name="x"), going)
    del start.deployments[DeploymentName("gone")]  # type: ignore[attr-defined]  # a dict of ours
    assert stopped_by(plan(start, 1.0)) == {}


def test_surge_of_an_update_stops_nobody() -> None:
    high = deployment("high", device="cuda", priority=1, replicas=2)
    simulation = Simulation(world([high, deployment("low", device="cuda")], [node(n_cuda=3)]))
    simulation.settle()
    simulation.set_deployment(msgspec.structs.replace(high, generation=2))
    simulation.settle()
    assert simulation.n_preempted == 0
    assert [r.generation for r in simulation.ready("high")] == [2, 2]
    assert len(simulation.ready("low")) == 1


def test_lost_replica_of_a_higher_priority_is_replaced_at_the_cost_of_a_lower_one() -> None:
    nodes = (node("a", n_cuda=1), node("b", n_cuda=1))
    simulation = Simulation(
        world([deployment("high", device="cuda", priority=1), deployment("low", device="cuda")], nodes)
    )
    simulation.settle()
    (high,) = simulation.ready("high")
    other = "b" if high.node == "a" else "a"
    simulation.set_nodes(node(other, n_cuda=1))
    simulation.settle()
    assert [r.node for r in simulation.of("high")] == [other]
    assert [r.phase for r in simulation.of("low")] == [Phase.PENDING]


def test_reason_of_a_node_that_is_full_is_kept_for_events() -> None:
    start = full(holder("a", "GPU-a-0", name="x"), n_cuda=1, priorities={"x": 5})
    (made,) = (a for a in plan(start, 1.0, RULES) if isinstance(a, Create) and a.deployment == "high")
    assert made.binding is Binding.TAKEN
    assert Claims(start.replicas.values()).on(next(iter(start.nodes))).n_replicas == 1


@st.composite
def fleets(draw: st.DrawFn) -> World:
    """Two or three nodes with shared and exclusive engines of several priorities on them."""
    priorities = {f"d{i}": draw(st.integers(0, 3)) for i in range(4)}
    nodes, held = [], []
    for name in draw(st.sampled_from(["a", "ab", "abc"])):
        nodes.append(node(name, n_cuda=2, memory=24, cpu_memory=32))
        for number in range(draw(st.integers(0, 5))):
            of = draw(st.sampled_from(sorted(priorities)))
            uuid = f"GPU-{name}-{draw(st.integers(0, 1))}"
            gib, shares = draw(st.sampled_from([(None, False), (3, True), (9, True)]))
            phase = draw(st.sampled_from([Phase.LOADING, Phase.READY]))
            made = holder(name, uuid, name=of, number=number, gib=gib, shares=shares, phase=phase)
            held.append(msgspec.structs.replace(made, id=ReplicaId(f"{of}-{name}{number}")))
    wish = deployment(
        "high",
        priority=2,
        device="cuda",
        gib=draw(st.sampled_from([None, 12, 20])),
        shares=draw(st.booleans()),
        tensor_parallel_size=draw(st.integers(1, 2)),
    )
    return world([wish, *(deployment(name, priority=p) for name, p in priorities.items())], nodes, held)


@given(start=fleets())
@settings(max_examples=300, deadline=None)
def test_nobody_goes_who_could_be_spared(start: World) -> None:
    """Against trying every set on every node."""
    view = View(start, RULES)
    wish = view.deployments[DeploymentName("high")]
    search = Search(wish, view.fleet, Draft(view.claims), view.rules, measured={})
    if not isinstance(search.find(), Refusal):
        return
    best: list[tuple[Value, ...]] = []
    for name in start.nodes:
        on_node = [r for r in start.replicas.values() if r.node == name]
        lower = [r for r in on_node if start.deployments[r.deployment].priority < wish.priority]
        for size in range(1, len(lower) + 1):
            for gone in combinations(lower, size):
                rest = Claims(r for r in on_node if r not in gone)
                if isinstance(place(wish, Fleet([start.nodes[name]]), rest, view.rules, measured={}), Placement):
                    values = (value_of(r, start.deployments[r.deployment].priority) for r in gone)
                    best.append(tuple(sorted(values, reverse=True)))
    found = find_eviction(search, view)
    if found is None:
        assert best == []
    else:
        assert tuple(value_of(r, start.deployments[r.deployment].priority) for r in found.victims) == min(best)


def test_many_that_wait_in_vain_ask_once_whom_they_may_push_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def count(search: Search, view: View) -> Eviction | None:
        asked.append(search)
        return find_eviction(search, view)

    monkeypatch.setattr(sys.modules["xinf.scheduler.plan"], "find_eviction", count)
    start = full(holder("a", "GPU-a-0", name="x"), holder("a", "GPU-a-1", name="y"), replicas=40, gib=30)
    actions = plan_deployment(DeploymentName("high"), View(start, RULES), 0)
    assert (len(actions), stopped_by(actions), len(asked)) == (40, {}, 1)


def test_more_than_one_plan_pushes_out_go_in_several() -> None:
    held = [holder(f"n{n}", f"GPU-n{n}-0", name="low", number=n) for n in range(20)]
    low, high = deployment("low", replicas=20), deployment("high", replicas=20, device="cuda", priority=5)
    simulation = Simulation(world([low, high], [node(f"n{n}", n_cuda=1) for n in range(20)], held))
    assert len(stopped_by(simulation.plan_once())) == 8
    simulation.settle()
    assert len(simulation.ready("high")) == 20
    assert {replica.phase for replica in simulation.of("low")} == {Phase.PENDING}
