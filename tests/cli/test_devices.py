"""`xinf devices` and `xinf engine ls`: what this host has, whether anything runs or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import Result

from tests.cli.conftest import Control
from tests.cli.records import NODE
from xinf.cli.devices import memory_cell
from xinf.core.device import Device, Vendor
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


def test_simulated_engine_needs_no_installation(xinf: Callable[..., Result]) -> None:
    done = xinf("engine", "install", "sim")
    assert done.exit_code == 1
    assert "sim is part of xinf: there is nothing to install" in done.stderr


@pytest.mark.parametrize(
    ("memory_bytes", "extra", "cell"),
    [
        (None, {}, "-"),
        (32 << 30, {}, "32 GiB"),
        (110 << 30, {"memory": "unified"}, "110 GiB shared"),
        (None, {"memory": "unified"}, "-"),
    ],
)
def test_memory_says_whose_it_is(memory_bytes: int | None, extra: dict[str, str | int], cell: str) -> None:
    device = Device(vendor=Vendor.AMD, index=0, uuid="GPU-1", name="x", memory_bytes=memory_bytes, extra=extra)
    assert memory_cell(device) == cell
