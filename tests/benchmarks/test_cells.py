"""Who takes part where, and what the options choose."""

from __future__ import annotations

import pytest

from benchmarks.arena import seed_of
from benchmarks.bench_peers import contestants
from benchmarks.cells import CELLS, SCALING_CELLS, Kind, chosen, takes_part
from benchmarks.command import select
from benchmarks.contestant import Family

RIVALS = {Family.XINF, Family.CACHE_AWARE, Family.ROUND_ROBIN}


def test_names_of_cells_and_contestants_are_unique() -> None:
    for names in ([cell.name for cell in CELLS], [one.name for one in contestants()]):
        assert len(set(names)) == len(names)


def test_no_two_cells_or_repeats_share_a_seed() -> None:
    seeds = [seed_of(cell.name, repeat) for cell in CELLS for repeat in range(20)]
    assert len(set(seeds)) == len(seeds)


def test_every_guest_of_a_cell_exists() -> None:
    names = {one.name for one in contestants()}
    assert {guest for cell in CELLS for guest in cell.guests} <= names


def test_xinf_and_the_routers_take_part_everywhere() -> None:
    rivals = [one for one in contestants() if one.family in RIVALS and not one.name.endswith("workers")]
    assert len(rivals) >= 7
    assert all(takes_part(one.name, one.family, cell) for one in rivals for cell in CELLS)


def test_two_workers_take_part_in_the_scaling_cells_only() -> None:
    taken = {cell.name for cell in CELLS if takes_part("xinf direct, 2 workers", Family.XINF, cell)}
    assert taken == SCALING_CELLS


def test_the_floor_does_not_stream() -> None:
    assert not any(takes_part("Granian hello", Family.FLOOR, cell) for cell in CELLS if cell.kind is Kind.STREAMS)


def test_cells_are_chosen_by_parts_of_their_names() -> None:
    assert {cell.name for cell in chosen("64k,memory")} == {"requests-64k-c16", "requests-64k-c64", "memory"}
    assert chosen(None) == CELLS
    with pytest.raises(ValueError, match="no cell matches nothing"):
        chosen("nothing")


def test_contestants_are_chosen_by_parts_of_their_names() -> None:
    everybody = contestants()
    assert [one.name for one in select(everybody, "smg")] == ["smg cache_aware", "smg round_robin"]
    assert select(everybody, None) == everybody
    with pytest.raises(ValueError, match="nobody matches envoy"):
        select(everybody, "envoy")
