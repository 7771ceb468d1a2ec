"""Ranges of engine versions: `>=0.32,<0.33`, `==0.11.1`, or `*` for all.

Numbers alone count: "0.32.0+cpu", "0.32.0rc1" and "0.32.0.post1" are 0.32.0 here. A row that depends on more than that
would be a row about a build, not about a version.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

ANY = "*"
_NUMBERS = re.compile(r"\s*v?(\d+(?:\.\d+)*)")
_BOUND = re.compile(r"\s*(>=|<=|==|<|>)\s*(\d+(?:\.\d+)*)\s*")
_COMPARE: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_PARTS = 4  # numbers compared; missing ones are 0, so that 0.32 is 0.32.0


def check_range(text: str) -> str:
    """Return `text` if it is a range. Raises: ValueError naming the part that is not."""
    for part in text.split(",") if text != ANY else ():
        if _BOUND.fullmatch(part) is None:
            raise ValueError(f"{part.strip()!r} is no bound of a version: write >=0.32,<0.33 or {ANY}")
    return text


def is_in_range(version: str | None, text: str) -> bool:
    """Whether a version lies in a range; one that is not known is taken to."""
    found = _NUMBERS.match(version) if version is not None else None
    if found is None or text == ANY:
        return True
    numbers = _padded(found[1])
    bounds = [match for part in text.split(",") if (match := _BOUND.fullmatch(part)) is not None]
    return all(_COMPARE[bound[1]](numbers, _padded(bound[2])) for bound in bounds)


def may_share(first: str, second: str) -> bool:
    """Whether some version lies in both ranges."""
    ends = [_padded(match[2]) for text in (first, second) for match in _BOUND.finditer(text)]
    # Ranges that meet at all meet at an end, or right after one.
    points = [(0,) * _PARTS, *ends, *((*end[:-1], end[-1] + 1) for end in ends)]
    texts = [".".join(map(str, point)) for point in points]
    return any(is_in_range(text, first) and is_in_range(text, second) for text in texts)


def _padded(text: str) -> tuple[int, ...]:
    numbers = [int(part) for part in text.split(".")][:_PARTS]
    return (*numbers, *[0] * (_PARTS - len(numbers)))
