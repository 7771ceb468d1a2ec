"""CPU and memory of other processes, against what the processes say of themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cpu import machine_busy_share, parents, rss_bytes, schedstat_cpu_s, total_cpu_s, tree
from tests.engine_fixtures import wait_until
from xinf.bench import cpu_s

# Burns CPU in a thread that ends, says how much the process has used, and stays.
BURN = """
import sys, threading, time
def burn():
    end = time.thread_time() + 0.2
    while time.thread_time() < end:
        pass
thread = threading.Thread(target=burn)
thread.start()
thread.join()
print(time.process_time(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def burner() -> Iterator[tuple[int, float]]:
    """A process whose only busy thread has ended, and its own account of its CPU seconds."""
    with subprocess.Popen(
        [sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.pid, float(process.stdout.readline())
        assert process.stdin is not None
        process.stdin.close()


def test_process_cpu_counts_threads_that_ended(burner: tuple[int, float]) -> None:
    pid, own_s = burner
    seen_s = cpu_s(pid)
    assert seen_s is not None
    assert own_s <= seen_s < own_s + 0.1
    # The kernel may still have the thread when Python has joined it.
    wait_until(lambda: len(list(Path(f"/proc/{pid}/task").iterdir())) == 1, "the thread is gone", 30)
    assert schedstat_cpu_s(pid) < seen_s - 0.15  # the living threads alone: what the clock is better than


def test_process_cpu_agrees_with_schedstat_of_a_process_with_one_thread() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "sum(range(3_000_000)); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seen_s = cpu_s(process.pid)
        assert seen_s is not None
        assert schedstat_cpu_s(process.pid) == pytest.approx(seen_s, abs=0.02)
        process.communicate(b"\n")


def test_process_that_is_gone_has_no_cpu() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert cpu_s(process.pid) is None
    assert total_cpu_s([process.pid]) == 0
    assert tree(process.pid) == ()
    assert rss_bytes([process.pid]) == 0


def test_a_busy_loop_makes_the_machine_busy() -> None:
    n_cpus = os.cpu_count() or 1
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as loop:
        assert loop.stdout is not None
        loop.stdout.readline()
        busy = machine_busy_share(0.3)
        loop.kill()
    assert 0.5 / n_cpus < busy <= 1


def test_tree_has_grandchildren_and_nobody_else() -> None:
    code = "import subprocess, sys; c = subprocess.Popen(['cat'], stdin=sys.stdin); print(c.pid, flush=True); c.wait()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        assert tree(process.pid) == (process.pid, grandchild)
        assert parents()[process.pid] == os.getpid()
        process.communicate()


def test_rss_is_what_a_process_holds(burner: tuple[int, float]) -> None:
    pid, _ = burner
    assert 2**20 < rss_bytes([pid]) < 2**30
    assert rss_bytes([pid, os.getpid()]) > rss_bytes([os.getpid()])
