"""Times a few subjects against each other in one process, interleaved, and writes what came out as flat records.

The clock is the process's CPU time: what others do on the machine disturbs the caches then, but is not counted.

A record is {"question", "case", "subject", "unit", "values"}: one value per round. A round runs every subject once, in
rotated order, so that a repeat compares them within milliseconds of each other and a disturbance meets all of them.
"""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Record = dict[str, Any]  # what goes into the JSON file


def interleaved(
    subjects: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    round_s: float,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Time calls: seconds per call, one value per subject and round. Calls are repeated to fill about `round_s`."""
    counts = {name: calls_in(call, round_s, clock) for name, call in subjects.items()}
    values: dict[str, list[float]] = {name: [] for name in subjects}
    names = list(subjects)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                call, n_calls = subjects[name], counts[name]
                started = clock()
                for _ in range(n_calls):
                    call()
                values[name].append((clock() - started) / n_calls)
            gc.collect()
    finally:
        if was_enabled:
            gc.enable()
    return values


def calls_in(call: Callable[[], object], seconds: float, clock: Callable[[], float]) -> int:
    """How many calls take about so long; the first ones warm up."""
    n_calls = 1
    while True:
        started = clock()
        for _ in range(n_calls):
            call()
        took = clock() - started
        if took >= seconds / 4 or seconds == 0:
            return max(1, int(n_calls * seconds / took)) if seconds else 1
        n_calls *= 2


def record(question: str, case: str, subject: str, unit: str, values: Iterable[float]) -> Record:
    return {
        "question": question,
        "case": case,
        "subject": subject,
        "unit": unit,
        "values": [float(f"{value:.6g}") for value in values],
    }


def rss_bytes() -> int:
    """Resident memory of this process."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def about(method: str) -> dict[str, Any]:
    """Say where, when and of what the figures are."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    versions = {}
    for name in ("orjson", "msgspec", "ai-dynamo-runtime"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True).stdout.strip()
    is_dirty = bool(subprocess.run([*git, "status", "--porcelain", "xinf"], capture_output=True).stdout)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit + ("+changes" if is_dirty else ""),
        "cpu": model,
        "n_cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
        "load_average": os.getloadavg()[0],
        "method": method,
    }


def save(name: str, records: list[Record], method: str) -> Path:
    """Write results/<name>.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    lines = ",\n  ".join(json.dumps(one) for one in records)
    path.write_text(f'{{"about": {json.dumps(about(method), indent=1)},\n "records": [\n  {lines}\n ]}}\n')
    return path


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """How many times as much theirs takes, the median over rounds: both halves of a pair met the same machine."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def spread(values: list[float], scale: float = 1.0) -> str:
    """`median (least-most)` for people."""
    return f"{statistics.median(values) * scale:.3g} ({min(values) * scale:.3g}-{max(values) * scale:.3g})"
