"""The agent with the real guard and the real shim around the simulated engine: what only they together can show."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from tests.agent.conftest import PACKAGE_HOME, Bench, process_of, until_dead
from xinf._pb.engine_service_pb2 import GetInfoRequest
from xinf._pb.engine_service_pb2_grpc import EngineServiceStub
from xinf.agent.process import ProcessId, identify, is_alive
from xinf.core.config import to_environ
from xinf.core.records import NodeRecord, Phase, ReplicaRecord, encode_record
from xinf.meta import MetaClient, MetaServer

pytestmark = pytest.mark.e2e

# An agent in a process of its own, as `xinf worker` runs it.
AGENT = """
import asyncio, os, sys
import msgspec
from xinf.agent import Agent
from xinf.core.config import from_environ
from xinf.core.records import NodeRecord, decode_record
from xinf.meta import MetaClient

async def main():
    config = from_environ(sys.argv[1])
    node = msgspec.structs.replace(decode_record(sys.argv[3].encode(), NodeRecord), agent_pid=os.getpid())
    await Agent(MetaClient(sys.argv[2]), config, node).run()

asyncio.run(main())
"""


def shim_of(record: ReplicaRecord, bench: Bench) -> ProcessId:
    (shim,) = [member for member in bench.members(record) if member.pid != record.pid]
    return shim


async def answers(record: ReplicaRecord) -> str:
    """Ask the shim who it is."""
    assert record.address is not None
    async with grpc.aio.insecure_channel(record.address) as channel:
        info = await EngineServiceStub(channel).GetInfo(GetInfoRequest(), timeout=20)
    return str(info.replica)


async def test_sim_engine_serves_and_is_drained(bench: Bench) -> None:
    await bench.start_agent()
    await bench.place("m-1", engine="sim")
    record = await bench.until_phase("m-1", Phase.READY)
    assert record.block_tokens
    assert await answers(record) == "m-1"
    await bench.aim_at_stop("m-1")
    await bench.until_phase("m-1", Phase.STOPPED)
    assert bench.members(record) == ()
    assert not bench.config.paths.socket("m-1").exists()
    log = bench.directory("m-1").log_path.read_text()
    assert "guard: the engine ended with status 0" in log


async def test_killed_shim_is_failed_as_killed_and_started_again(bench: Bench) -> None:
    await bench.start_agent()
    await bench.place("m-1", engine="sim")
    first = await bench.until_phase("m-1", Phase.READY)
    os.kill(shim_of(first, bench).pid, signal.SIGKILL)
    failed = await bench.until("m-1", lambda r: r.failure is not None)
    assert failed.failure is not None
    assert (failed.failure.cause, failed.failure.exit_status) == ("killed", -9)
    second = await bench.until("m-1", lambda r: r.phase is Phase.READY and r.pid != first.pid)
    assert await answers(second) == "m-1"


async def test_killed_guard_takes_its_shim_along(bench: Bench) -> None:
    await bench.start_agent(backoff_initial=3600.0, backoff_max=3600.0)
    await bench.place("m-1", engine="sim")
    record = await bench.until_phase("m-1", Phase.READY)
    shim = shim_of(record, bench)
    os.kill(process_of(record).pid, signal.SIGKILL)
    await bench.until_phase("m-1", Phase.FAILED)
    assert not is_alive(shim)


async def test_bad_engine_argument_is_told(bench: Bench) -> None:
    await bench.start_agent(backoff_initial=3600.0, backoff_max=3600.0)
    await bench.place("m-1", engine="sim", no_such_argument=1)
    record = await bench.until_phase("m-1", Phase.FAILED)
    assert record.failure is not None
    assert record.failure.cause == "bad_arguments"
    assert "no_such_argument" in record.failure.message
    assert record.failure.log_tail


async def test_agent_killed_9_leaves_its_engine_and_the_next_adopts_it(bench: Bench, short_dir: Path) -> None:
    """Same process before and after, and it answers in between."""
    target = f"unix:{short_dir}/m"
    server = MetaServer(bench.store)
    await server.start([target])
    agents: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", AGENT, to_environ(bench.config), target, encode_record(bench.node).decode()]
        agents.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(PACKAGE_HOME)}))
        return agents[-1]

    try:
        first = start()
        await bench.place("m-1", engine="sim")
        before = await bench.until_phase("m-1", Phase.READY)
        agent = identify(first.pid)
        assert agent is not None
        first.kill()
        await until_dead(agent)
        assert await answers(before) == "m-1"
        start()
        await bench.place("m-2", engine="sim")
        await bench.until_phase("m-2", Phase.READY)
        assert await bench.records.get(NodeRecord, "here") is not None
        assert bench.replicas.get("m-1") == before
        await bench.aim_at_stop("m-1")
        await bench.until_phase("m-1", Phase.STOPPED)
        assert bench.members(before) == ()
    finally:
        for process in agents:
            process.kill()
            await asyncio.to_thread(process.wait, 20)
        await server.stop(1.0)


async def test_engine_that_ends_while_the_control_process_is_away_is_started_when_it_is_back(
    bench: Bench, short_dir: Path
) -> None:
    target = f"unix:{short_dir}/m"
    server = MetaServer(bench.store)
    await server.start([target])
    client = MetaClient(target, timeout_s=1.0)
    bench.store_of_agent = client
    try:
        await bench.start_agent(lease_ttl=60.0)
        await bench.place("m-1", engine="sim")
        first = await bench.until_phase("m-1", Phase.READY)
        await server.stop(0)
        os.kill(shim_of(first, bench).pid, signal.SIGKILL)
        await until_dead(process_of(first))
        assert bench.running is not None
        assert not bench.running.done()
        server = MetaServer(bench.store)
        await server.start([target])
        second = await bench.until("m-1", lambda r: r.phase is Phase.READY and r.pid != first.pid)
        assert second.restarts == 1
        await bench.stop_agent()
    finally:
        await client.close()
        await server.stop(0)


async def test_engines_end_on_request_while_the_control_process_is_away(bench: Bench, short_dir: Path) -> None:
    target = f"unix:{short_dir}/m"
    server = MetaServer(bench.store)
    await server.start([target])
    client = MetaClient(target, timeout_s=0.5)
    bench.store_of_agent = client
    try:
        await bench.start_agent(lease_ttl=60.0)
        await bench.place("m-1", engine="sim")
        record = await bench.until_phase("m-1", Phase.READY)
        await server.stop(0)
        await bench.stop_agent(stop_engines=True)
        assert bench.members(record) == ()
        assert bench.directory("m-1").read_custody() is None
    finally:
        await client.close()
