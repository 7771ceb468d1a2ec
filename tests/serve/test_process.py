"""A pid alone names nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from xinf.serve.process import kill_group, start_ticks


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    yield process
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def test_group_is_killed_by_pid_and_start_time(sleeper: subprocess.Popen[bytes]) -> None:
    ticks = start_ticks(sleeper.pid)
    assert ticks is not None
    assert kill_group(sleeper.pid, ticks)
    assert sleeper.wait(30) == -9


def test_namesake_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    ticks = start_ticks(sleeper.pid)
    assert ticks is not None
    assert not kill_group(sleeper.pid, ticks - 1)
    assert sleeper.poll() is None


def test_own_start_is_known() -> None:
    assert start_ticks(os.getpid()) is not None
