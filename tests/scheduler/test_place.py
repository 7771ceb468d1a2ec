"""Placement tables: which node and devices a spec gets, and the words when it gets none."""

from __future__ import annotations

import msgspec
import pytest

from tests.registry.planned_models import QWEN_7B
from tests.scheduler.worlds import (
    CPU_ENVIRONMENT,
    CUDA_ENVIRONMENT,
    GIB,
    RULES,
    SIM_ENVIRONMENT,
    deployment,
    holder,
    node,
    with_health,
)
from xinf.agent.surroundings import choose_environment
from xinf.core.device import Device, Distance, Dtype, Health, Topology, Vendor
from xinf.core.ids import NodeName
from xinf.core.model import ModelFacts, Quantization
from xinf.core.records import (
    CordonRecord,
    DeploymentRecord,
    EngineEnvironment,
    EngineSpec,
    NodeRecord,
    Phase,
    ReplicaRecord,
)
from xinf.scheduler import Binding, Claims, Fleet, Placement, Refusal, Rules, could_fit, place


def put(
    wish: EngineSpec | DeploymentRecord,
    *nodes: NodeRecord,
    held: tuple[ReplicaRecord, ...] = (),
    cordons: tuple[CordonRecord, ...] = (),
    rules: Rules | None = None,
) -> Placement | Refusal:
    made = wish if isinstance(wish, DeploymentRecord) else msgspec.structs.replace(deployment(), spec=wish)
    fleet = Fleet(nodes, {cordon.node: cordon for cordon in cordons})
    return place(made, fleet, Claims(held), rules or RULES)


def chosen(found: Placement | Refusal) -> tuple[str, tuple[str, ...]]:
    assert isinstance(found, Placement), found
    return (found.node, found.devices)


def refused(found: Placement | Refusal) -> tuple[Binding | None, str]:
    assert isinstance(found, Refusal), found
    return (found.binding, found.note)


@pytest.mark.parametrize(
    ("device", "size", "devices"),
    [
        ("auto", 1, ("cuda:0",)),
        ("auto", 2, ("cuda:0", "cuda:1")),
        ("cuda", 1, ("cuda:0",)),
        ("cuda:1", 1, ("cuda:1",)),
        ("cuda:2,cuda:1", 2, ("cuda:1", "cuda:2")),
        ("GPU-a-2", 1, ("cuda:2",)),
        ("cpu", 1, ("cpu",)),
    ],
)
def test_selector_chooses_devices(device: str, size: int, devices: tuple[str, ...]) -> None:
    found = put(EngineSpec(model="m", device=device, tensor_parallel_size=size), node(n_cuda=3))
    assert isinstance(found, Placement)
    assert found.devices == devices
    uuids = tuple(f"GPU-a-{d.removeprefix('cuda:')}" for d in devices) if devices != ("cpu",) else ()
    assert found.device_uuids == uuids


@pytest.mark.parametrize(
    ("spec", "the_node", "words"),
    [
        (EngineSpec(model="m", device="cuda"), node("b"), "b has no device cuda; it has cpu"),
        (EngineSpec(model="m", device="cuda:4"), node(n_cuda=2), "a has no device cuda:4; it has cuda:0, cuda:1, cpu"),
        (
            EngineSpec(model="m", device="cuda"),
            node(n_cuda=1, health=Health.NO_DRIVER),
            "cuda:0 on a cannot be used: the driver is not loaded",
        ),
        (
            EngineSpec(model="m", device="cuda"),
            node(n_cuda=1, environments=[CPU_ENVIRONMENT]),
            "a has no environment for vllm on cuda; it has vllm-cpu",
        ),
        (EngineSpec(model="m"), node(environments=[]), "a has no environment for vllm on cpu; it has none"),
        (
            EngineSpec(model="m", device="cuda", tensor_parallel_size=4),
            node(n_cuda=2),
            "4 cuda needed on a, 2 of 2 free",
        ),
    ],
)
def test_refusal_says_which_constraint_bound(spec: EngineSpec, the_node: NodeRecord, words: str) -> None:
    assert refused(put(spec, the_node))[1] == words


def test_refusal_names_the_holder() -> None:
    found = put(EngineSpec(model="m", device="cuda"), node(n_cuda=1), held=(holder("a", "GPU-a-0"),))
    assert refused(found) == (Binding.TAKEN, "1 cuda needed on a, 0 of 1 free (cuda:0 has other-1)")


def test_no_node_is_told_what_to_start() -> None:
    found = put(EngineSpec(model="m"))
    assert isinstance(found, Refusal)
    assert "xinf worker" in found.note


def test_auto_waits_for_a_busy_accelerator_instead_of_taking_the_processor() -> None:
    found = put(EngineSpec(model="m"), node(n_cuda=1), held=(holder("a", "GPU-a-0"),))
    assert isinstance(found, Refusal)


@pytest.mark.parametrize(
    "the_node",
    [node(n_cuda=1, health=Health.NO_DRIVER), node(n_cuda=1, environments=[CPU_ENVIRONMENT]), node(n_cuda=0)],
    ids=["no driver", "no environment", "no card"],
)
def test_auto_takes_the_processor_where_no_accelerator_can_be_used(the_node: NodeRecord) -> None:
    found = put(EngineSpec(model="m"), the_node)
    assert isinstance(found, Placement)
    assert found.devices == ("cpu",)


def test_placement_says_why_the_others_were_not_chosen() -> None:
    found = put(EngineSpec(model="m", device="cuda"), node("a", n_cuda=1), node("b"))
    assert isinstance(found, Placement)
    assert found.note == "a has cuda:0 free; b has no device cuda; it has cpu"


def test_processor_is_shared() -> None:
    held = tuple(holder("a", name=f"x{i}") for i in range(20))
    assert isinstance(put(EngineSpec(model="m", device="cpu"), node(), held=held), Placement)


def test_replicas_of_a_deployment_spread_over_nodes() -> None:
    held = (holder("a", "GPU-a-0", name="m"), holder("b", "GPU-b-0"), holder("b", "GPU-b-1"))
    found = put(EngineSpec(model="m"), node("a", n_cuda=4), node("b", n_cuda=4), held=held)
    assert isinstance(found, Placement)
    assert found.node == "b"


def test_stopped_replica_holds_nothing() -> None:
    held = (holder("a", "GPU-a-0", phase=Phase.STOPPED),)
    assert isinstance(put(EngineSpec(model="m", device="cuda"), node(n_cuda=1), held=held), Placement)


def test_card_split_into_instances_is_not_given_away() -> None:
    card = Device(vendor=Vendor.NVIDIA, index=0, uuid="GPU-card-0", name="card", extra={"mig": "enabled"})
    instance = Device(vendor=Vendor.NVIDIA, index=1, uuid="MIG-0000-1", name="slice", parent="GPU-card-0")
    split = NodeRecord(name=NodeName("a"), address="", devices=(card, instance), environments=(CUDA_ENVIRONMENT,))
    found = put(EngineSpec(model="m"), split)
    assert isinstance(found, Placement)
    assert found.device_uuids == ("MIG-0000-1",)


@pytest.mark.parametrize(("device", "chosen"), [("auto", "cpu"), ("cpu", "cpu"), ("cuda:0", "cuda:0")])
def test_engine_that_runs_anywhere_takes_an_accelerator_only_when_told(device: str, chosen: str) -> None:
    spec = EngineSpec(model="m", engine="sim", device=device)
    found = put(spec, node(n_cuda=1, environments=[SIM_ENVIRONMENT]))
    assert isinstance(found, Placement)
    assert found.devices == (chosen,)


def test_memory_that_does_not_suffice_is_named_with_the_values() -> None:
    found = put(deployment(gib=17.9), node(n_cuda=1, memory=24, foreign={"GPU-a-0": 9}))
    assert refused(found) == (Binding.MEMORY, "a: cuda:0 needs 17.9 GiB, 15 GiB free (9 GiB used by others)")


def test_memory_counts_what_others_use_and_nothing_else_on_an_idle_device() -> None:
    assert chosen(put(deployment(gib=22), node(n_cuda=1, memory=24))) == ("a", ("cuda:0",))
    assert isinstance(put(deployment(gib=22), node(n_cuda=1, memory=24, foreign={"GPU-a-0": 3})), Refusal)


def test_device_of_unknown_memory_is_taken_for_large_enough() -> None:
    assert chosen(put(deployment(gib=500), node(n_cuda=1))) == ("a", ("cuda:0",))


def test_of_several_devices_the_one_that_binds_is_named() -> None:
    crowded = node(n_cuda=3, memory=24, foreign={"GPU-a-0": 20, "GPU-a-1": 10, "GPU-a-2": 2})
    found = put(deployment(gib=16, tensor_parallel_size=2), crowded)
    assert refused(found) == (Binding.MEMORY, "a: cuda:1 needs 16 GiB, 14 GiB free (10 GiB used by others)")
    assert chosen(put(deployment(gib=14, tensor_parallel_size=2), crowded)) == ("a", ("cuda:1", "cuda:2"))


def test_devices_are_shared_only_by_those_who_all_share_and_say_what_they_need() -> None:
    the_node = node(n_cuda=1, memory=24)
    sharing = holder("a", "GPU-a-0", gib=8, shares=True)
    assert chosen(put(deployment(gib=8, shares=True), the_node, held=(sharing,))) == ("a", ("cuda:0",))
    for other in (
        deployment(gib=8),
        deployment(shares=True),
    ):
        assert isinstance(put(other, the_node, held=(sharing,)), Refusal)
    for held in (holder("a", "GPU-a-0", gib=8), holder("a", "GPU-a-0", shares=True)):
        assert isinstance(put(deployment(gib=8, shares=True), the_node, held=(held,)), Refusal)


def test_who_shares_and_has_no_plan_is_told_so() -> None:
    sharing = holder("a", "GPU-a-0", gib=8, shares=True)
    binding, note = refused(put(deployment(shares=True), node(n_cuda=1, memory=24), held=(sharing,)))
    assert binding is Binding.TAKEN
    assert note.endswith("(cuda:0 has other-1), and it cannot share one: no memory plan of it is known")


@pytest.mark.parametrize(("gib", "fits"), [(15.5, True), (15.6, False)])
def test_sums_on_a_shared_device_leave_the_headroom(gib: float, fits: bool) -> None:
    sharing = holder("a", "GPU-a-0", gib=8, shares=True)
    found = put(deployment(gib=gib, shares=True), node(n_cuda=1, memory=24), held=(sharing,))
    assert isinstance(found, Placement) is fits
    if not fits:
        words = "a: cuda:0 needs 15.6 GiB, 15.5 GiB free (8 GiB held by other-1)"
        assert refused(found) == (Binding.MEMORY, words)


@pytest.mark.parametrize(("share", "fits"), [(0.9, True), (0.5, False)])
def test_engine_that_is_told_a_share_is_placed_where_that_is_enough(share: float, fits: bool) -> None:
    made = deployment(gib=16)
    spec = msgspec.structs.replace(made.spec, engine_args={"gpu-memory-utilization": share})
    found = put(msgspec.structs.replace(made, spec=spec), node(n_cuda=1, memory=24))
    assert isinstance(found, Placement) is fits
    if not fits:
        assert refused(found) == (
            Binding.MEMORY, "a: cuda:0 needs 16 GiB, 24 GiB free, of which an engine may take 12.7 GiB",
        )  # fmt: skip


def test_memory_of_the_processor_is_accounted() -> None:
    held = (holder("a", devices=("cpu",), gib=20), holder("a", devices=("cpu",), name="silent"))
    the_node = node(cpu_memory=32)
    assert chosen(put(deployment(device="cpu", gib=11), the_node, held=held)) == ("a", ("cpu",))
    binding, note = refused(put(deployment(device="cpu", gib=12), the_node, held=held))
    assert binding is Binding.MEMORY
    assert note == "a: cpu needs 12 GiB, 11.5 GiB free (20 GiB held by other-1)"


def test_engine_on_the_processor_has_a_numa_node_for_each_rank() -> None:
    the_node = node(cpu_memory=512, n_sockets=2)
    assert isinstance(put(deployment(device="cpu", gib=235), the_node), Placement)
    binding, note = refused(put(deployment(device="cpu", gib=240), the_node))
    assert binding is Binding.MEMORY
    assert note == (
        "a: cpu needs 240 GiB, 511.5 GiB free, of which an engine may take 235.5 GiB;"
        " an engine of one rank has one NUMA node, 256 GiB; --tensor-parallel-size 2 has two"
    )
    two = deployment(device="cpu", gib=240, tensor_parallel_size=2)
    assert isinstance(put(two, the_node), Placement)
    note = refused(put(deployment(device="cpu", gib=480, tensor_parallel_size=2), the_node))[1]
    assert note.endswith("may take 471.0 GiB; an engine of two ranks has two NUMA nodes, 512 GiB")
    assert isinstance(put(deployment(device="cpu", gib=240), node(cpu_memory=512)), Placement), "nobody tells of nodes"


def test_second_engine_may_have_the_other_socket() -> None:
    held = holder("a", devices=("cpu",), gib=200)
    assert isinstance(
        put(deployment(device="cpu", gib=200), node(cpu_memory=512, n_sockets=2), held=(held,)), Placement
    )


def test_cache_on_a_processor_is_granted_of_the_ranks_own_nodes() -> None:
    """A quarter of what its node leaves beside the rest, not of what the host does."""
    wish = deployment(device="cpu", gib=200)
    found = put(wish, node(cpu_memory=512, n_sockets=2))
    whole = put(wish, node(cpu_memory=512))
    assert promised(found) <= 256 * 0.92
    assert promised(found) <= promised(whole)
    tight = put(deployment(device="cpu", gib=9), node(cpu_memory=20, n_sockets=2))
    assert promised(tight) == pytest.approx(9 + (10 * 0.92 - 9) / 4)
    assert promised(put(deployment(device="cpu", gib=9), node(cpu_memory=20))) == 10


def test_all_ranks_of_an_engine_on_the_processor_count() -> None:
    """They live in one memory: each has the runtime's own, and its share of the weights."""
    one, two = (
        put(
            msgspec.structs.replace(deployment(device="cpu", tensor_parallel_size=size), model=QWEN_7B),
            node(cpu_memory=64),
            rules=Rules(),
        )
        for size in (1, 2)
    )
    assert isinstance(one, Placement)
    assert isinstance(two, Placement)
    assert one.need is not None
    assert two.need is not None
    assert two.need.weights_bytes >= one.need.weights_bytes
    assert two.need.overhead_bytes >= one.need.overhead_bytes + GIB


def test_node_must_have_the_labels() -> None:
    wish = deployment(device="cpu", labels={"zone": "b"})
    found = put(wish, node("a", labels={"zone": "a"}), node("b", labels={"zone": "b", "disk": "ssd"}))
    assert chosen(found)[0] == "b"
    found = put(wish, node("a", labels={"zone": "a"}))
    assert refused(found) == (Binding.LABEL, "a lacks the label zone=b; it is zone=a")
    assert refused(put(wish, node("a"))) == (Binding.LABEL, "a lacks the label zone=b; it has no zone")


def test_auto_looks_for_accelerators_where_the_labels_are() -> None:
    found = put(deployment(labels={"zone": "b"}), node("a", n_cuda=1), node("b", labels={"zone": "b"}))
    assert chosen(found) == ("b", ("cpu",))


def test_cordoned_node_is_said_to_be_so_where_it_would_do() -> None:
    cordon = CordonRecord(node=NodeName("a"), reason="new driver")
    found = put(deployment(device="cuda"), node(n_cuda=1), cordons=(cordon,))
    assert refused(found) == (Binding.CORDON, "a is cordoned: new driver")
    assert refused(put(deployment(device="rocm"), node(n_cuda=1), cordons=(cordon,)))[0] is Binding.DEVICE


def test_what_the_device_cannot_do_is_asked_once_per_kind_of_device() -> None:
    asked: list[str] = []

    def judge(_: EngineSpec, device: Device, environment: EngineEnvironment, __: ModelFacts | None) -> str | None:
        asked.append(device.uuid)
        return f"{environment.name} has no FP8 on {device.name}"

    found = put(deployment(device="cuda"), node("a", n_cuda=8), node("b", n_cuda=8), rules=Rules(judge=judge))
    binding, note = refused(found)
    assert binding is Binding.CAPABILITY
    assert note.startswith("a: cuda:0 cannot run it: vllm-cuda has no FP8 on card; b: ")
    assert len(asked) == 1


def test_environment_in_which_the_agent_would_start_it_is_the_one_that_is_asked() -> None:
    new = EngineEnvironment(name="new", python="/n", engines=("vllm",), device_kinds=("cuda",), version="2")
    rules = Rules(judge=lambda _, __, environment, ___: None if environment.version == "2" else "too old")
    for environments in ([CUDA_ENVIRONMENT, new], [new, CUDA_ENVIRONMENT]):
        host = node(n_cuda=1, environments=environments)
        found = put(deployment(device="cuda"), host, rules=rules)
        replica = holder("a", "GPU-a-0")
        assert isinstance(found, Placement) == (choose_environment(replica, host) is new)


def test_processors_of_one_name_are_told_apart_by_their_flags() -> None:
    """A hypervisor hides some: an FP8 cache needs AVX-512, which one of these has."""
    wish = msgspec.structs.replace(
        deployment(), spec=EngineSpec(model="m", device="cpu", engine_args={"kv_cache_dtype": "fp8"})
    )
    vllm = msgspec.structs.replace(CPU_ENVIRONMENT, version="0.32.0")

    def host(name: str, isa: str) -> NodeRecord:
        made = node(name, environments=[vllm])
        cpu = msgspec.structs.replace(made.devices[-1], arch="x86_64", extra={"isa": isa})
        return msgspec.structs.replace(made, devices=(cpu,))

    found = put(wish, host("a", "avx2"), host("b", "avx2 avx512f"), rules=Rules())
    assert chosen(found) == ("b", ("cpu",))
    assert isinstance(put(wish, host("a", "avx2"), rules=Rules()), Refusal)


def test_degraded_device_takes_nothing_new_and_a_warned_one_comes_last() -> None:
    the_node = with_health(node(n_cuda=2), "GPU-a-0", Health.DEGRADED, "too hot")
    assert chosen(put(deployment(), the_node)) == ("a", ("cuda:1",))
    binding, note = refused(put(deployment(device="cuda:0"), the_node))
    assert (binding, note) == (Binding.HEALTH, "cuda:0 on a cannot be used: too hot")
    hot = msgspec.structs.replace(the_node.devices[0], health=Health.OK, reason="a row is to be remapped")
    warned = msgspec.structs.replace(the_node, devices=(hot, *the_node.devices[1:]))
    assert chosen(put(deployment(), warned)) == ("a", ("cuda:1",))
    assert chosen(put(deployment(tensor_parallel_size=2), warned)) == ("a", ("cuda:0", "cuda:1"))


def test_spread_takes_the_emptiest_and_pack_the_fullest() -> None:
    nodes = (node("a", n_cuda=2, memory=24), node("b", n_cuda=2, memory=24))
    held = (holder("b", "GPU-b-0", gib=8, shares=True, phase=Phase.LOADING),)
    assert chosen(put(deployment(gib=8, shares=True), *nodes, held=held)) == ("a", ("cuda:0",))
    packed = put(deployment(gib=8, shares=True, placement="pack"), *nodes, held=held)
    assert chosen(packed) == ("b", ("cuda:0",))
    alone = put(deployment(placement="pack"), *nodes, held=held)
    assert chosen(alone) == ("b", ("cuda:1",)), "the node with the fewest idle devices"


def test_tightest_device_is_taken_among_equals() -> None:
    nodes = (node("a", n_cuda=1, memory=80), node("b", n_cuda=1, memory=24))
    for placement in ("spread", "pack"):
        assert chosen(put(deployment(gib=16, placement=placement), *nodes)) == ("b", ("cuda:0",))


def test_node_that_has_the_files_is_preferred_among_equals() -> None:
    nodes = (node("a", n_cuda=1), node("b", n_cuda=1, models=("org/m",)), node("c", n_cuda=2))
    assert chosen(put(deployment(), *nodes))[0] == "b"
    loaded = holder("c", "GPU-c-0", name="twin")
    assert chosen(put(deployment(), nodes[0], nodes[2], held=(loaded,)))[0] == "c", "a twin runs it there"


def test_tensor_parallel_takes_devices_that_are_linked() -> None:
    names = [f"GPU-a-{i}" for i in range(4)]
    near = {(names[1], names[3]): Distance.LINK}
    pairs = tuple((a, b, near.get((a, b), Distance.SYS)) for i, a in enumerate(names) for b in names[i + 1 :])
    found = put(deployment(tensor_parallel_size=2), node(n_cuda=4, topology=Topology(pairs=pairs)))
    assert chosen(found) == ("a", ("cuda:1", "cuda:3"))
    assert isinstance(found, Placement)
    assert found.note == "a has cuda:1, cuda:3 free, LINK between them"


def test_node_whose_devices_are_linked_is_preferred() -> None:
    linked = Topology(pairs=(("GPU-b-0", "GPU-b-1", Distance.LINK),))
    apart = Topology(pairs=(("GPU-a-0", "GPU-a-1", Distance.SYS),))
    nodes = (node("a", n_cuda=2, topology=apart), node("b", n_cuda=2, topology=linked), node("c", n_cuda=2))
    assert chosen(put(deployment(tensor_parallel_size=2), *nodes))[0] == "b"
    assert chosen(put(deployment(tensor_parallel_size=2), nodes[0], nodes[2]))[0] == "a", "what is known first"


def test_note_says_what_is_needed_of_what() -> None:
    found = put(deployment(gib=17.9), node(n_cuda=1, memory=24))
    assert isinstance(found, Placement)
    assert found.note == "a has cuda:0 free: 17.9 GiB of 24 GiB"


def test_explanation_of_a_thousand_nodes_tells_the_nearest_and_counts_the_rest() -> None:
    nodes = [node(f"n{i:03d}", n_cuda=1, memory=16, foreign={f"GPU-n{i:03d}-0": min(i, 6)}) for i in range(600)]
    nodes += [node(f"x{i:03d}") for i in range(400)]
    held = tuple(holder(n.name, f"GPU-{n.name}-0", name=f"h{i}") for i, n in enumerate(nodes[300:600]))
    binding, note = refused(put(deployment(device="cuda", gib=20), *nodes, held=held))
    assert binding is Binding.MEMORY
    assert len(note) <= 2500
    assert note.startswith(
        "n000: cuda:0 needs 20 GiB, 16 GiB free; n001: cuda:0 needs 20 GiB, 15 GiB free (1 GiB used by others); "
    )
    assert note.endswith(
        "of 995 more nodes 295 have too little memory free, 300 have too few that are free, 400 have no such device"
    )


def test_could_fit_looks_past_everything_that_may_go_away() -> None:
    the_node = with_health(node(n_cuda=1, memory=24, foreign={"GPU-a-0": 20}), "GPU-a-0", Health.DEGRADED)
    assert isinstance(could_fit(deployment(gib=20), {the_node.name: the_node}, RULES), Placement)
    assert refused(could_fit(deployment(gib=25), {the_node.name: the_node}, RULES))[0] is Binding.MEMORY


def test_tables_of_compatibility_are_asked() -> None:
    turing = node(n_cuda=1)
    devices = tuple(msgspec.structs.replace(d, arch="sm_75") if d.index == 0 else d for d in turing.devices)
    spec = EngineSpec(model="org/m", device="cuda", dtype="bfloat16")
    found = put(spec, msgspec.structs.replace(turing, devices=devices))
    assert refused(found)[0] is Binding.CAPABILITY
    assert "cuda:0 cannot run it" in refused(found)[1]
    assert "bf16" in refused(found)[1].lower()


# ---- kinds of device ----------------------------------------------------------------------------------------------


def promised(found: Placement | Refusal) -> float:
    assert isinstance(found, Placement), found
    assert found.need is not None
    return found.need.device_bytes / GIB


def test_each_kind_of_device_has_its_own_need() -> None:
    wish = deployment(device="cuda,cpu", gib=10, gib_of={"card80": 14, "cpu": 20})
    assert promised(put(wish, node(memories=[24]))) == 10
    assert promised(put(wish, node(memories=[80]))) == 14
    # The cache that is wanted on a processor is granted out of what is free there.
    assert promised(put(wish, node(cpu_memory=64))) == 21
    assert refused(put(wish, node(memories=[9], cpu_memory=8), node("b", cpu_memory=16))) == (
        Binding.MEMORY,
        "a: cuda:0 needs 10 GiB, 9 GiB free; b: cpu needs 20 GiB, 15.5 GiB free",
    )


def test_card_that_takes_a_larger_batch_is_passed_over_where_only_the_smaller_one_fits() -> None:
    wish = deployment(device="cuda", gib=10, gib_of={"card40": 30})
    the_node = node(memories=[40, 16], foreign={"GPU-a-0": 15})
    found = put(wish, the_node)
    assert chosen(found) == ("a", ("cuda:1",))
    assert promised(found) == 10


@pytest.mark.parametrize(
    ("free", "devices", "gib"),
    [
        ((10, 10, 16, 16), ("cuda:0", "cuda:1"), 10),  # the smaller need first
        ((9, 10, 16, 16), ("cuda:1", "cuda:2"), 12),  # mixed: all hold the greater one
        ((9, 9, 16, 16), ("cuda:2", "cuda:3"), 12),
        ((11, 16, 16, 11), ("cuda:0", "cuda:1"), 10),
        ((8, 11, 13, 11), None, 12),  # nearest: two that hold 12
    ],
)
def test_devices_of_one_engine_all_have_room_for_the_greatest_need_among_them(
    free: tuple[int, ...], devices: tuple[str, ...] | None, gib: int
) -> None:
    """Cards of 24 and 40 GiB that need 10 and 12."""
    sizes = (24, 24, 40, 40)
    used = {f"GPU-a-{i}": size - left for i, (size, left) in enumerate(zip(sizes, free, strict=True))}
    wish = deployment(device="cuda", tensor_parallel_size=2, gib=10, gib_of={"card40": 12})
    found = put(wish, node(memories=sizes, foreign=used))
    if devices is None:
        assert refused(found) == (Binding.MEMORY, "a: cuda:1 needs 12 GiB, 11 GiB free (13 GiB used by others)")
        return
    assert promised(found) == gib
    assert isinstance(found, Placement)
    assert set(found.devices) <= set(devices) | {"cuda:3"}
    assert found.devices[0] == devices[0] or gib == 12


def test_cache_on_a_processor_is_granted_and_held() -> None:
    """A quarter of what is free beside the rest, up to what is wanted: the next one finds so much less."""
    wish = deployment(device="cpu", gib=8)
    first = put(wish, node(cpu_memory=10))
    assert promised(first) == 8 + (10 - 0.5 - 8) / 4
    assert first.note == "a has cpu free: 8.4 GiB of 9.5 GiB"  # type: ignore[union-attr]
    held = msgspec.structs.replace(holder("a", devices=("cpu",)), need=first.need)  # type: ignore[union-attr]
    second = put(deployment(device="cpu", gib=1), node(cpu_memory=10), held=(held,))
    assert promised(second) == 1 + (10 - 0.5 - 8.375 - 1) / 4


def test_cache_is_not_granted_where_nobody_says_what_is_free() -> None:
    found = put(deployment(device="cpu", gib=8), node())
    assert isinstance(found, Placement)
    assert found.need is not None
    assert found.need.kv_wanted_bytes == GIB, "its engine sizes it itself"


def test_engine_gets_no_more_of_a_device_than_engines_take() -> None:
    binding, note = refused(put(deployment(device="cuda", gib=23.5), node(memories=[24])))
    assert binding is Binding.MEMORY
    assert note == "a: cuda:0 needs 23.5 GiB, 24 GiB free, of which an engine may take 22.8 GiB"


def test_kind_that_nobody_can_plan_for_takes_it_and_shares_with_nobody() -> None:
    wish = deployment(device="cuda", gib=10, gib_of={"card40": -1}, shares=True)
    found = put(wish, node(memories=[40]))
    assert isinstance(found, Placement)
    assert found.need is None
    beside = holder("a", "GPU-a-0", gib=4, shares=True)
    assert refused(put(wish, node(memories=[40]), held=(beside,)))[0] is Binding.TAKEN
    assert promised(put(wish, node(memories=[24]), held=(beside,))) == 10


def test_what_the_model_is_counts_for_what_a_device_can_do() -> None:
    """Packed weights stand in the model's files, not in the wish."""
    packed = ModelFacts(quantization=Quantization(method="fp8", weight_dtype=Dtype.FP8_E4M3, bits=8), dtype="bfloat16")
    turing = node(n_cuda=1)
    devices = tuple(msgspec.structs.replace(d, arch="sm_70") if d.index == 0 else d for d in turing.devices)
    the_node = msgspec.structs.replace(turing, devices=devices)
    wish = deployment(device="cuda")
    assert isinstance(put(msgspec.structs.replace(wish, model=packed), the_node, rules=Rules()), Refusal)
