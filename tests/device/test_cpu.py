"""The processor as a device, read from a made-up root."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from xinf.core.device import Vendor
from xinf.device import PROBES

CPU = PROBES[Vendor.CPU]


def limit(root: Path, **files: str) -> None:
    (root / "proc/self").mkdir()
    (root / "proc/self/cgroup").write_text("0::/pod/engine\n")
    directory = root / "sys/fs/cgroup/pod/engine"
    directory.mkdir(parents=True)
    for name, text in files.items():
        where = directory.parent if name.startswith("parent_") else directory
        (where / name.removeprefix("parent_").replace("_", ".", 1)).write_text(text)


def test_cpu_is_described(make_tree: Callable[..., Path]) -> None:
    root = make_tree()
    (root / "proc/cpuinfo").write_text("processor : 0\nmodel name : Some  CPU @ 2GHz\nflags : fpu avx2 amx_bf16 sse\n")
    for node in ("node0", "node1"):
        (root / "sys/devices/system/node" / node).mkdir(parents=True)
    (device,) = CPU.inventory(root)
    assert (device.selector, device.name, device.memory_bytes) == ("cpu", "Some CPU @ 2GHz", 131072 * 1024)
    assert device.extra == {"cores": len(os.sched_getaffinity(0)), "numa_nodes": 2, "isa": "avx2 amx_bf16"}
    assert device.arch == os.uname().machine


def test_cgroup_limits_beat_the_machine(make_tree: Callable[..., Path]) -> None:
    root = make_tree()
    limit(
        root,
        memory_max="50331648",
        memory_current="20971520",
        cpu_max="100000 100000",
        memory_stat="inactive_file 4194304\n",
    )
    (device,) = CPU.inventory(root)
    (sample,) = CPU.sample(root)
    assert device.memory_bytes == 48 << 20
    assert device.extra["cores"] == 1
    assert sample.memory_free_bytes == (48 - 20 + 4) << 20  # the page cache is given back


def test_limit_of_an_outer_cgroup_counts(make_tree: Callable[..., Path]) -> None:
    root = make_tree()
    limit(root, memory_max="max", parent_memory_max="33554432")
    (device,) = CPU.inventory(root)
    assert device.memory_bytes == 32 << 20


def test_uuid_comes_from_the_machine_and_does_not_tell_its_id(make_tree: Callable[..., Path]) -> None:
    root = make_tree()
    (root / "etc").mkdir()
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    first, second = CPU.inventory(root)[0], CPU.inventory(root)[0]
    assert first.uuid == second.uuid
    assert "0123456789" not in first.uuid


def test_unreadable_memory_is_none(tmp_path: Path) -> None:
    (device,) = CPU.inventory(tmp_path)
    (sample,) = CPU.sample(tmp_path)
    assert device.memory_bytes is None
    assert sample.memory_free_bytes is None
