"""The micro-benchmarks run: once each, small, nothing is measured. What they say is for benchmarks/README.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_micro_benchmarks_run(checkout: Path) -> None:
    names = [
        "bench_scan.py",
        "bench_bind.py",
        "bench_index.py",
        "bench_blocks.py",
        "bench_router.py",
        "bench_place.py",
        "bench_cli_import.py",
        "bench_devices.py",
    ]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(f"benchmarks/{name}" for name in names),
    ]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "failed" not in done.stdout
