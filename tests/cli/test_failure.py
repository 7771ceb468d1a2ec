"""How commands fail where their output goes, as real processes: pipes, full disks, terminals."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "xinf.cli"]


def errors_on_a_terminal(*args: str, **environ: str) -> str:
    """What a command writes to standard error where that is a terminal."""
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [*COMMAND, *args], env={**os.environ, **environ}, stdout=subprocess.DEVNULL, stderr=theirs, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 1
        os.set_blocking(ours, False)
        return os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_errors_are_red_on_a_terminal() -> None:
    said = errors_on_a_terminal("ps")
    assert "\x1b[31merror: no control process runs" in said


def test_no_color_means_none() -> None:
    said = errors_on_a_terminal("ps", NO_COLOR="1")
    assert said.startswith("error: no control process runs")
    assert "\x1b" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("command", [("version",), ("config", "show"), ("devices", "--json")], ids=" ".join)
def test_full_disk_is_a_sentence(command: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *command], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_reader_that_has_enough_is_no_error() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run(
            [*COMMAND, "config", "show"], stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    finally:
        os.close(theirs)
    assert (done.returncode, done.stderr) == (0, "")
