"""Targets are judged as the table says: against whom, in which direction, and not at all without figures."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.cells import CELLS
from benchmarks.contestant import Family
from benchmarks.targets import TARGETS, Verdict, judge
from tests.benchmarks.runs import XINF, made_run, samples, taker

SMALL = "requests-0.5k-c64"


def verdict(verdicts: list[Verdict], title: str, opponent: str, cell: str = SMALL) -> Verdict:
    (found,) = [v for v in verdicts if (v.title, v.opponent, v.cell) == (title, opponent, cell)]
    return found


def test_every_target_names_cells_that_exist() -> None:
    names = {cell.name for cell in CELLS}
    assert {cell for target in TARGETS for cell in target.cells} <= names


def test_cpu_is_compared_with_the_best_of_each_kind() -> None:
    run = made_run(
        [
            *samples("xinf granian", SMALL, [60, 60, 60]),
            *samples("smg cache_aware", SMALL, [100, 100, 100]),
            *samples("smg round_robin", SMALL, [50, 50, 50]),
        ]
    )
    verdicts = judge(run)
    aware = verdict(verdicts, "CPU per request", "smg cache_aware")
    robin = verdict(verdicts, "CPU per request", "smg round_robin")
    assert (aware.is_met, aware.found and aware.found.median, aware.limit.value) == (True, 0.6, 0.7)
    assert (robin.is_met, robin.found and robin.found.median, robin.limit.is_stretch) == (False, 1.2, True)


def test_rates_must_be_larger_than_their_limit() -> None:
    def judged(ours: float) -> bool | None:
        run = made_run(
            [
                *samples("xinf granian", SMALL, [ours], "requests_per_s"),
                *samples("smg round_robin", SMALL, [1000], "requests_per_s"),
                *samples("smg cache_aware", SMALL, [900], "requests_per_s"),
            ]
        )
        return verdict(judge(run), "requests/s", "smg round_robin").is_met

    assert judged(1001) is True
    assert judged(999) is False


def test_added_latency_is_a_difference_within_the_repeat() -> None:
    cell = "requests-0.5k-c1"
    run = made_run(
        [
            *samples("xinf granian", cell, [1.0, 2.0, 1.0], "latency_p50_ms"),
            *samples("no gateway", cell, [0.5, 1.5, 0.5], "latency_p50_ms"),
        ]
    )
    found = verdict(judge(run), "added latency, p50", "no gateway", cell)
    assert found.found is not None
    assert (found.found.median, found.is_met) == (0.5, True)


def test_memory_is_the_largest_growth() -> None:
    (sample,) = samples("xinf granian", "memory", [0])
    mib = 2**20
    grown = msgspec.structs.replace(sample, rss_start_bytes=100 * mib, rss_bytes=(170 * mib, 150 * mib))
    found = verdict(judge(made_run([grown])), "growth of resident memory", "", "memory")
    assert found.found is not None
    assert (found.found.median, found.is_met) == (70.0, False)


def test_scaling_compares_with_the_same_front() -> None:
    two = taker("xinf granian, 2 workers", Family.XINF)
    run = made_run(
        [*samples(XINF.name, SMALL, [40.0]), *samples(two.name, SMALL, [50.0])],
        (XINF, two),
    )
    found = verdict(judge(run), "requests per gateway-CPU-second, 2 workers", "xinf granian")
    assert found.found is not None
    assert found.found.median == pytest.approx(0.8)
    assert found.is_met is False


def test_without_figures_nothing_is_met() -> None:
    verdicts = judge(made_run([]))
    assert verdicts
    assert {found.is_met for found in verdicts} == {None}


def test_a_run_of_ours_with_unfinished_streams_does_not_count() -> None:
    cell = "streams-1000-10ms"
    ours = samples("xinf granian", cell, [200_000.0], "chunks_per_s")
    run = made_run(
        [
            *(msgspec.structs.replace(sample, unfinished=3) for sample in ours),
            *samples("smg round_robin", cell, [100_000.0], "chunks_per_s"),
        ]
    )
    assert verdict(judge(run), "chunks/s, every stream with its end", "smg round_robin", cell).is_met is None


def test_close_means_that_repeats_lie_on_both_sides() -> None:
    def close(*ours: float) -> bool:
        theirs = samples("smg cache_aware", SMALL, [100] * len(ours))
        run = made_run([*samples("xinf granian", SMALL, ours), *theirs])
        return verdict(judge(run), "CPU per request", "smg cache_aware").is_close

    assert close(60, 65, 80)
    assert not close(60, 62, 65)
