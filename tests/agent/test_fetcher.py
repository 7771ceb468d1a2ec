"""A replica of a hub's model: fetched by the node that runs it, in the replica's own processes, whatever ends when."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from tests.agent.conftest import PACKAGE_HOME, WAIT_S, Bench, until_dead
from tests.agent.fetching import place_model, use_fetching_node
from tests.agent.test_agent_sim import AGENT
from tests.registry import test_modelscope as modelscope
from tests.registry.hub import COMMIT, Hub, serve
from tests.registry.test_download import FILES, WEIGHTS
from xinf.agent.process import ProcessId, identify
from xinf.core.clock import SystemClock
from xinf.core.config import to_environ
from xinf.core.records import NodeRecord, Phase, ReplicaRecord, encode_record
from xinf.meta import MetaServer

pytestmark = pytest.mark.e2e

HALF = len(WEIGHTS) // 2
NEVER = {"backoff_initial": 3600.0, "backoff_max": 3600.0}
HIDDEN = ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "XINF_CONFIG")


@pytest.fixture
async def node(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in HIDDEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    # A hub that is held is not to be given up, however slow the machine is.
    registry = msgspec.structs.replace(bench.config.registry, timeout=55.0)
    bench.config = msgspec.structs.replace(bench.config, registry=registry)
    use_fetching_node(bench, tmp_path)
    return bench


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    with serve(FILES) as made:
        yield made


def at(hub: Hub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url}


def snapshot(tmp_path: Path) -> Path:
    return tmp_path / "hf" / "models--org--name" / "snapshots" / COMMIT


def partials(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "hf").rglob("*.partial"))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def until_half(tmp_path: Path) -> None:
    # The last of it may still be in the writer's buffer.
    await until(lambda: [path for path in partials(tmp_path) if path.stat().st_size >= HALF - (64 << 10)])


def fetcher_of(record: ReplicaRecord, bench: Bench) -> ProcessId:
    (fetcher,) = [member for member in bench.members(record) if member.pid != record.pid]
    assert b"xinf.agent.fetcher" in Path(f"/proc/{fetcher.pid}/cmdline").read_bytes()
    return fetcher


async def test_model_is_fetched_by_the_node_and_given_to_the_engine(node: Bench, hub: Hub, tmp_path: Path) -> None:
    hub.hold_at = {"model.safetensors": HALF}
    await node.start_agent()
    await place_model(node, "m-1", "org/name", environ=at(hub), commit=COMMIT)
    fetching = await node.until("m-1", lambda r: r.detail is not None and r.detail.startswith("fetching"))
    assert fetching.phase is Phase.STARTING
    assert re.fullmatch(r"fetching \d+ %, \S+ \S+ of 3\.0 MiB, \S+ \S+/s", str(fetching.detail))
    fetcher = fetcher_of(fetching, node)
    hub.go_on.set()
    ready = await node.until_phase("m-1", Phase.READY)
    assert (ready.pid, ready.detail) == (fetching.pid, None)
    assert identify(fetcher.pid) == fetcher, "the shim is the process that was the fetcher"
    assert (snapshot(tmp_path) / "model.safetensors").read_bytes() == WEIGHTS
    log = node.directory("m-1").log_path.read_text()
    assert f"fetching huggingface://org/name@{COMMIT}" in log
    assert f"loads {snapshot(tmp_path)} as org/name" in log
    # Nodes that have the files are told apart from those that would have to fetch them.
    names = {"org/name", f"org/name@{COMMIT}"}

    async def is_listed() -> bool:
        record = await node.records.get(NodeRecord, "here")
        return record is not None and {f"org/name@{COMMIT}"} <= set(record[0].models) <= names

    async with asyncio.timeout(WAIT_S):
        while not await is_listed():
            await asyncio.sleep(0.01)


async def test_model_of_modelscope_goes_the_same_way(node: Bench, tmp_path: Path) -> None:
    pytest.importorskip("modelscope_hub")
    with modelscope.serve(FILES) as hub:
        await node.start_agent()
        environ = {"MODELSCOPE_ENDPOINT": hub.url}
        await place_model(node, "m-1", "modelscope://org/name", environ=environ, commit=modelscope.NEWEST)
        await node.until_phase("m-1", Phase.READY)
    directory = tmp_path / "ms" / "models" / "org--name" / "snapshots" / modelscope.NEWEST
    assert f"loads {directory} as modelscope://org/name" in node.directory("m-1").log_path.read_text()
    assert (directory / "model.safetensors").read_bytes() == WEIGHTS


async def test_files_that_are_here_need_no_hub(node: Bench, hub: Hub, tmp_path: Path) -> None:
    await node.start_agent()
    await place_model(node, "m-1", "org/name", environ=at(hub), commit=COMMIT)
    await node.until_phase("m-1", Phase.READY)
    hub.requests.clear()
    offline = at(hub) | {"HF_HUB_OFFLINE": "1"}
    await place_model(node, "m-2", "org/name", environ=offline, commit=COMMIT)
    await node.until_phase("m-2", Phase.READY)
    await place_model(node, "m-3", "org/name", environ=at(hub), commit=COMMIT)
    await node.until_phase("m-3", Phase.READY)
    assert hub.requests == []


async def test_part_of_a_model_is_not_taken_for_the_whole(node: Bench, hub: Hub, tmp_path: Path) -> None:
    await node.start_agent()
    await place_model(node, "m-1", "org/name", environ=at(hub), commit=COMMIT)
    await node.until_phase("m-1", Phase.READY)
    (snapshot(tmp_path) / "README.md").unlink()  # as if a pull had been interrupted before it
    await place_model(node, "m-2", "org/name", environ=at(hub), commit=COMMIT)
    await node.until_phase("m-2", Phase.READY)
    assert (snapshot(tmp_path) / "README.md").read_bytes() == FILES["README.md"]
    assert len(hub.gets("model.safetensors")) == 1


async def test_weights_that_a_power_cut_left_short_are_fetched_again(node: Bench, hub: Hub, tmp_path: Path) -> None:
    """By another's download, of which there is no list: with a config and the weights it counts as whole."""
    snapshot(tmp_path).mkdir(parents=True)
    (snapshot(tmp_path) / "config.json").write_bytes(FILES["config.json"])
    (snapshot(tmp_path) / "model.safetensors").write_bytes(WEIGHTS[:HALF])
    await node.start_agent()
    await place_model(node, "m-1", "org/name", environ=at(hub), commit=COMMIT)
    await node.until_phase("m-1", Phase.READY)
    assert (snapshot(tmp_path) / "model.safetensors").read_bytes() == WEIGHTS
    assert "is fetched again" in node.directory("m-1").log_path.read_text()


async def test_weights_that_look_damaged_are_the_engines_to_judge_where_no_hub_answers(
    node: Bench, hub: Hub, tmp_path: Path
) -> None:
    """A cache of others may be read-only, its host without a way out, and a type of number newer than we know."""
    snapshot(tmp_path).mkdir(parents=True)
    (snapshot(tmp_path) / "config.json").write_bytes(FILES["config.json"])
    (snapshot(tmp_path) / "model.safetensors").write_bytes(WEIGHTS[:HALF])
    hub.status = 503
    await node.start_agent()
    await place_model(node, "m-1", "org/name", environ=at(hub), commit=COMMIT)
    await node.until_phase("m-1", Phase.READY)
    assert (snapshot(tmp_path) / "model.safetensors").read_bytes() == WEIGHTS[:HALF]
    assert "is taken as it is: " in node.directory("m-1").log_path.read_text()


async def test_two_replicas_of_a_node_fetch_once(node: Bench, hub: Hub, tmp_path: Path) -> None:
    hub.hold_at = {"model.safetensors": HALF}
    await node.start_agent()
    await place_model(node, "m-1", "org/name", environ=at(hub), commit=COMMIT)
    await until_half(tmp_path)
    await place_model(node, "m-2", "org/name", environ=at(hub), commit=COMMIT)
    waiting = await node.until("m-2", lambda r: r.detail is not None and r.detail.startswith("waiting for another"))
    assert waiting.phase is Phase.STARTING
    hub.go_on.set()
    await node.until_phase("m-1", Phase.READY)
    await node.until_phase("m-2", Phase.READY)
    assert hub.gets("model.safetensors") == [None]


@pytest.mark.crash
async def test_killed_fetcher_goes_on_where_it_ended(node: Bench, hub: Hub, tmp_path: Path) -> None:
    hub.hold_at = {"model.safetensors": HALF}
    await node.start_agent()
    await place_model(node, "m-1", "org/name", environ=at(hub), commit=COMMIT)
    first = await node.until("m-1", lambda r: r.phase is Phase.STARTING and r.pid is not None)
    await until_half(tmp_path)
    os.kill(fetcher_of(first, node).pid, signal.SIGKILL)
    failed = await node.until("m-1", lambda r: r.failure is not None)
    assert failed.failure is not None
    assert failed.failure.cause == "killed"
    hub.go_on.set()
    await node.until_phase("m-1", Phase.READY)
    first_range, second_range = hub.gets("model.safetensors")
    assert first_range is None
    assert second_range is not None
    assert int(second_range.removeprefix("bytes=").removesuffix("-")) >= HALF - (1 << 20)
    assert (snapshot(tmp_path) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.crash
async def test_agent_killed_9_in_a_download_leaves_it_and_the_next_agent_adopts_it(
    node: Bench, hub: Hub, short_dir: Path, tmp_path: Path
) -> None:
    hub.hold_at = {"model.safetensors": HALF}
    target = f"unix:{short_dir}/m"
    server = MetaServer(node.store)
    await server.start([target])
    agents: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", AGENT, to_environ(node.config), target, encode_record(node.node).decode()]
        agents.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(PACKAGE_HOME)}))
        return agents[-1]

    try:
        first = start()
        await place_model(node, "m-1", "org/name", environ=at(hub), commit=COMMIT)
        before = await node.until("m-1", lambda r: r.phase is Phase.STARTING and r.pid is not None)
        await until_half(tmp_path)
        agent = identify(first.pid)
        assert agent is not None
        first.kill()
        await until_dead(agent)
        fetcher = fetcher_of(before, node)
        hub.go_on.set()
        await until(lambda: (snapshot(tmp_path) / "model.safetensors").exists())
        start()
        ready = await node.until_phase("m-1", Phase.READY)
        assert (ready.pid, ready.restarts) == (before.pid, 0)
        assert identify(fetcher.pid) == fetcher
        assert hub.gets("model.safetensors") == [None]
        await node.aim_at_stop("m-1")
        await node.until_phase("m-1", Phase.STOPPED)
    finally:
        for process in agents:
            process.kill()
            await asyncio.to_thread(process.wait, 20)
        await server.stop(1.0)


async def test_stop_in_a_download_ends_it(node: Bench, hub: Hub, tmp_path: Path) -> None:
    hub.hold_at = {"model.safetensors": HALF}
    await node.start_agent()
    await place_model(node, "m-1", "org/name", environ=at(hub), commit=COMMIT)
    record = await node.until("m-1", lambda r: r.phase is Phase.STARTING and r.pid is not None)
    await until_half(tmp_path)
    began_s = time.monotonic()
    await node.aim_at_stop("m-1")
    await node.until_phase("m-1", Phase.STOPPED)
    assert node.members(record) == ()
    assert partials(tmp_path), "kept for the next time"
    assert time.monotonic() - began_s < WAIT_S


class _Jumping(SystemClock):
    """Somebody sets the time of day; counts how often an agent has looked since."""

    def __init__(self) -> None:
        self.jump_s = 0.0
        self.n_looks = 0

    def now_s(self) -> float:
        self.n_looks += 1
        return super().now_s() + self.jump_s

    async def jump(self, jump_s: float) -> None:
        self.jump_s, self.n_looks = jump_s, 0
        await until(lambda: self.n_looks >= 3)


async def test_clock_that_is_set_ends_no_download(node: Bench, hub: Hub, tmp_path: Path) -> None:
    hub.hold_at = {"model.safetensors": HALF}
    clock = node.clock = _Jumping()
    await node.start_agent()
    await place_model(node, "m-1", "org/name", environ=at(hub), commit=COMMIT)
    await until_half(tmp_path)
    for jump_s in (7 * 86400.0, -7 * 86400.0):
        await clock.jump(jump_s)
    hub.go_on.set()
    ready = await node.until_phase("m-1", Phase.READY)
    assert (ready.restarts, ready.failure) == (0, None)
    assert hub.gets("model.safetensors") == [None]


async def test_start_whose_files_do_not_come_is_ended(node: Bench, hub: Hub, tmp_path: Path) -> None:
    """While they come it may take as long as it likes: test_decide.py."""
    hub.hold_at = {"model.safetensors": HALF}
    await node.start_agent(start_timeout=1.0, **NEVER)
    await place_model(node, "m-1", "org/name", environ=at(hub), commit=COMMIT)
    failed = await node.until_phase("m-1", Phase.FAILED)
    assert failed.failure is not None
    assert (failed.failure.cause, failed.failure.message) == (
        "start_timeout", "not ready after 1.0s; it was still starting"
    )  # fmt: skip


@pytest.mark.parametrize(("settings", "environ", "cause", "says", "remedy"), [
    ({"repository": "org/other"}, {}, "model_not_found", "there is no org/name at", "HF_TOKEN"),
    ({"token": "hf_right"}, {"HF_TOKEN": "hf_wrong"}, "model_not_found", "or it is private", "HF_TOKEN"),
    ({"status": 401}, {}, "model_not_found", "wants a token", "HF_TOKEN"),
    ({"status": 403}, {"HF_TOKEN": "hf_x"}, "model_not_found", "does not give org/name", "HF_TOKEN"),
    ({"gated": True}, {}, "model_not_found", "is gated", "HF_TOKEN"),
    ({"wrong_bytes": True}, {}, "fetch_failed", "another checksum", "mirror"),
    ({"page": b"<html>"}, {}, "fetch_failed", "does not answer as a hub", "HF_ENDPOINT"),
    ({}, {"HF_HUB_OFFLINE": "1"}, "model_not_found", "offline", "xinf pull"),
    ({}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "fetch_failed", "cannot be reached", "mirror"),
])  # fmt: skip
async def test_model_that_cannot_be_had_fails_with_a_sentence_and_a_remedy(
    settings: dict[str, object],
    environ: dict[str, str],
    cause: str,
    says: str,
    remedy: str,
    node: Bench,
    tmp_path: Path,
) -> None:
    with serve(FILES, **settings) as hub:
        await node.start_agent(**NEVER)
        await place_model(node, "m-1", "org/name", environ=at(hub) | environ, commit=COMMIT)
        failed = await node.until_phase("m-1", Phase.FAILED)
    assert failed.failure is not None
    assert failed.failure.cause == cause
    assert says in failed.failure.message
    assert remedy in failed.failure.remedy
    assert "hf_" not in failed.failure.message + failed.failure.remedy
    assert not (snapshot(tmp_path) / "model.safetensors").exists()


async def test_disk_that_takes_no_more_fails_and_goes_on_when_there_is_room(
    node: Bench, hub: Hub, tmp_path: Path
) -> None:
    """The limit of a file's size stands for the disk: writing fails in the same place, with another number."""
    use_fetching_node(node, tmp_path, limit="-f 2048")  # blocks of 512 bytes in sh, of 1,024 in bash: 1 or 2 MiB
    hub.files[COMMIT] = {**FILES, "model.safetensors": random.Random(6).randbytes(5 << 20)}
    await node.start_agent(backoff_initial=0.2)
    await place_model(node, "m-1", "org/name", environ=at(hub), commit=COMMIT)
    failed = await node.until("m-1", lambda r: r.failure is not None)
    assert failed.failure is not None
    assert failed.failure.cause == "fetch_failed"
    assert "cannot be stored" in failed.failure.message
    assert "make room" in failed.failure.remedy
    use_fetching_node(node, tmp_path)
    await node.until_phase("m-1", Phase.READY)
    assert str(hub.gets("model.safetensors")[-1]).startswith("bytes=")
