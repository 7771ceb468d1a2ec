"""Text of a given length in tokens, without knowing the tokenizer.

Common English words of three letters: with the space before it each is one token of the usual BPE vocabularies (GPT,
Llama, Qwen) and four bytes, which is one token of xinf's simulated engine. So n words are about n tokens; the report
says what the server counted.

A prompt begins with words drawn for it alone and goes on with a piece of a fixed ring: no two share a first block, so
that a prefix cache sees a hit only where the workload means one, and 64 KB of text cost a slice.
"""

from __future__ import annotations

import random

_TEXT = """
    act add age ago aid aim air all and any arm art ask bad bag bar bed big bit box boy bus but buy can car
    cat cup cut dad day did die dog dry due ear eat egg end eye far few fit fly for fun gas get god got gun
    guy had has hat her hey him his hit hot how ice its job key kid law lay leg let lie lot low man map may
    men met mix mom net new nor not now odd off oil old one our out own pay per pop put ran raw red rid row
    run sat saw say sea see set sex she sit six sky son sun tax tea ten the tie tip too top toy try two use
    van war was way wet who why win yes yet you
"""
_WORDS = _TEXT.split()
_RING_WORDS = 1 << 16
_BYTES_PER_WORD = 4
# 141**8 openings: two prompts of one run never begin alike.
_OPENING_WORDS = 8


class Words:
    """Text from one seed; the same for the same seed on every machine."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        ring = random.Random(f"ring {seed}").choices(_WORDS, k=_RING_WORDS)
        self._ring = " ".join(ring) + " "

    def text(self, name: str, n_words: int) -> str:
        """Give `n_words` words that depend on the seed and `name` only."""
        draw = random.Random(f"{name} {self._seed}")
        opening = draw.choices(_WORDS, k=min(n_words, _OPENING_WORDS))
        n_rest = n_words - len(opening)
        if n_rest == 0:
            return " ".join(opening)
        start = draw.randrange(_RING_WORDS) * _BYTES_PER_WORD
        n_bytes = n_rest * _BYTES_PER_WORD
        piece = self._ring[start : start + n_bytes]
        while len(piece) < n_bytes:
            piece += self._ring[: n_bytes - len(piece)]
        return f"{' '.join(opening)} {piece[:-1]}"
