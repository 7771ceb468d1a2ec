"""Children that ask a driver: none outlives who started it, none takes the working directory's modules for ours."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.device.fake_tool import FakeTools
from tests.device.mutations import Failure
from xinf.core.device import Health, Vendor
from xinf.device import ReadingStream, read_host

NVIDIA = ("0000:1b:00.0", "0x10de", "0x030200", 1)
KUNLUNXIN = ("0000:1b:00.0", "0x1d22", "0x120000", 0)
Environ = Callable[[str], Mapping[str, str]]
_DEADLINE_S = 20.0
_AGENT = """
import asyncio, sys
from pathlib import Path
from xinf.core.device import Vendor
from xinf.device import ReadingStream

async def follow():
    async with ReadingStream(interval_s=60, deadline_s=600, vendors=[Vendor.NVIDIA], root=Path(sys.argv[1])) as stream:
        async for _ in stream:
            pass

asyncio.run(follow())
"""
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    due_s = time.monotonic() + _DEADLINE_S
    while not is_so():
        assert time.monotonic() < due_s, f"not within {_DEADLINE_S:g} s: {what}"
        os.sched_yield()


def is_running(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@linux_only
def test_reader_that_hangs_ends_with_its_agent(
    make_tree: Callable[..., Path], nvml_environ: Environ, tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    environ = {**nvml_environ("hang_sample"), "FAKE_NVML_LOG": str(log)}
    with subprocess.Popen([sys.executable, "-c", _AGENT, str(make_tree(NVIDIA))], env=environ) as agent:
        wait_until(log.exists, "the reader hangs in a call of the driver")
        (reader,) = children_of(agent.pid)
        agent.kill()
    wait_until(lambda: not is_running(reader), "the reader has ended")


@linux_only
def test_tool_that_hangs_ends_with_the_child_that_runs_it(make_tree: Callable[..., Path], fake_tool: FakeTools) -> None:
    fake_tool.add("xpu-smi", {}, failure=Failure.HUNG)
    command = [sys.executable, "-m", "xinf.device", "inventory", "kunlunxin", str(make_tree(KUNLUNXIN))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        wait_until(lambda: bool(fake_tool.calls("xpu-smi")), "the tool runs")
        (tool,) = children_of(child.pid)
        child.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_running(tool), "the tool has ended")


async def test_modules_of_the_working_directory_are_not_ours(
    make_tree: Callable[..., Path], nvml_environ: Environ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "project"
    directory.mkdir()
    for name in ("queue", "msgspec", "xinf"):
        (directory / f"{name}.py").write_text("raise SystemExit('a file of the user was imported')\n")
    monkeypatch.chdir(directory)
    card, _ = (await read_host(root=make_tree(NVIDIA), environ=nvml_environ("5090"), deadline_s=30)).devices
    assert (card.arch, card.health) == ("sm_120", Health.OK), card.reason


async def test_child_that_hangs_in_its_end_is_not_waited_for(
    make_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec >&-\nexec sleep 120\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    async with ReadingStream(
        interval_s=0.05, deadline_s=0.5, vendors=[Vendor.NVIDIA], root=make_tree(NVIDIA)
    ) as stream:
        async with asyncio.timeout(30):
            first = await anext(aiter(stream))
    assert (first.misses, "did not answer" in str(first.fault)) == (1, True)


async def test_host_is_read_where_no_child_can_be_started(
    make_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    card, processor = (await read_host(root=make_tree(NVIDIA))).devices
    assert (card.health, processor.vendor) == (Health.SILENT, Vendor.CPU)
    assert "cannot be started" in str(card.reason)


async def test_mask_of_the_agent_is_not_the_childs(
    make_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, seen = tmp_path / "python", tmp_path / "seen"
    python.write_text(f"#!/bin/sh\nenv > {seen}\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("MUSA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("XINF_OTHER", "1")
    await read_host(root=make_tree(NVIDIA))
    names = {line.partition("=")[0] for line in seen.read_text().splitlines()}
    assert ("XINF_OTHER" in names, "MUSA_VISIBLE_DEVICES" in names) == (True, False)


WORDS = "#!/bin/sh\nfor line in one two three 'libfoo: no such ring' 'libfoo: gives up'; do echo $line >&2; done\n"
TRACEBACK = "#!/bin/sh\nprintf 'noise\nTraceback (most recent call last):\n  File x\nOSError: broken\n' >&2\n"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (f"{WORDS}exit 3\n", "status 3: it said 'three | libfoo: no such ring | libfoo: gives up'"),
        (f"{TRACEBACK}exit 1\n", "status 1: it said 'OSError: broken'"),
        (f"{WORDS}kill -SEGV $$\n", "signal 11: it said 'three | libfoo: no such ring | libfoo: gives up'"),
        (f"{WORDS}exec sleep 120\n", "look at `dmesg`: it said 'three | libfoo: no such ring | libfoo: gives up'"),
        ("#!/bin/sh\nhead -c 3000000 /dev/zero | tr '\\0' x >&2\nexit 4\n", f"status 4: it said '{300 * 'x'}'"),
        ("#!/bin/sh\nexit 5\n", "status 5"),
        ("#!/bin/sh\nsleep 30 > /dev/null &\necho bye >&2\nexit 6\n", "status 6: it said 'bye'"),
    ],
    ids=["words", "exception", "signal", "hung", "flood", "nothing", "heir"],
)
async def test_last_words_of_a_child_are_in_the_reason(
    script: str, said: str, make_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(script)
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    root, deadline_s = make_tree(NVIDIA), 2 if "sleep 120" in script else 60
    card, _ = (await read_host(root=root, deadline_s=deadline_s)).devices
    assert str(card.reason).endswith(said), card.reason
    async with ReadingStream(interval_s=0.05, deadline_s=deadline_s, vendors=[Vendor.NVIDIA], root=root) as stream:
        first = await anext(aiter(stream))
    assert str(first.fault).endswith(said), first.fault
