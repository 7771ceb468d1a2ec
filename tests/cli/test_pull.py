"""`xinf pull` against a hub on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

import xinf
from tests.registry.hub import COMMIT, Hub, serve
from tests.registry.test_download import FILES, WEIGHTS
from xinf.cli.app import app
from xinf.core.errors import UnknownModel
from xinf.registry import resolve_model

SMALL = {**FILES, "small.json": b"x" * 900}


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


@pytest.mark.parametrize("typed", ["./model", "/data/model", "~/model", "scripted"])
def test_what_is_of_this_host_is_not_fetched(typed: str, home: Path) -> None:
    result = CliRunner().invoke(app, ["pull", typed])
    assert result.exit_code == 1
    assert "there is nothing to fetch" in result.stderr


def test_what_is_of_this_host_and_not_there_is_said(home: Path) -> None:
    assert "and nothing there either" in CliRunner().invoke(app, ["pull", str(home / "none")]).stderr
    assert "launch it as it is" in CliRunner().invoke(app, ["pull", str(home)]).stderr


def test_unknown_model_fails_with_a_sentence(home: Path) -> None:
    with serve(FILES) as hub:
        settings = ["--set", f"registry.huggingface_endpoint={hub.url}"]
        result = CliRunner().invoke(app, ["pull", "org/other", *settings])
    assert result.exit_code == 1
    assert "there is no org/other at" in result.stderr


@contextmanager
def pulling(hub: Hub, model: str) -> Iterator[subprocess.Popen[bytes]]:
    """`xinf pull` in a process of its own."""
    environ = {**os.environ, "HF_ENDPOINT": hub.url, "PYTHONPATH": str(Path(xinf.__file__).parent.parent)}
    command = [sys.executable, "-m", "xinf.cli", "pull", model]
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(condition: Callable[[], object], what: str) -> None:
    late_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < late_s, what
        time.sleep(0.01)


@pytest.mark.crash
@pytest.mark.parametrize("held", ["model.safetensors", "small.json"])
def test_interrupt_ends_a_pull_while_the_hub_is_silent(held: str, home: Path) -> None:
    """Ended by the client's patience with the hub at the latest, long before the hub goes on (60 s)."""
    with serve(SMALL, hold_at={held: 100}) as hub, pulling(hub, "org/name") as process:
        wait_until(lambda: hub.gets(held), "the file being asked for")
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 130


@pytest.mark.crash
def test_pull_of_a_commit_that_was_killed_is_not_taken_as_whole(home: Path) -> None:
    """config.json and all but the end of the weights are there, under the commit that somebody asks for."""
    snapshot = home / "cache" / "models--org--name" / "snapshots" / COMMIT
    with serve(FILES, hold_at={"model.safetensors": len(WEIGHTS) // 2}) as hub:
        with pulling(hub, f"org/name@{COMMIT}") as process:
            wait_until(lambda: (snapshot / "config.json").exists(), "the small files")
            wait_until(lambda: hub.gets("model.safetensors"), "the large one")
            process.kill()
        offline = {"HF_HUB_CACHE": str(home / "cache"), "HF_HUB_OFFLINE": "1"}
        with pytest.raises(UnknownModel, match="is not in the cache"):
            resolve_model(f"org/name@{COMMIT}", models_dir=home, environ=offline)
        hub.go_on.set()
        with pulling(hub, f"org/name@{COMMIT}") as process:
            assert process.wait(60) == 0
    assert resolve_model(f"org/name@{COMMIT}", models_dir=home, environ=offline).directory == snapshot
    assert (snapshot / "model.safetensors").read_bytes() == WEIGHTS
