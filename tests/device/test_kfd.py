"""KFD's topology on made-up trees; proves how the files are read, not that a driver writes them so."""

from __future__ import annotations

import pytest

from tests.device.gpu_tree import GpuTree, add_mi300x
from xinf.device.kfd import arch_of_version, read_nodes, read_processes
from xinf.device.tool import FormatError

PROCESSOR = {"cpu_cores_count": 96, "simd_count": 0, "location_id": 0}


@pytest.mark.parametrize(
    ("version", "arch"),
    [
        *((90402, "gfx942"), (90010, "gfx90a"), (90500, "gfx950"), (90208, "gfx928"), (100300, "gfx1030")),
        *((110000, "gfx1100"), (110501, "gfx1151"), (120001, "gfx1201"), (0, None)),
    ],
)
def test_architecture_is_written_as_compilers_do(version: int, arch: str | None) -> None:
    assert arch_of_version(version) == arch


def test_gpu_nodes_are_read_in_order(gpu_tree: GpuTree) -> None:
    gpu_tree.add_node(0, PROCESSOR, gpu_id=0)
    add_mi300x(gpu_tree, "0000:c1:00.0", node=10, unique_id=7, linked=[2])
    add_mi300x(gpu_tree, "0000:83:00.0", node=2, unique_id=0, linked=[10])
    first, second = read_nodes(gpu_tree.root)
    assert (first.number, first.ordinal, first.pci, first.unique_id) == (2, 0, "0000:83:00.0", None)
    assert (second.number, second.ordinal, second.pci, second.unique_id) == (10, 1, "0000:c1:00.0", 7)
    assert (first.arch, first.memory_bytes, first.render_minor) == ("gfx942", 206141652992, 128)
    assert (first.linked, second.linked) == ((10,), (2,))  # the PCIe links to node 0 are no xGMI


def test_node_of_another_container_is_not_counted(gpu_tree: GpuTree) -> None:
    hidden = gpu_tree.add_node(1, PROCESSOR, gpu_id=1)
    (hidden / "properties").unlink()  # as if EPERM: root may read anything
    add_mi300x(gpu_tree, "0000:83:00.0", node=2, unique_id=7)
    (node,) = read_nodes(gpu_tree.root)
    assert (node.number, node.ordinal) == (2, 0)


def test_node_without_its_render_node_is_not_counted(gpu_tree: GpuTree) -> None:
    add_mi300x(gpu_tree, "0000:c1:00.0", node=1, unique_id=7)
    add_mi300x(gpu_tree, "0000:83:00.0", node=2, unique_id=8)
    (gpu_tree.root / "dev/dri/renderD127").unlink()
    assert [(node.number, node.ordinal) for node in read_nodes(gpu_tree.root)] == [(1, None), (2, 0)]


def test_memory_that_is_not_the_cards_is_left_out(gpu_tree: GpuTree) -> None:
    banks = [{"heap_type": 0, "size_in_bytes": 1 << 40}, {"heap_type": 2, "size_in_bytes": 1 << 33}]
    gpu_tree.add_node(1, {"location_id": 0x300, "gfx_target_version": 110501}, gpu_id=9, banks=banks)
    assert read_nodes(gpu_tree.root)[0].memory_bytes == 1 << 33


def test_no_driver_is_no_node(gpu_tree: GpuTree) -> None:
    assert read_nodes(gpu_tree.root) == ()


@pytest.mark.parametrize("line", ["location_id", "location_id 0x300", "location_id 7 8", "unknown_key 1"])
def test_unknown_properties_are_refused(gpu_tree: GpuTree, line: str) -> None:
    node = gpu_tree.add_node(1, {}, gpu_id=9)
    (node / "properties").write_text(f"{line}\n")
    with pytest.raises(FormatError, match="KFD"):
        read_nodes(gpu_tree.root)


def test_processes_are_read_with_what_they_hold(gpu_tree: GpuTree) -> None:
    gpu_tree.write("sys/class/kfd/kfd/proc/4242/vram_40002", "8589934592\n")
    gpu_tree.write("sys/class/kfd/kfd/proc/4242/vram_40003", "0\n")
    gpu_tree.write("sys/class/kfd/kfd/proc/4242/pasid", "32770\n")
    (process,) = read_processes(gpu_tree.root)
    assert (process.pid, process.gpu_id, process.memory_bytes) == (4242, 40002, 8 << 30)


def test_process_with_unknown_text_is_refused(gpu_tree: GpuTree) -> None:
    gpu_tree.write("sys/class/kfd/kfd/proc/4242/vram_40002", "8 GiB\n")
    with pytest.raises(FormatError, match="proc/4242/vram_40002"):
        read_processes(gpu_tree.root)
