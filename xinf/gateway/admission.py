"""The waiting room of each deployment: requests that no replica can take now, in the order they came.

Bounded in number and in time. A place in a replica that becomes free, or a replica that becomes ready, wakes the first
of the queue; newcomers go behind those who wait. Nothing here runs on a timer but the patience of who waits.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from typing import Protocol

from xinf.core.errors import Overloaded, XinfError
from xinf.router import Choice

# Finished requests over this span say how fast a queue moves, for Retry-After.
RATE_WINDOW_S = 10.0
RETRY_AFTER_MAX_S = 30


class Guest(Protocol):
    """Who waits. Each is let in, refused, or leaves; never two of these."""

    @property
    def is_picky(self) -> bool:
        """Will not go to every replica: others may pass it."""

    def attempt(self) -> Choice | None:
        """Ask the router again; reserves when it succeeds."""

    def admit(self, choice: Choice) -> None:
        """It was let in."""

    def refuse(self) -> None:
        """Its time is over."""

    def fail(self, error: XinfError) -> None:
        """It was sent away."""


class Room:
    """The waiting room of one deployment. `enter`, `leave` are O(1), so is each place that `wake` fills."""

    def __init__(self) -> None:
        self._queue: OrderedDict[Guest, asyncio.TimerHandle] = OrderedDict()
        self._finished_s: deque[float] = deque(maxlen=1024)
        self._is_waking = False
        self._must_wake_again = False

    def __len__(self) -> int:
        return len(self._queue)

    def enter(self, guest: Guest, *, max_waiting: int, timeout_s: float) -> None:
        """Wait for a place. Raises: Overloaded when the room is full."""
        if len(self._queue) >= max_waiting:
            raise Overloaded(
                f"{len(self._queue)} requests wait already, the bound is {max_waiting}",
                remedy="retry later, or add replicas with `xinf scale`",
                retry_after_s=self.retry_after_s(time.monotonic()),
            )
        self._queue[guest] = asyncio.get_running_loop().call_later(timeout_s, self._expire, guest)

    def leave(self, guest: Guest) -> None:
        """Wait no longer; harmless when it does not wait."""
        timer = self._queue.pop(guest, None)
        if timer is not None:
            timer.cancel()

    def dismiss(self) -> list[Guest]:
        """Let everybody leave who waits; whoever dismisses them tells them why."""
        guests = list(self._queue)
        for guest in guests:
            self.leave(guest)
        return guests

    def wake(self) -> None:
        """Let in, from the front, whoever can be let in now."""
        # Letting one in may fail at once and give its place back, which wakes: the outer call goes on then.
        self._must_wake_again = True
        if self._is_waking:
            return
        self._is_waking = True
        try:
            while self._must_wake_again:
                self._must_wake_again = False
                self._let_in()
        finally:
            self._is_waking = False

    def _let_in(self) -> None:
        while self._queue:
            guest = next(iter(self._queue))
            choice = guest.attempt()
            if choice is None:
                if guest.is_picky:
                    self._let_in_behind(guest)
                return
            self.leave(guest)
            guest.admit(choice)

    def _let_in_behind(self, first: Guest) -> None:
        """The first waits for a certain replica; the others need not."""
        for guest in list(self._queue):
            if guest is first or guest not in self._queue:
                continue
            choice = guest.attempt()
            if choice is not None:
                self.leave(guest)
                guest.admit(choice)
            elif not guest.is_picky:
                return

    def _expire(self, guest: Guest) -> None:
        if self._queue.pop(guest, None) is not None:
            guest.refuse()

    def count_finished(self, now_s: float) -> None:
        """Note that a request ended. `now_s`: monotonic."""
        self._finished_s.append(now_s)

    def retry_after_s(self, now_s: float) -> int:
        """Say when the queue of now will be through, from 1 to RETRY_AFTER_MAX_S seconds."""
        recent = sum(1 for at_s in self._finished_s if now_s - at_s <= RATE_WINDOW_S)
        if recent == 0:
            return RETRY_AFTER_MAX_S
        return max(1, min(RETRY_AFTER_MAX_S, math.ceil(len(self._queue) * RATE_WINDOW_S / recent)))
