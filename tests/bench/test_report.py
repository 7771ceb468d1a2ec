"""Figures with known answers."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest

from xinf.bench.collector import Collector, Gaps, Sample
from xinf.bench.load import ClosedLoop, Load, OpenLoop
from xinf.bench.record import Failure, Record
from xinf.bench.report import (
    CURVE_SHARES,
    Summary,
    count_errors,
    cpu_share,
    curve,
    distribution,
    make_series,
    percentile,
    summarize,
)
from xinf.bench.slo import Slo

Make = Callable[..., Record]


def summary_of(records: list[Record], load: Load | None = None, slo: Slo | None = None) -> Summary:
    collector = Collector()
    for record in records:
        collector.add(record, array("d"))
    return summarize(
        collector,
        load or ClosedLoop(1),
        slo=slo,
        percentiles=(90.0,),
        connections_opened=0,
        connection_waits=0,
    )


@pytest.mark.parametrize(
    ("values", "p", "expected"),
    [
        ([5.0], 99, 5.0),
        ([1.0, 2.0], 50, 1.5),
        ([1.0, 2.0, 3.0, 4.0], 0, 1.0),
        ([1.0, 2.0, 3.0, 4.0], 100, 4.0),
        ([1.0, 2.0, 3.0, 4.0], 90, 3.7),  # numpy.percentile([1, 2, 3, 4], 90)
        (list(map(float, range(101))), 99.5, 99.5),
    ],
)
def test_percentile_is_linear_between_ranks(values: list[float], p: float, expected: float) -> None:
    assert percentile(values, p) == pytest.approx(expected)


def test_distribution_of_known_values() -> None:
    found = distribution([4.0, None, 1.0, 3.0, 2.0], (90.0,))
    assert found is not None
    assert (found.n, found.mean, found.min, found.max) == (4, 2.5, 1.0, 4.0)
    assert found.percentiles == pytest.approx({"p50": 2.5, "p90": 3.7, "p99": 3.97})
    assert distribution([None], (90.0,)) is None


def test_curve_has_a_value_for_each_share() -> None:
    assert len(curve([1.0, 2.0])) == len(CURVE_SHARES)
    assert curve([]) == ()


def test_rates_are_over_the_time_to_the_last_end(record: Make) -> None:
    found = summary_of([record(at=0.0, took=1.0), record(at=2.0, took=2.0, n=10)])
    assert found.window_s == 4.0
    assert found.requests_per_s == 0.5
    assert (found.output_tokens, found.output_tokens_per_s) == (15, 3.75)
    assert (found.input_tokens, found.input_tokens_per_s) == (200, 50.0)
    assert (found.concurrency_mean, found.concurrency_max) == (0.75, 1)


def test_latency_counts_from_the_intended_time(record: Make) -> None:
    late = record(at=1.0, took=3.0, dispatched_s=2.0, sent_s=3.0, first_token_s=3.5)
    found = summary_of([late], OpenLoop(rate=1.0))
    assert found.ttft is not None
    assert found.e2e is not None
    assert found.generator.lateness is not None
    assert (found.ttft.mean, found.e2e.mean, found.generator.lateness.max) == (2.5, 3.0, 1.0)


def test_closed_loop_has_no_lateness(record: Make) -> None:
    assert summary_of([record()]).generator.lateness is None


def test_tpot_is_the_mean_after_the_first_token_by_usage(record: Make) -> None:
    # 5 events that carry 21 tokens: the time between first and last is shared by 20.
    assert record(n=5, completion_tokens=21).tpot_s == pytest.approx(0.04 / 20)
    assert record(n=1, completion_tokens=1).tpot_s is None


def test_errors_are_counted_beside_and_not_in_latency(record: Make) -> None:
    records = [
        record(took=1.0),
        record(took=9.0, failure=Failure.TIMEOUT, message="late", first_token_s=None),
        record(took=0.1, failure=Failure.STATUS, status=429, message="first"),
        record(took=0.1, failure=Failure.STATUS, status=429, message="second"),
        record(took=0.1, failure=Failure.STATUS, status=500, message="oops"),
        record(took=0.1, failure=Failure.UNFINISHED),
    ]
    found = summary_of(records)
    assert (found.n_sent, found.n_good, found.n_failed, found.n_unfinished) == (6, 1, 4, 1)
    assert [(e.failure, e.status, e.n, e.example) for e in found.errors] == [
        (Failure.STATUS, 429, 2, "first"),
        (Failure.TIMEOUT, None, 1, "late"),
        (Failure.STATUS, 500, 1, "oops"),
    ]
    assert found.e2e is not None
    assert (found.e2e.n, found.e2e.max) == (1, 1.0)
    assert found.output_tokens == 5


def test_no_request_is_no_figure_but_no_error_either() -> None:
    found = summary_of([])
    assert (found.n_sent, found.requests_per_s, found.ttft, found.errors) == (0, 0.0, None, count_errors([]))


def test_goodput_is_of_good_answers_within_the_objectives(record: Make) -> None:
    records = [
        record(took=1.0),
        record(took=2.0),
        record(took=5.0),
        record(took=0.1, failure=Failure.CUT),  # quick, but no answer
    ]
    found = summary_of(records, slo=Slo(e2e_s=2.0)).goodput
    assert found is not None
    assert (found.n, found.requests_per_s, found.share) == (2, 0.4, 0.5)


@pytest.mark.parametrize(
    ("counts", "source", "tokens"), [((5, 7), "usage", 12), ((None, 7), "both", 12), ((None, None), "events", 10)]
)
def test_where_token_counts_come_from_is_said(
    record: Make, counts: tuple[int | None, ...], source: str, tokens: int
) -> None:
    found = summary_of([record(n=5, completion_tokens=count) for count in counts])
    assert (found.output_tokens_from, found.output_tokens) == (source, tokens)


def test_cache_hits_are_told_only_if_the_server_does(record: Make) -> None:
    assert summary_of([record()]).cache_hit_share is None
    assert summary_of([record(cached_tokens=25), record(cached_tokens=0)]).cache_hit_share == 0.125


def test_cpu_share_is_mean_and_busiest_interval() -> None:
    samples = [Sample(0.0, 0.0, 0), Sample(1.0, 0.9, 0), Sample(2.0, 1.0, 0), Sample(2.01, 1.01, 0)]
    assert cpu_share(samples) == pytest.approx((1.01 / 2.01, 0.9))


def test_gaps_are_a_sample_beyond_their_bound() -> None:
    gaps = Gaps(max_kept=100)
    gaps.add(array("d", [0.0, 1.0, 3.0]))
    assert list(gaps.kept) == [1.0, 2.0]
    for _ in range(100):
        gaps.add(array("d", [float(at) for at in range(51)]))
    assert (len(gaps.kept), gaps.n_seen) == (100, 5002)
    assert set(gaps.kept) <= {1.0, 2.0}


def test_series_counts_everything_once(record: Make) -> None:
    collector = Collector()
    for at in range(10):
        made = record(at=at / 2, took=1.0)
        collector.add(made, array("d", [made.end_s - 0.3, made.end_s - 0.1]))
    collector.add(record(at=1.0, took=0.5, failure=Failure.CUT), array("d"))
    series = make_series(collector)
    widths = [series.step_s] * (len(series.concurrency) - 1)
    widths.append(series.end_s - sum(widths))

    def total(values: tuple[float, ...]) -> float:
        return sum(value * width for value, width in zip(values, widths, strict=True))

    assert series.end_s == 5.5
    assert total(series.requests_per_s) == pytest.approx(10)
    assert total(series.errors_per_s) == pytest.approx(1)
    assert total(series.events_per_s) == pytest.approx(20)
    assert total(series.concurrency) == pytest.approx(10.5)  # seconds that requests were open
    assert max(series.concurrency) == pytest.approx(3)


def test_series_of_a_long_run_has_few_steps(record: Make) -> None:
    collector = Collector()
    collector.add(record(at=0.0, took=3600.0), array("d"))
    assert len(make_series(collector).concurrency) <= 61
