"""On which processors an engine stays that was told its NUMA nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xinf.engine.vllm_numa import cores_to_use

VISIBLE = "CPU_VISIBLE_MEMORY_NODES"
ALL = frozenset(range(8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, cpus in ((0, "0-1,4-5"), (1, "2-3,6-7"), (2, "")):
        directory = tmp_path / f"sys/devices/system/node/node{number}"
        directory.mkdir(parents=True)
        (directory / "cpulist").write_text(f"{cpus}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("environ", "allowed", "cores"),
    [
        ({VISIBLE: "1"}, ALL, {2, 3, 6, 7}),
        ({VISIBLE: "0,1"}, ALL, ALL),
        ({VISIBLE: "1"}, {0, 1, 2}, {2}),
        ({VISIBLE: "1"}, {0, 1}, {0, 1}),
        ({VISIBLE: "2"}, ALL, ALL),
        ({VISIBLE: "9"}, ALL, ALL),
        ({VISIBLE: ""}, ALL, ALL),
        ({}, ALL, ALL),
        ({VISIBLE: "1", "VLLM_CPU_OMP_THREADS_BIND": "0-3"}, ALL, ALL),
    ],
)
def test_engine_stays_on_its_nodes(root: Path, environ: dict[str, str], allowed: set[int], cores: set[int]) -> None:
    assert cores_to_use(environ, allowed, root) == cores


BIND = """
import os, sys, threading
from xinf.engine import vllm_numa
before = os.sched_getaffinity(0)
done = threading.Event()
early = threading.Thread(target=done.wait)
early.start()
vllm_numa.cores_to_use = lambda environ, allowed: {min(allowed)}
vllm_numa.bind_to_nodes({})
tasks = [int(name) for name in os.listdir("/proc/self/task")]
print(len(tasks), all(os.sched_getaffinity(task) == {min(before)} for task in tasks))
done.set()
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds nothing")
def test_threads_that_are_there_are_bound_too() -> None:
    done = subprocess.run([sys.executable, "-c", BIND], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "True"]
