"""Warnings: each comes when there is reason, and not otherwise."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import pytest

from xinf.bench.caution import cautions, falls_behind
from xinf.bench.collector import Collector, Sample
from xinf.bench.load import ClosedLoop, Load, OpenLoop
from xinf.bench.record import Failure, Record
from xinf.bench.report import summarize
from xinf.bench.workload import WorkloadSettings

Make = Callable[..., Record]


def kinds(
    records: list[Record],
    load: Load | None = None,
    *,
    cpu_s: float = 0.1,
    waits: int = 0,
    n_file_prompts: int | None = None,
    **workload: Any,
) -> set[str]:
    collector = Collector()
    collector.samples = [Sample(0.0, 0.0, 0), Sample(1.0, cpu_s, 0)]
    for each in records:
        collector.add(each, array("d"))
    load = load or ClosedLoop(1)
    summary = summarize(collector, load, slo=None, percentiles=(), connections_opened=0, connection_waits=waits)
    asked = WorkloadSettings(**({"input_tokens": 100, "output_tokens": 5} | workload))
    return {told.kind for told in cautions(summary, records, load, asked, n_file_prompts=n_file_prompts)}


@pytest.fixture
def good(record: Make) -> list[Record]:
    return [record(at=number / 10, max_tokens=5) for number in range(200)]


def test_run_without_fault_has_no_warning(good: list[Record]) -> None:
    assert kinds(good) == set()
    assert kinds(good, OpenLoop(rate=10.0)) == set()


def test_busy_generator_is_told(good: list[Record]) -> None:
    assert kinds(good, cpu_s=0.79) == set()
    assert kinds(good, cpu_s=0.81) == {"generator_cpu"}


def test_late_generator_is_told_where_it_matters(record: Make) -> None:
    def late(by_s: float) -> list[Record]:
        return [record(at=number / 10, dispatched_s=number / 10 + by_s) for number in range(200)]

    assert kinds(late(0.009), OpenLoop(rate=10.0)) == set()  # TTFT is 100 ms
    assert kinds(late(0.011), OpenLoop(rate=10.0)) == {"generator_late"}


def test_waits_for_connections_are_told(good: list[Record]) -> None:
    assert kinds(good, waits=3) == {"connection_waits"}


def test_failures_are_told(good: list[Record], record: Make) -> None:
    assert kinds([*good, record(failure=Failure.CUT)]) == {"failed"}
    assert kinds([*good, record(failure=Failure.UNFINISHED)]) == {"interrupted"}
    assert kinds([*good, record(has_reconnected=True)]) == {"reconnects"}


def test_few_answers_are_told(good: list[Record]) -> None:
    assert kinds(good[:99]) == {"few"}
    assert kinds(good[:100]) == set()


def test_answers_not_as_asked_are_told(record: Make) -> None:
    assert kinds([record(max_tokens=10)] * 100) == {"short_answers"}
    assert kinds([record(completion_tokens=None)] * 100) == {"tokens_from_events"}
    assert kinds([record()] * 100 + [record(first_token_s=None)]) == {"empty_answers"}


def test_prompts_not_as_asked_are_told(record: Make) -> None:
    assert kinds([record()] * 100, input_tokens=160) == set()  # what a chat template may add
    assert kinds([record()] * 100, input_tokens=200) == {"prompt_length"}


def test_prompts_of_a_file_that_came_again_are_told(good: list[Record]) -> None:
    assert kinds(good, n_file_prompts=200) == set()
    assert kinds(good, n_file_prompts=100) == {"prompts_again"}


def test_server_that_does_not_keep_up_is_told(record: Make) -> None:
    steady = [record(at=number / 10, took=5.0) for number in range(100)]
    growing = [record(at=number / 10, took=1.0 + number / 10) for number in range(100)]
    assert not falls_behind(steady)
    assert falls_behind(growing)
    assert kinds(growing, OpenLoop(rate=10.0)) == {"overload"}
