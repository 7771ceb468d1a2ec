"""The oracle of residency: what an engine's KV events say is cached, whole prefixes instead of hashes. Slow and plain.

It believes the events: what they do not say (the engine's queue, a reset that no event has told yet) it does not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

Prefix = tuple[object, ...]  # adapter, salt, then tokens


class ResidencyModel:
    """Copies of each prefix whose last block is cached."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.prefixes: dict[int, Prefix] = {}  # what each hash that was ever stored stands for
        self.copies: Counter[Prefix] = Counter()

    def stored(
        self, hashes: Sequence[int], parent: int | None, tokens: Sequence[int], lora: str | None, salt: str | None
    ) -> None:
        prefix: Prefix = (lora, salt) if parent is None else self.prefixes[parent]
        for number, block_hash in enumerate(hashes):
            prefix += tuple(tokens[number * self.block_tokens : (number + 1) * self.block_tokens])
            self.prefixes[block_hash] = prefix
            self.copies[prefix] += 1

    def removed(self, hashes: Sequence[int]) -> None:
        for block_hash in hashes:
            prefix = self.prefixes[block_hash]
            assert self.copies[prefix] > 0, "a block was removed more often than stored"
            self.copies[prefix] -= 1

    def cleared(self) -> None:
        self.copies.clear()

    def cached_tokens(self, prompt: Sequence[int], lora: str | None, salt: str | None) -> int:
        """How many tokens of a prompt are found. Its last token is always computed."""
        found = 0
        for end in range(self.block_tokens, len(prompt), self.block_tokens):
            if not self.copies[(lora, salt, *prompt[:end])]:
                break
            found = end
        return found
