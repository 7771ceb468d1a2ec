"""The PCI gate on made-up buses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xinf.core.device import Health, Vendor
from xinf.device import find_pci_functions
from xinf.device.pci import PciFunction, normalise_address, without_driver


def test_accelerators_are_found_by_vendor_and_class(make_tree: Callable[..., Path]) -> None:
    root = make_tree(
        ("0000:c1:00.0", "0x1002", "0x030000", 1),
        ("0000:1b:00.0", "0x10de", "0x030200", -1),
        ("0000:1b:00.1", "0x10de", "0x040300", -1),  # the card's audio function
        ("0000:00:1f.0", "0x8086", "0x060100", 0),  # an Intel bridge
        ("0000:81:00.0", "0x19e5", "0x120000", 0),  # a processing accelerator
        ("0000:02:00.0", "0x1234", "0x030000", 0),  # an emulated display
    )
    found = [(function.address, function.vendor, function.numa) for function in find_pci_functions(root)]
    assert found == [
        ("0000:1b:00.0", Vendor.NVIDIA, None),
        ("0000:81:00.0", Vendor.ASCEND, 0),
        ("0000:c1:00.0", Vendor.AMD, 1),
    ]


def test_virtual_function_is_counted_only_where_its_card_is_not_to_be_seen(make_tree: Callable[..., Path]) -> None:
    root = make_tree(("0000:c1:00.0", "0x19e5", "0x120000", 0), ("0000:c1:10.0", "0x19e5", "0x120000", 0))
    assert len(find_pci_functions(root)) == 2, "as in a virtual machine"
    (root / "sys/bus/pci/devices/0000:c1:10.0/physfn").symlink_to(root / "sys/bus/pci/devices/0000:c1:00.0")
    assert [function.address for function in find_pci_functions(root)] == ["0000:c1:00.0"]


def test_no_bus_is_no_accelerator(tmp_path: Path) -> None:
    assert find_pci_functions(tmp_path) == ()
    (tmp_path / "sys/bus/pci").mkdir(parents=True)
    (tmp_path / "sys/bus/pci/devices").touch()  # as unreadable as a bus that is hidden from a container
    assert find_pci_functions(tmp_path) == ()


@pytest.mark.parametrize("text", ["00000000:1B:00.0", "0000:1B:00.0", "0000:1b:00.0"])
def test_addresses_are_written_as_sysfs_does(text: str) -> None:
    assert normalise_address(text) == "0000:1b:00.0"


@pytest.mark.parametrize(
    ("driver", "health"), [(None, Health.NO_DRIVER), ("vfio-pci", Health.NO_DRIVER), ("xe", Health.SILENT)]
)
def test_card_that_nobody_lists_is_silent_where_its_driver_is_bound(driver: str | None, health: Health) -> None:
    function = PciFunction(address="0000:4d:00.0", vendor=Vendor.INTEL, device_id=0x56C0, driver=driver, numa=None)
    assert without_driver(function, 0, "why").health is health
    assert without_driver(function, 0, "why", Health.FAULTY).health is Health.FAULTY
