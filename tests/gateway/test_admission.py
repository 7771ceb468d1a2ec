"""The waiting room, with a counter for replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from xinf.core.errors import Overloaded, Unavailable
from xinf.gateway.admission import RETRY_AFTER_MAX_S, Room, Ticket
from xinf.gateway.body import ClientGone
from xinf.router import Choice


class Leaver:
    def __init__(self) -> None:
        self.is_gone = False
        self.on_gone: Callable[[], None] | None = None
        self.is_armed = False

    def arm(self) -> None:
        self.is_armed = True


class House:
    """Places that are free; letting in takes one."""

    def __init__(self) -> None:
        self.room = Room()
        self.free = 0
        self.refunded = 0
        self.entered: list[int] = []

    def ticket(self, *, is_picky: bool = False, accepts: bool = True) -> Ticket:
        def attempt() -> Choice | None:
            if self.free == 0 or not accepts:
                return None
            self.free -= 1
            return Choice(replica_id="r", handle=1, reason="load", chosen_s=0.0)

        def refund(_: Choice) -> None:
            self.refunded += 1

        return Ticket(attempt=attempt, refund=refund, refusal=lambda: Unavailable("nobody came"), is_picky=is_picky)

    async def visit(self, number: int, *, timeout_s: float = 30.0, max_waiting: int = 10, **wishes: bool) -> None:
        await self.room.wait(self.ticket(**wishes), Leaver(), max_waiting=max_waiting, timeout_s=timeout_s)
        self.entered.append(number)

    async def queue(self, *numbers: int, **wishes: bool) -> list[asyncio.Task[None]]:
        tasks = [asyncio.ensure_future(self.visit(number, **wishes)) for number in numbers]
        await asyncio.sleep(0)
        return tasks


async def test_room_lets_in_by_order_of_arrival() -> None:
    house = House()
    tasks = await house.queue(1, 2, 3)
    house.free = 2
    house.room.wake()
    await asyncio.gather(*tasks[:2])
    assert house.entered == [1, 2]
    assert len(house.room) == 1
    house.free = 1
    house.room.wake()
    await tasks[2]
    assert len(house.room) == 0


async def test_room_is_bounded_and_says_when_to_come_back() -> None:
    house = House()
    tasks = await house.queue(1, 2)
    with pytest.raises(Overloaded, match="2 requests wait already") as caught:
        await house.visit(3, max_waiting=2)
    assert caught.value.fields["retry_after_s"] == RETRY_AFTER_MAX_S
    house.free = 2
    house.room.wake()
    await asyncio.gather(*tasks)


async def test_room_refuses_after_its_time_with_the_reason() -> None:
    house = House()
    with pytest.raises(Unavailable, match="nobody came"):
        await house.visit(1, timeout_s=0.01)
    assert len(house.room) == 0


async def test_room_lets_a_client_leave() -> None:
    house = House()
    leaver = Leaver()
    waiting = asyncio.ensure_future(house.room.wait(house.ticket(), leaver, max_waiting=1, timeout_s=30))
    await asyncio.sleep(0)
    assert leaver.is_armed
    assert leaver.on_gone is not None
    leaver.on_gone()
    with pytest.raises(ClientGone):
        await waiting
    assert len(house.room) == 0
    assert leaver.on_gone is None


async def test_room_gives_back_the_place_of_one_that_was_cancelled_as_it_was_let_in() -> None:
    house = House()
    (task,) = await house.queue(1)
    house.free = 1
    house.room.wake()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert house.refunded == 1


async def test_picky_one_does_not_hold_up_the_others() -> None:
    house = House()
    (picky,) = await house.queue(1, is_picky=True, accepts=False)
    (other,) = await house.queue(2)
    house.free = 1
    house.room.wake()
    await other
    assert house.entered == [2]
    picky.cancel()
    await asyncio.gather(picky, return_exceptions=True)


async def test_retry_after_follows_the_rate() -> None:
    house = House()
    tasks = await house.queue(*range(10))
    for _ in range(20):
        house.room.count_finished(100.0)
    assert house.room.retry_after_s(101.0) == 5  # ten wait, two a second end
    assert house.room.retry_after_s(1000.0) == RETRY_AFTER_MAX_S
    house.free = 10
    house.room.wake()
    await asyncio.gather(*tasks)
