"""Which chunks of a prompt are marks, naively: a set of numbers."""

from __future__ import annotations

DENSE, STEPS, LAST_ROLES = 32, 16, 16


def is_on_grid(number: int) -> bool:
    """Whether a chunk, counted from 1, is on the grid: each of the first, then STEPS in (32, 64], in (64, 128], ..."""
    octave = DENSE
    while number > 2 * octave:
        octave *= 2
    return number <= DENSE or (number - octave) % (octave // STEPS) == 0


def marks_of(n: int, roles: list[int]) -> list[int]:
    """The marks of a chain of n chunks, counted from 1; `roles`: those that are headers of messages."""
    on_grid = {number for number in range(1, n + 1) if is_on_grid(number)}
    return sorted(on_grid | set(roles[-LAST_ROLES:]) | ({n} if n else set()))
