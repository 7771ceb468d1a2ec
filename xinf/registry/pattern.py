"""Patterns of architecture names: `sm_12?`, `gfx11*`. `?` is one character, `*` any number; case does not matter.

Where two patterns fit one name, the one with more characters of its own is meant. Patterns that may fit the same name
and have equally many would leave that open; a table of patterns is checked for them when it is read, with `may_meet`.
"""

from __future__ import annotations

import functools
import re


def is_match(pattern: str, name: str) -> bool:
    """Whether the whole of `name` fits."""
    return _compiled(pattern).fullmatch(name) is not None


def weight(pattern: str) -> int:
    """How specific a pattern is: the characters that it insists on."""
    return sum(character not in "*?" for character in pattern)


def may_meet(first: str, second: str) -> bool:
    """Whether some name fits both patterns. O(len(first) x len(second))."""

    @functools.cache
    def meet(i: int, j: int) -> bool:
        if i == len(first) and j == len(second):
            return True
        if i < len(first) and first[i] == "*":
            return meet(i + 1, j) or (j < len(second) and meet(i, j + 1))
        if j < len(second) and second[j] == "*":
            return meet(i, j + 1) or (i < len(first) and meet(i + 1, j))
        if i == len(first) or j == len(second):
            return False
        is_same = "?" in (first[i], second[j]) or first[i].lower() == second[j].lower()
        return is_same and meet(i + 1, j + 1)

    return meet(0, 0)


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    words = {"*": ".*", "?": "."}
    text = "".join(words.get(character) or re.escape(character) for character in pattern)
    return re.compile(text, re.IGNORECASE | re.DOTALL)
