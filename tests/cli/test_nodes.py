"""`xinf nodes`, `cordon`, `uncordon` and `drain` against a real store; what the scheduler would do, the test does."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import Result

from tests.cli.conftest import Control
from tests.cli.records import DEPLOYMENT, NODE, READY, changed
from tests.serve.processes import wait_for
from xinf.core.device import Device, Health, Vendor
from xinf.core.ids import NodeName, ReplicaId
from xinf.core.records import CordonRecord, DeploymentRecord, NodeRecord, Phase, ReplicaRecord


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


def test_drain_says_why_there_is_no_other_place(control: Control, host: str, xinf: Callable[..., Result]) -> None:
    next_ = changed(
        READY,
        id=ReplicaId("demo-bbbbb"),
        node=None,
        devices=(),
        phase=Phase.PENDING,
        placement_note="b lacks the label",
    )
    control.run(control.records.create(ReplicaRecord, next_.id, next_))
    done = xinf("drain", host, "--timeout", "50ms")
    assert "demo-bbbbb has no place yet: b lacks the label" in done.stdout
    assert "demo-aaaaa did not leave host within 0.05 s" in done.stderr


@pytest.mark.parametrize("command", ["uncordon", "cordon"])
def test_drain_ends_when_somebody_opens_the_node_meanwhile(
    control: Control, host: str, xinf: Callable[..., Result], command: str
) -> None:
    def open_() -> None:
        wait_for(lambda: cordon_of(control, host), what="the cordon")
        if command == "uncordon":
            control.run(control.records.delete(CordonRecord, host))
        else:
            control.run(control.records.put(CordonRecord, host, CordonRecord(node=NODE.name)))

    thread = threading.Thread(target=open_)
    thread.start()
    done = xinf("drain", host, "--timeout", "30s")
    thread.join(30)
    assert done.exit_code == 1
    what = "host was opened again" if command == "uncordon" else "host is only cordoned now"
    assert f"{what} while it was drained; demo-aaaaa stay there" in done.stderr


def test_nodes_are_listed_with_what_their_devices_say(
    control: Control, host: str, xinf: Callable[..., Result], xinf_json: Callable[..., Any]
) -> None:
    ill = Device(
        vendor=Vendor.NVIDIA, index=1, uuid="GPU-1", name="card", health=Health.FAULTY, reason="Xid 79", since_s=1000.0
    )
    warned = Device(vendor=Vendor.NVIDIA, index=0, uuid="GPU-0", name="card", reason="a row is to be replaced")
    other = changed(NODE, name=NodeName("b"), devices=(warned, ill, *NODE.devices), labels={"zone": "a"}, started_s=9.0)
    control.run(control.records.create(NodeRecord, "b", other))
    control.run(control.records.put(CordonRecord, "c", CordonRecord(node=NodeName("c"), is_draining=True)))
    control.run(control.records.put(CordonRecord, host, CordonRecord(node=NODE.name)))
    table, told = xinf("nodes").stdout.splitlines()[1:4], xinf("nodes").stdout.splitlines()[4:]
    assert [line.split("  ")[0] for line in table] == ["b", "c", "host"]
    assert [re.split(r" {2,}", line)[:6] for line in table] == [
        ["b", "open", "2 cuda, cpu", "1 faulty", "0/0", "zone=a"],
        ["c", "away, draining", "-", "-", "0/0", "-"],
        ["host", "cordoned", "cpu", "ok", "1/1", "-"],
    ]
    assert told[0] == "cuda:0 on b is ok: a row is to be replaced"
    assert told[1].startswith("cuda:1 on b is faulty for ")
    assert told[1].endswith(": Xid 79")
    listed = xinf_json("nodes")
    assert [(node["name"], node["n_ready"], node["record"] is None) for node in listed] == [
        ("b", 0, False), ("c", 0, True), ("host", 1, False),
    ]  # fmt: skip
    # The other commands say the same.
    assert told[1].partition(" for ")[0] in xinf("devices", "--all").stdout
    on_it = changed(READY, id=ReplicaId("demo-bbbbb"), node=NodeName("b"), devices=("cuda:1",), device_uuids=("GPU-1",))
    control.run(control.records.create(ReplicaRecord, on_it.id, on_it))
    (line,) = (line for line in xinf("describe", "demo").stdout.splitlines() if "health" in line)
    assert line.startswith("  health      cuda:1 is faulty for ")
    assert line.endswith(": Xid 79")


def test_no_node_is_said_so(control: Control, xinf: Callable[..., Result]) -> None:
    assert xinf("nodes").stdout == "no worker is connected: start one with `xinf worker`\n"


def test_drain_need_not_wait(control: Control, host: str, xinf_json: Callable[..., Any]) -> None:
    assert xinf_json("drain", host, "--no-wait", "--reason", "r")["cordon"]["is_draining"] is True


def test_drain_that_does_not_wait_says_what_goes_on(control: Control, host: str, xinf: Callable[..., Result]) -> None:
    assert "host is being drained" in xinf("drain", host, "--no-wait").stdout


def test_reason_stays_when_a_cordon_becomes_a_drain(
    control: Control, host: str, xinf: Callable[..., Result], xinf_json: Callable[..., Any]
) -> None:
    xinf("cordon", host, "--reason", "new driver")
    assert xinf_json("drain", host, "--no-wait")["cordon"]["reason"] == "new driver"
    assert xinf_json("cordon", host, "--reason", "other")["cordon"]["reason"] == "other"
