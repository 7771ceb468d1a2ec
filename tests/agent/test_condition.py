"""What readings and inventories make of a node's devices: pure rules, one case each."""

from __future__ import annotations

import msgspec
import pytest

from xinf.agent.condition import Condition
from xinf.agent.damper import CALM_S, Mark, Spell
from xinf.core.device import Device, DeviceEvent, Health, Sample, Vendor
from xinf.device import Inventory, Reading


def card(name: str, index: int = 0, *, pci: str | None = None, parent: str | None = None) -> Device:
    return Device(vendor=Vendor.NVIDIA, index=index, uuid=name, name="card", pci=pci, parent=parent)


A, B = card("a", 0, pci="0000:01:00.0"), card("b", 1, pci="0000:02:00.0")
CPU = Device(vendor=Vendor.CPU, index=0, uuid="c", name="cpu")
DEVICES = (A, B, CPU)
FOUND = Inventory(devices=DEVICES)
WELL = (Health.OK, None)


class Ward:
    """A condition and a clock that stands still unless it is told to go on."""

    def __init__(self, *devices: Device, spells: dict[str, Spell] | None = None) -> None:
        self.condition = Condition(devices or DEVICES, spells)
        self.now_s = 1000.0

    def take(self, reading: Reading) -> bool:
        asks = self.condition.take(reading)
        self.state()
        return asks

    def find(self, *devices: Device, silent: str | None = None) -> None:
        now = Inventory(devices=devices, silent={} if silent is None else {Vendor.NVIDIA: silent})
        self.condition.take_inventory(now, Vendor.NVIDIA)
        self.state()

    def state(self) -> list[tuple[Health, str | None]]:
        """How the devices count now."""
        return [(device.health, device.reason) for device in self.condition.mark(self.now_s)]

    def calm(self) -> list[tuple[Health, str | None]]:
        """How they count when nothing came for a calm time."""
        self.state()
        self.now_s += CALM_S
        return self.state()


def samples(**health: Health | None) -> Reading:
    found = tuple(
        Sample(uuid=uuid, t_ns=0, health=value, reason="hot" if value and value is not Health.OK else None)
        for uuid, value in health.items()
    )
    return Reading(vendor=Vendor.NVIDIA, samples=found)


def event(uuid: str, kind: str, health: Health = Health.OK, code: int | None = None) -> Reading:
    told = DeviceEvent(uuid=uuid, t_ns=0, kind=kind, code=code, message=kind, health=health)
    return Reading(vendor=Vendor.NVIDIA, events=(told,))


def fault(misses: int, text: str = "silent") -> Reading:
    return Reading(vendor=Vendor.NVIDIA, fault=text, misses=misses)


def test_event_marks_until_it_is_over_and_samples_do_not_undo_it() -> None:
    ward = Ward()
    ward.take(event("a", "xid", Health.FAULTY, 48))
    ward.take(samples(a=Health.OK, b=None))
    assert ward.calm() == [(Health.FAULTY, "xid"), WELL, WELL]
    ward.take(event("a", "recovered"))
    assert ward.state()[0] == (Health.FAULTY, "xid")
    assert ward.calm() == [WELL, WELL, WELL]


def test_fault_of_an_application_marks_nothing() -> None:
    ward = Ward()
    assert ward.take(event("a", "xid", Health.OK, 31)) is False
    assert ward.state() == [WELL, WELL, WELL]


def test_card_that_answers_again_keeps_what_else_it_said() -> None:
    """An Xid that asks for a reset is not over because the card was lost for a moment after it."""
    ward = Ward()
    for kind, code in (("xid", 95), ("lost", None), ("xid", 79)):
        ward.take(event("a", kind, Health.FAULTY, code))
    ward.take(event("a", "found"))
    assert ward.calm()[0] == (Health.FAULTY, "xid")
    ward.take(event("a", "recovered"))
    assert ward.calm()[0] == WELL


@pytest.mark.parametrize("word", [event("a", "found"), samples(a=Health.OK)])
def test_lost_card_that_answers_is_there_again(word: Reading) -> None:
    """A sample does as well: the reader that knew of the loss may have been replaced since."""
    ward = Ward()
    ward.take(event("a", "lost", Health.FAULTY))
    ward.take(event("a", "xid", Health.FAULTY, 79))
    assert ward.state()[0][0] is Health.FAULTY
    ward.take(word)
    assert ward.calm()[0] == WELL


def test_loss_and_return_over_and_over_is_one_long_illness() -> None:
    ward = Ward()
    for n in range(100):
        ward.take(event("a", "lost", Health.FAULTY) if n % 2 == 0 else event("a", "found"))
        assert ward.state()[0][0] is Health.FAULTY
        ward.now_s += 7


def test_sample_marks_until_the_device_was_well_for_a_while() -> None:
    ward = Ward()
    ward.take(samples(a=Health.FAULTY, b=None))
    assert ward.state()[0] == (Health.FAULTY, "hot")
    ward.take(samples(a=Health.OK, b=None))
    ward.now_s += CALM_S - 1
    assert ward.state()[0][0] is Health.FAULTY
    ward.now_s += 1
    assert ward.state()[0] == WELL


def counted(count: int | None, health: Health) -> Reading:
    sample = Sample(
        uuid="a", t_ns=0, ecc_uncorrected=count, health=health, reason=None if health is Health.OK else "ecc"
    )
    return Reading(vendor=Vendor.NVIDIA, samples=(sample, Sample(uuid="b", t_ns=0)))


def test_memory_errors_that_grew_are_not_forgotten_with_their_reader() -> None:
    ward = Ward()
    ward.take(counted(4, Health.OK))
    ward.take(counted(6, Health.FAULTY))
    ward.take(fault(1))
    for count in (6, None, 7):  # the next reader takes what it finds for old
        ward.take(counted(count, Health.OK))
        assert ward.calm()[0] == (Health.FAULTY, "ecc")
    ward.take(counted(0, Health.OK))  # the card was reset
    assert ward.calm()[0] == WELL


def test_memory_errors_of_before_and_faults_of_another_kind_are_over_when_samples_say_so() -> None:
    ward = Ward()
    ward.take(counted(4, Health.FAULTY))
    ward.take(counted(4, Health.OK))
    assert ward.calm()[0] == WELL
    ward.take(counted(5, Health.OK))  # contained
    ward.take(counted(5, Health.FAULTY))  # hot
    ward.take(counted(5, Health.OK))
    ward.now_s += CALM_S
    assert ward.calm()[0] == WELL


def test_new_driver_ends_the_memory_errors_of_the_old_one() -> None:
    ward = Ward()
    ward.take(counted(4, Health.OK))
    ward.take(counted(6, Health.FAULTY))
    ward.take(event("b", "driver"))
    ward.find(*DEVICES)
    ward.take(counted(6, Health.OK))
    assert ward.calm()[0] == WELL


def test_worst_mark_counts_whoever_gave_it() -> None:
    ward = Ward()
    ward.take(samples(a=Health.DEGRADED, b=Health.FAULTY))
    ward.take(fault(2))
    assert ward.state()[:2] == [(Health.SILENT, "silent"), (Health.FAULTY, "hot")]


def test_silence_is_forgiven_once() -> None:
    ward = Ward()
    ward.take(samples(a=None, b=None))
    ward.take(fault(1))
    assert ward.state() == [WELL, WELL, WELL]
    ward.take(fault(2))
    assert ward.state() == [(Health.SILENT, "silent"), (Health.SILENT, "silent"), WELL]
    assert ward.take(event("a", "xid")) is False, "an event does not say that samples come again"
    assert ward.calm()[0] == (Health.SILENT, "silent")
    assert ward.take(samples(a=None, b=None)) is True, "who answers again is listed anew"
    assert ward.calm() == [WELL, WELL, WELL]


def test_vendor_that_is_silent_now_and_then_is_silent_all_the_time() -> None:
    ward = Ward()
    for _ in range(50):
        ward.take(fault(1))
        ward.take(fault(2))
        assert ward.state()[0][0] is Health.SILENT
        ward.now_s += 20
        ward.take(samples(a=None, b=None))
        assert ward.state()[0][0] is Health.SILENT


def test_library_that_refuses_is_believed_at_once_and_an_inventory_is_to_say_why() -> None:
    ward = Ward()
    assert ward.take(fault(0)) is True
    assert ward.state()[0] == (Health.SILENT, "silent")
    assert ward.take(fault(0)) is False, "once is enough: it is asked for until all are well"
    assert ward.take(fault(0, "another reason")) is True


@pytest.mark.parametrize("before", [event("b", "driver"), fault(0)])
def test_new_driver_ends_what_happened_under_the_old(before: Reading) -> None:
    ward = Ward()
    ward.take(event("a", "xid", Health.FAULTY, 48))
    ward.take(before)
    ward.take(samples(a=None, b=None))
    ward.find(*DEVICES)
    assert ward.calm() == [WELL, WELL, WELL]


def test_driver_that_is_away_for_a_while_is_still_a_new_one_when_it_comes() -> None:
    ward = Ward()
    ward.take(event("a", "xid", Health.FAULTY, 48))
    ward.take(event("a", "driver"))
    gone = [msgspec.structs.replace(d, health=Health.NO_DRIVER, reason="modprobe") for d in (A, B)]
    ward.find(*gone, CPU)
    assert ward.condition.must_list(Vendor.NVIDIA), "it is asked for until the driver is there"
    ward.find(*DEVICES)
    assert not ward.condition.must_list(Vendor.NVIDIA)
    assert ward.calm()[0] == WELL


def test_inventory_under_the_same_driver_ends_nothing() -> None:
    ward = Ward()
    ward.take(event("a", "xid", Health.FAULTY, 48))
    ward.take(fault(2))
    ward.take(samples(a=None, b=None))
    ward.find(*DEVICES)
    assert ward.calm()[0] == (Health.FAULTY, "xid")


def test_driver_event_asks_for_an_inventory() -> None:
    assert Ward().take(event("a", "driver")) is True


def test_inventory_that_did_not_answer_marks_nobody_as_lost() -> None:
    ward = Ward()
    ward.find(CPU, silent="the driver did not answer within 15 s")
    assert [health for health, _ in ward.state()] == [Health.SILENT, Health.SILENT, Health.OK]
    assert ward.condition.must_list(Vendor.NVIDIA)
    ward.find(*DEVICES)
    assert ward.calm() == [WELL, WELL, WELL]


def test_reading_of_other_devices_asks_for_an_inventory() -> None:
    """MIG instances that were made or taken apart, cards that came or went: no event tells of them."""
    ward = Ward()
    assert ward.take(samples(a=None, b=None)) is False
    assert ward.take(samples(a=None, b=None, m=None)) is True
    assert ward.take(samples(a=None, b=None, m=None)) is False
    assert ward.take(samples(a=None)) is True
    assert ward.take(event("a", "xid")) is False
    assert ward.take(samples()) is True


def test_first_reading_of_an_unknown_device_asks_too() -> None:
    assert Ward().take(samples(a=None, x=None)) is True
    assert Ward().take(samples(a=None)) is False, "a card whose samples never came is no news"


def test_instances_share_the_lot_of_their_card() -> None:
    ward = Ward(A, card("m", 1, parent="a"))
    ward.take(event("a", "xid", Health.FAULTY, 48))
    assert ward.state()[1] == (Health.FAULTY, "xid")


def test_card_is_split_anew_while_it_is_ill() -> None:
    ward = Ward(A, card("m", 1, parent="a", pci=A.pci))
    ward.take(event("a", "xid", Health.FAULTY, 48))
    ward.find(A, card("k", 1, parent="a", pci=A.pci), card("l", 2, parent="a", pci=A.pci))
    assert [device.uuid for device in ward.condition.devices] == ["a", "k", "l"]
    assert {health for health, _ in ward.state()} == {Health.FAULTY}
    assert set(ward.condition.spells) == {"a", "k", "l"}


def test_card_in_the_slot_of_an_ill_one_is_well_from_the_start() -> None:
    ward = Ward()
    ward.take(event("b", "xid", Health.FAULTY, 79))
    ward.find(A, card("new", 1, pci=B.pci), CPU)
    assert {device.uuid: device.health for device in ward.condition.mark(ward.now_s)} == {
        "a": Health.OK, "c": Health.OK, "new": Health.OK,
    }  # fmt: skip


def test_card_without_a_driver_is_not_called_silent_by_the_silence_that_follows() -> None:
    found = msgspec.structs.replace(A, health=Health.NO_DRIVER, reason="run modprobe")
    ward = Ward(found)
    ward.take(fault(0))
    assert ward.state() == [(Health.NO_DRIVER, "run modprobe")]
    assert ward.take(samples()) is True, "the driver answers now: list it anew"


def test_notice_of_a_well_device_is_told() -> None:
    ward = Ward()
    notice = Sample(uuid="a", t_ns=0, health=Health.OK, reason="a row is to be replaced")
    ward.take(Reading(vendor=Vendor.NVIDIA, samples=(notice,)))
    assert ward.state()[0] == (Health.OK, "a row is to be replaced")


def test_mark_of_an_earlier_agent_holds_for_its_calm_time() -> None:
    left = {"a": Spell(mark=Mark(Health.FAULTY, "Xid 48"), n_relapses=1)}
    ward = Ward(spells=left)
    assert ward.state() == [(Health.FAULTY, "Xid 48"), WELL, WELL]
    assert ward.calm()[0][0] is Health.FAULTY
    assert ward.calm()[0] == WELL


def test_marks_of_a_card_that_was_exchanged_are_not_the_new_ones() -> None:
    former = msgspec.structs.replace(A, extra={"uuid": "U1"})
    ward = Ward(former, B, CPU)
    ward.take(event("a", "xid", Health.FAULTY, 48))
    assert ward.state()[0][0] is Health.FAULTY
    ward.find(msgspec.structs.replace(A, extra={"uuid": "U2"}), B, CPU)
    health, reason = ward.state()[0]
    assert (health, "another card is in its slot (U2, before U1)" in str(reason)) == (Health.FAULTY, True)
    assert ward.state()[1] == WELL
    assert [one.uuid for one in ward.condition.take_exchanges()] == ["a"]
    assert ward.condition.take_exchanges() == []
    assert ward.calm()[0] == WELL, "an Xid 48 of the former card would have stayed"


def test_next_agent_finds_a_card_that_was_exchanged_meanwhile() -> None:
    found = msgspec.structs.replace(A, extra={"serial": "S2"})
    condition = Condition((found, B), occupants={"a": {"serial": "S1"}})
    assert [device.health for device in condition.mark(1000.0)] == [Health.FAULTY, Health.OK]
    assert condition.occupants == {"a": {"serial": "S2"}}
