"""The processor as a device, read from a made-up root."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

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
        (root / "sys/devices/system/node" / node / "cpulist").write_text("0-1\n")
    memory_only = root / "sys/devices/system/node/node2"  # as the memory of some accelerators shows itself
    memory_only.mkdir()
    (memory_only / "cpulist").write_text("\n")
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
    assert device.extra["memory_total_bytes"] == 128 << 20, "GPUs that compute in it have all of it"
    (root / "sys/fs/cgroup/pod/memory.max").write_text(str(1 << 40))
    assert "memory_total_bytes" not in CPU.inventory(root)[0].extra


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


def test_room_is_that_of_the_tightest_cgroup(make_tree: Callable[..., Path]) -> None:
    root = make_tree()
    limit(
        root,
        memory_max="max",
        memory_current="1048576",
        parent_memory_max="33554432",
        parent_memory_current="29360128",
    )
    (sample,) = CPU.sample(root)
    assert sample.memory_free_bytes == (32 - 28) << 20  # others in the outer group use it too


@pytest.mark.parametrize(
    ("own", "outer", "cores"),
    [("max 100000", "max 100000", 8), ("350000 100000", "max 100000", 3), ("max 100000", "50000 100000", 1)],
)
def test_quota_cuts_the_affinity_down(
    make_tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, own: str, outer: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    root = make_tree()
    limit(root, cpu_max=own, parent_cpu_max=outer)
    assert CPU.inventory(root)[0].extra["cores"] == cores


def test_version_1_of_cgroups_leaves_the_machine(make_tree: Callable[..., Path]) -> None:
    root = make_tree()
    (root / "proc/self").mkdir()
    (root / "proc/self/cgroup").write_text("4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n")
    (device,) = CPU.inventory(root)
    assert (device.memory_bytes, device.extra["cores"]) == (131072 * 1024, len(os.sched_getaffinity(0)))


def test_host_without_cgroups_or_affinity_is_described(
    make_tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    (device,) = CPU.inventory(make_tree())
    assert device.extra == {"cores": os.cpu_count(), "numa_nodes": 1}


ARM64 = """\
processor\t: 0
BogoMIPS\t: 2000.00
Features\t: fp asimd evtstrm aes atomics fphp asimdhp asimddp sve sve2 i8mm bf16
CPU implementer\t: {implementer}
CPU architecture: 8
CPU part\t: {part}

processor\t: 1
Features\t: fp
"""


@pytest.mark.parametrize(
    ("implementer", "part", "name"),
    [
        ("0x41", "0xd4f", "ARM Neoverse-V2"),
        ("0x48", "0xd01", "HiSilicon Kunpeng-920"),
        ("0x99", "0x1", "arm64 0x99:0x001"),
    ],
)
def test_arm64_names_no_model_but_its_part(
    make_tree: Callable[..., Path], implementer: str, part: str, name: str
) -> None:
    root = make_tree()
    (root / "proc/cpuinfo").write_text(ARM64.format(implementer=implementer, part=part))
    (device,) = CPU.inventory(root)
    assert device.name == name
    assert device.extra["isa"] == "asimd asimddp bf16 i8mm sve sve2"


def test_this_machine_is_described() -> None:
    (device,) = CPU.inventory(Path("/"))
    (sample,) = CPU.sample(Path("/"))
    assert device.uuid == sample.uuid
    assert device.memory_bytes is not None
    assert sample.memory_used_bytes is not None
    assert 0 < sample.memory_used_bytes < device.memory_bytes
    assert 1 <= int(device.extra["cores"]) <= (os.cpu_count() or 1)
