"""What a simulated engine is like: rates, sizes, seed."""

from __future__ import annotations

import msgspec


class SimSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates of 0 mean: takes no time."""

    prefill_tokens_per_s: float = 0.0
    step_ms: float = 0.0  # a step in which at least one request decodes
    step_ms_per_running: float = 0.0  # besides, for each request that decodes in it
    kv_blocks: int = 8192
    block_tokens: int = 16
    max_running: int = 256  # requests decoded at once
    max_batched_tokens: int = 8192  # prefill and decode tokens of one step; a longer prompt takes several steps
    seed: int = 0  # of the text
    cache: bool = True  # false: no prompt is found again and none is hashed; blocks are still counted

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not least <= value < 2**40:  # also refuses NaN
                raise ValueError(f"{name} is {value}, must be at least {least}")
        if self.max_batched_tokens < self.max_running:
            raise ValueError(
                f"max_batched_tokens is {self.max_batched_tokens}, must be at least max_running ({self.max_running}): "
                "each running request decodes one token in a step"
            )

    @property
    def is_instant(self) -> bool:
        """Whether no step takes any time."""
        return not (self.prefill_tokens_per_s or self.step_ms or self.step_ms_per_running)

    @property
    def kv_tokens(self) -> int:
        """Tokens that the whole cache holds."""
        return self.kv_blocks * self.block_tokens


_LEAST: dict[str, float] = {
    "prefill_tokens_per_s": 0.0,
    "step_ms": 0.0,
    "step_ms_per_running": 0.0,
    "kv_blocks": 1,
    "block_tokens": 1,
    "max_running": 1,
    "max_batched_tokens": 1,
    "seed": 0,
}
