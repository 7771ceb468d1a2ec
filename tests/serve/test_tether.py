"""What runs in front of the gateway's master and in the supervisor: light, because the master forks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["xinf.serve.tether", "xinf.serve.supervisor"])
def test_loads_neither_grpc_nor_granian_nor_lmdb(module: str) -> None:
    code = f"import {module}, sys; print(*[m for m in ('grpc', 'granian', 'lmdb', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_child_of_another_parent_does_not_run() -> None:
    """The parent that was to be watched is gone already."""
    command = [sys.executable, "-m", "xinf.serve.tether", "TERM", "1", "platform"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""


def test_module_runs_with_its_arguments() -> None:
    command = [sys.executable, "-m", "xinf.serve.tether", "TERM", str(os.getpid()), "json.tool", "--compact"]
    done = subprocess.run(command, input="[1, 2]", capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[1,2]"
