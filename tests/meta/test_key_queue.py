"""The work queue: each name once, never twice at a time, back-off per name."""

from __future__ import annotations

import asyncio

import pytest

from xinf.core.clock import FakeClock
from xinf.meta import KeyQueue


async def taken(queue: KeyQueue) -> list[str]:
    """Take and finish everything that is ready now."""
    names = []
    while True:
        getting = asyncio.ensure_future(queue.get())
        await asyncio.sleep(0)
        if not getting.done():
            getting.cancel()
            return names
        names.append(getting.result())
        queue.done(names[-1])


async def test_queue_hands_out_each_name_once_in_order() -> None:
    queue = KeyQueue(FakeClock())
    for name in "abacab":
        queue.add(name)
    assert len(queue) == 3
    assert await taken(queue) == ["a", "b", "c"]


async def test_name_added_while_handled_comes_once_more_and_not_before_done() -> None:
    queue = KeyQueue(FakeClock())
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    queue.add("a")
    assert await taken(queue) == []
    queue.done("a")
    assert await taken(queue) == ["a"]
    assert await taken(queue) == []


async def test_delayed_name_comes_at_its_time() -> None:
    clock = FakeClock()
    queue = KeyQueue(clock)
    queue.add_after("late", 10)
    queue.add_after("early", 5)
    assert len(queue) == 2
    assert await taken(queue) == []
    clock.advance(5)
    assert await taken(queue) == ["early"]
    clock.advance(5)
    assert await taken(queue) == ["late"]
    assert len(queue) == 0


async def test_earliest_of_several_delays_counts_and_add_beats_them() -> None:
    clock = FakeClock()
    queue = KeyQueue(clock)
    for delay_s in (10, 3, 20):
        queue.add_after("a", delay_s)
    clock.advance(3)
    assert await taken(queue) == ["a"]
    clock.advance(100)
    assert await taken(queue) == []
    queue.add_after("a", 10)
    queue.add("a")
    assert await taken(queue) == ["a"]
    clock.advance(100)
    assert await taken(queue) == []


async def test_delay_that_passes_while_handled_waits_for_done() -> None:
    clock = FakeClock()
    queue = KeyQueue(clock)
    queue.add("a")
    await queue.get()
    queue.add_after("a", 5)
    clock.advance(6)
    assert await taken(queue) == []
    queue.done("a")
    assert await taken(queue) == ["a"]


async def test_retry_backs_off_per_name_up_to_its_limit_until_forgotten() -> None:
    queue = KeyQueue(FakeClock(), backoff_initial_s=1, backoff_max_s=5)
    assert [queue.retry("a") for _ in range(4)] == [1, 2, 4, 5]
    assert queue.retry("b") == 1
    assert queue.n_failures("a") == 4
    queue.forget("a")
    assert queue.n_failures("a") == 0
    assert queue.retry("a") == 1
    assert [queue.retry("c") for _ in range(2000)][-1] == 5


@pytest.mark.parametrize("how", ["add", "delay", "clock"])
async def test_waiting_get_is_woken(how: str) -> None:
    clock = FakeClock()
    queue = KeyQueue(clock)
    if how == "clock":
        queue.add_after("a", 1000)
    getting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not getting.done()
    if how == "add":
        queue.add("a")
    elif how == "delay":
        queue.add_after("a", 0)
    else:
        clock.advance(1000)
        queue.wake()
    async with asyncio.timeout(30):
        assert await getting == "a"


async def test_real_clock_wakes_a_waiting_get() -> None:
    queue = KeyQueue()
    queue.add_after("a", 0.01)
    async with asyncio.timeout(30):
        assert await queue.get() == "a"


async def test_two_workers_never_hold_the_same_name() -> None:
    queue = KeyQueue()
    held: set[str] = set()
    n_handled = 0

    async def work() -> None:
        nonlocal n_handled
        while True:
            name = await queue.get()
            assert name not in held
            held.add(name)
            await asyncio.sleep(0)
            held.discard(name)
            queue.done(name)
            n_handled += 1

    workers = [asyncio.create_task(work()) for _ in range(3)]
    for i in range(300):
        queue.add("abc"[i % 3])
        await asyncio.sleep(0)
    while len(queue) or held:
        await asyncio.sleep(0)
    assert all(not worker.done() for worker in workers)
    assert n_handled > 3
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
