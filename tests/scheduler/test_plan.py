"""What the plan does for each situation, and that repeating it always ends, never giving a device twice."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.worlds import RULES, Simulation, deployment, holder, node, world
from xinf.core.ids import DeploymentName
from xinf.core.records import DeploymentRecord, Phase, ReplicaRecord
from xinf.scheduler import Create, Delete, Stop, World, plan


def settled(*nodes: object, **wish: object) -> Simulation:
    """A world in which one deployment `m` runs as wished."""
    simulation = Simulation(world([deployment(**wish)], nodes))  # type: ignore[arg-type]
    simulation.settle()
    return simulation


def test_new_deployment_is_created_and_placed_at_once() -> None:
    (action,) = plan(world([deployment()], [node(n_cuda=1)]), 5.0)
    assert isinstance(action, Create)
    assert action.placement is not None
    assert action.placement.device_uuids == ("GPU-a-0",)


def test_replica_without_a_place_waits_with_the_reason_and_gets_the_next_one() -> None:
    simulation = settled(node(), device="cuda")
    (replica,) = simulation.of()
    assert (replica.phase, replica.placement_note) == (Phase.PENDING, "a has no device cuda; it has cpu")
    simulation.set_nodes(node(n_cuda=1))
    simulation.settle()
    assert [r.id for r in simulation.ready()] == [replica.id]


def test_reason_is_written_when_it_changes_and_not_again() -> None:
    simulation = settled(node(), device="cuda")
    simulation.set_nodes()
    assert len(simulation.plan_once()) == 1
    assert simulation.plan_once() == []
    assert "no node is registered" in str(simulation.of()[0].placement_note)


def test_scale_up_and_down() -> None:
    simulation = settled(node(n_cuda=4), replicas=1)
    simulation.set_deployment(deployment(replicas=3))
    simulation.settle()
    assert len(simulation.ready()) == 3
    simulation.set_deployment(deployment(replicas=0))
    simulation.settle()
    assert simulation.of() == []


def test_scale_down_drains_the_least_useful_first() -> None:
    simulation = settled(node(n_cuda=4), replicas=2)
    simulation.set_deployment(deployment(replicas=3))
    simulation.plan_once()  # the third is placed, not ready
    (placed,) = (r for r in simulation.of() if r.phase is Phase.PLACED)
    simulation.set_deployment(deployment(replicas=2))
    (action,) = simulation.plan_once()
    assert isinstance(action, Stop)
    assert action.replica == placed.id


def test_failed_replica_keeps_its_place() -> None:
    simulation = settled(node(n_cuda=1))
    simulation.edit(replicas={r.id: msgspec.structs.replace(r, phase=Phase.FAILED) for r in simulation.of()})
    assert simulation.plan_once() == []


def test_deleted_deployment_stops_all_then_deletes() -> None:
    simulation = settled(node(n_cuda=2), replicas=2)
    simulation.edit(deployments={})
    assert {type(action) for action in simulation.plan_once()} == {Stop}
    simulation.settle()
    assert simulation.of() == []


@pytest.mark.parametrize("n", [1, 3])
def test_rolling_update_never_has_fewer_ready_replicas(n: int) -> None:
    simulation = settled(node(n_cuda=n + 1), replicas=n)
    simulation.lowest_ready = n
    simulation.set_deployment(deployment(replicas=n, generation=2))
    most = 0
    for _ in range(100):
        if not simulation.plan_once() and not simulation.agents_step():
            break
        most = max(most, sum(r.target == "run" for r in simulation.of()))
    assert {r.generation for r in simulation.ready()} == {2}
    assert len(simulation.of()) == n
    assert simulation.lowest_ready == n
    assert most == n + 1


def test_update_without_a_free_device_replaces_in_place_one_by_one() -> None:
    simulation = settled(node(n_cuda=2), replicas=2)
    simulation.lowest_ready = 2
    simulation.set_deployment(deployment(replicas=2, generation=2))
    simulation.settle()
    assert [r.generation for r in simulation.ready()] == [2, 2]
    assert simulation.lowest_ready == 1


def test_update_that_has_no_place_at_all_leaves_the_old_one_serving() -> None:
    simulation = settled(node(n_cuda=1))
    simulation.set_deployment(deployment(generation=2, device="rocm"))
    simulation.settle()
    assert [r.generation for r in simulation.ready()] == [1]
    (waiting,) = (r for r in simulation.of() if r.generation == 2)
    assert "no device rocm" in str(waiting.placement_note)


def test_update_back_and_forth_ends_at_the_last_wish() -> None:
    simulation = settled(node(n_cuda=2), replicas=2)
    for generation in (2, 3, 4):
        simulation.set_deployment(deployment(replicas=2, generation=generation))
        simulation.plan_once()
        simulation.agents_step()
    simulation.settle()
    assert [r.generation for r in simulation.ready()] == [4, 4]


def test_replica_of_a_lost_node_is_replaced_and_then_deleted() -> None:
    simulation = settled(node("a", n_cuda=1), node("b", n_cuda=1))
    (first,) = simulation.of()
    other = "b" if first.node == "a" else "a"
    simulation.set_nodes(node(other, n_cuda=1))
    (action,) = simulation.plan_once()
    assert isinstance(action, Create)
    assert first.id in simulation.world.replicas, "it may serve on until the replacement is ready"
    simulation.settle()
    assert [r.node for r in simulation.of()] == [other]


def test_replica_of_a_lost_node_is_kept_when_there_is_no_other_place() -> None:
    simulation = settled(node("a", n_cuda=1), device="cuda")
    simulation.set_nodes(node("b"))
    assert simulation.plan_once() == []
    assert len(simulation.ready()) == 1


def test_node_that_comes_back_in_time_keeps_its_replica() -> None:
    simulation = settled(node("a", n_cuda=1), node("b", n_cuda=1))
    (first,) = simulation.of()
    other = "b" if first.node == "a" else "a"
    simulation.set_nodes(node(other, n_cuda=1))
    simulation.plan_once()
    simulation.set_nodes(node("a", n_cuda=1), node("b", n_cuda=1))
    simulation.settle()
    assert [r.id for r in simulation.of()] == [first.id]


def test_stopping_replica_of_a_lost_node_is_left_to_its_agent() -> None:
    simulation = settled(node("a", n_cuda=1))
    simulation.edit(deployments={})
    simulation.plan_once()
    simulation.set_nodes()
    (action,) = simulation.plan_once()
    assert isinstance(action, Delete)


def test_two_deployments_of_one_plan_get_different_devices() -> None:
    start = world([deployment("x"), deployment("y"), deployment("z")], [node(n_cuda=2)])
    placements = [action.placement for action in plan(start, 1.0) if isinstance(action, Create)]
    assert [p.device_uuids if p else None for p in placements] == [("GPU-a-0",), ("GPU-a-1",), None]


def test_device_of_a_stopping_replica_is_free_only_when_it_is_gone() -> None:
    simulation = settled(node(n_cuda=1))
    simulation.edit(deployments={DeploymentName("y"): deployment("y")})
    simulation.plan_once()
    assert [r.phase for r in simulation.of("y")] == [Phase.PENDING]
    simulation.settle()
    assert len(simulation.ready("y")) == 1


wishes = st.builds(
    deployment,
    st.sampled_from("xyz"),
    replicas=st.integers(0, 4),
    generation=st.integers(1, 3),
    device=st.sampled_from(["auto", "cuda", "cuda:0", "cpu", "cuda:0,cuda:1", "rocm"]),
    tensor_parallel_size=st.integers(1, 2),
)
hosts = st.dictionaries(st.sampled_from("abc"), st.integers(0, 3)).map(
    lambda found: [node(name, n_cuda=n) for name, n in found.items()]
)
stages = st.lists(st.tuples(st.lists(wishes, max_size=3), hosts, st.integers(0, 12)), min_size=1, max_size=5)


@given(stages=stages, seed=st.integers(0, 2**16))
@settings(max_examples=300, deadline=None)
def test_any_history_settles_and_never_gives_a_device_twice(stages: list[tuple], seed: int) -> None:  # type: ignore[type-arg]
    """Wishes and nodes change at random moments; every step checks the devices, the end checks the counts."""
    simulation = Simulation(world(), seed=seed)
    stored: dict[DeploymentName, tuple[DeploymentRecord, int]] = {}
    for deployments, nodes, n_steps in stages:
        deployments = [as_stored(wish, stored) for wish in deployments]
        simulation.edit(deployments={d.name: d for d in deployments}, nodes={n.name: n for n in nodes})
        for _ in range(n_steps):
            simulation.plan_once()
            simulation.agents_step()
    simulation.settle()
    final = simulation.world
    for name, wish in final.deployments.items():
        stays = {r.id for r in simulation.of(name) if r.generation == wish.generation and has_devices(r, final)}
        current = [r for r in simulation.of(name) if r.id in stays and r.target == "run"]
        present = [r for r in current if r.node is None or r.node in final.nodes]
        lost = len(current) - len(present)
        old = [r for r in simulation.of(name) if r.id not in stays and r.node in final.nodes]
        assert wish.replicas - lost - len(old) <= len(present) <= wish.replicas
        # An earlier generation, or one whose devices are gone, serves on only where the wished one has no place.
        assert not old or any(r.node is None for r in present)
    assert all(r.deployment in final.deployments for r in final.replicas.values())


def as_stored(wish: DeploymentRecord, stored: dict[DeploymentName, tuple[DeploymentRecord, int]]) -> DeploymentRecord:
    """Give a wish the generation that the store would: the next one when its spec changes, never one of before.

    What is drawn as its generation counts as a part of the spec.
    """
    before, generation = stored.get(wish.name, (None, 0))
    if before is None or (before.spec, before.generation) != (wish.spec, wish.generation):
        generation += 1
    stored[wish.name] = (wish, generation)
    return msgspec.structs.replace(wish, generation=generation)


def has_devices(replica: ReplicaRecord, final: World) -> bool:
    """Whether the node of a replica still has its devices, as far as anybody can tell."""
    host = final.nodes.get(replica.node) if replica.node is not None else None
    return host is None or set(replica.device_uuids) <= {device.uuid for device in host.devices}


@given(stages=stages)
@settings(max_examples=30, deadline=None)
def test_plan_is_deterministic(stages: list[tuple]) -> None:  # type: ignore[type-arg]
    deployments, nodes, _ = stages[0]
    start = world(deployments, nodes)
    again = world(reversed(deployments), reversed(nodes))
    if len({d.name for d in deployments}) == len(deployments):
        assert plan(start, 1.0) == plan(again, 1.0) == plan(start, 1.0)


def test_reason_names_no_replica_that_is_not_there_yet() -> None:
    host = node(n_cuda=1, memory=24)
    wish = deployment(replicas=3, gib=10, shares=True, device="cuda")
    there = holder("a", "GPU-a-0", name="m", gib=10, shares=True, devices=("cuda:0",))
    for replicas, said in (([], "2 placed at the same time"), ([there], "m-1 and 1 more")):
        actions = plan(world([wish], [host], replicas), 0.0, RULES)
        *_, last = [action.reason for action in actions if isinstance(action, Create)]
        assert last.endswith(f"free (20 GiB held by {said})")
