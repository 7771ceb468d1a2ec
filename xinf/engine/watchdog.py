"""Notices an engine that hangs, from a thread of its own, because what hangs may be the event loop itself.

loop:    a heartbeat writes down now and then how old the engine's last step is      (Pulse.beat)
thread:  reads it; an old step, or an old heartbeat, seen twice in a row, is a hang     (Pulse.complaint)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Pulse:
    """What the loop last told. Plain attributes: one writer, one reader, each value replaced whole."""

    def __init__(self, now_s: float) -> None:
        self._beat: tuple[float, float | None] = (now_s, None)

    def beat(self, now_s: float, step_age_s: float | None) -> None:
        """Note that the loop runs and how old the engine's last step is; None while the engine has nothing to do."""
        self._beat = (now_s, step_age_s)

    def complaint(self, now_s: float, timeout_s: float) -> str | None:
        """Say what hangs, None if nothing does."""
        beat_s, step_age_s = self._beat
        silent_s = now_s - beat_s
        if silent_s > timeout_s:
            return f"the shim's event loop has been blocked for {silent_s:.1f} s"
        if step_age_s is not None and step_age_s + silent_s > timeout_s:
            return f"the engine has unfinished requests and made no step for {step_age_s + silent_s:.1f} s"
        return None


class Watchdog(threading.Thread):
    """Calls `on_hung(complaint)` once, in this thread, and ends."""

    def __init__(self, pulse: Pulse, *, timeout_s: float, on_hung: Callable[[str], None]) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._pulse = pulse
        self._timeout_s = timeout_s
        self._on_hung = on_hung
        self._is_stopped = threading.Event()

    def run(self) -> None:
        interval_s = min(1.0, self._timeout_s / 4)
        n_complaints = 0
        while not self._is_stopped.wait(interval_s):
            complaint = self._pulse.complaint(time.monotonic(), self._timeout_s)
            # Twice: a process that was stopped and goes on gets the time to show that it lives.
            n_complaints = n_complaints + 1 if complaint else 0
            if complaint and n_complaints == 2:
                self._on_hung(complaint)
                return

    def stop(self) -> None:
        """End the thread soon."""
        self._is_stopped.set()
