from __future__ import annotations

from pathlib import Path

from xinf.core.ids import ReplicaId
from xinf.core.records import EngineSpec
from xinf.core.shim import ShimExit, ShimSpec, read_file, write_file


def test_file_round_trip(tmp_path: Path) -> None:
    spec = ShimSpec(
        replica=ReplicaId("r"),
        start_id="s",
        engine=EngineSpec(model="m"),
        devices=("cpu",),
        listen="unix:/x",
        directory=str(tmp_path),
    )
    write_file(tmp_path / "spec.json", spec)
    assert read_file(tmp_path / "spec.json", ShimSpec) == spec
    assert [entry.name for entry in tmp_path.iterdir()] == ["spec.json"]


def test_read_file_absent_or_torn_is_none(tmp_path: Path) -> None:
    assert read_file(tmp_path / "exit.json", ShimExit) is None
    (tmp_path / "exit.json").write_bytes(b'{"start_id": "s", "sta')
    assert read_file(tmp_path / "exit.json", ShimExit) is None
