"""Virtual time: events in order, no waiting; a Clock for code that reads one."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from xinf.sim.engine import SimEngine
from xinf.sim.sequence import SimSequence


class Timeline:
    """Runs what is due, in order of time and then of arrival, and jumps from event to event.

    Engines attached to it step when they are due; `on_token` hears of every sequence that got a token or ended.
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._engines: list[tuple[SimEngine, Callable[[SimSequence], None]]] = []

    def now_s(self) -> float:
        return self._now_s

    def monotonic_s(self) -> float:
        return self._now_s

    def call_at(self, at_s: float, action: Callable[[], None]) -> None:
        """Run `action` at `at_s`, or now if that is over."""
        heapq.heappush(self._events, (max(at_s, self._now_s), next(self._numbers), action))

    def attach(self, engine: SimEngine, on_token: Callable[[SimSequence], None]) -> None:
        """Let `engine` run in this time."""
        self._engines.append((engine, on_token))

    def run(self, until_s: float = float("inf")) -> float:
        """Run until nothing is due at or before `until_s`. Returns the time of the last event."""
        while True:
            engine_due_s, engine, on_token = self._next_engine()
            event_due_s = self._events[0][0] if self._events else float("inf")
            due_s = min(engine_due_s, event_due_s)
            if due_s > until_s or due_s == float("inf"):
                return self._now_s
            self._now_s = max(self._now_s, due_s)
            # A step that ends when a request arrives ends first, as it would in an engine that was busy until then.
            if engine is not None and on_token is not None and engine_due_s <= event_due_s:
                for sequence in engine.run_step():
                    on_token(sequence)
            else:
                heapq.heappop(self._events)[2]()

    def _next_engine(self) -> tuple[float, SimEngine | None, Callable[[SimSequence], None] | None]:
        best: tuple[float, SimEngine | None, Callable[[SimSequence], None] | None] = (float("inf"), None, None)
        for engine, on_token in self._engines:
            due_s = engine.due_s()
            if due_s is not None and due_s < best[0]:
                best = (due_s, engine, on_token)
        return best
