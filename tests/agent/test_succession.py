"""Which device of a new inventory is which of the old one: one case each."""

from __future__ import annotations

import msgspec

from xinf.agent.succession import LOST, merge_inventory, resume
from xinf.core.device import Device, Health, Vendor
from xinf.device import Inventory


def card(name: str, index: int = 0, *, pci: str | None = None, parent: str | None = None) -> Device:
    return Device(vendor=Vendor.NVIDIA, index=index, uuid=name, name="card", pci=pci, parent=parent)


def shown_by_bus(number: int, health: Health = Health.NO_DRIVER) -> Device:
    found = card(f"PCI-0000-0{number}-00.0", number - 1, pci=f"0000:0{number}:00.0")
    return msgspec.structs.replace(found, health=health, reason="the bus alone shows it")


A, B = card("a", 0, pci="0000:01:00.0"), card("b", 1, pci="0000:02:00.0")
CPU = Device(vendor=Vendor.CPU, index=0, uuid="c", name="cpu")
DEVICES = (A, B, CPU)
SILENT = Inventory(devices=(shown_by_bus(1), shown_by_bus(2), CPU), silent={Vendor.NVIDIA: "no answer"})


def told(devices: tuple[Device, ...]) -> list[tuple[str, int, Health]]:
    return [(device.uuid, device.index, device.health) for device in devices]


def test_card_that_only_the_bus_shows_keeps_its_name() -> None:
    merged = merge_inventory(DEVICES, Inventory(devices=(A, shown_by_bus(2), CPU)), Vendor.NVIDIA)
    assert told(merged) == [("a", 0, Health.OK), ("b", 1, Health.NO_DRIVER), ("c", 0, Health.OK)]
    assert merged[1].reason == "the bus alone shows it"


def test_card_that_is_gone_stays_as_faulty_and_numbers_do_not_move() -> None:
    now = Inventory(devices=(card("b", 0, pci="0000:02:00.0"), card("n", 1, pci="0000:07:00.0"), CPU))
    merged = merge_inventory(DEVICES, now, Vendor.NVIDIA)
    assert told(merged) == [("a", 0, Health.FAULTY), ("b", 1, Health.OK), ("c", 0, Health.OK), ("n", 2, Health.OK)]
    assert merged[0].reason == LOST


def test_card_in_the_slot_of_another_is_another_with_its_number() -> None:
    now = Inventory(devices=(A, card("new", 1, pci="0000:02:00.0"), CPU))
    merged = merge_inventory(DEVICES, now, Vendor.NVIDIA)
    assert told(merged) == [("a", 0, Health.OK), ("c", 0, Health.OK), ("new", 1, Health.OK)]


def test_cards_that_changed_their_slots_are_the_same_cards() -> None:
    swapped = (
        msgspec.structs.replace(A, pci="0000:02:00.0", index=1),
        msgspec.structs.replace(B, pci="0000:01:00.0", index=0),
    )
    merged = merge_inventory(DEVICES, Inventory(devices=(*swapped, CPU)), Vendor.NVIDIA)
    assert [(device.uuid, device.index) for device in merged[:2]] == [("a", 0), ("b", 1)]


def test_die_that_is_lost_is_not_replaced_by_its_neighbour_of_the_same_slot() -> None:
    dies = (card("x", 0, pci="0000:01:00.0"), card("y", 1, pci="0000:01:00.0"))
    merged = merge_inventory(dies, Inventory(devices=dies[1:]), Vendor.NVIDIA)
    assert told(merged) == [("x", 0, Health.FAULTY), ("y", 1, Health.OK)]


def test_card_that_had_no_name_gets_one_and_keeps_its_number() -> None:
    before = (A, shown_by_bus(2), CPU)
    merged = merge_inventory(before, Inventory(devices=DEVICES), Vendor.NVIDIA)
    assert told(merged) == [("a", 0, Health.OK), ("c", 0, Health.OK), ("b", 1, Health.OK)]


def test_card_that_tells_nothing_of_itself_is_the_one_that_is_lost() -> None:
    """As NVML counts one that fell off the bus, in a container that does not show the bus."""
    unread = msgspec.structs.replace(
        card("NVML-unreadable-0", 1), health=Health.FAULTY, reason="NVML cannot read a device: GPU is lost"
    )
    merged = merge_inventory(DEVICES, Inventory(devices=(A, unread, CPU)), Vendor.NVIDIA)
    assert told(merged) == [("a", 0, Health.OK), ("b", 1, Health.FAULTY), ("c", 0, Health.OK)]
    assert "GPU is lost" in str(merged[1].reason)
    assert told(merge_inventory(merged, Inventory(devices=DEVICES), Vendor.NVIDIA)) == told(DEVICES)
    alone = merge_inventory((A, CPU), Inventory(devices=(A, unread, CPU)), Vendor.NVIDIA)
    assert told(alone) == [("a", 0, Health.OK), ("c", 0, Health.OK), ("NVML-unreadable-0", 1, Health.FAULTY)]
    assert told(merge_inventory(alone, Inventory(devices=(A, CPU)), Vendor.NVIDIA)) == told((A, CPU))


def test_instances_that_are_gone_are_gone_and_new_ones_have_new_numbers() -> None:
    before = (A, card("m", 1, parent="a", pci=A.pci))
    assert merge_inventory(before, Inventory(devices=(A,)), Vendor.NVIDIA) == (A,)
    now = Inventory(devices=(A, card("k", 1, parent="a", pci=A.pci), card("l", 2, parent="a", pci=A.pci)))
    assert told(merge_inventory(before, now, Vendor.NVIDIA)) == [
        ("a", 0, Health.OK), ("k", 1, Health.OK), ("l", 2, Health.OK),
    ]  # fmt: skip


def test_card_that_was_divided_is_no_lost_one() -> None:
    # AMD lists the parts of a card in partition mode, and the card no more; NVIDIA lists both.
    parts = [card(f"b-p{n}", n + 1, pci="0000:02:00.0", parent="b") for n in range(2)]
    merged = merge_inventory(DEVICES, Inventory(devices=(A, *parts, CPU)), Vendor.NVIDIA)
    assert told(merged) == [("a", 0, Health.OK), ("c", 0, Health.OK), ("b-p0", 1, Health.OK), ("b-p1", 2, Health.OK)]
    whole = merge_inventory(merged, Inventory(devices=(A, B, CPU)), Vendor.NVIDIA)
    assert told(whole) == [("a", 0, Health.OK), ("c", 0, Health.OK), ("b", 1, Health.OK)]


def test_instances_share_the_lot_of_a_card_that_only_the_bus_shows() -> None:
    before = (A, card("m", 1, parent="a", pci=A.pci))
    merged = merge_inventory(before, Inventory(devices=(shown_by_bus(1),)), Vendor.NVIDIA)
    assert told(merged) == [("a", 0, Health.NO_DRIVER), ("m", 1, Health.NO_DRIVER)]


def test_vendor_that_did_not_answer_loses_nothing() -> None:
    split = (*DEVICES, card("m", 2, parent="a", pci=A.pci))
    for now in (SILENT, Inventory(devices=(CPU,), silent=SILENT.silent)):  # with a bus, and in a container without
        merged = merge_inventory(split, now, Vendor.NVIDIA)
        assert sorted(told(merged)) == [
            ("a", 0, Health.SILENT), ("b", 1, Health.SILENT), ("c", 0, Health.OK), ("m", 2, Health.SILENT),
        ]  # fmt: skip
        assert {device.reason for device in merged} == {"no answer", None}


def test_silence_does_not_cover_what_is_worse() -> None:
    before = (msgspec.structs.replace(A, health=Health.FAULTY, reason=LOST), B, CPU)
    assert merge_inventory(before, SILENT, Vendor.NVIDIA)[0].reason == LOST


def test_agent_that_starts_while_a_driver_hangs_knows_the_cards_by_their_names() -> None:
    assert told(resume(DEVICES, SILENT)) == [("a", 0, Health.SILENT), ("b", 1, Health.SILENT), ("c", 0, Health.OK)]


def test_agent_that_starts_forgets_who_was_taken_out_meanwhile() -> None:
    found = resume(DEVICES, Inventory(devices=(B, CPU)))
    assert told(found) == [("b", 1, Health.OK), ("c", 0, Health.OK)]


def test_agent_that_starts_takes_new_vendors_in_their_order() -> None:
    amd = Device(vendor=Vendor.AMD, index=0, uuid="d", name="card")
    found = resume(DEVICES, Inventory(devices=(A, B, amd, CPU)))
    assert [device.uuid for device in found] == ["a", "b", "d", "c"]


def test_card_that_only_its_device_node_shows_is_the_one_that_was_there() -> None:
    """In a container without a PCI bus; under the name of its node it would stay as lost for ever."""
    node = msgspec.structs.replace(card("DEV-nvidia0"), health=Health.NO_DRIVER, reason="run modprobe")
    merged = merge_inventory((A, CPU), Inventory(devices=(node, CPU)), Vendor.NVIDIA)
    assert [(device.uuid, device.reason) for device in merged] == [("a", "run modprobe"), ("c", None)]
    again = merge_inventory(merged, Inventory(devices=(A, CPU)), Vendor.NVIDIA)
    assert told(again) == [("a", 0, Health.OK), ("c", 0, Health.OK)]
    # And the other way round: the driver is loaded after the worker has started.
    assert told(merge_inventory((node, CPU), Inventory(devices=(A, CPU)), Vendor.NVIDIA)) == [
        ("c", 0, Health.OK), ("a", 0, Health.OK),
    ]  # fmt: skip
