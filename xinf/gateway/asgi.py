"""ASGI as the gateway uses it: the types, and `Pending`, which runs one awaitable from callbacks instead of a task.

A chunk that goes to a client would otherwise wake the request's task (4.5-8 us each, measured); a Link's reader calls
`send` itself and only a client that is slower than its engine leaves something pending.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Pending:
    """An awaitable that is driven by the futures it waits for.

    `begin` returns None when it completed at once, which is the normal case for `send`. Otherwise `on_done(value,
    error)` is called once, from the event loop, unless `close` came first.
    """

    def __init__(self, iterator: Any, on_done: Callable[[Any, BaseException | None], None]) -> None:
        self._iterator: Any = iterator
        self._on_done = on_done
        self._future: Any = None

    @classmethod
    def begin(
        cls, awaitable: Awaitable[Any], on_done: Callable[[Any, BaseException | None], None]
    ) -> tuple[Any, Pending | None]:
        """Run up to the first wait. Returns (value, None) when nothing is left to do, else (None, the rest).

        Raises: what the awaitable raises before its first wait.
        """
        iterator = awaitable.__await__()
        try:
            future = next(iterator)
        except StopIteration as stop:
            return stop.value, None
        pending = cls(iterator, on_done)
        pending._wait_for(future)
        return None, pending

    def close(self) -> None:
        """Give up; `on_done` is not called any more."""
        iterator, future, self._iterator, self._future = self._iterator, self._future, None, None
        if iterator is None:
            return
        if future is not None:
            future.cancel()
        if hasattr(iterator, "close"):
            iterator.close()

    def _wait_for(self, future: Any) -> None:
        if future is None:  # a bare `yield`: give the loop one turn
            asyncio.get_running_loop().call_soon(self._step, None)
            return
        # What a task does on a future that is awaited; without it the future would think it was never waited for.
        future._asyncio_future_blocking = False
        self._future = future
        future.add_done_callback(self._step)

    def _step(self, _: Any) -> None:
        iterator = self._iterator
        if iterator is None:
            return
        self._future = None
        try:
            future = next(iterator)
        except StopIteration as stop:
            self._iterator = None
            self._on_done(stop.value, None)
        except (Exception, asyncio.CancelledError) as error:
            self._iterator = None
            self._on_done(None, error)
        else:
            self._wait_for(future)
