from __future__ import annotations

from pathlib import Path

import pytest

from xinf.core.errors import ConfigError
from xinf.core.paths import Paths


def test_runtime_dir_depends_on_the_data_dir_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Paths(Path("b")).runtime_dir == Paths(tmp_path / "b").runtime_dir
    assert Paths(Path("b")).runtime_dir != Paths(Path("c")).runtime_dir
    assert Paths(Path("b")).runtime_dir.parent == tmp_path


def test_socket_too_long_for_the_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp/" + "x" * 100)
    with pytest.raises(ConfigError, match="XDG_RUNTIME_DIR"):
        _ = Paths(Path("/a")).control_socket


def test_runtime_dir_open_to_others_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    paths = Paths(Path("/a"))
    paths.make_runtime_dir()
    assert paths.runtime_dir.stat().st_mode & 0o777 == 0o700
    paths.runtime_dir.chmod(0o755)
    with pytest.raises(ConfigError, match="755"):
        paths.make_runtime_dir()
