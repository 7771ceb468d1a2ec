"""What does it cost to find out which devices this host has?

A new interpreter that probes everything and prints it, end to end, beside one that does nothing.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.measure import ROOT

REPEATS = 15
ARGUMENTS = {"python -m xinf.device": ("-m", "xinf.device"), "nothing": ("-c", "pass")}


def run_ms(arguments: tuple[str, ...]) -> tuple[float, float]:
    """Wall-clock and CPU time of an interpreter and all its children, in milliseconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, timeout=60, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall * 1000, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def test_probe(note: Callable[..., None], is_full: bool, benchmark: BenchmarkFixture) -> None:
    values: dict[str, list[tuple[float, float]]] = {name: [] for name in ARGUMENTS}
    for _ in range(REPEATS if is_full else 1):
        for name, arguments in ARGUMENTS.items():
            values[name].append(run_ms(arguments))
    for name, taken in values.items():
        note("probe of this host", name, "ms", [wall for wall, _ in taken])
        note("probe of this host", name, "ms CPU", [cpu for _, cpu in taken])
    benchmark.pedantic(run_ms, args=(ARGUMENTS["python -m xinf.device"],), rounds=3 if is_full else 1)
