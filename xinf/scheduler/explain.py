"""Says in words, of bounded length, why nodes were not chosen: the nearest few one by one, the rest by reason."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence

from xinf.scheduler.verdict import Binding, Miss

SHOWN = 5  # nodes that are told one by one
MAX_CHARS = 2000  # of a note; it is part of a record that everybody mirrors
NO_NODES = "no node is registered; start `xinf worker` on one"


def explain(misses: Sequence[Miss]) -> list[str]:
    """The nearest misses, then how many more there are of each kind. Cost: O(misses)."""
    shown = heapq.nsmallest(SHOWN, misses, key=lambda miss: miss.rank)
    texts = [_cut(miss.text, MAX_CHARS // (SHOWN + 1)) for miss in shown]
    rest = Counter(miss.binding for miss in misses)
    rest.subtract(miss.binding for miss in shown)
    counted = [f"{rest[binding]} {binding.words}" for binding in sorted(Binding, reverse=True) if rest[binding]]
    if counted:
        texts.append(f"of {len(misses) - len(shown)} more nodes {', '.join(counted)}")
    return texts


def _cut(text: str, n_chars: int) -> str:
    return text if len(text) <= n_chars else text[: n_chars - 1] + "…"
