"""How long does it take until the command line is there?

A new interpreter each time, beside one that imports nothing.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.measure import ROOT

REPEATS = 15


def cpu_ms(code: str) -> float:
    """CPU time of an interpreter that runs `code`, in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def test_import(note: Callable[..., None], is_full: bool, benchmark: BenchmarkFixture) -> None:
    codes = {"import xinf.cli": "import xinf.cli", "import asyncio": "import asyncio", "nothing": "pass"}
    values: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(REPEATS if is_full else 1):
        for name, code in codes.items():
            values[name].append(cpu_ms(code))
    for name, taken in values.items():
        note("start of an interpreter", name, "ms CPU", taken)
    benchmark.pedantic(cpu_ms, args=("import xinf.cli",), rounds=3 if is_full else 1)
