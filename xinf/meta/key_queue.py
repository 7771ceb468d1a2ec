"""The work queue of a level-triggered loop: names to look at, never what happened to them.

    add ─▶ ready (each name once) ─▶ get ─▶ being handled ─▶ done
             ▲                                  │ add meanwhile: once more after done
             └── waiting (a heap by time) ◀─────┴ add_after, retry

A name is never handed out twice at once, and however often it is added while it waits it is handed out once: a handler
that reads the present state needs no more. Belongs to one event loop.

| operation | cost |
|---|---|
| add, done, forget | O(1) |
| add_after, retry | O(log n) |
| get | O(log n) per name whose time came |
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque

from xinf.core.clock import Clock, SystemClock

BACKOFF_INITIAL_S = 0.2
BACKOFF_MAX_S = 30.0


class KeyQueue:
    """See above. Back-off of `retry` doubles per name from `backoff_initial_s` to `backoff_max_s`."""

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        backoff_initial_s: float = BACKOFF_INITIAL_S,
        backoff_max_s: float = BACKOFF_MAX_S,
    ) -> None:
        self._clock = clock or SystemClock()
        self._backoff_initial_s = backoff_initial_s
        self._backoff_max_s = backoff_max_s
        self._ready: deque[str] = deque()
        self._queued: set[str] = set()  # what is in _ready
        self._handled: set[str] = set()
        self._again: set[str] = set()  # added while being handled
        self._waiting: list[tuple[float, str]] = []  # heap; a row whose time is not in _due_s is void
        self._due_s: dict[str, float] = {}
        self._n_failures: dict[str, int] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Names ready or waiting for their time; those being handled are not counted."""
        return len(self._queued) + len(self._due_s)

    def add(self, name: str) -> None:
        """Have the name handed out as soon as possible."""
        self._due_s.pop(name, None)
        if name in self._handled:
            self._again.add(name)
        elif name not in self._queued:
            self._queued.add(name)
            self._ready.append(name)
            self._changed.set()

    def add_after(self, name: str, delay_s: float) -> None:
        """Have it handed out in `delay_s` seconds, or earlier if it is added meanwhile or was due earlier already."""
        if delay_s <= 0:
            self.add(name)
            return
        due_s = self._clock.monotonic_s() + delay_s
        if name in self._queued or self._due_s.get(name, due_s + 1) <= due_s:
            return
        self._due_s[name] = due_s
        heapq.heappush(self._waiting, (due_s, name))
        self._changed.set()

    def retry(self, name: str) -> float:
        """Have it handed out after its back-off, which doubles each time until `forget`; return the seconds."""
        n_failures = self._n_failures.get(name, 0)
        self._n_failures[name] = n_failures + 1
        delay_s = min(self._backoff_initial_s * 2.0 ** min(n_failures, 60), self._backoff_max_s)
        self.add_after(name, delay_s)
        return delay_s

    def forget(self, name: str) -> None:
        """Count its failures from zero again: it was handled well."""
        self._n_failures.pop(name, None)

    def n_failures(self, name: str) -> int:
        """How often `retry` was called since the last `forget`."""
        return self._n_failures.get(name, 0)

    async def get(self) -> str:
        """Wait for the next name. Until `done(name)` it is not handed out again."""
        while True:
            next_due_s = self._take_due()
            if self._ready:
                name = self._ready.popleft()
                self._queued.discard(name)
                self._handled.add(name)
                return name
            self._changed.clear()
            timeout_s = None if next_due_s is None else max(0.0, next_due_s - self._clock.monotonic_s())
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def done(self, name: str) -> None:
        """The handler has ended, well or not; what was added meanwhile is handed out again."""
        self._handled.discard(name)
        if name in self._again:
            self._again.discard(name)
            self.add(name)

    def wake(self) -> None:
        """Have a waiting `get` look at the clock again; for a clock that jumps."""
        self._changed.set()

    def _take_due(self) -> float | None:
        """Move the names whose time came to the ready ones; return when the next one's comes."""
        now_s = self._clock.monotonic_s()
        while self._waiting:
            due_s, name = self._waiting[0]
            if self._due_s.get(name) != due_s:  # it was added earlier than its time
                heapq.heappop(self._waiting)
            elif due_s <= now_s:
                heapq.heappop(self._waiting)
                self.add(name)
            else:
                return due_s
        return None
