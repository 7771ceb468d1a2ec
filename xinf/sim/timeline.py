"""Virtual time: events in order, no waiting; a Clock for code that reads one.

    heap: (when, 0, engine's number) and (when, 1, event's number)      an engine is in it once while it has work

An engine's entry is put there when a submit wakes it and after each of its steps; when its step ends cannot change in
between. An event and a step cost O(log of what is due), whatever the number of engines.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from xinf.sim.engine import SimEngine
from xinf.sim.sequence import SimSequence

# A step that ends when a request arrives ends first, as it would in an engine that was busy until then.
_STEP = 0
_EVENT = 1

OnToken = Callable[[SimSequence], None]


class Timeline:
    """Runs what is due, in order of time and then of arrival, and jumps from event to event.

    Engines attached to it step when they are due; `on_token` hears of every sequence that got a token or ended.
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s
        self._due: list[tuple[float, int, int]] = []
        self._actions: dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count()
        self._engines: list[tuple[SimEngine, OnToken, Callable[[], None] | None]] = []

    def now_s(self) -> float:
        return self._now_s

    def monotonic_s(self) -> float:
        return self._now_s

    def call_at(self, at_s: float, action: Callable[[], None]) -> None:
        """Run `action` at `at_s`, or now if that is over."""
        number = next(self._numbers)
        self._actions[number] = action
        heapq.heappush(self._due, (max(at_s, self._now_s), _EVENT, number))

    def attach(self, engine: SimEngine, on_token: OnToken, on_step: Callable[[], None] | None = None) -> None:
        """Let `engine` run in this time. `on_step` hears of the end of each step, after its tokens."""
        number = len(self._engines)
        self._engines.append((engine, on_token, on_step))
        engine.on_wake = lambda: self._enter(engine, number)
        self._enter(engine, number)

    def run(self, until_s: float = float("inf")) -> float:
        """Run until nothing is due at or before `until_s`. Returns the time of the last event."""
        due = self._due
        while due and due[0][0] <= until_s:
            due_s, kind, number = heapq.heappop(due)
            if due_s > self._now_s:
                self._now_s = due_s
            if kind == _EVENT:
                self._actions.pop(number)()
                continue
            engine, on_token, on_step = self._engines[number]
            moved = engine.run_step()
            self._enter(engine, number)
            for sequence in moved:
                on_token(sequence)
            if on_step is not None:
                on_step()
        return self._now_s

    def _enter(self, engine: SimEngine, number: int) -> None:
        due_s = engine.due_s()
        if due_s is not None:
            heapq.heappush(self._due, (due_s, _STEP, number))
