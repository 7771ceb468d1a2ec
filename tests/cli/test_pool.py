"""How memory that several devices fill is told of."""

from __future__ import annotations

import msgspec

from tests.scheduler.worlds import holder, node
from xinf.cli.pool import node_lines, replica_lines
from xinf.core.ids import NodeName

SPARK = node("spark", n_cuda=1, memory=119, cpu_memory=119, is_unified=True, unplanned={"blind-1": 3})


def test_host_whose_gpu_has_no_memory_of_its_own_is_named() -> None:
    assert node_lines([node("other", n_cuda=1, cpu_memory=64), SPARK]) == [
        "cpu and cuda:0 on spark fill one memory of 119 GiB"
    ]
    here = msgspec.structs.replace(SPARK, name=NodeName(""))
    assert node_lines([here]) == ["cpu and cuda:0 fill one memory of 119 GiB"]


def test_replica_is_told_whose_memory_it_is_in_and_what_it_holds() -> None:
    on_gpu = holder("spark", "GPU-spark-0", devices=("cuda:0",), gib=20)
    blind = holder("spark", name="blind", devices=("cpu",))
    assert replica_lines(on_gpu, [SPARK]) == ["  memory of   the host, shared with the processor"]
    assert replica_lines(blind, [SPARK]) == [
        "  holds       3 GiB that nobody could plan",
        "  memory of   the host, shared with cuda:0",
    ]
    planned = msgspec.structs.replace(blind, need=on_gpu.need)
    assert replica_lines(planned, [SPARK])[0] == "  holds       3 GiB beyond that plan"
    assert replica_lines(blind, []) == []
    assert replica_lines(holder("other", devices=("cpu",)), [node("other", n_cuda=1, cpu_memory=64)]) == []
