"""The command line as such: help, errors, exit statuses, completion."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import Result

from tests.cli.conftest import Control
from xinf.cli.app import app
from xinf.cli.names import complete_deployments
from xinf.core.errors import Unavailable

COMMANDS = [
    ("up",), ("serve",), ("worker",), ("sim",), ("launch",), ("pull",), ("ps",), ("scale",), ("stop",), ("describe",),
    ("logs",), ("chat",), ("devices",), ("version",), ("key", "create"), ("key", "ls"), ("key", "rm"),
    ("meta", "status"), ("meta", "check"), ("meta", "backup"), ("engine", "install"), ("engine", "ls"),
    ("config", "show"), ("config", "check"), ("bench", "serve"), ("bench", "compare"), ("bench", "route"),
    ("simulate",), ("why",), ("route",), ("plan",), ("events",), ("nodes",), ("cordon",), ("uncordon",), ("drain",),
]  # fmt: skip


def test_every_command_is_in_the_list() -> None:
    group = typer.main.get_command(app)
    found = set()
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        found |= {(name, inner) for inner in getattr(command, "commands", {})} or {(name,)}
    assert found == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example_of_itself(command: tuple[str, ...], xinf: Callable[..., Result]) -> None:
    done = xinf(*command, "--help")
    assert done.exit_code == 0
    assert f"Example: xinf {' '.join(command)}" in done.stdout


def test_unreachable_control_process_is_a_sentence_with_a_remedy(xinf: Callable[..., Result], short_dir: Path) -> None:
    done = xinf("ps")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert f"no control process runs on {short_dir / 'data'}" in done.stderr
    assert "xinf serve" in done.stderr
    assert "Traceback" not in done.stderr


def test_traceback_is_for_those_who_ask(xinf: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XINF_DEBUG", "1")
    assert isinstance(xinf("ps").exception, Unavailable)


def test_wrong_usage_is_status_2(xinf: Callable[..., Result]) -> None:
    assert xinf("ps", "--no-such-option").exit_code == 2
    assert xinf("stop").exit_code == 2
    assert xinf("scale", "demo", "-1").exit_code == 2


def test_unknown_key_of_the_environment_names_the_nearest(
    xinf: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XINF_GATEWAY_PROT", "9")
    done = xinf("config", "show")
    assert done.exit_code == 1
    assert "XINF_GATEWAY_PROT" in done.stderr
    assert "XINF_GATEWAY_PORT" in done.stderr


def test_flags_override_environment_override_file(
    xinf: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, short_dir: Path
) -> None:
    file = short_dir / "xinf.toml"
    file.write_text("[gateway]\nport = 1111\nmax_waiting = 7\nworkers = 3\n")
    monkeypatch.setenv("XINF_GATEWAY_PORT", "2222")
    monkeypatch.setenv("XINF_GATEWAY_MAX_WAITING", "8")
    shown = xinf("config", "show", "--config", str(file), "--set", "gateway.port=3333").stdout.splitlines()
    assert "port = 3333" in shown
    assert "max_waiting = 8" in shown
    assert "workers = 3" in shown


def test_server_without_a_port_is_refused_at_once(xinf: Callable[..., Result]) -> None:
    done = xinf("ps", "--server", "gpu-host")
    assert done.exit_code == 1
    assert "--server 'gpu-host' is not HOST:PORT" in done.stderr


def test_set_must_be_key_and_value(xinf: Callable[..., Result]) -> None:
    done = xinf("config", "show", "--set", "gateway.port")
    assert done.exit_code == 1
    assert "KEY=VALUE" in done.stderr


def test_config_check_says_what_is_wrong_and_where(xinf: Callable[..., Result], short_dir: Path) -> None:
    file = short_dir / "xinf.toml"
    file.write_text("[gateway]\nport = 99999\n")
    done = xinf("config", "check", str(file))
    assert done.exit_code == 1
    assert "gateway.port = 99999" in done.stderr
    assert str(file) in done.stderr
    file.write_text("[gateway]\nport = 9999\n")
    assert xinf("config", "check", str(file)).exit_code == 0


def test_completion_is_there_and_knows_the_commands() -> None:
    environ = {**os.environ, "_XINF_COMPLETE": "complete_bash", "COMP_WORDS": "xinf de", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "xinf.cli"], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["describe", "devices"]


def test_completion_of_names_is_nothing_where_nothing_runs() -> None:
    assert complete_deployments("d") == []


def test_completion_of_names_asks_the_store(control: Control) -> None:
    from tests.cli.records import DEPLOYMENT
    from xinf.core.records import DeploymentRecord

    control.run(control.records.create(DeploymentRecord, DEPLOYMENT.name, DEPLOYMENT))
    assert complete_deployments("d") == ["demo"]
    assert complete_deployments("x") == []


def test_version_is_one_line(xinf: Callable[..., Result]) -> None:
    done = xinf("version")
    assert done.stdout.startswith("xinf 0.")
    assert len(done.stdout.splitlines()) == 1
    assert xinf("--version").stdout == done.stdout
