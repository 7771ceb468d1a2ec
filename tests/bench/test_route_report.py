"""Figures of routing runs, out of records that are small enough to know every one of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from xinf.bench.decision import read_decision
from xinf.bench.record import Failure, Record
from xinf.bench.route_document import RouteCase, RouteResult, make_route_points
from xinf.bench.route_driver import RouteOutcome
from xinf.bench.route_report import imbalance, predict, summarize_route
from xinf.bench.slo import Slo

Make = Callable[..., Record]


def outcome_of(records: list[Record], **fields: object) -> RouteOutcome:
    return RouteOutcome(records=records, **({"n_skipped": 0} | fields))  # type: ignore[arg-type]


def test_goodput_counts_what_was_refused_failed_or_never_sent_as_missed(record: Make) -> None:
    records = [
        record(at=0.0, took=1.0),
        record(at=1.0, took=1.0, first_token_s=1.9),  # too late
        record(at=2.0, took=0.1, status=429, failure=Failure.STATUS),
        record(at=2.0, took=0.1, status=502, failure=Failure.STATUS, message="died"),
        record(at=3.0, took=1.0),
    ]
    found = summarize_route(
        outcome_of(records, n_skipped=3), slo=Slo(ttft_s=0.5), block_tokens=16, has_predictions=False
    )
    assert (found.n_planned, found.n_good, found.n_refused, found.n_failed, found.n_skipped) == (8, 3, 1, 1, 3)
    assert found.window_s == 4.0
    assert found.goodput is not None
    assert (found.goodput.n, found.goodput.share, found.goodput.requests_per_s) == (2, 2 / 8, 2 / 4.0)
    assert found.requests_per_s == 3 / 4.0
    assert {(error.status, error.n) for error in found.errors} == {(429, 1), (502, 1)}


def test_latency_is_linear_between_ranks_and_of_good_answers(record: Make) -> None:
    records = [record(took=1.0 + n, first_token_s=0.01 * n) for n in range(101)]
    records.append(record(took=999.0, failure=Failure.TIMEOUT))
    found = summarize_route(outcome_of(records), slo=None, block_tokens=16, has_predictions=False)
    assert found.ttft is not None
    assert found.e2e is not None
    assert found.ttft.percentiles == pytest.approx({"p50": 0.5, "p90": 0.9, "p99": 0.99})
    assert found.e2e.percentiles == pytest.approx({"p50": 51.0, "p90": 91.0, "p99": 100.0})
    assert found.goodput is None


def test_hits_are_of_all_prompt_tokens(record: Make) -> None:
    records = [record(prompt_tokens=300, cached_tokens=160), record(prompt_tokens=100, cached_tokens=0)]
    found = summarize_route(outcome_of(records), slo=None, block_tokens=16, has_predictions=False)
    assert found.hit_share == 0.4
    assert summarize_route(outcome_of([]), slo=None, block_tokens=16, has_predictions=False).hit_share is None


def test_imbalance_counts_replicas_that_got_nothing(record: Make) -> None:
    records = [record(replica="a", prompt_tokens=100, cached_tokens=40) for _ in range(3)]
    records.append(record(replica="b", prompt_tokens=20, cached_tokens=0))
    outcome = outcome_of(records, replicas=("a", "b", "c", "d"))
    found = summarize_route(outcome, slo=None, block_tokens=16, has_predictions=False)
    assert found.n_replicas == 4
    assert found.requests_imbalance is not None
    assert found.prefill_imbalance is not None
    assert found.requests_imbalance.max_over_mean == 3.0
    assert found.requests_imbalance.cv == pytest.approx(statistics.pstdev([3, 1, 0, 0]))
    # Computed: 180, 20, 0 and 0 tokens.
    assert found.prefill_imbalance.max_over_mean == pytest.approx(180 / 50)


def test_imbalance_of_even_and_of_no_amounts() -> None:
    even = imbalance([5, 5, 5])
    assert even is not None
    assert (even.cv, even.max_over_mean) == (0.0, 1.0)
    assert imbalance([]) is None
    assert imbalance([0, 0]) is None


def test_server_that_does_not_say_who_answered_has_no_imbalance(record: Make) -> None:
    found = summarize_route(outcome_of([record()]), slo=None, block_tokens=16, has_predictions=True)
    assert (found.n_replicas, found.requests_imbalance, found.prefill_imbalance, found.prediction) == (
        0,
        None,
        None,
        None,
    )


def test_predictions_are_compared_to_one_block(record: Make) -> None:
    pairs = [(0, 0), (64, 48), (64, 47), (100, 116), (None, 5), (5, None)]
    records = [record(predicted_cached_tokens=one, cached_tokens=other) for one, other in pairs]
    found = predict(records, 16)
    assert found is not None
    assert (found.n, found.within_block_share) == (4, 0.75)
    assert found.mean_error_tokens == pytest.approx((16 + 17 - 16) / 4)
    assert found.mean_absolute_error_tokens == pytest.approx((16 + 17 + 16) / 4)


def test_gateway_cpu_is_per_request_also_of_failed_ones(record: Make) -> None:
    records = [record(), record(failure=Failure.TIMEOUT)]
    outcome = outcome_of(records, gateway_cpu_s=0.001)
    found = summarize_route(outcome, slo=None, block_tokens=16, has_predictions=False)
    assert found.gateway_cpu_us_per_request == pytest.approx(500)


def test_points_have_medians_and_extremes_of_the_repeats(record: Make) -> None:
    def result(policy: str, ttft_s: float) -> RouteResult:
        outcome = outcome_of([record(first_token_s=ttft_s)])
        return RouteResult(
            case=RouteCase(workload="chat", pool_pct=7.0, policy=policy),
            repeat=0,
            seed=0,
            rate=1.0,
            working_set_blocks=1,
            shared_share=0.0,
            kv_blocks=1,
            is_pool_raised=False,
            took_s=0.0,
            summary=summarize_route(outcome, slo=None, block_tokens=16, has_predictions=False),
        )

    points = make_route_points([result("prefix", 0.2), result("auto", 0.1), result("auto", 0.4), result("auto", 0.3)])
    assert [(point.case.policy, point.n_repeats) for point in points] == [("auto", 3), ("prefix", 1)]
    figure = points[0].figures["ttft_p99_s"]
    assert (figure.median, figure.min, figure.max) == (0.3, 0.1, 0.4)
    assert "predicted_within_block" not in points[0].figures


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"replica=m-1;reason=prefix;matched_bytes=9;predicted_cached_tokens=48;retries=0", ("m-1", 48)),
        (b"replica=m-1; predicted_cached_tokens=0; new=thing", ("m-1", 0)),
        (b"replica=m-1;predicted_cached_tokens=some", ("m-1", None)),
        (b"nonsense", (None, None)),
    ],
)
def test_decision_header(header: bytes, told: tuple[str | None, int | None]) -> None:
    assert read_decision(header) == told
