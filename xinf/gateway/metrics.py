"""What one gateway process counts, and how the counts of all of them become one page.

Counters are C integers on the hot path (`_fast.counters`); a `snapshot` folds them into
`{"xinf_name{labels}": value}` when somebody asks. That is also what workers tell each other, because sums of such
dictionaries are all that a page over several workers needs. Label values are bounded: models are deployments that
exist, status classes and reasons are closed sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from xinf._fast.counters import BUCKETS_S, Histogram
from xinf._fast.counters import ModelCounters as ModelCounters
from xinf._pb import engine_service_pb2 as pb
from xinf.router import RouterView

Snapshot = dict[str, float]

NO_MODEL = "-"


class Family(msgspec.Struct, frozen=True):
    kind: str  # "counter", "gauge", "histogram"
    help: str


FAMILIES: dict[str, Family] = {
    "xinf_requests_total": Family("counter", "Requests that ended, by deployment and status class; 499: client gone."),
    "xinf_requests_in_flight": Family("gauge", "Requests that have been read and not ended."),
    "xinf_requests_waiting": Family("gauge", "Requests in the waiting room: no replica can take them now."),
    "xinf_retries_total": Family("counter", "Requests moved to another replica before their first byte."),
    "xinf_stream_errors_total": Family("counter", "Streams that ended with an error event after their first byte."),
    "xinf_slow_readers_total": Family("counter", "Streams cancelled because their client did not read."),
    "xinf_time_to_first_byte_seconds": Family("histogram", "From the request's arrival to the answer's first byte."),
    "xinf_request_duration_seconds": Family("histogram", "From the request's arrival to the answer's end."),
    "xinf_prompt_tokens_total": Family("counter", "Prompt tokens, as the engines counted them."),
    "xinf_cached_tokens_total": Family("counter", "Prompt tokens that engines found in their prefix cache."),
    "xinf_completion_tokens_total": Family("counter", "Generated tokens, as the engines counted them."),
    "xinf_predicted_cached_tokens_total": Family("counter", "Cached tokens predicted by the router when it chose."),
    "xinf_cached_tokens_error_total": Family("counter", "Sum of |predicted - observed| cached tokens."),
    "xinf_routing_decisions_total": Family("counter", "Choices of a replica, by deployment and reason."),
    "xinf_link_up": Family("gauge", "Gateway processes whose Link to the replica is up."),
    "xinf_replica_in_flight": Family("gauge", "Requests that this gateway has on a replica."),
    "xinf_routing_compared_total": Family(
        "counter",
        "Answered choices of auto compared with least_load's: all, or of more than 32 replicas one in 16.",
    ),
    "xinf_routing_saved_seconds_total": Family(
        "counter", "Seconds of cost that compared choices saved, by the cached tokens that engines found."
    ),
    "xinf_routing_regret_seconds_total": Family(
        "counter", "Seconds of cost that compared choices lost: least_load's replica would have been cheaper."
    ),
    "xinf_prefill_computed_tokens_total": Family(
        "counter", "Prompt tokens that engines computed, under policies that look at prefixes."
    ),
    "xinf_prefill_repeated_tokens_total": Family(
        "counter",
        "Of them, those that had been asked for not long before: what larger caches, or other choices, would save.",
    ),
    "xinf_index_bytes": Family("gauge", "Memory of the prefix index, over all gateway processes."),
    "xinf_index_entries": Family("gauge", "Entries of the prefix index, over all gateway processes."),
    "xinf_index_evictions_total": Family("counter", "Entries that the prefix index gave up to stay within its bound."),
    "xinf_exact_index_bytes": Family("gauge", "Memory of the index of what engines say, over all gateway processes."),
    "xinf_exact_index_entries": Family(
        "gauge", "Chunks that engines say they hold, one for each KV block, over all gateway processes."
    ),
    "xinf_exact_index_evictions_total": Family(
        "counter", "Chunks that the index of what engines say gave up: routing.exact_index_max_bytes is too small."
    ),
    "xinf_residency_resyncs_total": Family(
        "counter", "Snapshots asked of a replica because what it said of its cache had a gap or a fault."
    ),
    "xinf_kv_events_total": Family(
        "counter", "Events of a replica's cache that its shim took in, and of them those that it has no use for."
    ),
    "xinf_kv_event_batches_total": Family(
        "counter",
        "Messages of a replica's event stream: live, replayed after a gap, duplicate, malformed, foreign.",
    ),
    "xinf_kv_event_gaps_total": Family("counter", "Gaps in a replica's event stream, filled or not."),
    "xinf_kv_event_losses_total": Family(
        "counter", "Times that events of a replica's cache were lost, so that it is known roughly until it is empty."
    ),
    "xinf_kv_event_lag_seconds": Family("gauge", "How old events of a replica's cache are when they come: mean, max."),
    "xinf_unbound_prompts_total": Family(
        "counter", "Prompts of a replica whose text could not be told: they are predicted too low."
    ),
    "xinf_replica_view": Family("gauge", "Gateway processes that see a replica's cache as exact, approx or off."),
    "xinf_replica_view_share": Family(
        "gauge",
        "Share of the last answers in which what a replica says of its cache came true; a sum over gateway processes.",
    ),
    "xinf_replica_view_changes_total": Family(
        "counter",
        "Changes of a replica's view by what it became and why: beginning, policy, engine, form, check, recovery.",
    ),
    "xinf_predictions_total": Family("counter", "Answers whose cached tokens had been predicted."),
    "xinf_predictions_within_block_total": Family("counter", "Of them, those predicted to within one block."),
    "xinf_access_log_dropped_total": Family("counter", "Access-log lines lost because their target blocked or failed."),
    "xinf_connections_turned_away_total": Family(
        "counter", "Connections closed at once because the front direct had too many."
    ),
    "xinf_store_read": Family("gauge", "Gateway processes that have read the store."),
    "xinf_worker_start_time_seconds": Family("gauge", "When a gateway process started, seconds since the epoch."),
}


# Of these every gateway process hears the same from the engine: they are not summed.
_TOLD = frozenset(name for name in FAMILIES if name.startswith(("xinf_kv_event", "xinf_unbound_prompts")))


def fold_histogram(histogram: Histogram, name: str, labels: str, into: Snapshot) -> None:
    """Fold a histogram into its cumulated buckets, sum and count. `labels`: as they stand between the braces."""
    total = 0
    for bound, count in zip((*BUCKETS_S, "+Inf"), histogram.counts, strict=True):
        total += count
        into[f'{name}_bucket{{{labels},le="{bound}"}}'] = total
    into[f"{name}_sum{{{labels}}}"] = histogram.sum_s
    into[f"{name}_count{{{labels}}}"] = total


def fold_model(counters: ModelCounters, model: str, into: Snapshot) -> None:
    """Fold the counters of one deployment. What never happened has no sample, where a label would tell it."""
    label = f'model="{escape(model)}"'
    for code, count in counters.requests.items():
        into[f'xinf_requests_total{{{label},code="{code}"}}'] = count
    for reason, count in counters.reasons.items():
        into[f'xinf_routing_decisions_total{{{label},reason="{escape(reason)}"}}'] = count
    into[f"xinf_requests_in_flight{{{label}}}"] = counters.in_flight
    into[f"xinf_retries_total{{{label}}}"] = counters.retries
    into[f"xinf_stream_errors_total{{{label}}}"] = counters.stream_errors
    into[f"xinf_slow_readers_total{{{label}}}"] = counters.slow_readers
    into[f"xinf_prompt_tokens_total{{{label}}}"] = counters.prompt_tokens
    into[f"xinf_cached_tokens_total{{{label}}}"] = counters.cached_tokens
    into[f"xinf_completion_tokens_total{{{label}}}"] = counters.completion_tokens
    into[f"xinf_predicted_cached_tokens_total{{{label}}}"] = counters.predicted_tokens
    into[f"xinf_cached_tokens_error_total{{{label}}}"] = counters.cached_error
    fold_histogram(counters.first_byte, "xinf_time_to_first_byte_seconds", label, into)
    fold_histogram(counters.duration, "xinf_request_duration_seconds", label, into)


class Metrics:
    """All counters of one gateway process."""

    def __init__(self) -> None:
        self._by_model: dict[str, ModelCounters] = {}

    def model(self, deployment: str) -> ModelCounters:
        """The counters of a deployment that exists (or existed: a counter does not go back)."""
        counters = self._by_model.get(deployment)
        if counters is None:
            counters = self._by_model[deployment] = ModelCounters()
        return counters

    def snapshot(self) -> Snapshot:
        """Fold everything counted here."""
        folded: Snapshot = {}
        for name, counters in self._by_model.items():
            fold_model(counters, name, folded)
        return folded


def fold_router(view: RouterView, into: Snapshot) -> None:
    """Fold what the router knows of its index and of its own predictions."""
    into["xinf_index_bytes"] = view.index_bytes
    into["xinf_index_entries"] = view.index_entries
    into["xinf_index_evictions_total"] = view.index_evictions
    into["xinf_exact_index_bytes"] = view.exact_index_bytes
    into["xinf_exact_index_entries"] = view.exact_index_entries
    into["xinf_exact_index_evictions_total"] = view.exact_index_evictions
    for model, savings in view.savings.items():
        label = f'model="{escape(model)}"'
        into[f"xinf_routing_compared_total{{{label}}}"] = savings.n_compared
        into[f"xinf_routing_saved_seconds_total{{{label}}}"] = savings.saved_s
        into[f"xinf_routing_regret_seconds_total{{{label}}}"] = savings.regret_s
    for model, repetition in view.repetitions.items():
        label = f'model="{escape(model)}"'
        into[f"xinf_prefill_computed_tokens_total{{{label}}}"] = repetition.computed_tokens
        into[f"xinf_prefill_repeated_tokens_total{{{label}}}"] = repetition.repeated_tokens
    for replica in view.replicas:
        label = f'replica="{escape(replica.replica_id)}"'
        into[f'xinf_replica_view{{{label},view="{replica.index_state}"}}'] = 1
        if replica.n_checked:
            into[f"xinf_replica_view_share{{{label}}}"] = replica.share
        for (state, cause), count in replica.changes.items():
            into[f'xinf_replica_view_changes_total{{{label},view="{state}",cause="{cause}"}}'] = count
        into[f"xinf_predictions_total{{{label}}}"] = replica.answers
        into[f"xinf_predictions_within_block_total{{{label}}}"] = replica.answers_within_block


def fold_following(following: pb.Following, replica: str, into: Snapshot) -> None:
    """Fold what an engine's shim says of how it follows the engine's events."""
    label = f'replica="{escape(replica)}"'
    into[f'xinf_kv_events_total{{{label},use="taken"}}'] = following.events - following.skipped
    into[f'xinf_kv_events_total{{{label},use="skipped"}}'] = following.skipped
    batches = {
        "live": following.batches - following.replayed,
        "replayed": following.replayed,
        "duplicate": following.duplicates,
        "malformed": following.malformed,
        "foreign": following.foreign,
    }
    for kind, count in batches.items():
        into[f'xinf_kv_event_batches_total{{{label},kind="{kind}"}}'] = count
    into[f"xinf_kv_event_gaps_total{{{label}}}"] = following.gaps
    into[f"xinf_kv_event_losses_total{{{label}}}"] = following.resets
    into[f'xinf_kv_event_lag_seconds{{{label},of="mean"}}'] = following.lag_mean_s
    into[f'xinf_kv_event_lag_seconds{{{label},of="max"}}'] = following.lag_max_s
    into[f"xinf_unbound_prompts_total{{{label}}}"] = following.unbound


def escape(value: str) -> str:
    """Escape a label value as Prometheus' text format wants it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def add(snapshots: Iterable[Mapping[str, float]]) -> Snapshot:
    """Sum what several processes counted; of what engines told all of them, take the most, which is the newest."""
    total: Snapshot = {}
    for snapshot in snapshots:
        for key, value in snapshot.items():
            if key.partition("{")[0] in _TOLD:
                total[key] = max(total.get(key, 0), value)
            else:
                total[key] = total.get(key, 0) + value
    return total


def render(snapshot: Mapping[str, float]) -> str:
    """Write a snapshot in Prometheus' text format, each family once with its help and type."""
    by_family: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for key, value in snapshot.items():
        number = f"{value:.0f}" if float(value).is_integer() else repr(float(value))
        by_family[family_of(key)].append(f"{key} {number}")
    lines: list[str] = []
    for name, samples in by_family.items():
        if samples:
            lines += [f"# HELP {name} {FAMILIES[name].help}", f"# TYPE {name} {FAMILIES[name].kind}", *samples]
    return "\n".join(lines) + "\n"


def family_of(key: str) -> str:
    """The family of a sample. Raises: KeyError for one that is not in FAMILIES."""
    name = key.partition("{")[0]
    if name in FAMILIES:
        return name
    for suffix in ("_bucket", "_sum", "_count"):
        if name.endswith(suffix) and name.removesuffix(suffix) in FAMILIES:
            return name.removesuffix(suffix)
    raise KeyError(name)
