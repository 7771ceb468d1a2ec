"""`xinf events`: what is shown, of whom, and what comes later."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from typer.testing import Result

from tests.cli.conftest import Control
from xinf.cli.events import concerns, event_line
from xinf.core.ids import DeploymentName, NodeName
from xinf.core.records import EventRecord
from xinf.meta import record_event

PLACED = EventRecord(
    at_s=10.0,
    kind="placed",
    object="demo-aaaaa",
    node=NodeName("host"),
    deployment=DeploymentName("demo"),
    message="host has cpu free",
)
XID = EventRecord(
    at_s=20.0, kind="xid", object="cuda:0", node=NodeName("b"), device_uuid="GPU-1b-2c", message="Xid 79", count=3
)
AWAY = EventRecord(at_s=30.0, kind="node_away", object="host", node=NodeName("host"), message="silent")


def fill(control: Control) -> None:
    for event in (AWAY, PLACED, XID):
        control.run(record_event(control.records.store, event))


def test_line_says_when_what_to_whom_where_and_how_often() -> None:
    assert event_line(XID).endswith("xid              cuda:0 on b: Xid 79 (3 times)")
    assert event_line(AWAY).endswith("node_away        host: silent")


def test_name_is_of_a_deployment_a_replica_a_node_or_a_device() -> None:
    assert [name for name in ("demo", "demo-aaaaa", "host", "b", "cuda:0", "dem") if concerns(PLACED, name)] == [
        "demo", "demo-aaaaa", "host",
    ]  # fmt: skip
    names = ("cuda:0", "b", "b/cuda:0", "GPU-1b-2c", "a/cuda:0", "GPU-1b", "cuda:1")
    assert [name for name in names if concerns(XID, name)] == ["cuda:0", "b", "b/cuda:0", "GPU-1b-2c"]


def test_deployment_does_not_get_the_events_of_nodes_and_deployments_that_begin_like_it() -> None:
    away = EventRecord(at_s=1.0, kind="node_away", object="node-a", node=NodeName("node-a"), message="silent")
    of_other = EventRecord(
        at_s=1.0,
        kind="ready",
        object="a-b-xyz12",
        node=NodeName("n"),
        deployment=DeploymentName("a-b"),
        message="serves",
    )
    assert not concerns(away, "node")
    assert not concerns(of_other, "a")
    assert concerns(of_other, "a-b")


def test_events_are_shown_the_latest_at_the_end(control: Control, xinf: Callable[..., Result]) -> None:
    fill(control)
    lines = xinf("events").stdout.splitlines()
    assert [line.split()[2] for line in lines] == ["placed", "xid", "node_away"]
    assert [line.split()[2] for line in xinf("events", "-n", "1").stdout.splitlines()] == ["node_away"]
    assert [line.split()[2] for line in xinf("events", "host").stdout.splitlines()] == ["placed", "node_away"]
    nobody = xinf("events", "nobody")
    assert (nobody.exit_code, nobody.stdout) == (0, "")
    assert "no events of 'nobody'" in nobody.stderr


def test_events_as_json(control: Control, xinf_json: Callable[..., Any]) -> None:
    fill(control)
    found = xinf_json("events", "b")
    assert [(event["kind"], event["count"]) for event in found] == [("xid", 3)]


def test_follow_goes_on_with_what_happens(control: Control) -> None:
    fill(control)
    command = [sys.executable, "-m", "xinf.cli", "events", "host", "--follow", "--json"]
    following = subprocess.Popen(
        [*command, "--data-dir", str(control.data_dir)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert following.stdout is not None
        first = [json.loads(following.stdout.readline())["kind"] for _ in range(2)]
        assert first == ["placed", "node_away"]
        later = EventRecord(at_s=40.0, kind="node_joined", object="host", node=NodeName("host"), message="devices: cpu")
        control.run(record_event(control.records.store, XID))
        control.run(record_event(control.records.store, later))
        assert json.loads(following.stdout.readline())["kind"] == "node_joined"
    finally:
        following.terminate()
        following.communicate(timeout=30)
