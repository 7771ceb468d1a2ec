"""The master of Granian's workers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace

from xinf.gateway.front import await_end


def test_master_imports_neither_grpc_nor_the_application() -> None:
    code = (
        "import sys, xinf.gateway, xinf.gateway.front, xinf.gateway.__main__;"
        "heavy = ('grpc', 'xinf.gateway.app', 'xinf.gateway.link', 'lmdb', 'xinf.router');"
        "print(*[m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_worker_that_ended_is_waited_for_until_that_is_known() -> None:
    """The pipe says that the process has ended; the thread that takes its status comes later."""
    sentinel, other = os.pipe()
    os.close(other)
    told = [True, True, False]
    worker = SimpleNamespace(inner=SimpleNamespace(sentinel=sentinel), is_alive=lambda: told.pop(0))
    await_end(worker, time.monotonic() + 30)
    os.close(sentinel)
    assert told == []


def test_worker_that_does_not_end_is_waited_for_until_its_time_is_up() -> None:
    sentinel, other = os.pipe()
    worker = SimpleNamespace(inner=SimpleNamespace(sentinel=sentinel))  # whether it lives is not asked
    await_end(worker, time.monotonic())
    os.close(sentinel)
    os.close(other)
