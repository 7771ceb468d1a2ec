"""`xinf pull` against a hub on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.registry.hub import COMMIT, serve
from tests.registry.test_download import FILES, WEIGHTS
from xinf.cli.app import app


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "XINF_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_prints_the_directory_for_scripts_and_the_rest_for_people(home: Path) -> None:
    with serve(FILES) as hub:
        result = CliRunner().invoke(app, ["pull", "org/name", "--set", f"registry.huggingface_endpoint={hub.url}"])
    assert result.exit_code == 0, result.output
    directory = Path(result.stdout.strip())
    assert (directory / "model.safetensors").read_bytes() == WEIGHTS
    assert f"revision {COMMIT}" in result.stderr


def test_json_names_the_commit(home: Path) -> None:
    with serve(FILES) as hub:
        settings = ["--set", f"registry.huggingface_endpoint={hub.url}"]
        result = CliRunner().invoke(app, ["pull", "org/name", "--revision", "main", "--json", *settings])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["revision"] == COMMIT


def test_unknown_model_fails_with_a_sentence(home: Path) -> None:
    with serve(FILES) as hub:
        settings = ["--set", f"registry.huggingface_endpoint={hub.url}"]
        result = CliRunner().invoke(app, ["pull", "org/other", *settings])
    assert result.exit_code == 1
    assert "there is no org/other at" in result.stderr
