"""Counters, their sum over processes, and the text that Prometheus reads."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from xinf._fast.scan import scan
from xinf._pb import engine_service_pb2 as pb
from xinf.core.records import RoutingPolicy
from xinf.gateway.metrics import FAMILIES, Metrics, Snapshot, add, family_of, fold_following, fold_router, render
from xinf.router import ResidencyUpdate, Router


def counted() -> Metrics:
    metrics = Metrics()
    counters = metrics.model('a"b\\c\n')
    counters.count_request(200)
    counters.count_request(200)
    counters.count_request(499)
    counters.count_decision("prefix")
    counters.count_tokens(prompt=100, cached=64, completion=7, predicted=80)
    counters.first_byte.observe(0.03)
    counters.first_byte.observe(1000.0)
    return metrics


def values(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_render_is_what_prometheus_reads() -> None:
    read = values(render(counted().snapshot()))
    model = ("model", 'a"b\\c\n')
    assert read["xinf_requests_total", (("code", "2xx"), model)] == 2
    assert read["xinf_requests_total", (("code", "499"), model)] == 1
    assert read["xinf_cached_tokens_error_total", (model,)] == 16
    assert read["xinf_time_to_first_byte_seconds_bucket", (("le", "0.05"), model)] == 1
    assert read["xinf_time_to_first_byte_seconds_bucket", (("le", "+Inf"), model)] == 2
    assert read["xinf_time_to_first_byte_seconds_count", (model,)] == 2


def test_every_family_is_told_once_with_its_help() -> None:
    text = render(counted().snapshot())
    for line in {line for line in text.splitlines() if line.startswith("# TYPE")}:
        assert text.count(line) == 1
    assert all(family.help.endswith(".") for family in FAMILIES.values())


def test_add_sums_over_processes() -> None:
    one, other = counted().snapshot(), counted().snapshot()
    other["xinf_index_bytes"] = 5
    assert add([one, other])["xinf_index_bytes"] == 5
    read = values(render(add([one, other])))
    assert read["xinf_requests_total", (("code", "2xx"), ("model", 'a"b\\c\n'))] == 4


def test_family_of_refuses_what_is_not_documented() -> None:
    with pytest.raises(KeyError):
        family_of('xinf_surprise_total{model="m"}')


def test_what_replicas_are_known_by_is_told() -> None:
    router, body = Router(turn=0), scan(b'{"prompt":"%s"}' % (b"a" * 4000))
    router.set_replica("r", model="m", policy=RoutingPolicy.AUTO, block_tokens=16, is_ready=True)
    chain = body.chain(1)
    router.on_residency("r", ResidencyUpdate(True, chain[-8:], (1000).to_bytes(4, "little"), b"", "exact"))
    for _ in range(60):
        choice = router.choose("m", body, seed=1)
        assert choice is not None
        router.finished(choice, prompt_tokens=1000, cached_tokens=0, completion_tokens=1, is_ok=True)
    folded: Snapshot = {}
    fold_router(router.snapshot(), folded)
    read = values(render(folded))
    replica, model = ("replica", "r"), ("model", "m")
    assert read["xinf_replica_view", (replica, ("view", "approx"))] == 1
    assert read["xinf_replica_view_changes_total", (("cause", "engine"), replica, ("view", "exact"))] == 1
    assert read["xinf_replica_view_changes_total", (("cause", "check"), replica, ("view", "approx"))] == 1
    assert read["xinf_replica_view_share", (replica,)] == 0  # of ten since then
    assert read["xinf_exact_index_entries", ()] == 1
    assert read["xinf_exact_index_bytes", ()] > 0
    assert read["xinf_routing_compared_total", (model,)] == 60
    assert read["xinf_routing_saved_seconds_total", (model,)] == 0
    assert read["xinf_routing_regret_seconds_total", (model,)] == 0
    assert read["xinf_prefill_computed_tokens_total", (model,)] == 60 * 1000
    # All but the first: the block that a prediction may be off by is no repetition.
    assert read["xinf_prefill_repeated_tokens_total", (model,)] == 59 * (1000 - 16)


def test_what_engines_tell_every_process_is_not_summed() -> None:
    told = pb.Following(
        batches=10,
        events=40,
        skipped=4,
        replayed=2,
        duplicates=1,
        gaps=3,
        resets=5,
        lag_mean_s=0.25,
        lag_max_s=1.5,
        unbound=6,
    )
    late: Snapshot = {}
    fold_following(told, "r", late)
    early: Snapshot = {}
    fold_following(pb.Following(events=30), "r", early)
    read = values(render(add([early, late, late])))
    replica = ("replica", "r")
    assert read["xinf_kv_events_total", (replica, ("use", "taken"))] == 36
    assert read["xinf_kv_events_total", (replica, ("use", "skipped"))] == 4
    batches = {
        kind: read["xinf_kv_event_batches_total", (("kind", kind), replica)]
        for kind in ("live", "replayed", "duplicate")
    }
    assert batches == {"live": 8, "replayed": 2, "duplicate": 1}
    assert read["xinf_kv_event_gaps_total", (replica,)] == 3
    assert read["xinf_kv_event_losses_total", (replica,)] == 5
    assert read["xinf_kv_event_lag_seconds", (("of", "mean"), replica)] == 0.25
    assert read["xinf_kv_event_lag_seconds", (("of", "max"), replica)] == 1.5
    assert read["xinf_unbound_prompts_total", (replica,)] == 6
