"""Distances from made-up sysfs trees with real links, and what vendors lay over them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from xinf.core.device import Device, Distance, Topology, Vendor
from xinf.device import overlay, read_topology

# Two switches below one bridge of node 0, the second in cascade; a card of its own at a root port; one of node 1.
PATHS = {
    "a": ("pci0000:16/0000:16:01.0/0000:17:00.0/0000:18:00.0", "0000:19:00.0", 0),
    "b": ("pci0000:16/0000:16:01.0/0000:17:00.0/0000:18:01.0", "0000:1a:00.0", 0),
    "c": ("pci0000:16/0000:16:01.0/0000:17:00.0/0000:18:02.0/0000:1b:00.0/0000:1c:00.0", "0000:1d:00.0", 0),
    "d": ("pci0000:16/0000:16:02.0", "0000:20:00.0", 0),
    "e": ("pci0000:40/0000:40:01.0", "0000:41:00.0", 0),
    "f": ("pci0000:97/0000:97:01.0", "0000:98:00.0", 1),
}


@pytest.fixture
def make_bus(tmp_path: Path) -> Callable[..., Path]:
    """Make a root with these devices: sys/bus/pci/devices holds links, as the kernel makes them."""

    def make(names: str = "abcdef", *, n_nodes: int = 2) -> Path:
        bus = tmp_path / "sys/bus/pci/devices"
        bus.mkdir(parents=True)
        for name in names:
            path, address, numa = PATHS[name]
            directory = tmp_path / "sys/devices" / path / address
            directory.mkdir(parents=True)
            (directory / "numa_node").write_text(f"{numa}\n")
            (bus / address).symlink_to(Path("../../../devices") / path / address)
        for number in range(n_nodes):
            node = tmp_path / f"sys/devices/system/node/node{number}"
            node.mkdir(parents=True)
            (node / "cpulist").write_text(f"{8 * number}-{8 * number + 7}\n")
        return tmp_path

    return make


def device(name: str, *, numa: int | None = None, uuid: str | None = None) -> Device:
    address = PATHS[name][1]
    return Device(vendor=Vendor.NVIDIA, index=0, uuid=uuid or name, name=name, pci=address, numa=numa)


def test_distances_follow_the_bus(make_bus: Callable[..., Path]) -> None:
    root = make_bus()
    topology = read_topology([device(name, numa=PATHS[name][2]) for name in PATHS], root)
    found = {first + second: distance for first, second, distance in topology.pairs}
    assert found == {
        "ab": Distance.PIX,
        "ac": Distance.PXB,
        "bc": Distance.PXB,
        "ad": Distance.PHB,
        "bd": Distance.PHB,
        "cd": Distance.PHB,
        **dict.fromkeys(("ae", "be", "ce", "de"), Distance.NODE),
        **dict.fromkeys(("af", "bf", "cf", "df", "ef"), Distance.SYS),
    }
    assert len(found) == len(list(combinations(PATHS, 2)))


def test_distance_is_the_same_from_both_ends(make_bus: Callable[..., Path]) -> None:
    topology = read_topology([device("b"), device("a")], make_bus("ab"))
    assert topology.between("a", "b") is topology.between("b", "a") is Distance.PIX
    assert topology.between("a", "a") is Distance.SELF


def test_kernel_without_numa_says_nothing_across_bridges(make_bus: Callable[..., Path]) -> None:
    topology = read_topology([device("d"), device("e")], make_bus("de"))
    assert topology.pairs == ()


def test_one_node_is_one_node(make_bus: Callable[..., Path]) -> None:
    topology = read_topology([device("d"), device("e")], make_bus("de", n_nodes=1))
    assert topology.between("d", "e") is Distance.NODE


def test_instances_of_one_card_and_the_processor_have_no_distance(make_bus: Callable[..., Path]) -> None:
    cpu = Device(vendor=Vendor.CPU, index=0, uuid="cpu", name="cpu")
    assert read_topology([device("a"), device("a", uuid="a-mig"), cpu], make_bus("a")).pairs == ()


def test_what_a_vendor_knows_beats_the_bus() -> None:
    bus = Topology(pairs=(("a", "b", Distance.SYS), ("a", "c", Distance.PIX)))
    links = Topology(pairs=(("a", "b", Distance.LINK),))
    laid = overlay(bus, links)
    assert (laid.between("a", "b"), laid.between("a", "c")) == (Distance.LINK, Distance.PIX)


def test_node_that_is_a_cards_memory_does_not_count(make_bus: Callable[..., Path]) -> None:
    root = make_bus("ef", n_nodes=1)
    cards = [device(name, numa=None) for name in "ef"]
    for number in (1, 2):
        node = root / f"sys/devices/system/node/node{number}"
        node.mkdir()
        (node / "cpulist").write_text("\n")
    assert read_topology(cards, root).pairs == (("e", "f", Distance.NODE),)
    (root / "sys/devices/system/node/node1/cpulist").write_text("72-143\n")
    assert read_topology(cards, root).pairs == ()
