"""The simulated tokenizer and the text the simulated engine writes.

The tokenizer cuts the UTF-8 bytes of a prompt into pieces of four bytes; the last one may be shorter, an answer goes on
in the same bytes. So a prompt of L bytes has ceil(L / 4) tokens, each generated token adds exactly four bytes, and a
conversation whose next turn begins with the bytes of the last turn and its answer shares all of their full blocks.

Text is read from a fixed ring of pronounceable four-letter pieces, made once from the seed, at an offset given by
the prompt: equal prompts get equal answers, whatever else runs, and an answer costs one slice.
"""

from __future__ import annotations

import random

from xinf._fast.prefix import hash_bytes

BYTES_PER_TOKEN = 4

_RING_TOKENS = 1 << 15
_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"


def count_tokens(n_bytes: int) -> int:
    """Count the tokens of `n_bytes` of prompt."""
    return -(-n_bytes // BYTES_PER_TOKEN)


class TextSource:
    """Deterministic answers: lower-case letters and spaces only, so that JSON needs no escapes."""

    def __init__(self, seed: int) -> None:
        choose = random.Random(seed).choice
        self._seed = seed
        self._ring = "".join(
            f"{choose(_CONSONANTS)}{choose(_VOWELS)}{choose(_CONSONANTS)} " for _ in range(_RING_TOKENS)
        ).encode()

    def answer(self, prompt: bytes, n_tokens: int, *, choice: int = 0) -> bytes:
        """Give the first `n_tokens` tokens that follow `prompt`. `choice`: which of n alternatives."""
        start = (hash_bytes(prompt, self._seed) + choice * 7919) % _RING_TOKENS * BYTES_PER_TOKEN
        n_bytes = n_tokens * BYTES_PER_TOKEN
        piece = self._ring[start : start + n_bytes]
        while len(piece) < n_bytes:
            piece += self._ring[: n_bytes - len(piece)]
        return piece
