"""What readings make of a node's devices: pure rules, one case each."""

from __future__ import annotations

import msgspec
import pytest

from xinf.agent.condition import FOREIGN_STEP_BYTES, Condition, foreign_bytes, merge_inventory
from xinf.core.device import Device, DeviceEvent, Health, Sample, Vendor
from xinf.device import DeviceProcess, Inventory, Reading

MIB = 1 << 20


def card(name: str, index: int = 0, *, pci: str | None = None, parent: str | None = None) -> Device:
    return Device(vendor=Vendor.NVIDIA, index=index, uuid=name, name="card", pci=pci, parent=parent)


A, B = card("a", 0, pci="0000:01:00.0"), card("b", 1, pci="0000:02:00.0")
CPU = Device(vendor=Vendor.CPU, index=0, uuid="c", name="cpu")
DEVICES = (A, B, CPU)


def samples(t_s: int = 0, /, **health: Health | None) -> Reading:
    found = tuple(
        Sample(uuid=uuid, t_ns=t_s * 10**9, health=value, reason="hot" if value else None)
        for uuid, value in health.items()
    )
    return Reading(vendor=Vendor.NVIDIA, samples=found)


def event(uuid: str, kind: str, health: Health = Health.OK) -> Reading:
    return Reading(
        vendor=Vendor.NVIDIA, events=(DeviceEvent(uuid=uuid, t_ns=0, kind=kind, message=kind, health=health),)
    )


def fault(misses: int) -> Reading:
    return Reading(vendor=Vendor.NVIDIA, fault="silent", misses=misses)


def state(condition: Condition, devices: tuple[Device, ...] = DEVICES) -> list[tuple[Health, str | None]]:
    return [(device.health, device.reason) for device in condition.mark(devices)]


WELL = (Health.OK, None)


def test_event_marks_until_it_is_over_and_samples_do_not_undo_it() -> None:
    condition = Condition(DEVICES)
    condition.take(event("a", "xid", Health.FAULTY))
    condition.take(samples(a=Health.OK, b=None))
    assert state(condition) == [(Health.FAULTY, "xid"), WELL, WELL]
    condition.take(event("a", "recovered"))
    assert state(condition)[0] == (Health.OK, "hot"), "the sample's own word counts again"


def test_fault_of_an_application_marks_nothing() -> None:
    condition = Condition(DEVICES)
    assert condition.take(event("a", "xid", Health.OK)) is False
    assert state(condition) == [WELL, WELL, WELL]


def test_sample_marks_until_the_device_was_well_for_a_while() -> None:
    condition = Condition(DEVICES)
    condition.take(samples(100, a=Health.FAULTY))
    assert state(condition)[0] == (Health.FAULTY, "hot")
    for t_s in (105, 110, 164):
        condition.take(samples(t_s, a=Health.OK))
        assert state(condition)[0] == (Health.FAULTY, "hot")
    condition.take(samples(165, a=Health.OK))
    assert state(condition)[0] == (Health.OK, "hot")


def test_device_that_flaps_is_ill_all_the_time() -> None:
    condition = Condition(DEVICES)
    for n in range(100):
        condition.take(samples(5 * n, a=Health.OK if n % 2 else Health.DEGRADED))
        assert state(condition)[0][0] is Health.DEGRADED


def test_clock_that_is_set_back_does_not_keep_a_device_ill() -> None:
    condition = Condition(DEVICES)
    condition.take(samples(10_000, a=Health.DEGRADED))
    for t_s in (10_005, 10, 70):
        condition.take(samples(t_s, a=Health.OK))
    assert state(condition)[0][0] is Health.OK


def test_silence_is_forgiven_once() -> None:
    condition = Condition(DEVICES)
    condition.take(fault(1))
    assert state(condition) == [WELL, WELL, WELL]
    condition.take(fault(2))
    assert state(condition) == [(Health.FAULTY, "silent"), (Health.FAULTY, "silent"), WELL]
    assert condition.take(event("a", "xid")) is False, "an event does not say that samples come again"
    assert state(condition)[0] == (Health.FAULTY, "silent")
    assert condition.take(samples(a=None)) is True, "who answers again is listed anew"
    assert state(condition) == [WELL, WELL, WELL]


def test_library_that_refuses_is_believed_at_once() -> None:
    condition = Condition(DEVICES)
    condition.take(fault(0))
    assert state(condition)[0] == (Health.FAULTY, "silent")


@pytest.mark.parametrize("before", [event("b", "driver"), fault(0)])
def test_new_driver_ends_what_happened_under_the_old(before: Reading) -> None:
    condition = Condition(DEVICES)
    condition.take(event("a", "xid", Health.FAULTY))
    condition.take(before)
    condition.take(samples(b=None))
    condition.take_inventory(DEVICES, Vendor.NVIDIA)
    assert state(condition) == [WELL, WELL, WELL]


def test_inventory_under_the_same_driver_does_not() -> None:
    condition = Condition(DEVICES)
    condition.take(event("a", "xid", Health.FAULTY))
    condition.take(fault(2))
    condition.take(samples(b=None))
    condition.take_inventory(DEVICES, Vendor.NVIDIA)
    assert state(condition)[0] == (Health.FAULTY, "xid")


def test_driver_event_asks_for_an_inventory() -> None:
    assert Condition(DEVICES).take(event("a", "driver")) is True


def test_instances_share_the_lot_of_their_card() -> None:
    devices = (A, card("m", 1, parent="a"))
    condition = Condition(devices)
    condition.take(event("a", "xid", Health.FAULTY))
    assert state(condition, devices)[1] == (Health.FAULTY, "xid")


def test_card_that_only_the_bus_shows_keeps_its_name() -> None:
    shown = msgspec.structs.replace(
        card("PCI-0000-02-00.0", 1, pci="0000:02:00.0"), health=Health.FAULTY, reason="lost"
    )
    merged = merge_inventory(DEVICES, Inventory(devices=(A, shown, CPU)), Vendor.NVIDIA)
    assert [(device.uuid, device.index, device.health) for device in merged] == [
        ("a", 0, Health.OK),
        ("b", 1, Health.FAULTY),
        ("c", 0, Health.OK),
    ]


def test_card_that_is_gone_stays_as_faulty_and_numbers_do_not_move() -> None:
    now = Inventory(devices=(card("b", 0, pci="0000:02:00.0"), card("n", 1), CPU))
    merged = merge_inventory(DEVICES, now, Vendor.NVIDIA)
    assert [(device.uuid, device.index, device.health) for device in merged] == [
        ("a", 0, Health.FAULTY),
        ("b", 1, Health.OK),
        ("c", 0, Health.OK),
        ("n", 2, Health.OK),
    ]


def test_instances_that_are_gone_are_gone() -> None:
    before = (A, card("m", 1, parent="a"))
    assert merge_inventory(before, Inventory(devices=(A,)), Vendor.NVIDIA) == (A,)


def used(mib: int, *processes: tuple[int, int | None]) -> Reading:
    return Reading(
        vendor=Vendor.NVIDIA,
        samples=(Sample(uuid="a", t_ns=0, memory_used_bytes=mib * MIB),),
        processes=tuple(
            DeviceProcess(uuid="a", pid=pid, memory_bytes=None if size is None else size * MIB)
            for pid, size in processes
        ),
    )


@pytest.mark.parametrize(
    ("reading", "own_pids", "foreign_mib"),
    [
        (used(512), [], 512),
        (used(100), [], None),  # a step too small to be told
        (used(20512, (7, 20000)), [7, 8], 512),
        (used(20512, (7, 20000), (9, 300)), [7], 512),
        (used(20512, (9, 300)), [7], None),  # the driver does not know our engine: another namespace
        (used(20512, (7, None)), [7], None),  # nor how much it has
    ],
)
def test_foreign_memory_is_what_is_not_our_engines(
    reading: Reading, own_pids: list[int], foreign_mib: int | None
) -> None:
    told = foreign_bytes(reading, {"a": own_pids}, {}, {})
    assert told == ({} if foreign_mib is None else {"a": foreign_mib * MIB})


def test_foreign_memory_moves_in_steps() -> None:
    assert foreign_bytes(used(1100), {}, {}, {"a": 1000 * MIB}) == {"a": 1000 * MIB}
    assert foreign_bytes(used(1300), {}, {}, {"a": 1000 * MIB}) == {"a": 1300 * MIB}
    assert foreign_bytes(used(0), {}, {}, {"a": FOREIGN_STEP_BYTES + MIB}) == {}


def test_processor_counts_what_the_host_knows() -> None:
    reading = Reading(vendor=Vendor.CPU, samples=(Sample(uuid="c", t_ns=0, memory_used_bytes=3000 * MIB),))
    assert foreign_bytes(reading, {}, {"c": 2000 * MIB}, {}) == {"c": 1000 * MIB}


def test_card_without_a_driver_is_not_called_broken_by_the_silence_that_follows() -> None:
    found = msgspec.structs.replace(A, health=Health.NO_DRIVER, reason="run modprobe")
    condition = Condition((found,))
    condition.take(fault(0))
    assert state(condition, (found,)) == [(Health.NO_DRIVER, "run modprobe")]
    assert condition.take(samples()) is True, "the driver answers now: list it anew"
