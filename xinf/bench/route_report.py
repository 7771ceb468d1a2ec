"""Figures of one routing run out of its records. Pure: the same records give the same report.

What was asked for is the whole plan: a request that was refused, failed, or was never sent because one that it follows
failed, counts as missed in the goodput. Latency is of good answers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

import msgspec

from xinf.bench.record import Record
from xinf.bench.report import Distribution, ErrorCount, Goodput, count_errors, distribution
from xinf.bench.route_driver import RouteOutcome
from xinf.bench.slo import Slo

PERCENTILES = (50.0, 90.0, 99.0)
_REFUSED = (429, 503)


class Imbalance(msgspec.Struct, frozen=True, kw_only=True):
    """How unevenly something is spread over replicas: coefficient of variation, and the most to the mean."""

    cv: float
    max_over_mean: float


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted against observed cached tokens. Errors are predicted - observed, in tokens."""

    n: int
    within_block_share: float
    mean_error_tokens: float
    mean_absolute_error_tokens: float


class RouteSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One run in figures. Rates are over `window_s`: from the start to the end of the last request."""

    n_planned: int
    n_good: int
    n_refused: int  # 429 and 503
    n_failed: int  # otherwise
    n_skipped: int  # never sent
    errors: tuple[ErrorCount, ...]
    window_s: float
    requests_per_s: float
    prompt_tokens: int
    cached_tokens: int
    ttft: Distribution | None
    e2e: Distribution | None
    goodput: Goodput | None
    n_replicas: int
    requests_imbalance: Imbalance | None  # None where the server does not say who answered
    prefill_imbalance: Imbalance | None  # of prompt tokens that were computed
    gateway_cpu_us_per_request: float | None
    prediction: Prediction | None

    @property
    def hit_share(self) -> float | None:
        """Cached of all prompt tokens; None without an answer."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None


def summarize_route(
    outcome: RouteOutcome, *, slo: Slo | None, block_tokens: int, has_predictions: bool
) -> RouteSummary:
    """Make one run's figures. `has_predictions`: the policy looks at prefixes at all."""
    records = outcome.records
    good = [record for record in records if record.failure is None]
    n_refused = sum(record.failure is not None and record.status in _REFUSED for record in records)
    n_planned = len(records) + outcome.n_skipped
    window_s = max((record.end_s for record in records), default=0.0)
    per_s = 1.0 / window_s if window_s > 0 else 0.0
    by_replica = _by_replica(good, outcome.replicas)
    cpu_s = outcome.gateway_cpu_s
    return RouteSummary(
        n_planned=n_planned,
        n_good=len(good),
        n_refused=n_refused,
        n_failed=len(records) - len(good) - n_refused,
        n_skipped=outcome.n_skipped,
        errors=count_errors(records),
        window_s=window_s,
        requests_per_s=len(good) * per_s,
        prompt_tokens=sum(record.prompt_tokens or 0 for record in good),
        cached_tokens=sum(record.cached_tokens or 0 for record in good),
        ttft=distribution((record.ttft_s for record in good), PERCENTILES),
        e2e=distribution((record.e2e_s for record in good), PERCENTILES),
        goodput=None if slo is None else _goodput(good, slo, n_planned, per_s),
        n_replicas=len(by_replica),
        requests_imbalance=imbalance([len(found) for found in by_replica]),
        prefill_imbalance=imbalance([sum(map(_computed, found)) for found in by_replica]),
        gateway_cpu_us_per_request=None if cpu_s is None or not records else cpu_s / len(records) * 1e6,
        prediction=predict(good, block_tokens) if has_predictions else None,
    )


def imbalance(amounts: Sequence[float]) -> Imbalance | None:
    """How uneven amounts are, one for each replica, those without any included; None where there is nothing at all."""
    mean = math.fsum(amounts) / len(amounts) if amounts else 0.0
    if mean <= 0:
        return None
    return Imbalance(cv=statistics.pstdev(amounts) / mean, max_over_mean=max(amounts) / mean)


def predict(good: Iterable[Record], block_tokens: int) -> Prediction | None:
    """Compare predictions with what engines found; None if there is nothing to compare."""
    errors = [
        record.predicted_cached_tokens - record.cached_tokens
        for record in good
        if record.predicted_cached_tokens is not None and record.cached_tokens is not None
    ]
    if not errors:
        return None
    return Prediction(
        n=len(errors),
        within_block_share=sum(abs(error) <= block_tokens for error in errors) / len(errors),
        mean_error_tokens=statistics.fmean(errors),
        mean_absolute_error_tokens=statistics.fmean(map(abs, errors)),
    )


def _goodput(good: Sequence[Record], slo: Slo, n_planned: int, per_s: float) -> Goodput:
    n = sum(slo.is_kept(ttft_s=record.ttft_s, tpot_s=record.tpot_s, e2e_s=record.e2e_s) for record in good)
    return Goodput(n=n, requests_per_s=n * per_s, share=n / n_planned if n_planned else 0.0)


def _by_replica(good: Iterable[Record], replicas: Sequence[str]) -> list[list[Record]]:
    """Put the answers of each replica together; () where no answer says whose it is."""
    found: dict[str, list[Record]] = {name: [] for name in replicas}
    for record in good:
        if record.replica is not None:
            found.setdefault(record.replica, []).append(record)
    return list(found.values())


def _computed(record: Record) -> int:
    return (record.prompt_tokens or 0) - (record.cached_tokens or 0)
