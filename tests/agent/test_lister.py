"""When vendors are listed anew: soon when asked, again while that is not enough, ever more seldom."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.agent.conftest import WAIT_S
from xinf.agent.lister import Lister
from xinf.core.device import Vendor


class Host:
    """Answers as told, and keeps when it was asked."""

    def __init__(self, *answers: bool | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[Vendor] = []
        self.is_over = asyncio.Event()

    async def list(self, vendor: Vendor) -> bool:
        self.asked.append(vendor)
        answer = self.answers.pop(0)
        if not self.answers:
            self.is_over.set()
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_one_listing_is_enough_where_all_are_well() -> None:
    host = Host(True)
    lister = Lister(host.list, first_s=0.001)
    lister.ask(Vendor.NVIDIA)
    lister.ask(Vendor.NVIDIA)
    await asyncio.wait_for(host.is_over.wait(), WAIT_S)
    await lister.close()
    assert host.asked == [Vendor.NVIDIA]


async def test_listing_that_fails_or_does_not_suffice_is_tried_again() -> None:
    host = Host(RuntimeError("no child"), False, False, True)
    lister = Lister(host.list, first_s=0.001, longest_s=0.002)
    lister.ask(Vendor.AMD)
    await asyncio.wait_for(host.is_over.wait(), WAIT_S)
    await lister.close()
    assert host.asked == [Vendor.AMD] * 4


async def test_waits_double_to_their_limit_and_whoever_asks_need_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def no_wait(event: asyncio.Event, timeout_s: float) -> bool:
        waits.append(timeout_s)
        if len(waits) == 6:
            event.set()
        return event.is_set()

    monkeypatch.setattr("xinf.agent.lister._is_set", no_wait)
    host = Host(*[False] * 6, True)
    lister = Lister(host.list, first_s=0.001, longest_s=0.005)
    lister.ask(Vendor.AMD)
    await asyncio.wait_for(host.is_over.wait(), WAIT_S)
    await lister.close()
    assert waits == [0.001, 0.002, 0.004, 0.005, 0.005, 0.005, 0.002]


async def test_vendors_do_not_wait_for_each_other() -> None:
    release = asyncio.Event()
    listed: list[Vendor] = []

    async def list_vendor(vendor: Vendor) -> bool:
        if vendor is Vendor.NVIDIA:
            await release.wait()
        listed.append(vendor)
        release.set()
        return True

    lister = Lister(list_vendor, first_s=0.001)
    lister.ask(Vendor.NVIDIA)
    lister.ask(Vendor.AMD)
    async with asyncio.timeout(WAIT_S):
        while len(listed) < 2:
            await asyncio.sleep(0.001)
    await lister.close()
    assert listed == [Vendor.AMD, Vendor.NVIDIA]


async def test_vendor_that_asks_again_and_again_is_listed_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that flips with each reading is otherwise listed every few seconds, and all other vendors with it."""
    now_s, listed, is_over = 0.0, [], asyncio.Event()

    async def sleep(delay_s: float) -> None:
        nonlocal now_s
        now_s += delay_s

    async def list_vendor(vendor: Vendor) -> bool:
        nonlocal now_s
        listed.append(now_s)
        now_s += 500.0 if len(listed) == 8 else 5.0
        lister.ask(vendor)
        if len(listed) == 9:
            is_over.set()
            await asyncio.Event().wait()
        return True

    monkeypatch.setattr("xinf.agent.lister.asyncio.sleep", sleep)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now_s)
    lister = Lister(list_vendor, first_s=5.0)
    lister.ask(Vendor.NVIDIA)
    await is_over.wait()
    await lister.close()
    waits = [after - before for before, after in itertools.pairwise(listed)]
    assert waits == [15, 25, 45, 65, 65, 65, 65, 505]
