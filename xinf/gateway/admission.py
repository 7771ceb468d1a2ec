"""The waiting room of each deployment: requests that no replica can take now, in the order they came.

Bounded in number and in time. A place in a replica that becomes free, or a replica that becomes ready, wakes the first
of the queue; newcomers go behind those who wait. Nothing here runs on a timer but the patience of who waits.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from xinf.core.errors import Overloaded, XinfError
from xinf.gateway.body import ClientGone
from xinf.router import Choice

# Finished requests over this span say how fast a queue moves, for Retry-After.
RATE_WINDOW_S = 10.0
RETRY_AFTER_MAX_S = 30


class Leaver(Protocol):
    """Who waits, as far as leaving goes: a relay."""

    is_gone: bool
    on_gone: Callable[[], None] | None

    def arm(self) -> None: ...


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """One wish to be let in."""

    attempt: Callable[[], Choice | None]  # asks the router again; reserves when it succeeds
    refund: Callable[[Choice], None]  # gives back what `attempt` reserved, if nobody is there to use it
    refusal: Callable[[], XinfError]  # why it was not let in in time
    is_picky: bool  # will not go to every replica: others may pass it


class _Waiter:
    __slots__ = ("future", "ticket")

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.future: asyncio.Future[Choice] = asyncio.get_running_loop().create_future()


class Room:
    """The waiting room of one deployment."""

    def __init__(self) -> None:
        self._queue: OrderedDict[int, _Waiter] = OrderedDict()
        self._finished_s: deque[float] = deque(maxlen=1024)
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._queue)

    async def wait(self, ticket: Ticket, leaver: Leaver, *, max_waiting: int, timeout_s: float) -> Choice:
        """Wait for a place.

        Raises: Overloaded when the room is full; what `ticket.refusal` says after `timeout_s`; ClientGone.
        """
        if len(self._queue) >= max_waiting:
            raise Overloaded(
                f"{len(self._queue)} requests wait already, the bound is {max_waiting}",
                remedy="retry later, or add replicas with `xinf scale`",
                retry_after_s=self.retry_after_s(time.monotonic()),
            )
        waiter = _Waiter(ticket)
        self._last_number += 1
        number = self._last_number
        self._queue[number] = waiter
        leaver.on_gone = lambda: _set_error(waiter.future, ClientGone())
        leaver.arm()
        timer = asyncio.get_running_loop().call_later(
            timeout_s, lambda: None if waiter.future.done() else waiter.future.set_exception(ticket.refusal())
        )
        try:
            if leaver.is_gone:
                raise ClientGone
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                ticket.refund(waiter.future.result())
            raise
        finally:
            timer.cancel()
            leaver.on_gone = None
            self._queue.pop(number, None)

    def wake(self) -> None:
        """Let in, from the front, whoever can be let in now."""
        for number, waiter in list(self._queue.items()):
            if waiter.future.done():
                continue
            choice = waiter.ticket.attempt()
            if choice is not None:
                self._queue.pop(number, None)
                waiter.future.set_result(choice)
            elif not waiter.ticket.is_picky:
                return

    def count_finished(self, now_s: float) -> None:
        """Note that a request ended. `now_s`: monotonic."""
        self._finished_s.append(now_s)

    def retry_after_s(self, now_s: float) -> int:
        """Say when the queue of now will be through, from 1 to RETRY_AFTER_MAX_S seconds."""
        recent = sum(1 for at_s in self._finished_s if now_s - at_s <= RATE_WINDOW_S)
        if recent == 0:
            return RETRY_AFTER_MAX_S
        return max(1, min(RETRY_AFTER_MAX_S, math.ceil(len(self._queue) * RATE_WINDOW_S / recent)))


def _set_error(future: asyncio.Future[Choice], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
