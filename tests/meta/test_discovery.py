"""How the control process is found, and that a dead one's file is no proof of life."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from xinf.core.errors import Unavailable
from xinf.core.paths import Paths
from xinf.meta import Discovery, connect, read_discovery, remove_discovery, write_discovery
from xinf.meta.owner import process_start_ticks


@pytest.fixture
def paths(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    return Paths(short_dir / "data")


def running(paths: Paths, pid: int = 0) -> Discovery:
    pid = pid or os.getpid()
    return Discovery(
        pid=pid,
        pid_start_ticks=process_start_ticks(pid),
        target=f"unix:{paths.control_socket}",
        gateway_url="http://127.0.0.1:8080",
        data_dir=str(paths.data_dir),
        version="0.1.0",
        started_s=1.0,
    )


async def test_running_process_is_found_and_connected_to(paths: Paths) -> None:
    write_discovery(paths, running(paths))
    assert read_discovery(paths) == running(paths)
    assert paths.discovery_file.stat().st_mode & 0o077 == 0
    assert connect(paths, None).target == f"unix:{paths.control_socket}"


def test_nobody_there_is_unavailable_and_names_the_directory(paths: Paths) -> None:
    assert read_discovery(paths) is None
    with pytest.raises(Unavailable, match="xinf serve") as caught:
        connect(paths, None)
    assert str(paths.data_dir) in str(caught.value)


def test_server_that_is_named_needs_no_file(paths: Paths) -> None:
    assert connect(paths, "10.0.0.1:7000").target == "10.0.0.1:7000"


def test_file_of_a_dead_process_counts_for_nothing(paths: Paths) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = running(paths, process.pid)
    write_discovery(paths, found)
    assert read_discovery(paths) == found
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead and not reaped: a zombie
    assert read_discovery(paths) is None
    process.communicate()
    assert read_discovery(paths) is None


def test_file_of_a_reused_pid_counts_for_nothing(paths: Paths) -> None:
    found = running(paths)
    assert found.pid_start_ticks is not None
    write_discovery(paths, msgspec.structs.replace(found, pid_start_ticks=found.pid_start_ticks - 1))
    assert read_discovery(paths) is None


def test_garbage_counts_for_nothing(paths: Paths) -> None:
    paths.make_runtime_dir()
    paths.discovery_file.write_text("{")
    assert read_discovery(paths) is None


def test_only_its_own_process_removes_the_file(paths: Paths) -> None:
    write_discovery(paths, running(paths))
    remove_discovery(paths, os.getpid() + 1)
    assert read_discovery(paths) is not None
    remove_discovery(paths, os.getpid())
    assert not paths.discovery_file.exists()
    remove_discovery(paths, os.getpid())
