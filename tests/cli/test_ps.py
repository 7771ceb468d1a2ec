"""What `xinf ps` and `xinf describe` say of the records that there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace
from typer.testing import Result

from tests.cli.conftest import Control
from tests.cli.records import DEPLOYMENT, FAILED, NODE, READY, changed
from tests.registry.planned_models import QWEN_7B, card
from xinf.cli.kind import kind_name
from xinf.cli.ps import Everything, deployment_rows, notes
from xinf.core.ids import NodeName
from xinf.core.records import (
    DeploymentRecord,
    EngineEnvironment,
    EngineSpec,
    MemoryNeed,
    NodeRecord,
    Phase,
    PlacementPolicy,
    ReplicaRecord,
)


def everything(*replicas: ReplicaRecord, nodes: tuple[NodeRecord, ...] = (NODE,)) -> Everything:
    return Everything(deployments=(DEPLOYMENT,), replicas=replicas, nodes=nodes)


def fill(control: Control, replica: ReplicaRecord) -> None:
    control.run(control.records.create(DeploymentRecord, DEPLOYMENT.name, DEPLOYMENT))
    control.run(control.records.create(ReplicaRecord, replica.id, replica))
    control.run(control.records.create(NodeRecord, NODE.name, NODE))


def test_row_says_what_is_there_of_what_is_wished_for() -> None:
    (row,) = deployment_rows(everything(READY), 1065.0)
    assert row == ("demo", "m", "sim", "1/1", "host:cpu", "ready", "0", "1m 5s")


def test_row_counts_phases_when_they_differ() -> None:
    loading = changed(READY, id="demo-bbbbb", phase=Phase.LOADING, restarts=2)
    (row,) = deployment_rows(everything(READY, loading), 1001.0)
    assert row[3:7] == ("1/1", "host:cpu x2", "1 loading, 1 ready", "2")


def test_engines_of_a_removed_deployment_are_shown() -> None:
    draining = changed(READY, deployment="gone", phase=Phase.DRAINING)
    rows = deployment_rows(everything(draining), 1001.0)
    assert [row[0] for row in rows] == ["demo", "gone"]
    assert rows[1][5] == "removed"


def test_note_says_how_far_a_download_is() -> None:
    fetching = changed(READY, phase=Phase.STARTING, detail="fetching 12 %, 5.1 GiB of 40.0 GiB, 120 MiB/s")
    assert notes(everything(fetching), 1001.0) == [
        "demo-aaaaa: starting: fetching 12 %, 5.1 GiB of 40.0 GiB, 120 MiB/s"
    ]
    assert notes(everything(changed(fetching, phase=Phase.READY)), 1001.0) == []


def test_note_gives_cause_time_to_the_next_start_and_remedy() -> None:
    (note,) = notes(everything(FAILED), 1020.0)
    assert note == (
        "demo-aaaaa: failed (out_of_memory), again in 12s: the engine needs 17.9 GiB; lower --max-model-len"
    )


def test_note_says_why_nothing_is_placed() -> None:
    pending = changed(READY, phase=Phase.PENDING, node=None, placement_note="host has no device cuda:0")
    assert notes(everything(pending), 0.0) == ["demo-aaaaa: not placed: host has no device cuda:0"]


def test_all_that_wait_for_the_same_are_one_line() -> None:
    pending = changed(READY, phase=Phase.PENDING, node=None, placement_note="host: cpu needs 1 GiB, 0 B free")
    waiting = [changed(pending, id=f"demo-{number:05}") for number in range(700)]
    waiting[3] = changed(waiting[3], placement_note="host: cpu needs 1 GiB, 107.8 MiB free")
    waiting[5] = changed(waiting[5], placement_note="host has no device cuda:0")
    other = changed(pending, id="other-00000", deployment="other")
    assert notes(everything(READY, *waiting, other), 0.0) == [
        "demo-00000 and 698 more: not placed: host: cpu needs 1 GiB, 0 B free",
        "demo-00005: not placed: host has no device cuda:0",
        "other-00000: not placed: host: cpu needs 1 GiB, 0 B free",
    ]


def test_note_says_that_no_worker_is_there() -> None:
    assert any("xinf worker" in note for note in notes(everything(nodes=()), 0.0))


def test_deployment_that_is_scaled_to_nothing_is_not_pending() -> None:
    none = replace(DEPLOYMENT, replicas=0)
    rows = deployment_rows(Everything(deployments=(none,), replicas=(), nodes=(), cordons=()), 0.0)
    assert rows[0][3:6] == ("0/0", "cpu", "scaled to 0")


def test_that_no_worker_is_there_is_said_once() -> None:
    pending = changed(READY, phase=Phase.PENDING, node=None, placement_note="no node is registered")
    found = Everything(deployments=(DEPLOYMENT,), replicas=(pending,), nodes=(), cordons=())
    assert notes(found, 0.0) == ["no worker is connected: start one with `xinf worker`"]


def test_ps_prints_a_table(control: Control, xinf: Callable[..., Result]) -> None:
    fill(control, READY)
    done = xinf("ps", "-r")
    assert done.exit_code == 0
    head, row, _, replica_head, replica = done.stdout.splitlines()
    assert head.split() == ["NAME", "MODEL", "ENGINE", "READY", "DEVICE", "PHASE", "RESTARTS", "AGE"]
    assert row.split()[:6] == ["demo", "m", "sim", "1/1", "host:cpu", "ready"]
    assert replica_head.split()[:5] == ["REPLICA", "NODE", "DEVICE", "PHASE", "CACHE"]
    assert replica.split()[0] == "demo-aaaaa"


def test_ps_json_has_all_records_with_all_fields(control: Control, xinf_json: Callable[..., Any]) -> None:
    fill(control, READY)
    found = xinf_json("ps")
    assert set(found) == {"deployments", "replicas", "nodes", "cordons", "caches"}
    assert found["replicas"][0]["restarts"] == 0  # a default is written too
    assert found["replicas"][0]["phase"] == "ready"


def test_ps_of_an_empty_store(control: Control, xinf: Callable[..., Result]) -> None:
    done = xinf("ps")
    assert done.stdout.splitlines() == [
        "nothing is deployed: `xinf launch --model MODEL`",
        "no worker is connected: start one with `xinf worker`",
    ]


def test_describe_shows_placement_timings_and_failure(control: Control, xinf: Callable[..., Result]) -> None:
    fill(control, FAILED)
    said = xinf("describe", "demo").stdout
    assert "placement   host has cpu free" in said
    assert "timings     starting 1.0s, loading 3.0s, warming up 1.0s" in said
    assert "out_of_memory" in said
    assert "lower --max-model-len" in said
    assert "| line two" in said
    assert xinf("describe", "demo-aaaaa").stdout == said


def test_describe_json_has_the_replicas(control: Control, xinf_json: Callable[..., Any]) -> None:
    fill(control, FAILED)
    found = xinf_json("describe", "demo")
    assert found["deployment"]["name"] == "demo"
    assert found["replicas"][0]["failure"]["cause"] == "out_of_memory"


def test_describe_of_nothing_names_what_exists(control: Control, xinf: Callable[..., Result]) -> None:
    fill(control, READY)
    done = xinf("describe", "other")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "there is no deployment 'other'" in done.stderr
    assert "these exist: demo" in done.stderr


def test_describe_shows_the_wish_for_a_place_and_what_came_of_it(control: Control, xinf: Callable[..., Result]) -> None:
    wish = changed(DEPLOYMENT, labels={"zone": "a"}, priority=3, shares=True, placement=PlacementPolicy.PACK)
    note = "; ".join(f"n{i}: cuda:0 needs 16.5 GiB, 1{i} GiB free" for i in range(5))
    waiting = changed(READY, phase=Phase.PENDING, node=None, devices=(), placement_note=note, shares=True)
    control.run(control.records.create(DeploymentRecord, wish.name, wish))
    control.run(control.records.create(ReplicaRecord, waiting.id, waiting))
    lines = xinf("describe", "demo").stdout.splitlines()
    assert "  placement   pack, may share devices" in lines
    assert "  priority    3" in lines
    assert "  labels      zone=a" in lines
    shown = lines[lines.index("demo-aaaaa") :]
    start = next(i for i, line in enumerate(shown) if "placement" in line)
    wrapped = [
        shown[start].removeprefix("  placement   "),
        *(s.strip() for s in shown[start + 1 :] if s[:14].isspace()),
    ]
    assert " ".join(wrapped) == note
    assert len(wrapped) > 1


def test_describe_shows_what_is_needed_by_kind_and_what_a_replica_was_given(
    control: Control, xinf: Callable[..., Result], xinf_json: Callable[..., Any]
) -> None:
    engine = EngineEnvironment(name="vllm", python="p", engines=("vllm",), device_kinds=(), version="0.32.0")
    cpu = changed(NODE, environments=(engine,))
    gpus = changed(cpu, name=NodeName("gpus"), devices=(card(24), card(80, index=1)))
    spec = EngineSpec(model="org/m", device="cuda,cpu", max_model_len=8192)
    wish = changed(DEPLOYMENT, spec=spec, model=QWEN_7B)
    given = MemoryNeed(weights_bytes=14 << 30, kv_bytes=2 << 30, overhead_bytes=1 << 29)
    placed = changed(READY, spec=spec, need=given)
    for node in (cpu, gpus):
        control.run(control.records.create(NodeRecord, node.name, node))
    control.run(control.records.create(DeploymentRecord, wish.name, wish))
    control.run(control.records.create(ReplicaRecord, placed.id, placed))
    lines = xinf("describe", "demo").stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("  memory "))
    shown = lines[first : first + 3]
    assert [line.rpartition(", on ")[2] for line in shown] == [kind_name(card(24)), kind_name(card(80)), "cpu"]
    assert all("GiB a device (weights 14." in line for line in shown[:2])
    assert "GiB a device at least (weights 14.2 GiB, KV cache 449.8 MiB to 3.5 GiB, overhead " in shown[2]
    assert len({line.split(" a device")[0].split()[-2] for line in shown}) == 3
    assert "  memory      16.5 GiB a device (weights 14 GiB, KV cache 2 GiB, overhead 512 MiB), estimated" in lines
    told = xinf_json("describe", "demo")["needs"]
    assert [kind["devices"] for kind in told] == [[kind_name(card(24))], [kind_name(card(80))], ["cpu"]]
