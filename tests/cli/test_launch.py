"""`launch`, `scale` and `stop` against a real store; what scheduler and agent would write, the test writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.cli.conftest import Control
from tests.cli.records import DEPLOYMENT, FAILURE, NODE, READY, changed
from tests.serve.processes import wait_for
from xinf.core.records import DeploymentRecord, NodeRecord, Phase, ReplicaRecord

LAUNCH = ("launch", "--model", "demo", "--engine", "sim", "--device", "cpu")


@pytest.fixture
def node(control: Control) -> NodeRecord:
    control.run(control.records.create(NodeRecord, NODE.name, NODE))
    return NODE


def deployment(control: Control, name: str = "demo") -> DeploymentRecord:
    found = control.run(control.records.get(DeploymentRecord, name))
    assert found is not None
    return found[0]


def act(control: Control, replica: ReplicaRecord, *phases: dict[str, Any]) -> threading.Thread:
    """Once the deployment exists, make its replica and take it through phases, as scheduler and agent would."""

    def work() -> None:
        wait_for(lambda: control.run(control.records.get(DeploymentRecord, "demo")), what="the deployment")
        made = changed(replica, spec=deployment(control).spec, generation=deployment(control).generation)
        control.run(control.records.create(ReplicaRecord, made.id, made))
        for values in phases:
            made = changed(made, **values)
            control.run(control.records.put(ReplicaRecord, made.id, made))

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_launch_without_waiting_writes_the_wish(control: Control, xinf: Callable[..., Result]) -> None:
    done = xinf(
        *(*LAUNCH, "--no-wait", "--replicas", "2", "--max-model-len", "128", "--policy", "session"),
        *("--engine-arg", "step-ms=2.5", "--engine-arg", "kv_blocks=64", "--engine-arg", "flag=true"),
        *("--env", "A=b=c", "--served-name", "x", "--served-name", "y"),
    )
    assert done.exit_code == 0, done.output
    assert "created deployment demo: 2 replicas, sim on cpu" in done.stdout
    assert "start one with `xinf worker`" in done.stdout
    found = deployment(control)
    assert (found.replicas, found.policy, found.generation, found.owner) == (2, "session", 1, None)
    spec = found.spec
    assert spec.engine_args == {"step_ms": 2.5, "kv_blocks": 64, "flag": True}
    assert (spec.env, spec.served_names, spec.max_model_len) == ({"A": "b=c"}, ("x", "y"), 128)


@pytest.mark.parametrize("name", ["gpu-memory-utilization", "--kv_cache_memory_bytes"])
def test_who_shares_a_device_cannot_size_itself(name: str, control: Control, xinf: Callable[..., Result]) -> None:
    done = xinf(*LAUNCH, "--no-wait", "--share", "--engine-arg", f"{name}=0.9")
    assert done.exit_code == 1
    assert "contradict each other" in done.stderr
    assert control.run(control.records.get(DeploymentRecord, "demo")) is None


def test_launch_again_changes_nothing_and_differently_makes_a_generation(
    control: Control, xinf: Callable[..., Result]
) -> None:
    xinf(*LAUNCH, "--no-wait")
    assert "like this already" in xinf(*LAUNCH, "--no-wait").stdout
    assert "2 replicas, policy auto; engines stay" in xinf(*LAUNCH, "--no-wait", "--replicas", "2").stdout
    assert "generation 2" in xinf(*LAUNCH, "--no-wait", "--dtype", "float16").stdout
    assert deployment(control).generation == 2


def test_launch_shows_phases_until_ready(control: Control, node: NodeRecord, xinf: Callable[..., Result]) -> None:
    # From the wish on, so that what is told is the same whether or not the launch looks before all of it has happened.
    now_s = time.time()
    since_s = {phase: at_s - READY.created_s + now_s for phase, at_s in READY.phase_since_s.items()}
    placed = changed(READY, phase=Phase.PLACED, phase_since_s={"placed": since_s["placed"]})
    thread = act(control, placed, {"phase": Phase.READY, "phase_since_s": since_s})
    done = xinf(*LAUNCH)
    thread.join(10)
    assert done.exit_code == 0, done.output
    titles = [line[9:21].strip() for line in done.stdout.splitlines()[1:-1]]
    assert titles == ["placed", "starting", "loading", "warming up", "ready"]
    assert "(starting 1.0s, loading 3.0s, warming up 1.0s)" in done.stdout
    assert "demo is ready at http://127.0.0.1:1/v1" in done.stdout


def test_launch_json_is_all_that_is_on_standard_output(
    control: Control, node: NodeRecord, xinf_json: Callable[..., Any]
) -> None:
    thread = act(control, READY)
    found = xinf_json(*LAUNCH)
    thread.join(10)
    assert found["outcome"] == "created"
    assert found["replicas"][0]["phase"] == "ready"


def test_failed_launch_shows_cause_log_and_remedy(
    control: Control, node: NodeRecord, xinf: Callable[..., Result]
) -> None:
    thread = act(control, changed(READY, phase=Phase.LOADING), {"phase": Phase.FAILED, "failure": FAILURE})
    done = xinf(*LAUNCH)
    thread.join(10)
    assert done.exit_code == 1
    assert "out_of_memory" in done.stderr
    assert "| line two" in done.stderr
    assert "lower --max-model-len; it is tried again until `xinf stop demo`" in done.stderr
    assert deployment(control)


def test_launch_that_takes_too_long_is_status_1_and_stays(
    control: Control, node: NodeRecord, xinf: Callable[..., Result]
) -> None:
    done = xinf(*LAUNCH, "--timeout", "200ms")
    assert done.exit_code == 1
    assert "not ready within 0.2 s" in done.stderr
    assert deployment(control)


def test_launch_on_a_device_that_is_not_there_says_what_is(
    control: Control, node: NodeRecord, xinf: Callable[..., Result]
) -> None:
    thread = act(control, changed(READY, phase=Phase.PENDING, node=None, devices=()))
    done = xinf("launch", "--model", "demo", "--engine", "sim", "--device", "cuda:0")
    thread.join(10)
    assert done.exit_code == 1
    assert "host has no device cuda:0; it has cpu" in done.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--device", "tpu:0"), "device 'tpu:0' is not known"),
        (("--engine", "tgi"), "use vllm or sim"),
        (("--engine-arg", "novalue"), "not KEY=VALUE"),
        (("--policy", "random"), "round_robin"),
        (("--name", "No Name"), "no valid name"),
        (("--engine", "vllm", "--model", "./not/there"), "there is no directory"),
    ],
)
def test_launch_refuses_what_cannot_be(
    control: Control, xinf: Callable[..., Result], args: tuple[str, ...], words: str
) -> None:
    done = xinf(*LAUNCH, "--no-wait", *args)
    assert done.exit_code == 1
    assert words in done.stderr
    assert control.run(control.records.list(DeploymentRecord)) == []


def test_launch_makes_a_path_absolute(
    control: Control, xinf: Callable[..., Result], short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short_dir / "My Model").mkdir()
    (short_dir / "My Model" / "config.json").write_text('{"architectures": ["X"]}')
    monkeypatch.chdir(short_dir)
    done = xinf("launch", "--model", "./My Model", "--device", "cpu", "--no-wait")
    assert done.exit_code == 0, done.output
    spec = deployment(control, "my-model").spec
    assert spec.model == str(short_dir / "My Model")
    assert spec.served_names == ("my-model",)


def test_hub_id_may_be_used_by_clients_too(control: Control, xinf: Callable[..., Result]) -> None:
    xinf("launch", "--model", "Org/Model-7B", "--engine", "sim", "--no-wait")
    assert deployment(control, "model-7b").spec.served_names == ("model-7b", "Org/Model-7B")


def test_stop_removes_and_waits_for_the_engines(control: Control, xinf: Callable[..., Result]) -> None:
    control.run(control.records.create(DeploymentRecord, "demo", DEPLOYMENT))
    control.run(control.records.create(ReplicaRecord, READY.id, READY))

    def drain() -> None:
        wait_for(lambda: control.run(control.records.get(DeploymentRecord, "demo")) is None, what="the removal")
        control.run(control.records.delete(ReplicaRecord, READY.id))

    thread = threading.Thread(target=drain)
    thread.start()
    done = xinf("stop", "demo")
    thread.join(10)
    assert done.stdout == "demo is stopped\n"
    assert control.run(control.records.list(ReplicaRecord)) == []


def test_stop_says_what_is_left_after_its_timeout(control: Control, xinf: Callable[..., Result]) -> None:
    control.run(control.records.create(DeploymentRecord, "demo", DEPLOYMENT))
    control.run(control.records.create(ReplicaRecord, READY.id, READY))
    done = xinf("stop", "demo", "--timeout", "200ms")
    assert done.exit_code == 1
    assert "demo-aaaaa did not stop within 0.2 s" in done.stderr


def test_stop_of_one_that_is_not_there_stops_nobody(control: Control, xinf: Callable[..., Result]) -> None:
    control.run(control.records.create(DeploymentRecord, "demo", DEPLOYMENT))
    done = xinf("stop", "demo", "other")
    assert done.exit_code == 1
    assert "there is no deployment 'other'" in done.stderr
    assert control.run(control.records.get(DeploymentRecord, "demo")) is not None


def test_stop_all_of_nothing(control: Control, xinf: Callable[..., Result]) -> None:
    assert xinf("stop", "--all").stdout == "nothing is deployed\n"


def test_scale_changes_the_count_only(control: Control, xinf: Callable[..., Result]) -> None:
    control.run(control.records.create(DeploymentRecord, "demo", DEPLOYMENT))
    assert xinf("scale", "demo", "3", "--no-wait").exit_code == 0
    assert deployment(control) == changed(DEPLOYMENT, replicas=3)
    done = xinf("scale", "other", "3")
    assert done.exit_code == 1
    assert "these exist: demo" in done.stderr


def test_launch_says_where_it_may_run(control: Control, xinf: Callable[..., Result]) -> None:
    done = xinf(
        *(*LAUNCH, "--no-wait", "--label", "zone=a", "--label", "disk=ssd"),
        *("--placement", "pack", "--priority", "7", "--share"),
    )
    assert done.exit_code == 0, done.output
    found = deployment(control)
    assert found.labels == {"zone": "a", "disk": "ssd"}
    assert (found.placement, found.priority, found.shares) == ("pack", 7, True)
    assert "adjusted" not in done.stdout
    again = xinf(*LAUNCH, "--no-wait")
    assert again.exit_code == 0
    assert (deployment(control).labels, deployment(control).generation) == ({}, 1), "no engine is replaced for it"


def test_launch_refuses_another_way_to_place(control: Control, xinf: Callable[..., Result]) -> None:
    done = xinf(*LAUNCH, "--no-wait", "--placement", "random")
    assert done.exit_code == 1
    assert "placement 'random' is not known: use spread or pack" in done.stderr
