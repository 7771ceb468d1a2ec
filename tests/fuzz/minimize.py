"""Make a failing case smaller: drop ever smaller pieces as long as it still fails."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.target import Case


def minimized(case: Case, fails: Callable[[Case], bool], max_tries: int) -> Case:
    """Give a case that fails and from which no single piece can go, or the best after `max_tries`."""
    piece, tries = max(1, len(case) // 2), 0
    while True:
        at = 0
        while at < len(case):
            if tries == max_tries:
                return case
            tries += 1
            smaller = [*case[:at], *case[at + piece :]]
            candidate = bytes(smaller) if isinstance(case, bytes) else smaller
            if fails(candidate):
                case = candidate
            else:
                at += piece
        if piece == 1:
            return case
        piece //= 2
