"""Who a process is, and that nobody else is ever signalled."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xinf.agent.process import (
    ExitWatch,
    ProcessId,
    began_monotonic_s,
    find_by_argument,
    group_members,
    identify,
    is_alive,
    kill_group,
    read_stat,
    send_signal,
)

# Leads a group of two: a child that only sleeps, in the same group. Says when both are there.
_PAIR = """
import os, signal, sys
child = os.fork()
if child == 0:
    signal.pause()
print(child, flush=True)
signal.pause()
"""
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start Python code in a session of its own, in `tmp_path`; all of it is killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def run(code: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path, start_new_session=True)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield run
    for process in started:
        for member in group_members(identify_all(process), tmp_path):
            os.kill(member.pid, signal.SIGKILL)
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def identify_all(process: subprocess.Popen[bytes]) -> ProcessId:
    return identify(process.pid) or ProcessId(pid=process.pid, start_ticks=0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def test_stat_of_a_process_with_brackets_in_its_name(tmp_path: Path) -> None:
    program = tmp_path / "a ) (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "60"]) as process:
        try:
            stat = read_stat(process.pid)
            assert stat is not None
            assert stat.group == os.getpgid(process.pid)
            assert stat.start_ticks > 0
        finally:
            process.kill()


def test_zombie_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    me = identify(process.pid)
    assert me is not None
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and left a zombie
    assert read_stat(process.pid) is not None
    assert not is_alive(me)
    process.wait(10)


def test_process_with_another_start_time_is_neither_alive_nor_signalled(start: Start, tmp_path: Path) -> None:
    process = start(_PAIR)
    me = identify(process.pid)
    assert me is not None
    namesake = ProcessId(pid=me.pid, start_ticks=me.start_ticks - 1)
    assert not is_alive(namesake)
    assert group_members(namesake, tmp_path) == ()
    assert not send_signal(namesake, signal.SIGKILL)
    assert kill_group(namesake, tmp_path) == 0
    assert is_alive(me)


def test_group_is_found_while_its_leader_lives(start: Start, tmp_path: Path) -> None:
    process = start(_PAIR)
    me = identify(process.pid)
    assert me is not None
    assert me in group_members(me, tmp_path)
    assert len(group_members(me, tmp_path)) == 2


async def test_group_outlives_its_leader_and_is_killed(start: Start, tmp_path: Path) -> None:
    process = start(_PAIR)
    me = identify(process.pid)
    assert me is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    assert read_stat(me.pid) is None
    (rest,) = group_members(me, tmp_path)
    assert kill_group(me, tmp_path) == 1
    await until(lambda: not is_alive(rest))
    assert group_members(me, tmp_path) == ()


def test_group_of_a_vanished_leader_is_left_alone_when_it_works_elsewhere(start: Start, tmp_path: Path) -> None:
    """Another session may have got the number meanwhile: only the working directory tells."""
    process = start(_PAIR)
    me = identify(process.pid)
    assert me is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    assert group_members(me, tmp_path / "other") == ()
    assert len(group_members(me, tmp_path)) == 1


def test_unrecorded_start_is_found_by_its_argument(start: Start, tmp_path: Path) -> None:
    argument = str(tmp_path / "spec.json")
    assert find_by_argument(argument) is None
    process = start(_PAIR, argument)
    found = find_by_argument(argument)
    assert found is not None
    assert found.pid == process.pid


async def test_exit_is_told_of_a_process_that_is_no_child(tmp_path: Path) -> None:
    # The launcher ends at once; what it started is then not ours to wait for.
    code = "import subprocess as s; print(s.Popen(['sleep', '600'], start_new_session=True, stdout=s.DEVNULL).pid)"
    pid = int(subprocess.check_output([sys.executable, "-c", code], timeout=60))
    stranger = identify(pid)
    assert stranger is not None
    told = asyncio.Event()
    watch = ExitWatch(stranger, told.set)
    assert not told.is_set()
    os.kill(pid, signal.SIGKILL)
    await asyncio.wait_for(told.wait(), 20)
    watch.close()


async def test_exit_that_already_happened_is_told_too() -> None:
    told = asyncio.Event()
    ExitWatch(ProcessId(pid=os.getpid(), start_ticks=1), told.set)
    await asyncio.wait_for(told.wait(), 20)


def test_process_began_between_the_moments_before_and_after_it(start: Start) -> None:
    before_s = time.monotonic()
    process = identify(start("import time; print(flush=True); time.sleep(600)").pid)
    assert process is not None
    tick_s = 1 / os.sysconf("SC_CLK_TCK")  # the kernel counts in whole ones
    assert before_s - tick_s <= began_monotonic_s(process) <= time.monotonic() + tick_s
