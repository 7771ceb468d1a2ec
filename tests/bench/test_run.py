"""Whole measurements against a server that misbehaves: loops, limits, warm-up, repeats, Ctrl-C."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.bench.odd_server import TOKENS, OddServer
from xinf.bench import (
    ClosedLoop,
    Document,
    Endpoint,
    Load,
    OpenLoop,
    Progress,
    Settings,
    Target,
    WorkloadKind,
    WorkloadSettings,
    parse_slo,
    read_document,
    run_bench,
    write_document,
)
from xinf.bench.record import Failure
from xinf.core.errors import EngineError, Unavailable


def ignore(_progress: Progress) -> None:
    pass


def settings_of(server: OddServer, *loads: Load, model: str = "ok", **wishes: Any) -> Settings:
    given = {
        "n_requests": 40,
        "duration_s": None,
        "workload": WorkloadSettings(input_tokens=20, output_tokens=TOKENS),
        "keeps_records": True,
        "timeout_s": 20.0,
        "seed": 1,
    }
    return Settings(
        url=server.url, model=model, endpoint=Endpoint.CHAT, loads=loads or (ClosedLoop(4),), **(given | wishes)
    )


def measure(server: OddServer, *loads: Load, **wishes: Any) -> Document:
    return run_bench(settings_of(server, *loads, **wishes), Target.parse(server.url), ignore)


def test_closed_loop_keeps_its_concurrency_and_sends_what_was_asked(server: OddServer) -> None:
    document = measure(server, ClosedLoop(4), n_warmup=2)
    summary = document.results[0].summary
    assert (summary.n_sent, summary.n_good, summary.concurrency_max) == (40, 40, 4)
    assert (summary.output_tokens, summary.output_tokens_from) == (40 * TOKENS, "usage")
    assert summary.cache_hit_share == 0.25
    assert len(server.requests) == 42
    assert server.n_connections == 4


def test_open_loop_sends_when_intended_and_latency_counts_from_then(server: OddServer) -> None:
    document = measure(server, OpenLoop(rate=400.0, burstiness=None))
    records = sorted(document.results[0].records or (), key=lambda record: record.intended_s)
    assert [record.intended_s for record in records] == pytest.approx([number / 400 for number in range(40)])
    for record in records:
        assert record.sent_s is not None
        assert record.intended_s <= record.dispatched_s <= record.sent_s < record.end_s
        assert record.e2e_s == record.end_s - record.intended_s
    assert sorted(record.number for record in records) == list(range(40))


def test_wait_behind_a_concurrency_limit_counts(server: OddServer) -> None:
    """One request at a time that hangs until it times out: the second waits for it, and its wait is in its latency."""
    load = OpenLoop(rate=1000.0, burstiness=None, max_concurrency=1)
    document = measure(server, load, model="hang", n_requests=2, n_warmup=0, timeout_s=0.2)
    records = sorted(document.results[0].records or (), key=lambda record: record.intended_s)
    assert [record.failure for record in records] == [Failure.TIMEOUT, Failure.TIMEOUT]
    assert records[1].sent_s is not None
    assert records[1].sent_s >= 0.2
    assert records[1].e2e_s >= 0.39


def test_same_seed_sends_the_same(server: OddServer) -> None:
    for _ in range(2):
        measure(server, ClosedLoop(7), n_warmup=0, n_requests=50)
    one, other = (sorted(str(body["messages"]) for body in server.requests[start : start + 50]) for start in (0, 50))
    assert one == other
    assert len(set(one)) == 50


def test_repeats_and_loads_interleave_with_seeds_of_their_own(server: OddServer) -> None:
    document = measure(server, ClosedLoop(1), ClosedLoop(2), n_repeats=2, n_requests=5)
    assert [(result.load, result.repeat, result.seed) for result in document.results] == [
        (ClosedLoop(1), 0, 1),
        (ClosedLoop(2), 0, 2),
        (ClosedLoop(1), 1, 3),
        (ClosedLoop(2), 1, 4),
    ]
    assert [point.n_repeats for point in document.points] == [2, 2]
    spread = document.points[0].figures["e2e_p50_s"]
    assert spread.min <= spread.median <= spread.max
    assert len({str(body["messages"]) for body in server.requests}) == len(server.requests)


def test_duration_ends_a_run(server: OddServer) -> None:
    document = measure(server, OpenLoop(rate=100.0), n_requests=None, duration_s=0.3)
    records = document.results[0].records or ()
    assert 0 < len(records) < 100
    assert max(record.intended_s for record in records) < 0.3


def test_failures_are_in_the_report_and_do_not_stop_the_run(server: OddServer) -> None:
    summary = measure(server, ClosedLoop(1), model="every-other", n_warmup=0).results[0].summary
    assert (summary.n_sent, summary.n_good, summary.n_failed) == (40, 20, 20)
    assert [(e.failure, e.status, e.n, e.example) for e in summary.errors] == [(Failure.STATUS, 503, 20, "not now")]


def test_conversation_sends_its_answers_back_under_one_name(server: OddServer) -> None:
    workload = WorkloadSettings(kind=WorkloadKind.CONVERSATION, n_turns=3, input_tokens=5, output_tokens=TOKENS)
    measure(server, ClosedLoop(2), workload=workload, n_requests=12, n_warmup=0)
    by_user: dict[str, list[Any]] = {}
    for body in server.requests:
        by_user.setdefault(body["user"], []).append(body["messages"])
    assert len(by_user) == 4
    for turns in by_user.values():
        assert [len(messages) for messages in turns] == [1, 3, 5]
        assert turns[2][:3] == turns[1]
        assert turns[2][3] == {"role": "assistant", "content": "wéll " * TOKENS}


def test_conversation_in_an_open_loop_keeps_the_rate_of_requests(server: OddServer) -> None:
    workload = WorkloadSettings(kind=WorkloadKind.CONVERSATION, n_turns=4, input_tokens=5, output_tokens=TOKENS)
    load = OpenLoop(rate=400.0, burstiness=None)
    document = measure(server, load, workload=workload, n_requests=None, duration_s=0.5, n_warmup=0)
    first = [record.intended_s for record in document.results[0].records or () if record.turn == 0]
    assert sorted(first) == pytest.approx([number / 100 for number in range(50)])


def test_turns_after_a_failed_one_are_counted(server: OddServer) -> None:
    workload = WorkloadSettings(kind=WorkloadKind.CONVERSATION, n_turns=3, input_tokens=5)
    summary = (
        measure(server, ClosedLoop(1), model="429", workload=workload, n_requests=2, n_warmup=0).results[0].summary
    )
    assert (summary.n_failed, summary.n_skipped_turns) == (2, 4)


def test_goodput_counts_what_was_quick_enough(server: OddServer) -> None:
    for text, share in (("e2e=60s", 1.0), ("e2e=0.001ms", 0.0)):
        goodput = measure(server, slo=parse_slo(text)).results[0].summary.goodput
        assert goodput is not None
        assert goodput.share == share


def test_warm_up_without_a_good_answer_says_why(server: OddServer) -> None:
    with pytest.raises(EngineError, match="answered 500: oops"):
        measure(server, model="500")
    with pytest.raises(EngineError, match=r"without \[DONE\]"):
        measure(server, model="no-done")


def test_server_that_is_not_there_is_named() -> None:
    with OddServer() as gone:
        pass
    with pytest.raises(Unavailable, match=gone.url):
        measure(gone)
    with pytest.raises(Unavailable, match=gone.url):
        measure(gone, n_warmup=0)


def test_interrupt_gives_what_there_is(server: OddServer) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.n_in_flight:
            os.kill(os.getpid(), signal.SIGINT)

    settings = settings_of(server, ClosedLoop(3), model="hang", n_warmup=0, n_requests=None, duration_s=60.0)
    document = run_bench(settings, Target.parse(server.url), interrupt)
    assert document.is_interrupted
    summary = document.results[0].summary
    assert (summary.n_sent, summary.n_unfinished, summary.n_failed) == (3, 3, 0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_result_file_keeps_everything_but_secrets(server: OddServer, tmp_path: Path) -> None:
    settings = settings_of(server, OpenLoop(rate=500.0), header_names=("authorization",), slo=parse_slo("e2e=1s"))
    target = Target.parse(server.url, headers=(("authorization", "Bearer s3cret"),))
    document = run_bench(settings, target, ignore)
    file = tmp_path / "result.json"
    write_document(document, file)
    assert read_document(file) == document
    assert "s3cret" not in file.read_text()
    assert b"authorization: Bearer s3cret" in server.heads[0]
