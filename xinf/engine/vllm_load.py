"""What the engine is doing, from the statistics that EngineCore sends with every step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from xinf.engine.adapter import LoadReport

# Of a new prompt in the share of hits: the last ten or so count.
_HIT_WEIGHT = 0.1


class StepMonitor:
    """The last statistics of one engine, and when they came. Lives on the event loop."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[], None]] = []
        self._last_progress_s = time.monotonic()
        self.n_running = 0
        self.n_waiting = 0
        self.kv_usage = 0.0  # 0 to 1
        self.hit_share = 0.0  # of the tokens of the last prompts, found in the cache

    def on_step(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def record(self, scheduler_stats: Any) -> None:
        """Take the statistics of a step; None from a step that had none."""
        self._last_progress_s = time.monotonic()
        if scheduler_stats is not None:
            self.n_running = scheduler_stats.num_running_reqs
            self.n_waiting = scheduler_stats.num_waiting_reqs
            self.kv_usage = scheduler_stats.kv_cache_usage
        self.tell()

    def note_prompt(self, *, prompt_tokens: int, cached_tokens: int) -> None:
        """A prompt was computed, but for what was found."""
        if prompt_tokens:
            self.hit_share += _HIT_WEIGHT * (cached_tokens / prompt_tokens - self.hit_share)

    def wake(self) -> None:
        """The engine, idle until now, got something to do: its clock starts here."""
        self._last_progress_s = time.monotonic()

    def tell(self) -> None:
        """Call the listeners: the load changed."""
        for listener in self._listeners:
            listener()

    def age_s(self) -> float:
        """Seconds since the last step, or since the engine last got something to do."""
        return time.monotonic() - self._last_progress_s

    def report(self, *, n_unfinished: int, queued_prefill_tokens: int, kv_blocks_total: int) -> LoadReport:
        """Combine the last step with what the shim itself knows to be newer: requests sent or ended since.

        `queued_prefill_tokens`: of whole prompts, as vLLM counts them. The last ones' share of hits is taken off: what
        the queued ones will find is known only when they are scheduled.
        """
        running = min(self.n_running, n_unfinished)
        return LoadReport(
            running=running,
            waiting=n_unfinished - running,
            queued_prefill_tokens=round(queued_prefill_tokens * (1 - self.hit_share)),
            kv_blocks_used=round(self.kv_usage * kv_blocks_total) if n_unfinished else 0,
            kv_blocks_total=kv_blocks_total,
        )

    def logger_factory(self, base: type) -> Callable[..., Any]:
        """Make what AsyncLLM takes as a stat logger; `base` is vLLM's StatLoggerBase."""
        monitor = self

        class StepLogger(base):  # type: ignore[misc]  # a class of vLLM's, known at run time
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
                pass

            def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
                monitor.record(scheduler_stats)

            def log_engine_initialized(self) -> None:
                pass

        return StepLogger
