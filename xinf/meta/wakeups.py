"""How the writer's thread tells watchers in event loops that there is something to read: a flag each, no payload."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Wakeup:
    """The flag of one watcher, in its own event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def clear(self) -> None:
        self._event.clear()

    def set(self) -> None:
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait until set; False when nothing came."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True


class Wakeups:
    """All watchers of a store. One call per event loop and commit, whatever the number of watchers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_loop: dict[asyncio.AbstractEventLoop, set[Wakeup]] = {}

    @contextmanager
    def subscribe(self) -> Iterator[Wakeup]:
        wakeup = Wakeup()
        with self._lock:
            self._by_loop.setdefault(wakeup.loop, set()).add(wakeup)
        try:
            yield wakeup
        finally:
            with self._lock:
                members = self._by_loop.get(wakeup.loop, set())
                members.discard(wakeup)
                if not members:
                    self._by_loop.pop(wakeup.loop, None)

    def wake(self) -> None:
        """Set every flag. From any thread."""
        with self._lock:
            loops = list(self._by_loop)
        for loop in loops:
            try:
                loop.call_soon_threadsafe(self._set_all, loop)
            except RuntimeError:  # the loop was closed with its watchers still subscribed
                with self._lock:
                    self._by_loop.pop(loop, None)

    def _set_all(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            members = list(self._by_loop.get(loop, ()))
        for wakeup in members:
            wakeup.set()
