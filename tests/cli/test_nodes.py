"""`xinf cordon`, `uncordon` and `drain` against a real store; what the scheduler would do, the test does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import Result

from tests.cli.conftest import Control
from tests.cli.records import DEPLOYMENT, NODE, READY
from tests.serve.processes import wait_for
from xinf.core.records import CordonRecord, DeploymentRecord, NodeRecord, ReplicaRecord


@pytest.fixture
def host(control: Control) -> str:
    control.run(control.records.create(NodeRecord, NODE.name, NODE))
    control.run(control.records.create(DeploymentRecord, DEPLOYMENT.name, DEPLOYMENT))
    control.run(control.records.create(ReplicaRecord, READY.id, READY))
    return str(NODE.name)


def cordon_of(control: Control, name: str) -> CordonRecord | None:
    found = control.run(control.records.get(CordonRecord, name))
    return None if found is None else found[0]


def test_cordon_is_written_beside_the_node_and_taken_away(
    control: Control, host: str, xinf: Callable[..., Result]
) -> None:
    assert xinf("cordon", host, "--reason", "new driver").stdout == "host takes no new replicas\n"
    record = cordon_of(control, host)
    assert record is not None
    assert (record.is_draining, record.reason) == (False, "new driver")
    assert "node host takes no new replicas (new driver): `xinf uncordon host`" in xinf("ps").stdout
    assert xinf("uncordon", host).stdout == "host takes replicas again\n"
    assert cordon_of(control, host) is None
    assert xinf("uncordon", host).stdout == "host was open already\n"


def test_node_that_nobody_knows_is_refused(control: Control, host: str, xinf: Callable[..., Result]) -> None:
    done = xinf("cordon", "hots")
    assert done.exit_code == 1
    assert "there is no node 'hots'" in done.stderr
    assert "these are connected: host" in done.stderr


def test_drain_waits_until_the_node_is_empty(control: Control, host: str, xinf: Callable[..., Result]) -> None:
    def move() -> None:
        wait_for(lambda: cordon_of(control, host), what="the cordon")
        control.run(control.records.delete(ReplicaRecord, READY.id))

    thread = threading.Thread(target=move)
    thread.start()
    done = xinf("drain", host, "--timeout", "30s")
    thread.join(30)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "host is empty"
    record = cordon_of(control, host)
    assert record is not None
    assert record.is_draining


def test_drain_says_what_is_left_and_why(control: Control, host: str, xinf: Callable[..., Result]) -> None:
    done = xinf("drain", host, "--timeout", "50ms")
    assert done.exit_code == 1
    assert "demo-aaaaa is ready: host has cpu free" in done.stdout
    assert "demo-aaaaa did not leave host within 0.05 s" in done.stderr
    assert "xinf uncordon host" in done.stderr


def test_drain_need_not_wait(control: Control, host: str, xinf_json: Callable[..., Any]) -> None:
    assert xinf_json("drain", host, "--no-wait", "--reason", "r")["cordon"]["is_draining"] is True
