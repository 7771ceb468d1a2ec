"""On which NUMA nodes an engine on the processor is told to run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.agent.conftest import Bench
from xinf.agent.custody import Custody, ReplicaDirectory
from xinf.agent.memory import StartMemory
from xinf.agent.memory_nodes import choose_memory_nodes, memory_nodes_of
from xinf.agent.process import identify, kill_group
from xinf.agent.starter import EngineProcess, Starter, start_guard
from xinf.core.clock import SystemClock
from xinf.core.ids import DeploymentName, NodeName, ReplicaId
from xinf.core.records import EngineEnvironment, EngineSpec, Phase, ReplicaRecord
from xinf.device import NumaNode

VISIBLE = "CPU_VISIBLE_MEMORY_NODES"
BIND = "VLLM_CPU_OMP_THREADS_BIND"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sockets; the second has more free."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for number, cpus, free in ((0, "0-3", 30000), (1, "4-7", 40000)):
        directory = tmp_path / f"sys/devices/system/node/node{number}"
        directory.mkdir(parents=True)
        (directory / "cpulist").write_text(f"{cpus}\n")
        lines = (f"Node {number} MemTotal: 65536 kB", f"Node {number} MemFree: {free} kB")
        (directory / "meminfo").write_text("\n".join(lines))
    return tmp_path


def replica(
    engine: str = "vllm", device: str = "cpu", size: int = 1, env: dict[str, str] | None = None
) -> ReplicaRecord:
    spec = EngineSpec(model="m", engine=engine, tensor_parallel_size=size, env=env or {})
    return ReplicaRecord(
        id=ReplicaId("r"),
        deployment=DeploymentName("d"),
        generation=1,
        node=NodeName("n"),
        spec=spec,
        devices=(device,),
    )


def started(*nodes: int, device_uuids: tuple[str, ...] = ()) -> Custody:
    return Custody(
        replica=ReplicaId("o"), start_id="s", started_s=1.0, address="", device_uuids=device_uuids, memory_nodes=nodes
    )


def by_older_agent(*device_uuids: str) -> Custody:
    written = {"replica": "o", "start_id": "s", "started_s": 1.0, "address": "", "device_uuids": device_uuids}
    return msgspec.json.decode(msgspec.json.encode(written), type=Custody)


def test_engines_are_spread_over_the_nodes(root: Path) -> None:
    assert memory_nodes_of(replica(), {}, [], root) == (1,), "it has most memory free"
    assert memory_nodes_of(replica(), {}, [started(1)], root) == (0,)
    assert memory_nodes_of(replica(), {}, [started(1), started(0)], root) == (1,)
    assert memory_nodes_of(replica(size=2), {}, [started(1)], root) == (0, 1)
    assert memory_nodes_of(replica(size=3), {}, [], root) == (), "vLLM says that there are too few"


def test_engines_of_older_agents_count_where_vllm_put_them(root: Path) -> None:
    assert memory_nodes_of(replica(), {}, [started(1), by_older_agent("GPU-1")], root) == (0,)
    assert memory_nodes_of(replica(), {}, [started(1), by_older_agent(), by_older_agent()], root) == (1,)
    assert by_older_agent().memory_nodes is None


def test_choice_of_others_is_left_alone(root: Path) -> None:
    assert memory_nodes_of(replica(env={VISIBLE: "0"}), {VISIBLE: "0"}, [], root) == (0,), "remembered, not chosen"
    assert memory_nodes_of(replica(), {VISIBLE: "0"}, [started(0)], root) == (0,), "the worker's own are all there are"
    assert memory_nodes_of(replica(env={BIND: "0-3"}), {BIND: "0-3"}, [], root) == ()
    assert memory_nodes_of(replica(device="cuda:0"), {}, [], root) == ()
    assert memory_nodes_of(replica(engine="sim"), {}, [], root) == ()


def test_host_of_one_node_or_none_is_left_to_vllm(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (root / "sys/devices/system/node/node1").rename(root / "sys/devices/system/node/away")
    assert memory_nodes_of(replica(), {}, [], root) == ()
    assert memory_nodes_of(replica(), {}, [], tmp_path_factory.mktemp("bare")) == ()


@given(
    st.dictionaries(st.integers(0, 7), st.integers(0, 3), min_size=1),
    st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=8),
    st.integers(1, 8),
)
def test_no_node_that_is_left_out_is_better(free: dict[int, int], taken: list[tuple[int, ...]], n_ranks: int) -> None:
    nodes = [NumaNode(number=number, memory_bytes=9, free_bytes=size) for number, size in free.items()]
    found = choose_memory_nodes(nodes, n_ranks, taken)
    if n_ranks > len(nodes):
        assert found == ()
        return
    assert len(set(found)) == n_ranks
    assert list(found) == sorted(found)

    def burden(number: int) -> tuple[int, int]:
        return (sum(one.count(number) for one in taken), -free[number])

    worst = max(burden(number) for number in found)
    assert all(burden(number) >= worst for number in free.keys() - set(found))


async def test_engine_is_told_and_it_is_written_down(bench: Bench, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str | None] = []

    def listen(
        environment: EngineEnvironment, directory: ReplicaDirectory, environ: Mapping[str, str]
    ) -> EngineProcess:
        told.append(environ.get(VISIBLE))
        return start_guard(environment, directory, environ)

    monkeypatch.setattr("xinf.agent.starter.start_guard", listen)
    await bench.place("r")
    record = await bench.until_phase("r", Phase.PLACED)
    record = msgspec.structs.replace(
        record, devices=("cpu",), device_uuids=(), spec=msgspec.structs.replace(record.spec, engine="vllm")
    )
    environments = tuple(
        msgspec.structs.replace(one, engines=("vllm",), device_kinds=()) for one in bench.node.environments
    )
    node = msgspec.structs.replace(bench.node, environments=environments)
    starter, directory = Starter(bench.config, SystemClock(), root), bench.directory("r")
    custody, child = starter.start(record, directory, StartMemory(), node, others=[started(1)])
    try:
        assert custody.memory_nodes == (0,)
        written = directory.read_custody()
        assert written is not None
        assert written.memory_nodes == (0,)
        assert told == ["0"]
    finally:
        if (process := identify(child.pid)) is not None:
            kill_group(process, directory.path)
        child.wait()
