"""Which NUMA nodes engines can be on, and what is free there, read from a made-up root."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xinf.core.device import Vendor
from xinf.core.number_list import parse_numbers
from xinf.device import PROBES, NumaNode, count_numa_nodes, usable_numa_nodes

CPU = PROBES[Vendor.CPU]
MEMINFO = """\

Node {node} MemTotal:       {total} kB
Node {node} MemFree:        {free} kB
Node {node} Active(file):   {file} kB
Node {node} Inactive(file): 1000 kB
Node {node} Inactive(anon): 77777 kB
Node {node} SReclaimable:   500 kB
Node {node} HugePages_Free: 0
"""


def add_node(root: Path, node: int, cpus: str, *, total: int = 65536, free: int = 30000, file: int = 2000) -> None:
    directory = root / f"sys/devices/system/node/node{node}"
    directory.mkdir(parents=True)
    (directory / "cpulist").write_text(f"{cpus}\n")
    (directory / "meminfo").write_text(MEMINFO.format(node=node, total=total, free=free, file=file))


def allow(root: Path, mems: str) -> None:
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/status").write_text(f"Name:\tx\nMems_allowed:\t1\nMems_allowed_list:\t{mems}\n")


@pytest.fixture
def two_sockets(make_tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two nodes with processors 0-3 and 4-7, and one with memory alone."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("CPU_VISIBLE_MEMORY_NODES", raising=False)
    root = make_tree()
    add_node(root, 0, "0-3", total=70000)
    add_node(root, 1, "4-5,6-7", total=60000)
    add_node(root, 2, "", total=999999)
    allow(root, "0-2")
    return root


def numbers(root: Path, visible: str = "") -> list[int]:
    return [node.number for node in usable_numa_nodes(root, visible=visible)]


def test_node_has_what_vllm_counts(two_sockets: Path) -> None:
    first, second = usable_numa_nodes(two_sockets)
    free = (30000 + 2000 + 1000 + 500) * 1024
    assert first == NumaNode(number=0, memory_bytes=70000 * 1024, free_bytes=free)
    assert second.memory_bytes == 60000 * 1024
    assert count_numa_nodes(two_sockets) == 3


def test_nodes_are_those_that_may_be_used(two_sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert numbers(two_sockets, visible="1") == [1]
    assert numbers(two_sockets, visible="1,0") == [0, 1]
    assert numbers(two_sockets, visible="2,7") == []
    allow(two_sockets, "0,2")
    assert numbers(two_sockets) == [0]
    allow(two_sockets, "0-2")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {6, 7})
    assert numbers(two_sockets) == [1]
    monkeypatch.delattr(os, "sched_getaffinity")
    (two_sockets / "proc/self/status").unlink()
    assert numbers(two_sockets) == [0, 1]


def test_half_of_the_nodes_are_not_taken_for_all(two_sockets: Path) -> None:
    meminfo = two_sockets / "sys/devices/system/node/node1/meminfo"
    meminfo.write_text("Node 1 MemTotal: many kB\n")
    assert numbers(two_sockets) == []
    meminfo.unlink()
    assert numbers(two_sockets) == []


def test_processor_tells_of_the_smallest_node(two_sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (device,) = CPU.inventory(two_sockets)
    assert device.extra["numa_nodes"] == 2
    assert device.extra["numa_memory_bytes"] == 60000 * 1024
    assert device.memory_bytes == 130000 * 1024, "of 131072 kB the two nodes have so much"
    monkeypatch.setenv("CPU_VISIBLE_MEMORY_NODES", "0")
    (device,) = CPU.inventory(two_sockets)
    assert (device.extra["numa_nodes"], device.extra["numa_memory_bytes"]) == (1, 70000 * 1024)


def test_processor_has_what_its_nodes_have(two_sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker on one socket: what engines of the other use is not in the way."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5})
    (device,), (sample,) = CPU.inventory(two_sockets), CPU.sample(two_sockets)
    assert device.memory_bytes == 60000 * 1024
    assert device.extra["memory_total_bytes"] == 131072 * 1024
    assert sample.memory_free_bytes == 33500 * 1024
    assert sample.memory_used_bytes == 26500 * 1024


def test_processor_without_nodes_says_nothing_of_them(make_tree: Callable[..., Path]) -> None:
    (device,) = CPU.inventory(make_tree())
    assert device.extra["numa_nodes"] == 1
    assert "numa_memory_bytes" not in device.extra


def test_this_machine_has_nodes() -> None:
    nodes = usable_numa_nodes()
    (device,) = CPU.inventory(Path("/"))
    if not nodes:
        pytest.skip("this kernel tells of no NUMA nodes")
    assert device.extra["numa_memory_bytes"] == min(node.memory_bytes for node in nodes)
    assert all(0 < node.free_bytes < node.memory_bytes for node in nodes)


@given(st.sets(st.integers(0, 400), max_size=30))
def test_list_of_numbers_is_read(wanted: set[int]) -> None:
    ordered, parts = sorted(wanted), []
    while ordered:
        end = 1
        while end < len(ordered) and ordered[end] == ordered[0] + end:
            end += 1
        parts.append(f"{ordered[0]}-{ordered[end - 1]}" if end > 1 else f"{ordered[0]}")
        ordered = ordered[end:]
    assert parse_numbers(",".join(parts) + "\n") == wanted


@pytest.mark.parametrize("text", ["", "\n", "x", "1-x", "-", "-3", "1-2-3"])
def test_what_is_no_number_is_left_out(text: str) -> None:
    assert parse_numbers(text) == frozenset()
