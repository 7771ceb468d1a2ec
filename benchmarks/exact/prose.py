"""Text for prompts: words as frequent as in the tokenizer's own texts, names and numbers, other scripts, code."""

from __future__ import annotations

import json
import random
import string
from functools import lru_cache
from itertools import accumulate

from benchmarks.exact.phrases import CHINESE, EMOJI, JAPANESE, RUSSIAN
from benchmarks.exact.vocabulary import read_vocabulary

# Of every word: is made up, and so several tokens; is a number.
_MADE_UP, _NUMBER = 0.025, 0.02
_CODE = 0.06  # of paragraphs


@lru_cache(maxsize=1)
def _lexicon() -> tuple[list[str], list[float]]:
    """English words and their cumulative weights, by Zipf's law over the order in which they were learnt."""
    words = [word.strip() for word in read_vocabulary(()).words(r" [a-z]{2,12}")]
    return words, list(accumulate(1 / (rank + 20) for rank in range(len(words))))


def text(rng: random.Random, n_bytes: int, *, is_foreign: bool) -> str:
    """About `n_bytes` of UTF-8, in paragraphs."""
    parts: list[str] = []
    size = 0
    while size < n_bytes:
        if is_foreign and rng.random() < 0.6:
            part = _foreign_sentence(rng)
        elif rng.random() < _CODE:
            part = _code(rng)
        else:
            part = sentence(rng)
        part += "\n\n" if rng.random() < 0.15 else " "
        parts.append(part)
        size += len(part.encode())
    whole = "".join(parts).encode()[:n_bytes].decode(errors="ignore")
    return whole.strip() or "Hello"


def sentence(rng: random.Random) -> str:
    """One English sentence."""
    words, weights = _lexicon()
    chosen = rng.choices(words, cum_weights=weights, k=rng.randint(5, 16))
    for at in range(len(chosen)):
        draw = rng.random()
        if draw < _MADE_UP:
            chosen[at] = made_up(rng)
        elif draw < _MADE_UP + _NUMBER:
            chosen[at] = str(rng.randint(0, 9999))
    if len(chosen) > 9:
        chosen[rng.randint(3, 6)] += ","
    return " ".join(chosen).capitalize() + rng.choice(".....?!")


def made_up(rng: random.Random) -> str:
    """A word that is in no dictionary."""
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(4, 9)))


def _foreign_sentence(rng: random.Random) -> str:
    match rng.randrange(4):
        case 0:
            return " ".join(rng.choices(RUSSIAN, k=rng.randint(4, 12))).capitalize() + "."
        case 1:
            return "".join(rng.choices(CHINESE, k=rng.randint(4, 12))) + "。"
        case 2:
            return "".join(rng.choices(JAPANESE, k=rng.randint(3, 9))) + "。"
    return sentence(rng) + " " + "".join(rng.choices(EMOJI, k=rng.randint(1, 4)))


def _code(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return (
            "```json\n"
            + json.dumps({made_up(rng): rng.randint(0, 99), made_up(rng): sentence(rng)}, indent=2)
            + "\n```"
        )
    name, other = made_up(rng), made_up(rng)
    return (
        f"```python\ndef {name}(self, {other}):\n    return self._{other}[{rng.randint(0, 9)}]  # {sentence(rng)}\n```"
    )
