"""Which devices are taken together, against trying every set."""

from __future__ import annotations

import time
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xinf.core.device import Distance, Topology
from xinf.scheduler.links import Links

NAMES = [f"G{i}" for i in range(8)]
# Two sockets of four, pairs with NVLink: the usual two-by-four board.
BOARD = {
    (a, b): Distance.LINK if i // 2 == j // 2 else Distance.NODE if i // 4 == j // 4 else Distance.SYS
    for (i, a), (j, b) in combinations(enumerate(NAMES), 2)
}


def topology(pairs: dict[tuple[str, str], Distance]) -> Topology:
    return Topology(pairs=tuple((a, b, distance) for (a, b), distance in pairs.items()))


@pytest.mark.parametrize(
    ("free", "size", "expected", "distance"),
    [
        (NAMES, 1, ("G0",), None),
        (NAMES, 2, ("G0", "G1"), Distance.LINK),
        (["G1", "G2", "G4", "G6", "G7"], 2, ("G6", "G7"), Distance.LINK),
        (["G1", "G2", "G4", "G6"], 2, ("G1", "G2"), Distance.NODE),
        (["G0", "G4"], 2, ("G0", "G4"), Distance.SYS),
        (["G0", "G1", "G2", "G4", "G5", "G6", "G7"], 4, ("G4", "G5", "G6", "G7"), Distance.NODE),
        (NAMES, 8, tuple(NAMES), Distance.SYS),
    ],
)
def test_nearest_set_of_a_board(
    free: list[str], size: int, expected: tuple[str, ...], distance: Distance | None
) -> None:
    assert Links(NAMES, topology(BOARD)).choose(free, size) == (expected, distance)


def test_first_in_the_callers_order_wins_among_equals() -> None:
    links = Links(NAMES, topology(BOARD))
    assert links.choose(list(reversed(NAMES)), 2)[0] == ("G7", "G6")


def test_without_a_topology_the_first_are_taken_and_the_distance_is_not_known() -> None:
    assert Links(NAMES, Topology()).choose(NAMES, 4) == (("G0", "G1", "G2", "G3"), None)


@given(
    distances=st.lists(st.sampled_from([None, *list(Distance)[1:]]), min_size=28, max_size=28),
    free=st.lists(st.sampled_from(NAMES), min_size=2, max_size=8, unique=True),
    data=st.data(),
)
@settings(max_examples=300, deadline=None)
def test_worst_distance_is_the_least_possible(
    distances: list[Distance | None], free: list[str], data: st.DataObject
) -> None:
    known = {
        pair: distance for pair, distance in zip(combinations(NAMES, 2), distances, strict=True) if distance is not None
    }
    size = data.draw(st.integers(2, len(free)))
    chosen, distance = Links(NAMES, topology(known)).choose(free, size)

    def worst(members: tuple[str, ...]) -> int:
        return max(known.get((min(a, b), max(a, b)), 99) for a, b in combinations(members, 2))

    assert len(set(chosen) & set(free)) == size
    assert worst(chosen) == min(worst(members) for members in combinations(free, size))
    assert distance == (None if worst(chosen) == 99 else worst(chosen))


def test_many_devices_are_searched_greedily_and_in_time() -> None:
    names = [f"D{i:02d}" for i in range(64)]
    pairs = {
        (a, b): Distance.LINK if i // 8 == j // 8 else Distance.SYS
        for (i, a), (j, b) in combinations(enumerate(names), 2)
    }
    links = Links(names, topology(pairs))
    started_s = time.process_time()
    chosen, distance = links.choose(names[3:], 8)
    assert (chosen, distance) == (tuple(names[8:16]), Distance.LINK)
    assert links.choose(names, 16)[1] is Distance.SYS
    assert time.process_time() - started_s < 2
