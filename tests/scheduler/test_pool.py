"""One memory for the processor and the GPUs that have none of their own: nothing of it is promised twice."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.registry.planned_models import QWEN_7B
from tests.scheduler.worlds import GIB, RULES, Simulation, deployment, holder, node, world
from xinf.core.device import Vendor
from xinf.core.ids import ReplicaId
from xinf.core.records import DeploymentRecord, NodeRecord, Phase, ReplicaRecord
from xinf.registry import need_on
from xinf.scheduler import Binding, Claims, Fleet, Placement, Refusal, Rules, place, plan
from xinf.scheduler.pool import find_pool


def spark(
    name: str = "a", *, gib: int = 32, n_cuda: int = 1, foreign: int = 0, unplanned: dict[str, float] | None = None
) -> NodeRecord:
    """A host whose GPUs compute in its memory, as a DGX Spark."""
    seen = {f"{what}-{name}": foreign for what in ("CPU",) if foreign}
    return node(
        name, n_cuda=n_cuda, memory=gib, cpu_memory=gib, is_unified=True, foreign=seen, unplanned=unplanned or {}
    )


def put(wish: DeploymentRecord, host: NodeRecord, *held: ReplicaRecord, rules: Rules = RULES) -> Placement | Refusal:
    return place(wish, Fleet([host]), Claims(held), rules)


def on_gpu(gib: float, *, number: int = 1, shares: bool = False, name: str = "gpu") -> ReplicaRecord:
    return holder("a", "GPU-a-0", name=name, number=number, devices=("cuda:0",), gib=gib, shares=shares)


def on_cpu(gib: float | None, *, number: int = 1, name: str = "cpu") -> ReplicaRecord:
    return holder("a", name=name, number=number, devices=("cpu",), gib=gib)


@pytest.mark.parametrize(
    ("device", "held", "note"),
    [
        (
            "cpu",
            on_gpu(20),
            "a: cpu needs 18 GiB, 11.5 GiB of the host's memory free, shared with cuda:0 (20 GiB held by gpu-1)",
        ),
        (
            "cuda",
            on_cpu(9, name="c"),
            "a: cuda:0 needs 28 GiB, 22.5 GiB of the host's memory free, shared with the processor (9 GiB held by c-1)",
        ),
    ],
)
def test_large_models_on_processor_and_gpu_are_not_promised_the_same_memory(
    device: str, held: ReplicaRecord, note: str
) -> None:
    wish = deployment(device=device, gib=18 if device == "cpu" else 28)
    found = put(wish, spark(), held)
    assert found == Refusal(note=note, binding=Binding.MEMORY)
    apart = node(n_cuda=1, memory=32, cpu_memory=32)
    assert isinstance(put(wish, apart, held), Placement)


def test_what_others_use_is_counted_once_whoever_sees_it() -> None:
    wish = deployment(device="cuda", gib=18)
    for uuid in ("CPU-a", "GPU-a-0"):
        host = msgspec.structs.replace(spark(), foreign_bytes={uuid: 12 * GIB})
        assert isinstance(put(wish, host), Placement)
        host = msgspec.structs.replace(spark(), foreign_bytes={uuid: 14 * GIB})
        found = put(wish, host)
        assert isinstance(found, Refusal)
        assert "(14 GiB used by others)" in found.note


def test_faulty_gpu_still_holds_what_its_engine_holds() -> None:
    host = spark()
    cards = [d for d in host.devices if d.vendor is not Vendor.CPU]
    alone = msgspec.structs.replace(host, devices=tuple(d for d in host.devices if d not in cards))
    assert isinstance(put(deployment(device="cpu", gib=18), alone, on_gpu(20)), Placement)
    ill = tuple(msgspec.structs.replace(d, health="faulty", reason="Xid 79") if d in cards else d for d in host.devices)
    ill_host = msgspec.structs.replace(host, devices=ill)
    assert isinstance(put(deployment(device="cpu", gib=18), ill_host, on_gpu(20)), Refusal)


@pytest.mark.parametrize(("n_cuda", "part"), [(1, 2), (3, 4)])
def test_engine_alone_on_a_unified_gpu_gets_an_even_part_of_what_is_left(n_cuda: int, part: int) -> None:
    found = put(deployment(device="cuda", gib=7.5), spark(n_cuda=n_cuda))
    assert isinstance(found, Placement)
    assert found.need is not None
    assert found.need.device_bytes == int(7.5 * GIB) + (32 - 0.5 - 7.5) * GIB // part


def test_parts_of_several_gpus_leave_room_for_all_of_them() -> None:
    simulation = Simulation(world([deployment(replicas=3, device="cuda", gib=2)], [spark(n_cuda=3)]))
    simulation.settle()
    given = [r.need.kv_bytes for r in simulation.of() if r.need is not None]
    assert len(given) == 3
    assert min(given) > 5 * GIB
    found = put(deployment("p", device="cpu", gib=4), spark(n_cuda=3), *simulation.of())
    assert isinstance(found, Placement), "and for the processor"


def test_engine_that_shares_or_is_told_its_cache_gets_what_it_needs_and_no_more() -> None:
    told = deployment(device="cuda", gib=7)
    told = msgspec.structs.replace(
        told, spec=msgspec.structs.replace(told.spec, engine_args={"--kv-cache-memory-bytes": 1 << 30})
    )
    for wish in (deployment(device="cuda", gib=7, shares=True), told):
        found = put(wish, spark())
        assert isinstance(found, Placement)
        assert found.need is not None
        assert found.need.device_bytes == 7 * GIB


def test_engine_that_is_told_a_share_takes_all_of_that() -> None:
    wish = deployment(device="cuda", gib=7)
    wish = msgspec.structs.replace(
        wish, spec=msgspec.structs.replace(wish.spec, engine_args={"gpu_memory_utilization": 0.5})
    )
    found = put(wish, spark())
    assert isinstance(found, Placement)
    assert found.need is not None
    assert 15 * GIB < found.need.device_bytes < 17 * GIB
    assert isinstance(put(wish, spark(), on_cpu(10)), Placement)
    assert isinstance(put(wish, spark(), on_cpu(17)), Refusal)


def test_devices_that_may_fill_less_than_the_host_has_are_held_to_that() -> None:
    """A Mac: Metal's limit is less than the memory, and its processor does not say how much there is."""
    mac = node(n_cuda=1, memory=21, is_unified=True)
    cards = tuple(
        msgspec.structs.replace(d, extra={**d.extra, "memory_total_bytes": 32 * GIB}) if d.extra else d
        for d in mac.devices
    )
    mac = msgspec.structs.replace(mac, devices=cards)
    assert isinstance(put(deployment(device="cuda", gib=18), mac), Placement)
    alone = put(deployment(device="cuda", gib=24), mac)
    assert isinstance(alone, Refusal)
    assert alone.note == "a: cuda:0 needs 24 GiB, 21 GiB free"
    assert isinstance(put(deployment(device="cpu", gib=24), mac), Placement)
    assert isinstance(put(deployment(device="cpu", gib=24), mac, on_gpu(10)), Refusal)


def test_processor_of_a_container_is_held_to_its_limit() -> None:
    host = spark(gib=64)
    limited = tuple(
        msgspec.structs.replace(d, memory_bytes=16 * GIB, extra={"memory_total_bytes": 64 * GIB})
        if d.vendor is Vendor.CPU
        else d
        for d in host.devices
    )
    host = msgspec.structs.replace(host, devices=limited)
    pool = find_pool(host)
    assert pool is not None
    assert pool.total_bytes == 64 * GIB
    assert isinstance(put(deployment(device="cuda", gib=40), host), Placement)
    assert isinstance(put(deployment(device="cpu", gib=12), host, on_gpu(40)), Placement)
    found = put(deployment(device="cpu", gib=18), host)
    assert isinstance(found, Refusal)
    assert found.note == "a: cpu needs 18 GiB, 15.5 GiB free"


def test_engine_over_two_unified_gpus_needs_the_memory_twice() -> None:
    wish = deployment(device="cuda", gib=12, tensor_parallel_size=2)
    assert isinstance(put(wish, spark(n_cuda=2)), Placement)
    found = put(wish, spark(n_cuda=2), on_cpu(9))
    assert isinstance(found, Refusal)
    assert "cuda:1 needs 12 GiB on each of 2, 11.2 GiB of the host's memory free, shared with" in found.note
    both = msgspec.structs.replace(on_gpu(10), device_uuids=("GPU-a-0", "GPU-a-1"))
    assert isinstance(put(deployment(device="cpu", gib=12), spark(n_cuda=2), both), Refusal)


def test_what_engines_hold_beyond_their_need_counts_and_is_named() -> None:
    wish = deployment(device="cpu", gib=18)
    held = (on_cpu(None, name="blind"), on_cpu(4, name="greedy"))
    assert isinstance(put(wish, node(cpu_memory=32), *held), Placement)
    host = node(cpu_memory=32, unplanned={"blind-1": 8, "greedy-1": 3, "elsewhere-1": 30})
    found = put(wish, host, *held)
    assert found == Refusal(
        note="a: cpu needs 18 GiB, 16.5 GiB free (15 GiB held by blind-1, greedy-1)", binding=Binding.MEMORY
    )


def test_unplanned_engine_makes_room_for_the_next_generation_of_itself() -> None:
    """As memory of others it would stay when it is thought away, and block its own update for ever."""
    old = holder("a", name="m", devices=("cpu",))
    host = node(cpu_memory=32, unplanned={"m-1": 20})
    simulation = Simulation(world([deployment(device="cpu", gib=18, generation=2)], [host], [old]))
    simulation.settle()
    assert [(r.generation, r.phase) for r in simulation.of()] == [(2, Phase.READY)]


def test_lower_one_on_the_processor_goes_for_a_higher_one_on_the_gpu() -> None:
    low, high = deployment("low", device="cpu", gib=20), deployment("high", device="cuda", gib=18, priority=1)
    simulation = Simulation(world([low], [spark()]))
    simulation.settle()
    simulation.set_deployment(high)
    simulation.plan_once()
    assert simulation.world.replicas[ReplicaId("low-0001")].target == "stop"
    waiting = next(iter(simulation.of("high")))
    assert (waiting.placement_note or "").startswith("waits for low-0001 on a to stop; ")
    simulation.settle()
    assert [r.devices for r in simulation.of("high")] == [("cuda:0",)]
    assert "shared with cuda:0" in (next(iter(simulation.of("low"))).placement_note or "")


def test_update_on_a_unified_gpu_waits_for_whoever_stops_in_the_same_memory() -> None:
    old = msgspec.structs.replace(on_cpu(20, name="gone"), target="stop")
    start = world([deployment(device="cuda", gib=18)], [spark()], [old])
    simulation = Simulation(start)
    simulation.plan_once()
    assert "waits for gone-1 on a to stop" in (simulation.of()[0].placement_note or "")


def test_real_planner_needs_of_a_7b_model_fit_beside_each_other_once() -> None:
    """15.2 GB of weights: a second one does not fit into 32 GiB beside it, on whichever device."""
    rules = Rules(judge=None, planner=need_on)
    wish = msgspec.structs.replace(deployment(device="cuda"), model=QWEN_7B)
    found = put(wish, spark(), rules=rules)
    assert isinstance(found, Placement)
    assert found.need is not None
    first = msgspec.structs.replace(on_gpu(0), need=found.need)
    other = msgspec.structs.replace(deployment(device="cpu"), model=QWEN_7B)
    assert isinstance(put(other, spark(), rules=rules), Placement)
    assert isinstance(put(other, spark(), first, rules=rules), Refusal)


asked = st.tuples(
    st.sampled_from(["cpu", "cuda", "cuda:0", "cuda,cpu"]),
    st.one_of(st.none(), st.floats(0.1, 40)),
    st.booleans(),
    st.integers(1, 2),
    st.integers(0, 2),
)


@given(
    wishes=st.lists(asked, min_size=1, max_size=6),
    n_cuda=st.integers(1, 3),
    gib=st.integers(1, 64),
    limit=st.integers(1, 64),
    foreign=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    unplanned=st.dictionaries(st.sampled_from([f"m{n}-{k:04d}" for n in range(6) for k in range(1, 9)]), st.just(5.0)),
    seed=st.integers(0, 999),
)
@settings(max_examples=150, deadline=None)
def test_pool_is_never_promised_beyond_what_it_has(
    wishes: list[tuple[str, float | None, bool, int, int]],
    n_cuda: int,
    gib: int,
    limit: int,
    foreign: tuple[int, int],
    unplanned: dict[str, float],
    seed: int,
) -> None:
    """Whatever is asked for, in whichever order agents act: `Simulation` adds up after every plan."""
    host = node(n_cuda=n_cuda, memory=min(limit, gib), cpu_memory=gib, is_unified=True, unplanned=unplanned)
    seen = {"CPU-a": foreign[0] * GIB, "GPU-a-0": foreign[1] * GIB}
    host = msgspec.structs.replace(host, foreign_bytes=seen)
    made = [
        deployment(f"m{n}", device=device, gib=size, shares=shares, tensor_parallel_size=width, priority=priority)
        for n, (device, size, shares, width, priority) in enumerate(wishes)
    ]
    simulation = Simulation(world(made, [host]), seed=seed)
    simulation.settle()
    assert plan(simulation.world, 1.0, RULES) == []


def test_absurd_memory_of_a_node_promises_nothing() -> None:
    host = spark(unplanned={"blind-1": -99})
    host = msgspec.structs.replace(host, foreign_bytes={"CPU-a": -(1 << 60), "GPU-a-0": -5})
    held = on_cpu(None, name="blind")
    assert isinstance(put(deployment(device="cuda", gib=40), host, held), Refusal)
    assert isinstance(put(deployment(device="cpu", gib=31), host, held), Placement)
    assert ReplicaId("blind-1") in host.unplanned_bytes
