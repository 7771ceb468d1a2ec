"""CPU time and family of processes that are not ours."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from xinf.bench.process import cpu_s, descendants

# Starts a child of its own and says when both are there.
_PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()", "grandchild"])
sys.stdin.read()
"""


def test_cpu_is_what_the_process_itself_counts() -> None:
    before_s, own_before_s = cpu_s(os.getpid()), time.process_time()
    while time.process_time() < own_before_s + 0.05:
        pass
    after_s, own_s = cpu_s(os.getpid()), time.process_time() - own_before_s
    assert before_s is not None
    assert after_s is not None
    assert abs(after_s - before_s - own_s) < 0.02


def test_cpu_of_a_process_that_is_gone_is_none() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert cpu_s(process.pid) is None


def test_descendants_are_found_by_an_argument_with_all_below_them() -> None:
    process = subprocess.Popen([sys.executable, "-c", _PARENT, "a-word"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"up\n"
        found = descendants(os.getpid(), b"a-word")
        assert found[0] == process.pid
        assert len(found) == 2
        assert descendants(os.getpid(), b"grandchild") == found[1:]
        assert descendants(os.getpid(), b"no-such-word") == []
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()
