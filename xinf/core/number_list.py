"""Lists of numbers as the kernel writes them, of processors and NUMA nodes: `0-2,4`."""

from __future__ import annotations


def parse_numbers(text: str) -> frozenset[int]:
    """Read such a list. What is no number is left out."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
