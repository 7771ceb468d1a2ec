"""INT, TERM and HUP of a process that has something to end: the first asks for an orderly end, the next for a quick.

Installed explicitly: a shell may have started us with INT ignored. An ignored HUP stays ignored, that is what nohup is
for.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Interrupts:
    """Counts them in the running event loop."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.again = asyncio.Event()
        self.signal: signal.Signals | None = None  # the first one
        loop = asyncio.get_running_loop()
        for signal_ in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal_ is signal.SIGHUP and signal.getsignal(signal_) is signal.SIG_IGN:
                continue
            loop.add_signal_handler(signal_, self._on_signal, signal_)

    def _on_signal(self, signal_: signal.Signals) -> None:
        if self.first.is_set():
            self.again.set()
            return
        self.signal = signal_
        self.first.set()

    async def cut(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Run `work` to its end or to the first interrupt, which cancels it; None then."""
        task = asyncio.ensure_future(work)
        interrupted = asyncio.ensure_future(self.first.wait())
        try:
            await asyncio.wait({task, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            interrupted.cancel()
            task.cancel()
            await asyncio.wait({task})
        return None
