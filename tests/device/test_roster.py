"""How the cards of a vendor become devices: in bus order, with those that only the bus shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xinf.core.device import Health, Vendor
from xinf.device import find_pci_functions
from xinf.device.roster import Card, make_devices, make_samples

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
    (sample,) = make_samples([Card(pci="0000:08:00.0", memory_bytes=32768 << 20, used_bytes=44302 << 20)])
    assert (sample.memory_used_bytes, sample.memory_free_bytes) == (44302 << 20, 0)


def test_unknown_stays_unknown() -> None:
    (sample,) = make_samples([Card(pci="0000:08:00.0", memory_bytes=1 << 30)])
    assert (sample.uuid, sample.memory_used_bytes, sample.memory_free_bytes) == ("PCI-0000-08-00.0", None, None)
    assert (sample.util_pct, sample.temp_c, sample.power_w, sample.health) == (None, None, None, None)
