"""Counters, their sum over processes, and the text that Prometheus reads."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from xinf.gateway.metrics import FAMILIES, Metrics, add, family_of, render


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
