"""The guard: real processes, killed in every order; nothing may be left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.engine.link_client import CHECKOUT, is_alive, running_shim, shim_spec, until
from xinf.core.config import load
from xinf.core.records import Phase
from xinf.core.shim import FetchSpec, write_file

SUPERVISE = "import sys; from xinf.engine.guard import supervise; sys.exit(abs(supervise(sys.argv[1:])))"
# A shim that starts a child in a session of its own, whose own child loses its parent at once: both would outlive it.
FAMILY = """
import os, signal, subprocess, sys, time
inner = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True)"
outer = subprocess.Popen([sys.executable, "-c", inner], start_new_session=True, stdout=subprocess.PIPE)
lost = int(outer.stdout.readline()); outer.wait()
near = subprocess.Popen(["sleep", "600"], start_new_session=True)
open(sys.argv[1], "w").write(f"{os.getpid()} {lost} {near.pid} ")
time.sleep(600)
"""


def supervised(*command: str) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.Popen([sys.executable, "-c", SUPERVISE, *command], env=environ, start_new_session=True)


async def family(short_dir: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Start a guard over FAMILY; gives it and the pids of shim, lost grandchild and child."""
    pids_file = short_dir / "pids"
    guard = supervised(sys.executable, "-c", FAMILY, str(pids_file))
    text = await until(
        lambda: pids_file.is_file() and pids_file.read_text().endswith(" ") and pids_file.read_text(), "the family"
    )
    return guard, [int(pid) for pid in text.split()]


@pytest.mark.crash
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_guard_kills_all_descendants_when_the_shim_ends(short_dir: Path, number: signal.Signals) -> None:
    guard, pids = await family(short_dir)
    assert all(map(is_alive, pids))
    os.kill(pids[0], number)
    assert guard.wait(30) == number
    assert not any(map(is_alive, pids))


@pytest.mark.crash
async def test_guard_forwards_term_to_the_shim(short_dir: Path) -> None:
    guard, pids = await family(short_dir)
    guard.terminate()
    assert guard.wait(30) == signal.SIGTERM
    assert not any(map(is_alive, pids))


@pytest.mark.crash
async def test_killed_guard_takes_the_shim_with_it(short_dir: Path) -> None:
    with running_shim(shim_spec(short_dir)) as shim:
        status = await shim.wait_phase(Phase.READY)
        shim.process.kill()
        await until(lambda: not is_alive(status.pid), "the end of the shim")


def test_guard_gives_the_exit_status_of_the_shim() -> None:
    assert supervised(sys.executable, "-c", "import sys; sys.exit(7)").wait(30) == 7


def test_guard_reports_a_command_that_does_not_exist() -> None:
    assert supervised("/no/such/program").wait(30) == 127


def test_guard_refuses_a_missing_spec(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xinf.engine.guard", str(tmp_path / "none.json")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    assert done.returncode == 2
    assert "none.json" in done.stderr


def last_word(directory: Path, program: str) -> str:
    """What the guard of a shim says last, whose fetcher is this program; its arguments are those of the fetcher."""
    spec = shim_spec(directory)
    fetch = FetchSpec(command=(sys.executable, "-c", program), environ={}, registry=load(environ={}).registry)
    path = directory / "spec.json"
    write_file(path, msgspec.structs.replace(spec, fetch=fetch))
    done = subprocess.run(
        [sys.executable, "-m", "xinf.engine.guard", str(path)],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 3
    return done.stderr.splitlines()[-1]


def test_guard_speaks_of_no_engine_where_the_fetch_failed(short_dir: Path) -> None:
    said = last_word(short_dir, "raise SystemExit(3)")
    assert said == "guard: the model's files were not fetched, so no engine was started"


def test_guard_speaks_of_the_engine_once_the_files_are_here(short_dir: Path) -> None:
    program = """
import json, pathlib, sys
path = pathlib.Path(sys.argv[1])
path.write_text(json.dumps(json.loads(path.read_text()) | {"model_path": "/here"}))
raise SystemExit(3)
"""
    assert last_word(short_dir, program) == "guard: the engine ended with status 3"


@pytest.mark.crash
async def test_killed_shim_leaves_no_process_and_no_socket(short_dir: Path) -> None:
    with running_shim(shim_spec(short_dir)) as shim:
        status = await shim.wait_phase(Phase.READY)
        assert (short_dir / "e.sock").exists()
        os.kill(status.pid, signal.SIGKILL)
        assert await shim.wait_exit() == 128 + signal.SIGKILL
        assert shim.exit is not None
        assert (shim.exit.start_id, shim.exit.status) == ("s-1", -signal.SIGKILL)
        assert not (short_dir / "e.sock").exists()
        assert not is_alive(status.pid)


async def test_guard_leads_its_own_session_and_group(short_dir: Path) -> None:
    with running_shim(shim_spec(short_dir)) as shim:
        status = await shim.wait_phase(Phase.READY)
        guard = shim.process.pid
        assert os.getsid(guard) == os.getpgid(guard) == guard
        assert os.getpgid(status.pid) == guard
