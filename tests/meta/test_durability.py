"""That acknowledged means synced, and what a failing disk does: seen from between LMDB and the kernel.

kill -9 does not lose the page cache, so test_crash.py alone could not tell a store that never syncs from one that does.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xinf.meta import check_directory

pytestmark = pytest.mark.crash
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of disk.c, built with the compiler that the project needs anyway."""
    library = tmp_path_factory.mktemp("disk") / "disk.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(HERE / "disk.c"), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


def run_child(disk: Path, checkout: Path, args: list[str], **env: str) -> str:
    environ = dict(os.environ, LD_PRELOAD=str(disk), PYTHONPATH=str(checkout), **env)
    done = subprocess.run(
        [sys.executable, str(HERE / "disk_child.py"), *args],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        close_fds=False,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def record(disk: Path, checkout: Path, mode: str, directory: Path, *more: str) -> list[str]:
    """Run a child and return the lines of its syncs and acknowledgements in the order in which they happened."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        run_child(disk, checkout, [mode, str(directory), str(writer), *more], XINF_DISK_REPORT=str(writer))
    finally:
        os.close(writer)
    with os.fdopen(reader) as lines:
        everything = lines.read().splitlines()
    return everything[everything.index("open") + 1 :]


def test_each_acknowledgement_comes_after_a_sync_and_the_meta_page(disk: Path, checkout: Path, short_dir: Path) -> None:
    lines = record(disk, checkout, "acks", short_dir / "m", "20")
    assert [line for line in lines if line == "ack"] == ["ack"] * 20
    since: set[str] = set()
    for line in lines:
        if line == "ack":
            assert since >= {"sync", "meta"}, lines
            since = set()
        else:
            since.add(line)


def test_without_sync_acknowledgements_do_not_wait_for_it(disk: Path, checkout: Path, short_dir: Path) -> None:
    """Proves that the instrument sees the difference."""
    lines = record(disk, checkout, "acks", short_dir / "m", "20", "nosync")
    assert "sync" not in lines[: lines.index("ack")]


def test_transactions_that_wait_share_a_sync(disk: Path, checkout: Path, short_dir: Path) -> None:
    lines = record(disk, checkout, "group", short_dir / "m", "200")
    assert lines.count("ack") == 200
    assert "sync" in lines[: lines.index("ack")]
    assert 1 <= lines.count("sync") <= 20


def test_full_disk_is_an_error_by_name_and_passes(disk: Path, checkout: Path, short_dir: Path) -> None:
    switch = short_dir / "fail"
    out = run_child(
        disk,
        checkout,
        ["fail", str(short_dir / "m"), str(switch), str(errno.ENOSPC)],
        XINF_DISK_FAIL=str(switch),
    ).splitlines()
    assert out[0] == "before: written"
    assert out[1].startswith("during: store_full: no space left on the disk of ")
    assert out[2:] == ["after: written", "keys: after before", "problems:"]


def test_failed_sync_ends_writing_but_not_reading(disk: Path, checkout: Path, short_dir: Path) -> None:
    """After a failed sync a second one may succeed without the lost pages: only a new start knows what is there."""
    switch = short_dir / "fail"
    out = run_child(
        disk, checkout, ["fail", str(short_dir / "m"), str(switch), str(errno.EIO)], XINF_DISK_FAIL=str(switch)
    ).splitlines()
    assert out[0] == "before: written"
    assert out[1].startswith("during: store_error: the store takes no more writes")
    assert out[2].startswith("after: store_error: the store takes no more writes")
    assert out[3:] == ["keys: before", "problems:"]
    assert list(check_directory(short_dir / "m")) == []
