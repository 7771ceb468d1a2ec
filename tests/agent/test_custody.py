"""The files of a replica's directory."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import msgspec
import pytest

from xinf.agent import custody as custody_module
from xinf.agent.custody import Custody, ReplicaDirectory
from xinf.agent.process import identify
from xinf.core.ids import ReplicaId
from xinf.core.records import EngineSpec, Phase
from xinf.core.shim import ShimExit, ShimSpec, ShimStatus, write_file

CUSTODY = Custody(
    replica=ReplicaId("m-1"), start_id="s1", started_s=1.0, monotonic_s=5.0, address="unix:/s", pid=7, start_ticks=9
)


def spec_for(directory: ReplicaDirectory) -> ShimSpec:
    return ShimSpec(
        replica=ReplicaId("m-1"),
        start_id="s1",
        engine=EngineSpec(model="m"),
        devices=("cpu",),
        listen="unix:/s",
        directory=str(directory.path),
    )


def test_custody_is_read_back_until_it_is_dropped(tmp_path: Path) -> None:
    directory = ReplicaDirectory(tmp_path / "m-1")
    assert directory.read_custody() is None
    directory.make()
    directory.write_custody(CUSTODY)
    assert directory.read_custody() == CUSTODY
    directory.drop_custody()
    directory.drop_custody()
    assert directory.read_custody() is None


def test_age_of_a_start_that_an_older_agent_wrote_down_is_that_of_its_process(tmp_path: Path) -> None:
    directory, own = ReplicaDirectory(tmp_path), identify(os.getpid())
    assert own is not None
    older = msgspec.structs.replace(CUSTODY, monotonic_s=None, pid=own.pid, start_ticks=own.start_ticks)
    directory.write_custody(older)
    found = directory.read_custody()
    assert found is not None
    assert found.monotonic_s is not None
    assert 0 < found.monotonic_s < time.monotonic()
    assert directory.read_custody() == found, "once, so that it does not move"


def test_what_cannot_be_written_down_on_a_full_disk_is_found_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, own = ReplicaDirectory(tmp_path), identify(os.getpid())
    assert own is not None
    older = msgspec.structs.replace(CUSTODY, monotonic_s=None, pid=own.pid, start_ticks=own.start_ticks)
    directory.write_custody(older)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    found = directory.read_custody()
    assert found is not None
    assert found.process == own
    assert found.monotonic_s is not None


def test_directory_is_private(tmp_path: Path) -> None:
    directory = ReplicaDirectory(tmp_path / "m-1")
    directory.begin(spec_for(directory))
    assert directory.path.stat().st_mode & 0o777 == 0o700


def test_files_of_an_earlier_start_are_not_taken_for_this_one(tmp_path: Path) -> None:
    directory = ReplicaDirectory(tmp_path)
    spec = spec_for(directory)
    write_file(spec.status_path, ShimStatus(start_id="s0", pid=1, phase=Phase.READY, phase_since_s={}))
    write_file(spec.exit_path, ShimExit(start_id="s0", status=1, at_s=1.0))
    assert (directory.read_status("s1"), directory.read_exit("s1")) == (None, None)
    assert directory.read_status("s0") is not None
    directory.begin(spec)
    assert (directory.read_status("s0"), directory.read_exit("s0")) == (None, None)


def test_half_written_custody_is_none(tmp_path: Path) -> None:
    (tmp_path / "custody.json").write_text('{"replica": "m-1", "sta')
    assert ReplicaDirectory(tmp_path).read_custody() is None


def test_long_log_is_put_aside_at_a_start(tmp_path: Path) -> None:
    directory = ReplicaDirectory(tmp_path)
    directory.log_path.write_bytes(b"x" * (custody_module.MAX_LOG_BYTES + 1))
    directory.begin(spec_for(directory))
    assert not directory.log_path.exists()
    assert (tmp_path / "engine.log.1").stat().st_size > custody_module.MAX_LOG_BYTES
    directory.log_path.write_bytes(b"short\n")
    directory.begin(spec_for(directory))
    assert directory.log_path.read_bytes() == b"short\n"


def test_log_tail_has_no_colours_empty_lines_or_endless_ones(tmp_path: Path) -> None:
    directory = ReplicaDirectory(tmp_path)
    directory.log_path.write_bytes(b"first\n\n\x1b[1;36m(EngineCore)\x1b[0;0m red\n" + b"\xff" + b"y" * 9999 + b"\n")
    tail = directory.log_tail(3)
    assert tail[0] == "(EngineCore) red"
    assert len(tail[1]) == 400
    assert ReplicaDirectory(tmp_path / "none").log_tail(3) == ()
