"""How the cards of a vendor become devices: in bus order, with those that only the bus shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xinf.core.device import Health, Vendor
from xinf.device import find_pci_functions
from xinf.device.library import LibraryError
from xinf.device.roster import Card, leave_out_twins, list_readable, make_devices, make_samples, name_by_place

TWO = (("0000:03:00.0", "0x1ed5", "0x030200", 0), ("0000:2a:00.0", "0x1ed5", "0x030200", -1))


def test_only_the_vendors_cards_are_picked(make_tree: Callable[..., Path]) -> None:
    found = find_pci_functions(make_tree(*TWO, ("0000:1b:00.0", "0x10de", "0x030200", 0)), Vendor.MTHREADS)
    assert [function.address for function in found] == ["0000:03:00.0", "0000:2a:00.0"]


def test_card_that_only_the_bus_shows_is_recorded_with_the_reason(make_tree: Callable[..., Path]) -> None:
    root = make_tree(*TWO)
    card = Card(pci="0000:2a:00.0", number=0, uuid="u-2a", name="MTT S80")
    bare, known = make_devices(Vendor.MTHREADS, [card], find_pci_functions(root), missing="nobody knows it", root=root)
    assert (bare.index, bare.health, bare.reason) == (0, Health.NO_DRIVER, "nobody knows it")
    assert (known.index, known.uuid, known.visible, known.numa) == (1, "u-2a", "0", None)


def test_card_of_a_virtual_machine_says_so(make_tree: Callable[..., Path]) -> None:
    root = make_tree(*TWO[:1])
    driver = root / "sys/bus/pci/drivers/vfio-pci"
    driver.mkdir(parents=True)
    (root / "sys/bus/pci/devices/0000:03:00.0/driver").symlink_to(driver)
    (card,) = make_devices(Vendor.MTHREADS, [], find_pci_functions(root), missing="no tool", root=root)
    assert card.reason == "it is bound to vfio-pci, for a virtual machine"


def test_free_memory_is_never_below_nothing() -> None:
    # S4000 behind an IOMMU that is off: more used than there is, as its users report.
    (sample,) = make_samples([Card(pci="0000:08:00.0", uuid="u-08", memory_bytes=32768 << 20, used_bytes=44302 << 20)])
    assert (sample.memory_used_bytes, sample.memory_free_bytes) == (44302 << 20, 0)


def test_unknown_stays_unknown() -> None:
    (sample,) = make_samples([Card(pci="0000:08:00.0", uuid="u-08", memory_bytes=1 << 30)])
    assert (sample.uuid, sample.memory_used_bytes, sample.memory_free_bytes) == ("u-08", None, None)
    assert (sample.util_pct, sample.temp_c, sample.power_w, sample.health) == (None, None, None, None)


def test_place_names_a_card_and_its_chips() -> None:
    assert name_by_place(Vendor.MTHREADS, "0000:2a:00.0") == "MUSA-0000-2a-00.0"
    assert name_by_place(Vendor.ASCEND, "0000:01:00.0", 1) == "NPU-0000-01-00.0-1"


@pytest.mark.parametrize(
    ("nodes", "driver", "may_be_cut", "health", "words"),
    [
        (0, False, False, Health.NO_DRIVER, "no kernel driver is bound to it: load that of mthreads (nobody knows it)"),
        (1, True, False, Health.NO_DRIVER, "it has no node /dev/mtgpu.N here: a container shows the cards"),
        (2, True, False, Health.FAULTY, "the driver lists 1 of the cards but not this one"),
        (0, False, True, Health.NO_DRIVER, "no kernel driver is bound to it: load that of mthreads (nobody knows it)"),
        (1, True, True, Health.NO_DRIVER, "it has no node /dev/mtgpu.N here: a container shows the cards"),
        (
            2,
            True,
            True,
            Health.SILENT,
            "the tool told of 1 cards where 2 have a node /dev/mtgpu.N: its answer may be cut",
        ),
    ],
    ids=["no driver", "not given to the container", "lost", *(f"cut? {case}" for case in ("no", "container", "yes"))],
)
def test_card_that_is_not_listed_says_why(
    make_tree: Callable[..., Path], nodes: int, driver: bool, may_be_cut: bool, health: Health, words: str
) -> None:
    root = make_tree(*TWO)
    (root / "dev").mkdir()
    for number in range(nodes):
        (root / f"dev/mtgpu.{number}").touch()
    if driver:
        (root / "sys/bus/pci/drivers/mtgpu").mkdir(parents=True)
        (root / "sys/bus/pci/devices/0000:03:00.0/driver").symlink_to(root / "sys/bus/pci/drivers/mtgpu")
    card = Card(pci="0000:2a:00.0", uuid="u-2a", number=0, name="MTT S80")
    functions = find_pci_functions(root)
    missing, _ = make_devices(
        Vendor.MTHREADS,
        [card],
        functions,
        missing="nobody knows it",
        root=root,
        nodes="mtgpu.",
        may_be_cut=may_be_cut,
    )
    assert missing.health is health
    assert words in str(missing.reason)
    assert "nobody knows it" in str(missing.reason)


@pytest.mark.parametrize(
    ("nodes", "others", "health"),
    [
        ("gcu", ("gcu0vid0", "gcu0vid1", "gcuctl"), Health.NO_DRIVER),  # /dev/gcuXvidY: Enflame's FFmpeg plugin
        ("cambricon_dev", ("cambricon_dev0vf1", "cambricon_ctl"), Health.NO_DRIVER),
        ("mtgpu.", ("mtgpu1",), Health.FAULTY),
    ],
)
def test_only_nodes_of_whole_cards_are_counted(
    make_tree: Callable[..., Path], nodes: str, others: tuple[str, ...], health: Health
) -> None:
    root = make_tree(*TWO)
    (root / "dev").mkdir()
    for name in (f"{nodes}0", *others):
        (root / "dev" / name).touch()
    (root / "sys/bus/pci/drivers/its").mkdir(parents=True)
    (root / "sys/bus/pci/devices/0000:03:00.0/driver").symlink_to(root / "sys/bus/pci/drivers/its")
    card = Card(pci="0000:2a:00.0", uuid="u-2a", number=0)
    functions = find_pci_functions(root)
    missing, _ = make_devices(Vendor.MTHREADS, [card], functions, missing="", root=root, nodes=nodes)
    assert missing.health is health


def test_card_on_no_bus_is_listed_last_and_hides_what_the_bus_would_say(make_tree: Callable[..., Path]) -> None:
    root = make_tree(*TWO)
    cards = [Card(pci=None, number=0, uuid="u-soc"), Card(pci="0000:2a:00.0", number=1, uuid="u-2a")]
    devices = make_devices(Vendor.MTHREADS, cards, find_pci_functions(root), missing="", root=root)
    assert [(device.uuid, device.pci, device.numa) for device in devices] == [
        ("u-2a", "0000:2a:00.0", None),
        ("u-soc", None, None),
    ]


def test_cards_of_one_name_are_left_out() -> None:
    cards = [Card(pci=address, uuid=uuid) for address, uuid in (("a", "u-1"), ("b", "u-2"), ("c", "u-1"))]
    said: list[str] = []
    assert [card.pci for card in leave_out_twins(cards, said)] == ["b"]
    assert said == ["several cards are listed as u-1"]
    assert leave_out_twins(cards[:2], said) == cards[:2]


def test_card_that_cannot_be_read_does_not_hide_the_others() -> None:
    def read(address: str) -> Card:
        if address == "0000:03:00.0":
            raise LibraryError("it is gone")
        return Card(pci=address, uuid=f"u-{address}")

    both = list(enumerate(("0000:03:00.0", "0000:2a:00.0")))
    listing = list_readable(both, read, ["device 7: no handle"])
    assert [card.pci for card in listing.cards] == ["0000:2a:00.0"]
    assert listing.complaints == ("device 7: no handle", "device 0: it is gone")
    with pytest.raises(LibraryError, match="device 0: it is gone"):
        list_readable(both[:1], read)
