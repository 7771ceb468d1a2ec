"""Has vendors' devices listed anew: soon when asked, and again for as long as something of a vendor is not well.

A driver that comes and goes is given a moment first, so that an inventory does not find it halfway. The waits between
tries double up to `longest_s`: a card without a driver stays one, and each try costs a process of each vendor. A device
that comes and goes asks with each reading: then the moment is longer each time, up to a minute.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from xinf.core.device import Vendor

logger = logging.getLogger(__name__)

LONGEST_S = 600.0
_LONGEST_PAUSE_S = 60.0
_SOON_S = 60.0  # whoever asks within this time after a listing, and as long as its pause was, asks again


class _Pause(msgspec.Struct, frozen=True):
    """The last one before a listing of a vendor, by the loop's clock."""

    end_s: float
    length_s: float


class Lister:
    """See above. `list_vendor` lists one vendor and says whether that is enough. Belongs to one event loop."""

    def __init__(
        self,
        list_vendor: Callable[[Vendor], Awaitable[bool]],
        *,
        first_s: float,
        longest_s: float = LONGEST_S,
    ) -> None:
        self._list_vendor = list_vendor
        self._first_s = first_s
        self._longest_s = max(first_s, longest_s)
        self._asked: dict[Vendor, asyncio.Event] = {}
        self._tasks: dict[Vendor, asyncio.Task[None]] = {}
        self._pauses: dict[Vendor, _Pause] = {}

    def ask(self, vendor: Vendor) -> None:
        """Have a vendor listed soon, whatever is waited for now."""
        if vendor not in self._tasks:
            self._asked[vendor] = asyncio.Event()
            self._tasks[vendor] = asyncio.create_task(self._follow(vendor))
        self._asked[vendor].set()

    async def close(self) -> None:
        """End what is under way."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, vendor: Vendor) -> None:
        asked, wait_s = self._asked[vendor], self._first_s
        try:
            while True:
                if await _is_set(asked, wait_s):
                    wait_s = self._first_s
                    await asyncio.sleep(self._pause_s(vendor))
                    asked.clear()
                if await self._try(vendor) and not asked.is_set():
                    return
                wait_s = min(self._longest_s, 2 * wait_s)
        finally:
            del self._tasks[vendor], self._asked[vendor]

    def _pause_s(self, vendor: Vendor) -> float:
        """The moment that is given before a listing that somebody asked for."""
        now_s, last = asyncio.get_running_loop().time(), self._pauses.get(vendor)
        pause_s = self._first_s
        if last is not None and now_s - last.end_s < last.length_s + _SOON_S:
            pause_s = max(pause_s, min(2 * last.length_s, _LONGEST_PAUSE_S))
        self._pauses[vendor] = _Pause(end_s=now_s + pause_s, length_s=pause_s)
        return pause_s

    async def _try(self, vendor: Vendor) -> bool:
        try:
            return await self._list_vendor(vendor)
        except Exception:
            logger.exception("the devices of %s could not be listed anew", vendor)
            return False


async def _is_set(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
