"""Running a tool: how long, and how long several together."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.device.fake_tool import FakeTools
from tests.device.mutations import Failure
from tests.device.test_offspring import is_running, linux_only
from tests.engine_fixtures import wait_until
from xinf.device.parent_death import find_tether
from xinf.device.tool import FormatError, ToolError, run_tool, time_for_tools


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


@linux_only
@pytest.mark.parametrize("is_tethered", [True, False])
def test_tool_ends_with_who_runs_it(is_tethered: bool, tmp_path: Path) -> None:
    """With setpriv where there is one, and by our own Python between fork and exec where there is none."""
    tool, told = tmp_path / "slow", tmp_path / "pid"
    tool.write_text(f"#!/bin/sh\necho $$ > {told}.new; mv {told}.new {told}; sleep 60\n")
    tool.chmod(0o755)
    code = "import sys; from xinf.device import tool; "
    code += "" if is_tethered else "tool.find_tether = lambda: (); "
    code += "tool.run_tool([sys.argv[1]], timeout_s=60)"
    with subprocess.Popen([sys.executable, "-c", code, str(tool)], cwd=Path(__file__).parents[2]) as runner:
        wait_until(told.exists, "the tool runs", 30)
        pid = int(told.read_text())
        runner.kill()
    wait_until(lambda: not is_running(pid), "the tool has ended", 30)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no util-linux here")
def test_tether_is_found_where_util_linux_is() -> None:
    assert find_tether()[1:] == ("--pdeathsig", "KILL", "--")


def test_tool_that_may_not_be_run_is_told_of_in_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "shut").write_text("#!/bin/sh\n")
    with pytest.raises(ToolError, match=r"^shut cannot be run: Permission denied$"):
        run_tool([str(tmp_path / "shut")])
    with pytest.raises(ToolError, match=r"^gone cannot be run: No such file or directory$"):
        run_tool([str(tmp_path / "gone")])


def test_answer_that_is_too_long_is_refused_and_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xinf.device.tool._MAX_OUTPUT_BYTES", 1 << 20)
    whole, longer = (write_tool(tmp_path / f"smi-{size}", f"head -c {size} /dev/zero") for size in (1 << 20, 2 << 20))
    assert len(run_tool([whole], timeout_s=30)) == 1 << 20
    with pytest.raises(FormatError, match="gave more than 1 MiB"):
        run_tool([longer], timeout_s=30)


@linux_only
def test_tool_that_prints_without_end_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xinf.device.tool._MAX_FILE_BYTES", 4 << 20)
    # It begins when the bound is there: until then a real one writes what little it can.
    tool = write_tool(tmp_path / "mad-smi", "while [ `ulimit -f` = unlimited ]; do :; done; exec cat /dev/zero")
    with pytest.raises(ToolError, match="mad-smi ended with status -25"):
        run_tool([tool], timeout_s=30)
