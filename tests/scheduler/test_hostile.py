"""Histories that somebody who wishes the scheduler ill would make up: what goes wrong at the worst moment, and records
that nobody sane would write."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.registry.planned_models import QWEN_7B
from tests.scheduler.test_properties import RULES as JUDGED_RULES
from tests.scheduler.test_properties import enter, has_shrunk, stages
from tests.scheduler.worlds import GIB, RULES, Simulation, deployment, holder, need, node, plan_need, world
from xinf.core.device import Health
from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.model import ModelFacts
from xinf.core.records import DeploymentRecord, EngineSpec, MemoryNeed, NodeRecord, Phase
from xinf.scheduler import (
    Binding,
    Claims,
    Create,
    Fleet,
    Refusal,
    Rules,
    View,
    place,
    plan,
    plan_deployment,
)

replace = msgspec.structs.replace


def states(simulation: Simulation, name: str = "m") -> list[tuple[int, str | None, str]]:
    found = [(r.generation, r.node, r.phase.value) for r in simulation.of(name)]
    return sorted(found, key=lambda state: (state[0], state[1] or "", state[2]))


# ---- updates where memory fits only one ------------------------------------------------------------------------------


def test_update_in_place_takes_the_place_that_is_large_enough_not_the_oldest() -> None:
    """The oldest is on a small card: its going would make no room, that of the other does."""
    cards = [node("a", n_cuda=1, memory=16), node("b", n_cuda=1, memory=80)]
    old = [holder(n, f"GPU-{n}-0", name="m", number=i, devices=("cuda:0",), gib=10) for i, n in enumerate("ab")]
    simulation = Simulation(world([deployment(replicas=2, generation=2, device="cuda", gib=40)], cards, old))
    simulation.settle()
    assert (2, "b", "ready") in states(simulation)
    assert (1, "a", "ready") in states(simulation), "what has no place for its successor serves on"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_update_of_an_engine_that_fills_its_host_goes_in_place(device: str) -> None:
    host = node(n_cuda=1, memory=32, cpu_memory=32, is_unified=True)
    simulation = Simulation(world([deployment(device=device, gib=20)], [host]))
    simulation.settle()
    for generation in (2, 3):
        simulation.set_deployment(deployment(device=device, gib=20, generation=generation))
        simulation.settle()
        assert states(simulation) == [(generation, "a", "ready")]


def test_update_that_needs_the_memory_of_two_leaves_both_serving() -> None:
    """One for two is no update that anybody asked for."""
    old = [holder("a", f"GPU-a-{i}", name="m", number=i, devices=(f"cuda:{i}",), gib=10) for i in range(2)]
    wish = deployment(replicas=2, generation=2, device="cuda", gib=10, tensor_parallel_size=2)
    simulation = Simulation(world([wish], [node(n_cuda=2, memory=24)], old))
    simulation.settle()
    assert [state for state in states(simulation) if state[0] == 1] == [(1, "a", "ready")] * 2
    assert simulation.lowest_ready == 2


# ---- equals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("other", ["a-waits", "z-waits"])
def test_equal_that_waits_does_not_get_what_an_update_in_place_gave_up(other: str, seed: int) -> None:
    """Whatever their names are, and whichever agent moves first; so two of one priority do not thrash."""
    simulation = Simulation(world([deployment(device="cuda", gib=10)], [node(n_cuda=1, memory=24)]), seed=seed)
    simulation.settle()
    simulation.set_deployment(deployment(other, device="cuda", gib=10))
    simulation.settle()
    for generation in range(2, 6):
        simulation.set_deployment(deployment(device="cuda", gib=10, generation=generation))
        simulation.settle()
        assert states(simulation) == [(generation, "a", "ready")]
        assert states(simulation, other) == [(1, None, "pending")]


def test_equal_gets_the_place_of_one_that_is_scaled_down_and_updated_at_once() -> None:
    simulation = Simulation(world([deployment(replicas=2, device="cuda", gib=10)], [node(n_cuda=2, memory=24)]))
    simulation.settle()
    simulation.set_deployment(deployment("other", device="cuda", gib=10))
    simulation.set_deployment(deployment(replicas=1, generation=2, device="cuda", gib=10))
    simulation.settle()
    assert states(simulation) == [(2, "a", "ready")]
    assert states(simulation, "other") == [(1, "a", "ready")]


@pytest.mark.parametrize("seed", range(6))
def test_equals_that_are_updated_in_place_together_both_end_well(seed: int) -> None:
    """Each keeps a place for the other while it waits: one of them has to go first."""
    wishes = [deployment(name, device="cuda", gib=10) for name in ("m", "n")]
    simulation = Simulation(world(wishes, [node(n_cuda=2, memory=24)]), seed=seed)
    simulation.settle()
    for name in ("m", "n"):
        simulation.set_deployment(deployment(name, device="cuda", gib=20, generation=2))
    simulation.settle()
    assert states(simulation) == states(simulation, "n") == [(2, "a", "ready")]


# ---- preemption ------------------------------------------------------------------------------------------------------


def test_memory_of_others_that_jumps_while_somebody_is_pushed_out_pushes_nobody_else() -> None:
    """At each step others seem to use what the victim lets go of: it may be the victim, told of too late."""
    hosts = [node(name, n_cuda=1, memory=24) for name in "abcd"]
    lows = [deployment("low", replicas=4, device="cuda", gib=10)]
    simulation = Simulation(world(lows, hosts))
    simulation.settle()
    simulation.set_deployment(deployment("high", device="cuda", gib=20, priority=1))
    simulation.plan_once()
    assert simulation.n_preempted == 1
    (victim,) = (r for r in simulation.of("low") if r.target == "stop")
    for turn in range(8):
        jumped = [node(h.name, n_cuda=1, memory=24, foreign={f"GPU-{h.name}-0": 9 * (turn % 2)}) for h in hosts]
        simulation.set_nodes(*(j if j.name == victim.node else h for j, h in zip(jumped, hosts, strict=True)))
        simulation.plan_once()
    simulation.set_nodes(*hosts)
    simulation.settle()
    assert simulation.n_preempted == 1
    assert states(simulation, "high") == [(1, victim.node, "ready")]


def test_next_one_goes_when_others_keep_what_was_cleared() -> None:
    hosts = [node(name, n_cuda=1, memory=24) for name in "ab"]
    simulation = Simulation(world([deployment("low", replicas=2, device="cuda", gib=10)], hosts))
    simulation.settle()
    simulation.set_deployment(deployment("high", device="cuda", gib=20, priority=1))
    simulation.plan_once()
    (victim,) = (r for r in simulation.of("low") if r.target == "stop")
    simulation.set_nodes(
        *(node(h.name, n_cuda=1, memory=24, foreign={f"GPU-{h.name}-0": 9 * (h.name == victim.node)}) for h in hosts)
    )
    simulation.settle()
    assert simulation.n_preempted == 2
    assert [phase for _, _, phase in states(simulation, "high")] == ["ready"]


@pytest.mark.parametrize("seed", range(5))
def test_chain_of_priorities_ends_with_each_pushed_out_at_most_once(seed: int) -> None:
    """Whoever is pushed out pushes out who matters less, and so on; nobody comes back to push."""
    hosts = [node(n_cuda=3, memory=24, cpu_memory=32)]
    lower = [deployment(f"p{p}", device="cuda", gib=10, priority=p) for p in range(3)]
    simulation = Simulation(world(lower, hosts), seed=seed)
    simulation.settle()
    simulation.set_deployment(deployment("p3", device="cuda", gib=10, priority=3))
    simulation.settle()
    assert simulation.n_preempted == 1, "the least valuable at once, nobody in between"
    assert states(simulation, "p0") == [(1, None, "pending")]
    simulation.set_deployment(deployment("p3", replicas=3, device="cuda", gib=10, priority=3))
    simulation.settle()
    assert [p for p in range(3) if states(simulation, f"p{p}") != [(1, None, "pending")]] == []
    assert simulation.n_preempted == 3


# ---- nodes that vanish -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("comes_back", [True, False])
@pytest.mark.parametrize("n_steps", range(5))
def test_node_that_vanishes_while_somebody_is_bound_to_it_costs_but_time(n_steps: int, comes_back: bool) -> None:
    """Also a victim's node, while it is being cleared."""
    hosts = [node("a", n_cuda=1, memory=24), node("b", n_cuda=1, memory=24)]
    wishes = [deployment("low", replicas=2, device="cuda", gib=10)]
    simulation = Simulation(world(wishes, hosts), seed=n_steps)
    simulation.settle()
    simulation.set_deployment(deployment("high", device="cuda", gib=10, priority=1))
    for _ in range(n_steps):
        simulation.plan_once()
        simulation.agents_step()
    gone = next((r.node for r in simulation.of("high") if r.node), None) or "a"
    simulation.set_nodes(*(host for host in hosts if host.name != gone))
    for _ in range(3):
        simulation.plan_once()
        simulation.agents_step()
    if comes_back:
        simulation.set_nodes(*hosts)
    simulation.settle()
    assert len(simulation.ready("high")) == 1
    assert simulation.ready("high")[0].node in simulation.world.nodes
    assert sum(r.node in simulation.world.nodes for r in simulation.ready("low")) == comes_back


def test_node_that_comes_back_with_other_cards_is_left_by_what_was_on_the_old_ones() -> None:
    simulation = Simulation(world([deployment(device="cuda", gib=10)], [node(n_cuda=1, memory=24)]))
    simulation.settle()
    simulation.set_nodes()
    simulation.plan_once()
    other = node(n_cuda=1, memory=24)
    cards = tuple(replace(d, uuid=d.uuid.replace("GPU-a-0", "GPU-a-9")) for d in other.devices)
    simulation.set_nodes(replace(other, devices=cards))
    simulation.settle()
    assert [r.device_uuids for r in simulation.ready()] == [("GPU-a-9",)]


# ---- clocks ----------------------------------------------------------------------------------------------------------


@given(stages=stages, seed=st.integers(0, 2**16), shift=st.floats(-1e12, 1e12), spread=st.floats(-1e6, 1e6))
@settings(max_examples=60, deadline=None)
def test_clocks_of_nodes_decide_nothing(stages: list[tuple], seed: int, shift: float, spread: float) -> None:  # type: ignore[type-arg]
    """What agents and an earlier scheduler wrote by clocks of their own changes no plan, as long as order is kept."""
    simulation = Simulation(world(), seed=seed, rules=JUDGED_RULES)
    for stage in stages:
        n_steps = enter(simulation, stage)
        simulation.edit(replicas={} if has_shrunk(simulation) else simulation.world.replicas)
        for _ in range(n_steps):
            simulation.plan_once()
            simulation.agents_step()
        start = simulation.world
        skewed = {
            id_: replace(
                r,
                created_s=r.created_s - 1e9,
                phase_since_s={phase: at_s + shift + spread * number for phase, at_s in r.phase_since_s.items()},
                retry_at_s=shift,
            )
            for number, (id_, r) in enumerate(start.replicas.items())
        }
        turned = replace(start, replicas=skewed)
        assert plan(turned, shift, JUDGED_RULES) == plan(start, 5.0, JUDGED_RULES)


# ---- absurd records --------------------------------------------------------------------------------------------------


def test_wish_for_more_than_there_can_be_is_planned_in_parts_and_waits_in_bounded_numbers() -> None:
    host = node(n_cuda=2, memory=24)
    simulation = Simulation(world([deployment(replicas=10**9, device="cuda", gib=10)], [host]))
    assert len(simulation.plan_once()) == 500
    for _ in range(4):
        simulation.plan_once()
    assert len(simulation.ready()) + len(simulation.of()) == 1002
    assert simulation.plan_once() == []
    simulation.set_deployment(deployment(replicas=1, device="cuda", gib=10))
    simulation.settle()
    assert len(simulation.of()) == 1


def test_memory_that_moves_is_not_written_into_the_notes_of_all_who_wait() -> None:
    """Each note is a write to the store, and a thousand of them hold up every other plan."""
    wish = deployment(replicas=300, device="cuda", gib=20)
    simulation = Simulation(world([wish], [node(n_cuda=1, memory=24, foreign={"GPU-a-0": 8})]))
    simulation.settle()
    assert len({r.placement_note for r in simulation.of()}) == 1
    simulation.set_nodes(node(n_cuda=1, memory=24, foreign={"GPU-a-0": 9}))
    assert len(simulation.plan_once()) == 16
    simulation.set_nodes(node(n_cuda=0))
    assert len(simulation.plan_once()) == 300, "another constraint binds"
    assert simulation.plan_once() == []


def test_card_that_is_listed_twice_is_there_once() -> None:
    host = node(n_cuda=1, memory=24)
    twice = replace(host, devices=(replace(host.devices[0], index=1), *host.devices))
    found = place(deployment(device="cuda", gib=3, tensor_parallel_size=2), Fleet([twice]), Claims(), RULES)
    assert isinstance(found, Refusal)
    simulation = Simulation(world([deployment(replicas=2, device="cuda", gib=3)], [twice]))
    simulation.settle()
    assert len(simulation.ready()) == 1


def test_wish_that_cannot_be_reckoned_with_is_told_so_and_keeps_nobody_from_a_place() -> None:
    def reckon(spec: EngineSpec, *args: object, **known: object) -> MemoryNeed | None:
        if spec.model == "absurd":
            raise ZeroDivisionError("division by zero")
        return plan_need(spec, *args, **known)  # type: ignore[arg-type]

    rules = Rules(judge=None, planner=reckon)
    absurd = deployment("absurd", device="cuda", gib=3, priority=5)
    absurd = replace(absurd, spec=replace(absurd.spec, model="absurd"))
    waiting = replace(holder("a", name="absurd"), node=None, phase=Phase.PENDING)
    start = world([absurd, deployment("good", device="cuda", gib=3)], [node(n_cuda=1, memory=24)], [waiting])
    view = View(start, rules)
    (made,) = plan_deployment(DeploymentName("good"), view, 1.0)
    assert isinstance(made, Create)
    assert made.placement is not None
    found = place(absurd, view.fleet, Claims(), rules)
    assert isinstance(found, Refusal)
    assert found.binding is Binding.CAPABILITY
    assert "cuda:0 cannot run it: what it needs cannot be told: ZeroDivisionError: division by zero" in found.note


def numbers(*usual: int | None) -> st.SearchStrategy[int | None]:
    return st.sampled_from([*usual, None, 0, -1, -(1 << 62), 1 << 62])


@st.composite
def absurd_nodes(draw: st.DrawFn, name: str) -> NodeRecord:
    made = node(name, n_cuda=draw(st.integers(0, 3)), memory=24, cpu_memory=32, is_unified=draw(st.booleans()))
    total = st.sampled_from(["", "unified", 0, -1, 1 << 62, 5 << 30])
    devices = tuple(
        replace(
            d,
            memory_bytes=draw(numbers(24 * GIB)),
            index=draw(st.sampled_from([d.index, 0, 7])),
            uuid=draw(st.sampled_from([d.uuid, d.uuid, "GPU-a-0", ""])),
            parent=draw(st.sampled_from([None, None, d.uuid, "GPU-a-0"])),
            health=draw(st.sampled_from([Health.OK, *Health])),
            extra={**d.extra, "memory_total_bytes": draw(total)},
        )
        for d in made.devices
    )
    uuids = st.sampled_from([*(d.uuid for d in devices), "CPU-elsewhere"])
    sizes = numbers(GIB).map(lambda size: 0 if size is None else size)
    return replace(
        made,
        devices=devices,
        foreign_bytes=draw(st.dictionaries(uuids, sizes, max_size=3)),
        unplanned_bytes=draw(st.dictionaries(st.sampled_from([ReplicaId("h-0"), ReplicaId("h-1")]), sizes)),
    )


@st.composite
def absurd_wishes(draw: st.DrawFn, name: str) -> DeploymentRecord:
    made = deployment(
        name,
        replicas=draw(st.sampled_from([1, 3, 0, -7])),
        generation=draw(st.sampled_from([1, 2, -3])),
        device=draw(st.sampled_from(["auto", "cuda", "cpu", "", ",", "cuda:9999", "GPU-a-0,cpu"])),
        tensor_parallel_size=draw(st.sampled_from([1, 2, 0, -4, 1 << 40])),
        shares=draw(st.booleans()),
        priority=draw(st.sampled_from([0, 1, -(1 << 62), 1 << 62])),
    )
    facts = replace(
        QWEN_7B,
        n_heads=draw(numbers(28)),
        hidden_size=draw(numbers(3584)),
        context_tokens=draw(numbers(32768)),
        vocabulary_size=draw(numbers(152064)),
        weight_bytes=draw(numbers(15 << 30)),
        kv=tuple(replace(k, n_kv_heads=draw(st.sampled_from([4, 0, -2]))) for k in QWEN_7B.kv),
    )
    args = draw(
        st.dictionaries(
            st.sampled_from(["gpu_memory_utilization", "kv-cache-memory-bytes", "max_num_seqs", "block_size"]),
            st.sampled_from([0.5, 0, -1, "nan", "much", 1 << 62, True]),
            max_size=2,
        )
    )
    model = draw(st.sampled_from([facts, facts, None, ModelFacts()]))
    return replace(made, model=model, spec=replace(made.spec, engine_args=args))


@given(
    wishes=st.lists(st.sampled_from("wxyz").flatmap(absurd_wishes), max_size=4, unique_by=lambda d: d.name),
    hosts=st.lists(st.sampled_from("ab").flatmap(absurd_nodes), max_size=2, unique_by=lambda n: n.name),
    holders=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "elsewhere", None]),
            st.lists(st.sampled_from(["GPU-a-0", "GPU-b-1", "", "GPU-none"]), max_size=3),
            numbers(GIB),
            st.sampled_from(list(Phase)),
            st.sampled_from(["run", "stop"]),
            st.sampled_from(["w", "x", "nobody"]),
        ),
        max_size=4,
    ),
)
@settings(max_examples=300, deadline=None)
def test_absurd_records_never_end_a_plan(
    wishes: list[DeploymentRecord],
    hosts: list[NodeRecord],
    holders: list[tuple[str | None, list[str], int | None, Phase, str, str]],
) -> None:
    """With the real tables and memory plans. What comes of it matters little; that others are planned does."""
    held = [
        replace(
            holder("a", *uuids, name="h", number=number, phase=phase, target=target),
            deployment=DeploymentName(owner),
            node=None if where is None else NodeName(where),
            need=None if size is None else replace(need(0), weights_bytes=size),
            created_s=-1e300,
        )
        for number, (where, uuids, size, phase, target, owner) in enumerate(holders)
    ]
    start = world([*wishes, deployment("sane", device="cpu", gib=1)], hosts, held)
    actions = plan(start, 1.0, Rules())
    assert any(isinstance(a, Create) and a.deployment == "sane" for a in actions)
