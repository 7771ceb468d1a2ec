"""What holds for every world: no room is promised twice, order is nothing, the reason given is the one that binds."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.worlds import (
    CPU_ENVIRONMENT,
    CUDA_ENVIRONMENT,
    GIB,
    Simulation,
    deployment,
    holder,
    node,
    plan_need,
    with_health,
    world,
)
from tests.scheduler.worlds import (
    RULES as PLAIN_RULES,
)
from xinf.core.device import Device, Health, Vendor
from xinf.core.ids import NodeName
from xinf.core.model import ModelFacts
from xinf.core.records import CordonRecord, DeploymentRecord, EngineEnvironment, EngineSpec, NodeRecord, ReplicaRecord
from xinf.scheduler import Binding, Claims, Fleet, Placement, Refusal, Rules, Stop, World, place, plan

T = TypeVar("T")
HUGE = 1 << 60
UNFIT = "zz"  # a node whose cards can do nothing
IDS = [f"{name}-{number:04d}" for name in "wxyz" for number in range(1, 6)]  # of replicas, as a simulation makes them


def mostly(usual: T, *others: T) -> st.SearchStrategy[T]:
    """The usual three times out of four: a world in which everything is odd fails at the first question."""
    return st.sampled_from([usual] * 3 * max(1, len(others)) + list(others))


def judge(_: EngineSpec, device: Device, __: EngineEnvironment, ___: ModelFacts | None) -> str | None:
    return "it cannot" if device.name == UNFIT else None


RULES = Rules(judge=judge, planner=plan_need)


@st.composite
def nodes(draw: st.DrawFn, name: str) -> NodeRecord:
    """A node of up to four cards, used by others, hot, broken, without an engine, unfit: anything."""
    n_cuda = draw(st.integers(0, 4))
    mixed = draw(st.lists(st.sampled_from([16, 24, 80]), min_size=n_cuda, max_size=n_cuda))
    made = node(
        name,
        n_cuda=n_cuda,
        memory=draw(mostly(24, None, 16, 80)),
        memories=mixed if draw(st.booleans()) else (),
        cpu_memory=draw(st.sampled_from([None, 32])),
        is_unified=draw(mostly(False, True)),
        unplanned=draw(st.dictionaries(st.sampled_from(IDS), st.sampled_from([1, 6, 12]), max_size=3)),
        foreign={f"GPU-{name}-{i}": draw(st.integers(0, 20)) for i in range(n_cuda)},
        labels=draw(mostly({"zone": "a"}, {}, {"zone": "b"})),
        environments=draw(mostly((CPU_ENVIRONMENT, CUDA_ENVIRONMENT), (CPU_ENVIRONMENT,), ())),
    )
    for number in range(n_cuda):
        state = draw(mostly(Health.OK, Health.DEGRADED, Health.SILENT, Health.FAULTY))
        made = with_health(made, f"GPU-{name}-{number}", state)
    if draw(mostly(False, True)):
        made = msgspec.structs.replace(
            made, devices=tuple(msgspec.structs.replace(d, name=UNFIT) for d in made.devices)
        )
    return made


@st.composite
def plain_nodes(draw: st.DrawFn, name: str) -> NodeRecord:
    """A node on which only room can be missing."""
    n_cuda = draw(st.integers(1, 4))
    foreign = {f"GPU-{name}-{i}": draw(st.integers(0, 20)) for i in range(n_cuda)}
    memories = draw(st.lists(st.sampled_from([16, 24]), min_size=n_cuda, max_size=n_cuda))
    return node(name, memories=memories, cpu_memory=16, foreign=foreign, labels={"zone": "a"})


@st.composite
def wishes(draw: st.DrawFn, name: str = "m", device: str | None = None) -> DeploymentRecord:
    selector = device or draw(st.sampled_from(["auto", "cuda", "cuda:0", "cpu"]))
    return deployment(
        name,
        replicas=draw(st.integers(0, 4)),
        generation=draw(st.integers(1, 2)),
        device=selector,
        tensor_parallel_size=1 if selector == "cuda:0" else draw(st.integers(1, 2)),
        gib=draw(st.sampled_from([None, 3, 7, 14, 30])),
        # What other kinds of device need: more, less, or nobody can tell.
        gib_of=draw(
            st.dictionaries(st.sampled_from(["cpu", "card16", "card24", "card80"]), st.sampled_from([2, 9, 15, -1]))
        ),
        shares=draw(st.booleans()),
        priority=draw(st.integers(0, 2)),
        labels=draw(mostly({}, {"zone": "a"})),
        placement=draw(st.sampled_from(["spread", "pack"])),
    )


def cordons(names: str) -> st.SearchStrategy[list[CordonRecord]]:
    made = st.builds(CordonRecord, node=st.sampled_from(names).map(NodeName), is_draining=st.booleans())
    return st.lists(made, max_size=1)


stages = st.lists(
    st.tuples(
        st.lists(st.sampled_from("wxyz").flatmap(wishes), max_size=4, unique_by=lambda d: d.name),
        st.lists(st.sampled_from("abc").flatmap(nodes), max_size=3, unique_by=lambda n: n.name),
        cordons("abc"),
        st.integers(0, 12),
    ),
    min_size=1,
    max_size=4,
)


def enter(simulation: Simulation, stage: tuple) -> int:  # type: ignore[type-arg]
    """Change the world; returns how many steps it is left alone."""
    deployments, hosts, closed, n_steps = stage
    simulation.edit(deployments={d.name: d for d in deployments}, nodes={n.name: n for n in hosts})
    simulation.set_cordons(*closed)
    return n_steps  # type: ignore[no-any-return]


def check_preemptions(before: World, actions: list[object]) -> None:
    """Only a strictly higher priority stops others, and it says so."""
    for action in actions:
        if isinstance(action, Stop) and action.cause == "preempted":
            victim = before.deployments[before.replicas[action.replica].deployment]
            name = action.reason.removeprefix("preempted by ").partition(":")[0]
            assert before.deployments[name].priority > victim.priority  # type: ignore[index]


@given(stages=stages, seed=st.integers(0, 2**16))
@settings(max_examples=250, deadline=None)
def test_any_history_settles_promises_no_room_twice_and_stops_only_what_matters_less(
    stages: list[tuple],  # type: ignore[type-arg]
    seed: int,
) -> None:
    """Sums per device are checked where they change: others' use of memory may grow under what was placed."""
    simulation = Simulation(world(), seed=seed, rules=RULES)
    for stage in stages:
        n_steps = enter(simulation, stage)
        # What was promised before others took the memory is nobody's fault.
        simulation.edit(replicas={} if has_shrunk(simulation) else simulation.world.replicas)
        for _ in range(n_steps):
            before = simulation.world
            check_preemptions(before, list(simulation.plan_once()))
            simulation.agents_step()
    for _ in range(600):
        before = simulation.world
        actions = simulation.plan_once()
        check_preemptions(before, list(actions))
        if not actions and not simulation.agents_step():
            break
    else:
        raise AssertionError(f"no fixpoint: {plan(simulation.world, 1.0, RULES)}")
    check_end(simulation)


def has_shrunk(simulation: Simulation) -> bool:
    """Whether what is held no longer fits because the node changed under it."""
    try:
        simulation.check_devices()
    except AssertionError:
        return True
    return False


def check_end(simulation: Simulation) -> None:
    """At rest, nobody waits for room that somebody of a lower priority could leave."""
    final = simulation.world
    for name, wish in final.deployments.items():
        running = [r for r in simulation.of(name) if r.target == "run"]
        waiting = [r for r in running if r.node is None]
        n_held = len(running) - len(waiting)
        if not waiting or n_held >= wish.replicas:
            continue
        for host in final.nodes:
            lower = [
                r
                for r in final.replicas.values()
                if r.node == host and final.deployments[r.deployment].priority < wish.priority
            ]
            rest = Claims(r for r in final.replicas.values() if r not in lower)
            found = place(wish, Fleet(final.nodes.values(), final.cordons), rest, RULES)
            assert isinstance(found, Refusal), f"{name} could have {found} without {[r.id for r in lower]}"


@given(stages=stages, seed=st.integers(0, 2**16))
@settings(max_examples=80, deadline=None)
def test_plan_does_not_depend_on_the_order_of_records(stages: list[tuple], seed: int) -> None:  # type: ignore[type-arg]
    simulation = Simulation(world(), seed=seed, rules=RULES)
    for stage in stages:
        n_steps = enter(simulation, stage)
        simulation.edit(replicas={} if has_shrunk(simulation) else simulation.world.replicas)
        for _ in range(n_steps):
            simulation.plan_once()
            simulation.agents_step()
        start = simulation.world
        turned = World(**{f: dict(reversed(getattr(start, f).items())) for f in start.__struct_fields__})
        assert plan(turned, 5.0, RULES) == plan(start, 5.0, RULES) == plan(start, 5.0, RULES)


Situation = tuple[DeploymentRecord, NodeRecord, list[ReplicaRecord], bool, Rules]


def relax(binding: Binding, situation: Situation) -> Situation:
    """The same situation in which this constraint cannot bind."""
    wish, host, held, is_cordoned, rules = situation
    kind = CUDA_ENVIRONMENT if wish.spec.device.startswith("cuda") else CPU_ENVIRONMENT
    devices = host.devices
    match binding:
        case Binding.LABEL:
            host = msgspec.structs.replace(host, labels=wish.labels)
        case Binding.DEVICE | Binding.TAKEN:
            spare = max((d.index for d in devices if d.vendor is Vendor.NVIDIA), default=-1) + 1
            cards = tuple(
                Device(vendor=Vendor.NVIDIA, index=spare + i, uuid=f"GPU-new-{i}", name="card", memory_bytes=24 * GIB)
                for i in range(2)
            )
            host = msgspec.structs.replace(host, devices=(*cards, *devices))
            held = [] if binding is Binding.TAKEN else held
        case Binding.HEALTH:
            well = tuple(msgspec.structs.replace(d, health=Health.OK, reason=None) for d in devices)
            host = msgspec.structs.replace(host, devices=well)
        case Binding.ENGINE:
            host = msgspec.structs.replace(host, environments=(kind,))
        case Binding.CAPABILITY:
            rules = PLAIN_RULES
        case Binding.CORDON:
            is_cordoned = False
        case Binding.MEMORY:
            # One whose memory is not known is never too small, and never shared.
            large = tuple(msgspec.structs.replace(d, memory_bytes=HUGE if d.memory_bytes else None) for d in devices)
            host = msgspec.structs.replace(host, devices=large, foreign_bytes={})
    return (wish, host, held, is_cordoned, rules)


def ask(situation: Situation) -> Placement | Refusal:
    wish, host, held, is_cordoned, rules = situation
    closed = {host.name: CordonRecord(node=host.name)} if is_cordoned else {}
    return place(wish, Fleet([host], closed), Claims(held), rules)


@given(
    wish=st.sampled_from(["cuda", "cuda:0", "cpu"]).flatmap(lambda device: wishes("m", device)),
    host=st.one_of(nodes("a"), plain_nodes("a")),
    holders=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, 4, 9]), st.booleans()), max_size=4),
    is_cordoned=mostly(False, True),
)
@settings(max_examples=400, deadline=None)
def test_reason_that_is_given_is_the_one_that_binds(
    wish: DeploymentRecord,
    host: NodeRecord,
    holders: list[tuple[int, int | None, bool]],
    is_cordoned: bool,
) -> None:
    """Were all that is asked later no matter, it would still not fit; were it no matter too, it would."""
    held = [
        holder("a", f"GPU-a-{card}", name=f"h{number}", gib=gib, shares=shares)
        for number, (card, gib, shares) in enumerate(holders)
    ]
    situation: Situation = (wish, host, held, is_cordoned, RULES)
    found = ask(situation)
    if isinstance(found, Placement):
        return
    assert found.binding is not None
    later = [binding for binding in Binding if binding > found.binding]
    for binding in later:
        situation = relax(binding, situation) if binding is not Binding.TAKEN else _without_holders(situation)
    assert isinstance(ask(situation), Refusal), f"{found} does not bind"
    for binding in (found.binding, *later):
        situation = relax(binding, situation)
    # To relax what is asked of devices adds some, but none under the name of one that is not there or is held.
    has_first = any(device.selector == "cuda:0" for device in host.devices)
    if wish.spec.device != "cuda:0" or (has_first and found.binding not in (Binding.DEVICE, Binding.TAKEN)):
        assert isinstance(ask(situation), Placement), f"{found} is not all: {ask(situation)}"


def _without_holders(situation: Situation) -> Situation:
    wish, host, _, is_cordoned, rules = situation
    return (wish, host, [], is_cordoned, rules)


@given(stage=st.lists(st.sampled_from("abcd").flatmap(nodes), min_size=1, max_size=4, unique_by=lambda n: n.name))
@settings(max_examples=60, deadline=None)
def test_nearest_node_gives_the_reason(stage: list[NodeRecord]) -> None:
    wish = deployment(device="cuda", gib=14, tensor_parallel_size=2, labels={"zone": "a"})
    found = place(wish, Fleet(stage), Claims(), RULES)
    alone = [place(wish, Fleet([host]), Claims(), RULES) for host in stage]
    if isinstance(found, Refusal):
        assert found.binding == max(
            one.binding for one in alone if isinstance(one, Refusal) and one.binding is not None
        )
    else:
        assert any(isinstance(one, Placement) for one in alone)


@given(
    wish=st.sampled_from(["auto", "cuda", "cuda,cpu"]).flatmap(lambda device: wishes("m", device)),
    hosts=st.lists(st.sampled_from("ab").flatmap(nodes), min_size=1, max_size=2, unique_by=lambda n: n.name),
    holders=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, 4, 9]), st.booleans()), max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_promise_is_what_the_devices_need_and_have(
    wish: DeploymentRecord, hosts: list[NodeRecord], holders: list[tuple[int, int | None, bool]]
) -> None:
    """The greatest need of the devices that were chosen, on a processor with the cache; all of them have it free."""
    held = [
        holder("a", f"GPU-a-{card}", name=f"h{number}", gib=gib, shares=shares)
        for number, (card, gib, shares) in enumerate(holders)
    ]
    found = place(wish, Fleet(hosts), Claims(held), RULES)
    if isinstance(found, Refusal):
        return
    host = next(n for n in hosts if n.name == found.node)
    chosen = [d for d in host.devices if d.selector in found.devices]
    needs = [
        plan_need(wish.spec, wish.model, d, CPU_ENVIRONMENT, identity=None, measured={}) for d in chosen if wish.model
    ]
    known = [need for need in needs if need is not None]
    assert len(known) in (0, len(chosen)), "those that nobody can plan for are not mixed with others"
    if not known:
        assert found.need is None
        return
    assert found.need is not None
    least = max(known, key=lambda need: need.device_bytes)
    assert msgspec.structs.replace(found.need, kv_bytes=0, kv_wanted_bytes=least.kv_wanted_bytes) == least
    for device in chosen:
        on_it = [r for r in held if device.uuid in r.device_uuids and r.node == host.name]
        shared = RULES.headroom_bytes if on_it or device.vendor is Vendor.CPU else 0
        taken = sum(r.need.device_bytes for r in on_it if r.need) + host.foreign_bytes.get(device.uuid, 0) + shared
        assert device.memory_bytes is None or found.need.device_bytes + taken <= device.memory_bytes
    if all("memory" in device.extra or device.vendor is Vendor.CPU for device in chosen):
        check_pool(host, held, found.need.device_bytes * len(chosen))


def check_pool(host: NodeRecord, held: list[ReplicaRecord], promised: int) -> None:
    """All that is on a host's memory, however it is reached, and what is promised of it fit into it."""
    unified = {device.uuid for device in host.devices if "memory" in device.extra}
    processor = next(device for device in host.devices if device.vendor is Vendor.CPU)
    if processor.memory_bytes is None:
        return
    taken = sum(len(unified & set(r.device_uuids)) * r.need.device_bytes for r in held if r.need)
    foreign = max(host.foreign_bytes.get(uuid, 0) for uuid in (processor.uuid, *unified))
    assert promised + taken + foreign + RULES.headroom_bytes <= processor.memory_bytes
