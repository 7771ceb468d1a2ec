"""Who sits in which slot, told by some ways of asking and not by others."""

from __future__ import annotations

import pytest

from xinf.agent.occupant import Occupants
from xinf.core.device import Device, Vendor

SLOT = "MLU-0000-39-00.0"


def card(**extra: str) -> Device:
    return Device(vendor=Vendor.CAMBRICON, index=0, uuid=SLOT, name="MLU590", extra=dict(extra))


def test_another_name_in_a_slot_is_another_card() -> None:
    occupants = Occupants()
    assert occupants.take([card(uuid="MLU-a1")]) == ()
    (exchange,) = occupants.take([card(uuid="MLU-b2")])
    assert (exchange.uuid, exchange.message) == (
        SLOT,
        "another card is in its slot (MLU-b2, before MLU-a1): what ran on the former one is placed anew",
    )
    assert occupants.take([card(uuid="MLU-b2")]) == (), "it is told once"


def test_way_that_tells_no_name_forgets_none() -> None:
    occupants = Occupants({SLOT: {"uuid": "MLU-a1"}})
    assert occupants.take([card()]) == occupants.take([]) == ()
    assert len(occupants.take([card(uuid="MLU-b2")])) == 1


def test_only_like_is_compared_with_like() -> None:
    occupants = Occupants()
    assert occupants.take([card(serial="S1")]) == occupants.take([card(uuid="U1")]) == ()
    assert occupants.told == {SLOT: {"serial": "S1", "uuid": "U1"}}
    assert len(occupants.take([card(serial="S2")])) == 1
    assert occupants.told == {SLOT: {"serial": "S2"}}, "the UUID was of the former card"
    assert occupants.take([card(uuid="U2")]) == ()


def test_card_of_which_one_name_is_the_same_is_the_same() -> None:
    occupants = Occupants()
    assert occupants.take([card(uuid="U1", serial="S1")]) == occupants.take([card(uuid="U2", serial="S1")]) == ()
    assert occupants.told == {SLOT: {"uuid": "U2", "serial": "S1"}}
    assert len(occupants.take([card(uuid="U3", serial="S3")])) == 1


@pytest.mark.parametrize("written", ["mlu-A1B2", "A1B2", "MLU-A1-B2", "0", "MLU-000", "N/A", ""])
def test_same_name_may_be_written_otherwise_and_zeros_are_none(written: str) -> None:
    assert Occupants({SLOT: {"uuid": "MLU-a1b2"}}).take([card(uuid=written)]) == ()
