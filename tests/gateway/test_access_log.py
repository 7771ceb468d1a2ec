"""The access log against targets that work, block and fail."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.gateway.gateway_stack import wait_for
from xinf.gateway.access_log import BATCH, AccessLog, Entry, write_whole


def entry(number: int = 0, **fields: object) -> Entry:
    values: dict[str, object] = {
        "request_id": f"req-{number}",
        "path": "/v1/completions",
        "model": "m",
        "replica": "m-0",
        "status": 200,
        "duration_s": 0.0123,
        "retries": 0,
    }
    return Entry(**{**values, **fields})  # type: ignore[arg-type]


class BlockedTarget:
    """Takes nothing until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()
        self.data = b""

    def __call__(self, data: bytes) -> None:
        self.entered.set()
        self.opened.wait()
        self.data += data


@pytest.fixture
def blocked() -> Iterator[BlockedTarget]:
    target = BlockedTarget()
    yield target
    target.opened.set()


def ids(data: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb" id=req-(\d+) ", data)]


def test_every_entry_is_a_line_in_order() -> None:
    written: list[bytes] = []
    log = AccessLog(1.0, written.append)
    for number in range(BATCH * 5 + 1):
        log.put(entry(number))
    log.close()
    assert ids(b"".join(written)) == list(range(BATCH * 5 + 1))
    assert all(part.endswith(b"\n") for part in written)
    assert log.dropped == 0


def test_line_says_what_is_known_and_nothing_else() -> None:
    at_s = time.mktime((2026, 11, 24, 10, 31, 7, 0, 0, -1)) + 0.5
    assert entry(7, at_s=at_s).line() == (
        "2026-11-24 10:31:07.500 INFO    gateway   request"
        "  id=req-7 path=/v1/completions model=m replica=m-0 status=200 ms=12.300 retries=0"
    )
    ended = entry(7, prompt_tokens=0, completion_tokens=5, error="engine_died").line()
    assert ended.endswith("retries=0 prompt_tokens=0 completion_tokens=5 error=engine_died")


def test_entries_come_out_without_a_close() -> None:
    written: list[bytes] = []
    log = AccessLog(1.0, written.append)
    for number in range(3):
        log.put(entry(number))
        wait_for(lambda n=number: ids(b"".join(written)) == list(range(n + 1)), what="the line written")
    log.close()


def test_target_that_blocks_loses_lines_and_blocks_nobody(blocked: BlockedTarget) -> None:
    log = AccessLog(1.0, blocked, ring_entries=10)
    log.put(entry(0))
    assert blocked.entered.wait(30)
    for number in range(1, 101):
        log.put(entry(number))
    assert log.dropped == 90
    blocked.opened.set()
    log.close()
    assert ids(blocked.data) == list(range(11))
    assert log.dropped == 90


def test_close_gives_a_blocked_target_up_and_counts_what_is_left(blocked: BlockedTarget) -> None:
    log = AccessLog(1.0, blocked)
    log.put(entry(0))
    assert blocked.entered.wait(30)
    for number in range(1, 6):
        log.put(entry(number))
    log.close(timeout_s=0.01)
    assert log.dropped == 6
    log.put(entry(7))
    assert log.dropped == 7


def test_target_that_fails_loses_its_lines_and_is_tried_again() -> None:
    written: list[bytes] = []
    n_failures = 2

    def write(data: bytes) -> None:
        nonlocal n_failures
        if n_failures:
            n_failures -= 1
            raise BrokenPipeError
        written.append(data)

    log = AccessLog(1.0, write)
    for number in range(BATCH * 3):
        log.put(entry(number))
    log.close()
    assert log.dropped == BATCH * 2
    assert ids(b"".join(written)) == list(range(BATCH * 2, BATCH * 3))


def test_full_pipe_and_a_vanished_reader_are_survived() -> None:
    reader, writer = os.pipe()
    log = AccessLog(1.0, partial(write_whole, writer))
    for number in range(2000):  # some 250 KB, a pipe takes 64 KiB
        log.put(entry(number))
    head = os.read(reader, 1 << 16)
    os.close(reader)
    log.close()
    assert ids(head)[:10] == list(range(10))
    assert 0 < log.dropped < 2000
    os.close(writer)


def test_non_blocking_target_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data = b"x" * (1 << 20)
    thread = threading.Thread(target=write_whole, args=(writer, data))
    thread.start()
    n_read = 0
    while n_read < len(data):
        n_read += len(os.read(reader, 1 << 16))
    thread.join(10)
    assert not thread.is_alive()
    os.close(reader)
    os.close(writer)


def test_share_zero_has_no_thread_and_wants_nothing() -> None:
    before = threading.active_count()
    log = AccessLog(0.0)
    assert threading.active_count() == before
    assert not any(log.wants() for _ in range(1000))
    log.close()


def test_wants_is_the_share_that_was_asked_for() -> None:
    log = AccessLog(0.3, lambda data: None)
    assert 2500 < sum(log.wants() for _ in range(10_000)) < 3500
    log.close()
