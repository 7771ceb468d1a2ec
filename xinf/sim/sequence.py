"""One prompt with one answer on its way through the simulated engine."""

from __future__ import annotations

from typing import Any

from xinf.sim.text import BYTES_PER_TOKEN, count_tokens


class SimSequence:
    """Made by the caller, moved by the engine. `salt` keeps its blocks apart from equal text of other tenants or LoRAs.

    `n_answer` 0 is a prefill only (an embedding): it ends with its prompt.
    """

    __slots__ = (
        "_hashes",
        "_salt",
        "_stream",
        "arrived_s",
        "cached_tokens",
        "finished_s",
        "first_token_s",
        "is_done",
        "is_waiting",
        "n_answer",
        "n_computed",
        "n_generated",
        "n_private",
        "n_prompt",
        "owner",
        "preemptions",
        "shared",
        "started_s",
    )

    def __init__(
        self, prompt: bytes, answer: bytes, *, arrived_s: float, salt: str | None = None, owner: Any = None
    ) -> None:
        self._stream = prompt + answer  # what the KV cache holds, four bytes a token
        self._salt = salt
        self._hashes: list[int] = []
        self.owner = owner  # the caller's own, untouched here
        self.n_prompt = count_tokens(len(prompt))
        self.n_answer = len(answer) // BYTES_PER_TOKEN
        self.n_generated = 0
        self.n_computed = 0  # tokens whose KV exists
        self.shared: list[int] = []  # hashes of its leading blocks that are cached, in prefix order
        self.n_private = 0  # blocks beyond
        self.cached_tokens = 0  # of the prompt, found at first admission
        self.preemptions = 0
        self.is_waiting = True
        self.is_done = False
        self.arrived_s = arrived_s
        self.started_s: float | None = None
        self.first_token_s: float | None = None
        self.finished_s: float | None = None

    @property
    def queued_s(self) -> float:
        """Seconds it waited before its prefill began."""
        return 0.0 if self.started_s is None else max(0.0, self.started_s - self.arrived_s)

    @property
    def n_known(self) -> int:
        """Tokens that exist so far: prompt and generated."""
        return self.n_prompt + self.n_generated

    def hashes(self, n_blocks: int, block_tokens: int) -> list[int]:
        """Give the chained hashes of its blocks, at least the first `n_blocks`; computed once each."""
        known = self._hashes
        if len(known) < n_blocks:
            n_bytes = block_tokens * BYTES_PER_TOKEN
            stream = self._stream
            last = known[-1] if known else hash((self._salt, block_tokens))
            for start in range(len(known) * n_bytes, n_blocks * n_bytes, n_bytes):
                last = hash((last, stream[start : start + n_bytes]))
                known.append(last)
        return known
