"""Which devices of one node belong together: the set whose two farthest members are nearest.

For each distance that occurs, nearest first, devices are points and pairs that are at most so far apart are lines:

    LINK   0─1  2─3  4─5  6─7       a set of 2 is found here
    NODE   0-3 all, 4-7 all          a set of 4 here: 0 1 2 3
    SYS    all                       a set of 8 here

The first distance at which enough devices are all joined with each other is the least possible worst distance, so the
search is exact. Among equals it takes those that come first in the caller's order. Pairs that nothing is known of count
as farther than any that something is known of.

Cost: O(distances x devices^2) once per set of devices; a search O(distances x size) where links are cliques, as they
are on every machine known, at worst exponential in the devices. From MAX_EXACT devices on it is greedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from xinf.core.device import Distance, Topology

MAX_EXACT = 16
_UNKNOWN = max(Distance) + 1


class Links:
    """The distances between some devices of a node, given by their UUIDs."""

    def __init__(self, uuids: Sequence[str], topology: Topology) -> None:
        self._place = {uuid: number for number, uuid in enumerate(uuids)}
        known = {(a, b): int(distance) for a, b, distance in topology.pairs}
        self._far = {(a, b): known.get((a, b) if a < b else (b, a), _UNKNOWN) for a, b in combinations(uuids, 2)}
        # By distance: for each device a bit mask of those that are at most so far away.
        self._joined: list[tuple[int, list[int]]] = []
        for limit in sorted(set(self._far.values())):
            masks = [0] * len(uuids)
            for (a, b), far in self._far.items():
                if far <= limit:
                    masks[self._place[a]] |= 1 << self._place[b]
                    masks[self._place[b]] |= 1 << self._place[a]
            self._joined.append((limit, masks))

    def choose(self, uuids: Sequence[str], size: int) -> tuple[tuple[str, ...], Distance | None]:
        """Choose `size` of these devices, in the order that they are preferred in; and how far the farthest two are.

        The distance is None where there is one device only, or a pair that nothing is known of.
        """
        if size == 1:
            return (uuids[0],), None
        order = [self._place[uuid] for uuid in uuids]
        for limit, masks in self._joined:
            found = _clique(order, masks, size) if len(order) <= MAX_EXACT else _greedy(order, masks, size)
            if found is not None:
                name_of = dict(zip(order, uuids, strict=True))
                return tuple(name_of[place] for place in found), None if limit == _UNKNOWN else Distance(limit)
        raise ValueError(f"{size} devices of {len(uuids)}")


def _clique(order: Sequence[int], masks: Sequence[int], size: int) -> list[int] | None:
    """The first `size` of `order` that are all joined with each other; None if there are no such."""
    if size == 0:
        return []
    for number, place in enumerate(order[: len(order) - size + 1]):
        rest = [other for other in order[number + 1 :] if masks[place] >> other & 1]
        if len(rest) >= size - 1 and (found := _clique(rest, masks, size - 1)) is not None:
            return [place, *found]
    return None


def _greedy(order: Sequence[int], masks: Sequence[int], size: int) -> list[int] | None:
    """The same from each device on, taking the next that is joined with all before; may miss a set that exists."""
    for first in order:
        chosen, common = [first], masks[first]
        for other in order:
            if len(chosen) < size and common >> other & 1:
                chosen.append(other)
                common &= masks[other]
        if len(chosen) == size:
            return chosen
    return None
