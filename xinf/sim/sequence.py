"""One prompt with one answer on its way through the simulated engine."""

from __future__ import annotations

from typing import Any

from xinf._fast.prefix import chain_bytes, hash_bytes
from xinf.sim.text import BYTES_PER_TOKEN, count_tokens

# What `chain_bytes` cuts a text into.
CHUNK_BYTES_MIN = 16
CHUNK_BYTES_MAX = 4096


class SimSequence:
    """Made by the caller, moved by the engine. `salt` keeps its blocks apart from equal text of other tenants or LoRAs.

    `n_answer` 0 is a prefill only (an embedding): it ends with its prompt.
    """

    __slots__ = (
        "_answer",
        "_hashes",
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
        "prompt",
        "salt",
        "shared",
        "started_s",
    )

    def __init__(
        self, prompt: bytes, answer: bytes, *, arrived_s: float, salt: str | None = None, owner: Any = None
    ) -> None:
        self.prompt = prompt  # with the answer behind it what the KV cache holds, four bytes a token
        self._answer = answer
        self.salt = salt
        self._hashes: list[int] | None = None  # of all blocks, once asked for
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

    def hashes(self, block_tokens: int) -> list[int]:
        """Give the chained hashes of its blocks, also of those that are not computed yet; the last may not be full.

        A block can be full of tokens and short of bytes: the last token of a prompt may have fewer than four.
        """
        if self._hashes is None:
            stream = self.prompt + self._answer
            n_bytes = block_tokens * BYTES_PER_TOKEN
            seed = hash_bytes((self.salt or "").encode("utf-8", "replace"), block_tokens)
            if CHUNK_BYTES_MIN <= n_bytes <= CHUNK_BYTES_MAX:
                self._hashes = memoryview(chain_bytes(stream, seed, n_bytes)).cast("Q").tolist()
            else:
                self._hashes = []
                for start in range(0, len(stream), n_bytes):
                    seed = hash_bytes(stream[start : start + n_bytes], seed)
                    self._hashes.append(seed)
        return self._hashes

    def tokens(self, first_block: int, n_blocks: int, block_tokens: int) -> bytes:
        """Give the token ids of some of its blocks, uint32 each: the four bytes that a token is."""
        n_bytes = block_tokens * BYTES_PER_TOKEN
        stream = self.prompt + self._answer
        part = stream[first_block * n_bytes : (first_block + n_blocks) * n_bytes]
        return part + bytes(n_blocks * n_bytes - len(part))
