"""Running a tool: how long, and how long several together."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.device.fake_tool import FakeTools
from tests.device.mutations import Failure
from xinf.device.tool import ToolError, run_tool, time_for_tools


def test_tools_share_the_time_that_they_are_given(fake_tool: FakeTools) -> None:
    slow = str(fake_tool.add("slow-smi", {}, failure=Failure.HUNG))
    quick = str(fake_tool.add("quick-smi", {"": "answer\n"}))
    with time_for_tools(0.3):
        with pytest.raises(ToolError, match=r"slow-smi did not end within 0\.\d+ s"):
            run_tool([slow])
        with pytest.raises(ToolError, match="quick-smi was not asked: what was asked before it took all the time"):
            run_tool([quick])
    assert fake_tool.calls("quick-smi") == []
    with time_for_tools(30):
        assert run_tool([quick]) == "answer\n"


def test_a_tool_that_may_take_less_gets_less(fake_tool: FakeTools) -> None:
    slow = str(fake_tool.add("slow-smi", {}, failure=Failure.HUNG))
    with time_for_tools(60), pytest.raises(ToolError, match=r"did not end within 0\.2 s"):
        run_tool([slow], timeout_s=0.2)


def test_time_is_over_with_its_block_whatever_happened_in_it(fake_tool: FakeTools) -> None:
    quick = str(fake_tool.add("quick-smi", {"": "answer\n"}))
    with pytest.raises(KeyError), time_for_tools(0):
        raise KeyError
    assert run_tool([quick]) == "answer\n"


def write_tool(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_what_a_tool_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    tool = write_tool(tmp_path / "lazy-smi", "sleep 120 >/dev/null & echo $! answer")
    pid, answer = run_tool([tool], timeout_s=30).split()
    os.kill(int(pid), signal.SIGKILL)  # it was still there
    assert answer == "answer"


def test_script_gets_the_systems_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(sys.prefix, "bin")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setenv("PATH", f"{own}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    tool = write_tool(tmp_path / "script-smi", 'echo "$PATH ${PYTHONPATH-unset}"')
    assert run_tool([tool]) == "/usr/bin:/bin unset\n"
