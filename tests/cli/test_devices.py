"""`xinf devices` and `xinf engine ls`: what this host has, whether anything runs or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typer.testing import Result

from tests.cli.conftest import Control
from tests.cli.records import NODE
from xinf.core.records import NodeRecord


def test_devices_of_this_host(xinf: Callable[..., Result], xinf_json: Callable[..., Any]) -> None:
    found = xinf_json("devices")
    assert found[-1]["selector"] == "cpu"
    assert found[-1]["memory_bytes"] > 0
    assert "cpu" in xinf("devices").stdout


def test_devices_of_every_node(control: Control, xinf: Callable[..., Result], xinf_json: Callable[..., Any]) -> None:
    control.run(control.records.create(NodeRecord, NODE.name, NODE))
    assert xinf_json("devices", "--all")["host"][0]["uuid"] == "cpu-1"
    assert "host" in xinf("devices", "--all").stdout


def test_engine_environments_start_with_the_builtin_one(xinf_json: Callable[..., Any]) -> None:
    assert [(one["name"], one["engines"]) for one in xinf_json("engine", "ls")] == [("builtin", ["sim"])]


def test_engine_that_nobody_knows_is_refused(xinf: Callable[..., Result]) -> None:
    done = xinf("engine", "install", "tgi", "--device", "cpu")
    assert done.exit_code == 1
    assert "no known release of tgi" in done.stderr
