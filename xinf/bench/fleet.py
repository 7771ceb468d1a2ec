"""The simulated fleet that policies are compared on: how many engines, and what each can do."""

from __future__ import annotations

import msgspec

from xinf.core.errors import InvalidRequest
from xinf.sim import SimSettings

MAX_REPLICAS = 1000

# An engine of a small model on a good GPU, slowed down so far that a few of them fit a laptop's CPU.
ENGINE = SimSettings(
    prefill_tokens_per_s=20_000.0, step_ms=10.0, max_running=16, max_batched_tokens=2048, block_tokens=16
)


class FleetSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`engine.kv_blocks` holds where no pool is asked for."""

    n_replicas: int
    engine: SimSettings = ENGINE

    def __post_init__(self) -> None:
        if not 1 <= self.n_replicas <= MAX_REPLICAS:
            raise InvalidRequest(f"a fleet of {self.n_replicas} replicas, must be 1 to {MAX_REPLICAS}")

    def capacity_per_s(self, prompt_tokens: float, answer_tokens: float) -> float:
        """Requests per second of these mean sizes that the fleet can do if nothing is cached.

        A step lasts as long as its prefill plus `step_ms` and what each request adds, and gives up to `max_running`
        requests a token. Raises: InvalidRequest if engines take no time.
        """
        engine = self.engine
        step_s = (engine.step_ms + engine.max_running * engine.step_ms_per_running) / 1000
        busy_s = answer_tokens * step_s / engine.max_running
        if engine.prefill_tokens_per_s:
            busy_s += prompt_tokens / engine.prefill_tokens_per_s
        if busy_s <= 0:
            raise InvalidRequest(
                "engines that take no time have no load", remedy="give --rate, or set prefill_tokens_per_s and step_ms"
            )
        return self.n_replicas / busy_s
