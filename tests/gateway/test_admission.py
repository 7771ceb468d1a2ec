"""The waiting room, with a counter for replicas."""

from __future__ import annotations

import asyncio

import pytest

from xinf.core.errors import Overloaded, XinfError
from xinf.gateway.admission import RETRY_AFTER_MAX_S, Room
from xinf.router import Choice


class House:
    """Places that are free; letting in takes one."""

    def __init__(self) -> None:
        self.room = Room()
        self.free = 0
        self.entered: list[int] = []
        self.refused: list[int] = []


class Guest:
    def __init__(self, house: House, number: int, *, is_picky: bool = False, fails: bool = False) -> None:
        self.house = house
        self.number = number
        self.is_picky = is_picky
        self.fails = fails

    def attempt(self) -> Choice | None:
        if self.house.free == 0 or self.is_picky:
            return None
        self.house.free -= 1
        return Choice(replica_id="r", handle=1, reason="load", chosen_s=0.0)

    def admit(self, choice: Choice) -> None:
        self.house.entered.append(self.number)
        if self.fails:  # its replica is gone: the place comes back at once
            self.house.free += 1
            self.house.room.wake()

    def refuse(self) -> None:
        self.house.refused.append(self.number)

    def fail(self, error: XinfError) -> None:
        raise AssertionError("the room tells nobody why it is dismissed")


def enter(house: House, *numbers: int, max_waiting: int = 5000, **traits: bool) -> list[Guest]:
    guests = [Guest(house, number, **traits) for number in numbers]
    for guest in guests:
        house.room.enter(guest, max_waiting=max_waiting, timeout_s=30.0)
    return guests


async def test_room_lets_in_by_order_of_arrival() -> None:
    house = House()
    enter(house, 1, 2, 3)
    house.free = 2
    house.room.wake()
    assert house.entered == [1, 2]
    assert len(house.room) == 1
    house.free = 1
    house.room.wake()
    assert house.entered == [1, 2, 3]
    assert len(house.room) == 0


async def test_room_is_bounded_and_says_when_to_come_back() -> None:
    house = House()
    enter(house, 1, 2)
    with pytest.raises(Overloaded, match="2 requests wait already") as caught:
        enter(house, 3, max_waiting=2)
    assert caught.value.fields["retry_after_s"] == RETRY_AFTER_MAX_S


async def test_room_refuses_after_its_time() -> None:
    house = House()
    house.room.enter(Guest(house, 1), max_waiting=1, timeout_s=0.01)
    async with asyncio.timeout(30):
        while not house.refused:
            await asyncio.sleep(0.005)
    assert len(house.room) == 0
    house.free = 1
    house.room.wake()
    assert house.entered == []


async def test_room_lets_a_guest_leave() -> None:
    house = House()
    first, second = enter(house, 1, 2)
    house.room.leave(first)
    house.room.leave(first)
    house.free = 2
    house.room.wake()
    assert house.entered == [2]
    house.room.leave(second)
    assert len(house.room) == 0


async def test_picky_one_does_not_hold_up_the_others() -> None:
    house = House()
    enter(house, 1, is_picky=True)
    enter(house, 2, 3)
    house.free = 1
    house.room.wake()
    assert house.entered == [2]
    assert len(house.room) == 2


async def test_places_that_come_back_at_once_are_given_on_without_recursion() -> None:
    house = House()
    enter(house, *range(3000), fails=True)
    house.free = 1
    house.room.wake()
    assert house.entered == list(range(3000))


async def test_retry_after_follows_the_rate() -> None:
    house = House()
    enter(house, *range(10))
    for _ in range(20):
        house.room.count_finished(100.0)
    assert house.room.retry_after_s(101.0) == 5  # ten wait, two a second end
    assert house.room.retry_after_s(1000.0) == RETRY_AFTER_MAX_S


async def test_dismissed_guests_are_given_once_and_never_let_in() -> None:
    house = House()
    guests = enter(house, 1, 2)
    assert house.room.dismiss() == guests
    assert house.room.dismiss() == []
    house.free = 2
    house.room.wake()
    assert house.entered == []
    assert house.refused == []
