"""The load generator counts what a scripted server sent it: right counts, and every way in which an answer is wrong."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks.loadgen import Load, LoadFailed, LoadResult, run
from tests.benchmarks.scripted_server import DONE, LAST, STREAM_HEAD, chunk, event, serving, whole

EVERYWHERE = tuple(sorted(os.sched_getaffinity(0)))


def measure(port: int, **fields: object) -> LoadResult:
    fields = {"connections": 2, "size_bytes": 300, "n_requests": 10, "warmup_s": 0.0, "timeout_s": 5.0, **fields}
    return run(Load(ports=(port,), **fields), cpus=EVERYWHERE)  # type: ignore[arg-type]


def stream(*payloads: bytes, last: bytes = LAST) -> list[bytes | None]:
    return [STREAM_HEAD, *(chunk(payload) for payload in payloads), last]


def test_requests_are_counted_and_bodies_have_the_size_asked_for() -> None:
    with serving(lambda _number: whole(b'{"choices":[]}')) as server:
        result = measure(server.port, connections=3, n_requests=50, size_bytes=8192)
    assert (result.requests, result.ok, result.errors, result.statuses["200"] >= 50) == (50, 50, 0, True)
    assert result.latency_ms is not None
    assert result.latency_ms.n >= 50
    assert 0 < result.latency_ms.p50 <= result.latency_ms.p99 <= result.latency_ms.max
    assert result.body_bytes >= 50 * 14
    assert server.n_connections == 3
    assert {len(body) for body in server.bodies} == {8192}


def test_prompts_are_distinct_valid_json() -> None:
    with serving(lambda _number: whole(b"{}")) as server:
        measure(server.port, n_requests=200, max_tokens=7, is_stream=False, model="m-1", extra=',"ignore_eos":true')
    requests = [json.loads(body) for body in server.bodies]
    contents = [request["messages"][0]["content"] for request in requests]
    assert len({content[:17] for content in contents}) == len(contents) >= 200  # in the first chunk of a prefix chain
    assert {(r["model"], r["max_tokens"], r["stream"], r["ignore_eos"]) for r in requests} == {("m-1", 7, False, True)}


def test_a_share_of_prompts_begins_with_shared_prefixes() -> None:
    with serving(lambda _number: whole(b"{}")) as server:
        measure(server.port, n_requests=400, size_bytes=1024, share=0.5, shared_bytes=300, groups=2)
    starts = [json.loads(body)["messages"][0]["content"][:300] for body in server.bodies]
    popular = [start for start in set(starts) if starts.count(start) > 1]
    assert len(popular) == 2
    assert 0.35 < sum(starts.count(start) for start in popular) / len(starts) < 0.65


def test_same_seed_same_prompts() -> None:
    with serving(lambda _number: whole(b"{}")) as server:
        measure(server.port, connections=1, n_requests=5, seed=3)
        first, n_first = list(server.bodies), len(server.bodies)
        measure(server.port, connections=1, n_requests=5, seed=3)
        measure(server.port, connections=1, n_requests=5, seed=4)
    assert server.bodies[n_first : 2 * n_first] == first
    assert not set(server.bodies[2 * n_first :]) & set(first)


def test_statuses_are_counted_and_are_errors() -> None:
    with serving(lambda number: whole(b"{}", b"503 No" if number % 2 else b"200 OK")) as server:
        result = measure(server.port, connections=1)
    assert result.statuses == {"200": 5, "503": 5}
    assert (result.ok, result.requests, result.status_errors, result.errors) == (5, 10, 5, 5)


def test_answers_in_pieces_are_put_together() -> None:
    answer = b"".join(whole(b"x" * 300, extra=b"x-long: " + b"y" * 500 + b"\r\n"))
    with serving(lambda _number: [answer[at : at + 7] for at in range(0, len(answer), 7)]) as server:
        result = measure(server.port)
    assert (result.ok, result.errors) == (10, 0)


def test_streams_are_counted_with_their_times() -> None:
    with serving(lambda _number: stream(*(event(i) for i in range(5)), DONE)) as server:
        result = measure(server.port, is_stream=True, expect_chunks=5)
    assert (result.ok, result.errors, result.unfinished, result.short) == (10, 0, 0, 0)
    assert result.streams == result.statuses["200"] >= 10
    assert 50 <= result.chunks <= 5 * result.streams
    assert result.ttft_ms is not None
    assert result.gap_ms is not None
    assert result.ttft_ms.n == result.streams
    assert result.gap_ms.n == 4 * result.streams


def test_merged_events_count_as_events_and_have_no_gap() -> None:
    with serving(lambda _number: stream(event(0), event(1) + event(2) + event(3), DONE)) as server:
        result = measure(server.port, connections=1, is_stream=True)
    assert result.chunks == 40
    assert result.event_reads <= 20
    assert result.gap_ms is not None
    assert (result.gap_ms.n, result.gap_ms.p50) == (30, 0)


def test_an_event_cut_over_chunks_counts_once() -> None:
    first, second = event(0)[:9], event(0)[9:] + DONE[:8]
    with serving(lambda _number: stream(first, second, DONE[8:])) as server:
        result = measure(server.port, connections=1, is_stream=True)
    assert (result.chunks, result.unfinished) == (10, 0)


def test_carriage_returns_and_comments_are_read_as_the_specification_says() -> None:
    answer = stream(b': hello\r\n\r\ndata: {"a":1}\r\n\r\nevent: x\r\ndata:{"b":2}\r\n\r\n', b"data: [DONE]\r\n\r\n")
    with serving(lambda _number: answer) as server:
        result = measure(server.port, connections=1, is_stream=True)
    assert (result.chunks, result.unfinished) == (20, 0)


@pytest.mark.parametrize(
    ("answer", "field"),
    [
        (stream(event(0), event(1)), "without_done"),
        (stream(event(0), DONE, event(1)), "without_done"),
        ([STREAM_HEAD, chunk(event(0)), None], "transport_errors"),
        ([STREAM_HEAD, chunk(event(0)), chunk(DONE), None], "transport_errors"),
        (
            [b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", event(0), DONE, None],
            "without_last_chunk",
        ),
    ],
    ids=["no-done", "event-after-done", "cut", "no-last-chunk", "ended-by-close"],
)
def test_streams_without_their_end_are_counted(answer: list[bytes | None], field: str) -> None:
    with serving(lambda number: answer if number == 3 else stream(event(0), DONE)) as server:
        result = measure(server.port, connections=1, is_stream=True)
    assert (result.unfinished, getattr(result, field)) == (1, 1)
    assert result.ok >= 9


def test_short_streams_and_error_events_are_counted() -> None:
    error = b'data: {"error":{"message":"lost"}}\n\n'
    with serving(lambda number: stream(event(0), error if number == 2 else event(1), event(2), DONE)) as server:
        result = measure(server.port, connections=1, is_stream=True, expect_chunks=4)
    assert (result.short, result.error_events, result.unfinished) == (10, 1, 0)


@pytest.mark.parametrize(
    "answer",
    [
        [b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf", None],
        [b"SSH-2.0-x\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}extra"],
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"],
    ],
    ids=["cut", "not-http", "bytes-after-the-end", "bad-chunk-size"],
)
def test_broken_answers_are_transport_errors_and_the_run_goes_on(answer: list[bytes | None]) -> None:
    with serving(lambda number: answer if number == 3 else whole(b"{}")) as server:
        result = measure(server.port, connections=1)
    assert result.transport_errors == 1
    assert result.first_error
    assert result.requests == 10


def test_an_answer_that_does_not_come_is_a_timeout() -> None:
    with serving(lambda number: [] if number == 3 else whole(b"{}")) as server:
        result = measure(server.port, connections=1, timeout_s=0.2)
    assert (result.timeouts, result.transport_errors, result.requests) == (1, 1, 10)


def test_an_idle_connection_closed_by_the_server_is_no_error() -> None:
    with serving(lambda _number: whole(b"{}", extra=b"connection: close\r\n")) as server:
        result = measure(server.port, connections=1)
    assert (result.ok, result.errors) == (10, 0)
    assert result.reconnects >= 10


def test_open_loop_keeps_its_rate_and_times_from_the_arrival() -> None:
    with serving(lambda _number: whole(b"{}")) as server:
        result = measure(server.port, connections=32, n_requests=0, seconds=1.0, rate_per_s=300.0)
    assert 220 < result.requests < 380  # 300 ± 4.6 standard deviations
    assert result.errors == 0


def test_nobody_listening_is_a_failure() -> None:
    with serving(lambda _number: whole(b"{}")) as server:
        port = server.port
    with pytest.raises(LoadFailed, match="refused"):
        measure(port)


def test_a_size_below_the_json_is_refused() -> None:
    with pytest.raises(LoadFailed, match="--size is 20"):
        measure(1, size_bytes=20)


def test_cpu_of_processes_is_of_the_window() -> None:
    with serving(lambda _number: whole(b"{}")) as server:
        result = measure(server.port, n_requests=500, pids=(os.getpid(),))
    cpu_s = result.cpu_s[str(os.getpid())]
    assert 0 < cpu_s < result.duration_s * 2 + 0.1
    assert 0 < result.own_cpu_s < result.duration_s + 0.1
