"""`xinf logs`: the file on this host, or where it is."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import Result

from tests.cli.conftest import Control
from tests.cli.records import DEPLOYMENT, READY, changed
from tests.serve.processes import Place, wait_for
from xinf.core.records import DeploymentRecord, ReplicaRecord


@pytest.fixture
def log(control: Control, short_dir: Path) -> Path:
    """The log of the one replica of a deployment, somewhere else than where logs of gone replicas are looked for."""
    path = short_dir / "engine.log"
    path.write_text("".join(f"line {number}\n" for number in range(1, 301)))
    control.run(control.records.create(DeploymentRecord, "demo", DEPLOYMENT))
    control.run(control.records.create(ReplicaRecord, READY.id, changed(READY, log_path=str(path))))
    return path


def test_last_lines_of_the_only_engine(log: Path, xinf: Callable[..., Result]) -> None:
    assert xinf("logs", "demo", "-n", "2").stdout == "line 299\nline 300\n"
    assert len(xinf("logs", "demo-aaaaa").stdout.splitlines()) == 100


def test_deployment_with_several_engines_must_be_told_which(
    control: Control, log: Path, xinf: Callable[..., Result]
) -> None:
    control.run(control.records.create(ReplicaRecord, "demo-bbbbb", changed(READY, id="demo-bbbbb")))
    done = xinf("logs", "demo")
    assert done.exit_code == 1
    assert "name one: demo-aaaaa, demo-bbbbb" in done.stderr


@pytest.mark.parametrize(("wished", "why"), [(0, "it is scaled to 0"), (1, "none has been placed yet")])
def test_deployment_without_an_engine_says_why(
    control: Control, xinf: Callable[..., Result], wished: int, why: str
) -> None:
    control.run(control.records.create(DeploymentRecord, "demo", replace(DEPLOYMENT, replicas=wished)))
    done = xinf("logs", "demo")
    assert done.exit_code == 1
    assert f"demo has no engine: {why}" in done.stderr


def test_log_on_another_host_is_named(control: Control, log: Path, xinf: Callable[..., Result]) -> None:
    log.unlink()
    done = xinf("logs", "demo")
    assert done.exit_code == 1
    assert "runs on node host, and its log is there" in done.stderr


def test_log_of_a_replica_that_is_gone(xinf: Callable[..., Result], short_dir: Path) -> None:
    directory = short_dir / "data" / "replicas" / "old-12345"
    directory.mkdir(parents=True)
    (directory / "engine.log").write_text("last words\n")
    assert xinf("logs", "old-12345").stdout == "last words\n"


def test_followed_log_goes_on(place: Place) -> None:
    directory = place.dir / "data" / "replicas" / "r"
    directory.mkdir(parents=True)
    path = directory / "engine.log"
    path.write_text("first\n")
    process = place.start("logs", "r", "-f")
    wait_for(lambda: place.log("logs") == "first\n", what="the first line")
    with path.open("a") as file:
        file.write("second\n")
    wait_for(lambda: place.log("logs") == "first\nsecond\n", what="the second line")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert "Traceback" not in place.log("logs")
