"""The counters against the naive ones."""

from __future__ import annotations

import random

import pytest

from tests.model.counters_model import CountersModel, bucket_counts, status_class
from xinf._fast.counters import BUCKETS_S, MAX_REASONS, Histogram, ModelCounters


def sums(counters: ModelCounters) -> tuple[int, ...]:
    return (
        counters.prompt_tokens,
        counters.cached_tokens,
        counters.completion_tokens,
        counters.predicted_tokens,
        counters.cached_error,
    )


@pytest.mark.parametrize("seed", range(20))
def test_counters_agree_with_the_naive_ones(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    counters, model = ModelCounters(), CountersModel(MAX_REASONS)
    # Built anew each time, so that equal reasons are not the same object.
    reasons = ["load", "prefix", "other", *(f"r{n}" for n in range(rng.choice([2, MAX_REASONS + 5])))]
    for _ in range(500):
        match rng.randrange(5):
            case 0:
                counters.began()
                model.in_flight += 1
            case 1:
                status = rng.choice([0, 99, 100, 200, 204, 301, 404, 498, 499, 500, 599, 600, 10**6, -1])
                duration_s = rng.choice([0.0, *BUCKETS_S, rng.uniform(0, 400), 1e9])
                first_byte_s = rng.choice([None, duration_s / 2])
                counters.ended(status, duration_s, first_byte_s)
                model.in_flight -= 1
                model.requests[status_class(status)] += 1
                model.durations.append(duration_s)
                model.first_bytes += [] if first_byte_s is None else [first_byte_s]
            case 2:
                reason = "".join(list(rng.choice(reasons)))
                counters.count_decision(reason)
                model.decided.append(reason)
            case 3:
                told = (rng.randrange(5000), rng.randrange(5000), rng.randrange(2**33), rng.randrange(5000))
                counters.count_tokens(*told)
                model.tokens.append(told)
            case 4:
                counters.count_request(429)
                model.requests["4xx"] += 1
    assert counters.requests == model.requests
    assert counters.reasons == model.reasons
    assert counters.in_flight == model.in_flight
    assert sums(counters) == model.sums
    assert counters.duration.counts == bucket_counts(model.durations, BUCKETS_S)
    assert counters.first_byte.counts == bucket_counts(model.first_bytes, BUCKETS_S)
    assert counters.duration.sum_s == pytest.approx(sum(model.durations))


def test_upper_ends_of_buckets_are_inclusive() -> None:
    histogram = Histogram()
    for bound in BUCKETS_S:
        histogram.observe(bound)
    assert histogram.counts == [1] * len(BUCKETS_S) + [0]


def test_a_negative_number_of_tokens_counts_nothing() -> None:
    counters = ModelCounters()
    with pytest.raises(OverflowError):
        counters.count_tokens(5, 1, -1, 0)
    assert sums(counters) == (0, 0, 0, 0, 0)


def test_rare_counters_may_be_added_to_and_sums_may_not() -> None:
    counters = ModelCounters()
    counters.retries += 2
    counters.stream_errors += 1
    counters.slow_readers += 1
    assert (counters.retries, counters.stream_errors, counters.slow_readers) == (2, 1, 1)
    with pytest.raises(AttributeError):
        counters.prompt_tokens = 1


def test_reasons_are_bounded() -> None:
    counters = ModelCounters()
    for n in range(MAX_REASONS * 2):
        counters.count_decision(f"reason {n}")
    assert len(counters.reasons) == MAX_REASONS + 1
    assert counters.reasons["other"] == MAX_REASONS
