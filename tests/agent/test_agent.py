"""The agent on a real store with real processes: what it starts, adopts, ends, and never touches."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.agent.conftest import WAIT_S, Bench, process_of, until_dead
from xinf.agent.memory import StartMemory
from xinf.agent.process import is_alive
from xinf.core.device import Device, Vendor
from xinf.core.errors import Conflict
from xinf.core.ids import ReplicaId
from xinf.core.records import MemoryNeed, NodeRecord, Phase, ReplicaRecord
from xinf.core.shim import ShimSpec, read_file


async def test_placed_replica_becomes_ready_with_its_timings(bench: Bench) -> None:
    await bench.start_agent()
    await bench.place("m-1")
    record = await bench.until_phase("m-1", Phase.READY)
    times = [record.phase_since_s[phase] for phase in ("placed", "starting", "loading", "warming", "ready")]
    assert times == sorted(times)
    assert record.block_tokens == 16
    assert record.address == f"unix:{bench.config.paths.socket('m-1')}"
    assert record.log_path is not None
    assert "hello" in Path(record.log_path).read_text()
    process = process_of(record)
    assert os.getsid(process.pid) == process.pid
    assert os.getpgid(process.pid) == process.pid


async def test_engine_sees_its_devices_by_uuid_and_none_of_our_settings(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XINF_LOG_LEVEL", "debug")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    await bench.start_agent()
    await bench.place("m-1", card=1)
    await bench.place("m-2")
    seen = []
    for name in ("m-1", "m-2"):
        record = await bench.until_phase(name, Phase.READY)
        environ = Path(f"/proc/{record.pid}/environ").read_text().split("\0")
        seen.append(next(entry for entry in environ if entry.startswith("CUDA_VISIBLE_DEVICES=")))
        assert ("CUDA_DEVICE_ORDER=PCI_BUS_ID" in environ) is (name == "m-1")
        assert not [entry for entry in environ if entry.startswith("XINF_")]
    assert seen == ["CUDA_VISIBLE_DEVICES=GPU-test-1", "CUDA_VISIBLE_DEVICES="]


async def test_stop_ends_the_whole_group_before_it_says_stopped(bench: Bench) -> None:
    await bench.start_agent()
    await bench.place("m-1")
    record = await bench.until_phase("m-1", Phase.READY)
    assert len(bench.members(record)) == 2
    await bench.aim_at_stop("m-1")
    stopped = await bench.until_phase("m-1", Phase.STOPPED)
    assert bench.members(record) == ()
    assert (stopped.pid, stopped.address) == (None, None)
    assert bench.directory("m-1").read_custody() is None


async def test_engine_that_ignores_term_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xinf.agent.decide.TERM_GRACE_S", 0.3)
    await bench.start_agent()
    await bench.place("m-1", hold=True)
    record = await bench.until_phase("m-1", Phase.READY)
    await bench.aim_at_stop("m-1")
    await bench.until_phase("m-1", Phase.STOPPED)
    assert bench.members(record) == ()


async def test_stopped_agent_leaves_engines_and_the_next_adopts_them(bench: Bench) -> None:
    await bench.start_agent()
    await bench.place("m-1")
    before = await bench.until_phase("m-1", Phase.READY)
    await bench.stop_agent(stop_engines=False)
    assert is_alive(process_of(before))
    await bench.start_agent()
    await bench.place("m-2")
    await bench.until_phase("m-2", Phase.READY)
    after = bench.replicas.get("m-1")
    assert after == before
    os.kill(process_of(before).pid, signal.SIGKILL)
    assert (await bench.until_phase("m-1", Phase.FAILED)).pid == before.pid, "the adopted engine is watched"


async def test_stopped_agent_can_take_its_engines_along(bench: Bench) -> None:
    await bench.start_agent()
    await bench.place("m-1")
    record = await bench.until_phase("m-1", Phase.READY)
    await bench.stop_agent(stop_engines=True)
    assert bench.members(record) == ()
    parked = await bench.until_phase("m-1", Phase.PLACED)
    assert parked.pid is None
    assert await bench.records.get(NodeRecord, "here") is None
    await bench.start_agent()
    await bench.until_phase("m-1", Phase.READY)


async def test_killed_engine_is_failed_then_started_again(bench: Bench) -> None:
    await bench.start_agent()
    await bench.place("m-1")
    first = await bench.until_phase("m-1", Phase.READY)
    os.killpg(process_of(first).pid, signal.SIGKILL)
    failed = await bench.until(("m-1"), lambda r: r.failure is not None)
    assert failed.failure is not None
    assert failed.failure.cause == "killed"
    second = await bench.until("m-1", lambda r: r.phase is Phase.READY and r.pid != first.pid)
    assert second.restarts == 1
    assert second.failure is not None, "the last failure stays visible"


async def test_rest_of_the_group_is_ended_when_the_guard_is_killed(bench: Bench) -> None:
    await bench.start_agent(backoff_initial=3600.0, backoff_max=3600.0)
    await bench.place("m-1")
    record = await bench.until_phase("m-1", Phase.READY)
    (rest,) = [member for member in bench.members(record) if member.pid != record.pid]
    os.kill(process_of(record).pid, signal.SIGKILL)
    await bench.until_phase("m-1", Phase.FAILED)
    assert not is_alive(rest)


async def test_crash_loop_waits_longer_each_time_and_keeps_the_reason(bench: Bench) -> None:
    await bench.start_agent()
    await bench.place("m-1", phases="starting loading", say="ModuleNotFoundError: No module named 'x'", exit=1)
    waits: list[float] = []
    for n in range(1, 5):
        record = await bench.until("m-1", lambda r, n=n: r.phase is Phase.FAILED and r.restarts == n)  # type: ignore[misc]
        assert record.retry_at_s is not None
        waits.append(round(record.retry_at_s - record.phase_since_s[Phase.FAILED], 3))
    assert waits == [0.05, 0.1, 0.2, 0.4]
    assert record.failure is not None
    assert (record.failure.cause, record.failure.exit_status) == ("missing_dependency", 1)
    assert "ModuleNotFoundError: No module named 'x'" in record.failure.log_tail


async def test_failure_told_by_the_shim_is_kept(bench: Bench) -> None:
    await bench.start_agent(backoff_initial=3600.0, backoff_max=3600.0)
    await bench.place("m-1", phases="starting failed", failure="model_not_found")
    record = await bench.until_phase("m-1", Phase.FAILED)
    assert record.failure is not None
    assert record.failure.cause == "model_not_found"
    await until_dead(process_of(record))


async def test_start_that_never_becomes_ready_is_ended(bench: Bench) -> None:
    await bench.start_agent(start_timeout=0.5, backoff_initial=3600.0, backoff_max=3600.0)
    await bench.place("m-1", phases="starting loading", say="I am slow")
    record = await bench.until_phase("m-1", Phase.FAILED)
    assert record.failure is not None
    assert record.failure.cause == "start_timeout"
    assert "I am slow" in record.failure.log_tail
    await until_dead(process_of(record))


async def test_impossible_start_is_a_failure_and_not_the_end(bench: Bench) -> None:
    bench.node = msgspec.structs.replace(bench.node, environments=bench.node.environments[:1])
    await bench.start_agent(backoff_initial=3600.0, backoff_max=3600.0)
    await bench.place("m-1", engine="sim")
    record = await bench.until_phase("m-1", Phase.FAILED)
    assert record.failure is not None
    assert record.failure.cause == "missing_dependency"
    assert "it has stand-in" in record.failure.message
    await bench.place("m-2")
    await bench.until_phase("m-2", Phase.READY)


async def test_interpreter_that_is_gone_is_told(bench: Bench) -> None:
    Path(bench.node.environments[0].python).unlink()
    await bench.start_agent(backoff_initial=3600.0, backoff_max=3600.0)
    await bench.place("m-1")
    record = await bench.until_phase("m-1", Phase.FAILED)
    assert record.failure is not None
    assert record.failure.cause == "missing_dependency"


async def test_process_without_a_record_is_ended(bench: Bench) -> None:
    await bench.start_agent()
    await bench.place("m-1")
    record = await bench.until_phase("m-1", Phase.READY)
    await bench.stop_agent(stop_engines=False)
    await bench.records.delete(ReplicaRecord, "m-1")
    await bench.start_agent()
    await until_dead(process_of(record))
    async with asyncio.timeout(20):
        while bench.directory("m-1").read_custody() is not None:
            await asyncio.sleep(0.01)
    assert bench.members(record) == ()


async def test_deleted_record_ends_its_process(bench: Bench) -> None:
    await bench.start_agent()
    await bench.place("m-1")
    record = await bench.until_phase("m-1", Phase.READY)
    await bench.records.delete(ReplicaRecord, "m-1")
    await until_dead(process_of(record))


async def test_namesake_of_a_lost_engine_is_never_touched(bench: Bench) -> None:
    """The host restarted and the pid in custody.json belongs to somebody else now."""
    await bench.start_agent()
    await bench.place("m-1")
    record = await bench.until_phase("m-1", Phase.READY)
    await bench.stop_agent(stop_engines=False)
    directory = bench.directory("m-1")
    custody = directory.read_custody()
    assert custody is not None
    os.killpg(process_of(record).pid, signal.SIGKILL)
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True) as stranger:
        directory.write_custody(msgspec.structs.replace(custody, pid=stranger.pid))
        await bench.start_agent()
        again = await bench.until("m-1", lambda r: r.phase is Phase.READY and r.restarts == 1)
        assert again.pid not in (record.pid, stranger.pid)
        assert stranger.poll() is None
        stranger.kill()


async def test_start_whose_pid_was_never_written_is_found(bench: Bench) -> None:
    """The agent was killed between the start of the process and the moment it had written down which it is."""
    await bench.start_agent()
    await bench.place("m-1")
    record = await bench.until_phase("m-1", Phase.READY)
    await bench.stop_agent(stop_engines=False)
    directory = bench.directory("m-1")
    custody = directory.read_custody()
    assert custody is not None
    directory.write_custody(msgspec.structs.replace(custody, pid=None, start_ticks=None))
    unreported = msgspec.structs.replace(record, phase=Phase.PLACED, pid=None, pid_start_ticks=None)
    await bench.records.put(ReplicaRecord, "m-1", unreported)
    await bench.start_agent()
    adopted = await bench.until_phase("m-1", Phase.READY)
    assert (adopted.pid, adopted.restarts) == (record.pid, 0)


async def test_one_engine_at_a_time_has_a_device(bench: Bench) -> None:
    await bench.start_agent()
    await bench.place("m-1", card=0)
    first = await bench.until_phase("m-1", Phase.READY)
    await bench.records.delete(ReplicaRecord, "m-1")  # its engine is an orphan now and still on the card
    await bench.place("m-2", card=0)
    second = await bench.until_phase("m-2", Phase.READY)
    ended_s = bench.directory("m-1").read_exit(_start_id(bench, "m-1"))
    assert ended_s is not None
    assert second.phase_since_s[Phase.STARTING] >= ended_s.at_s
    assert bench.members(first) == ()


async def test_engines_that_share_a_card_start_one_after_the_other(bench: Bench) -> None:
    await bench.start_agent()
    for name in ("m-1", "m-2", "m-3"):
        await bench.place(name, card=0, shares=True)
    ready = [await bench.until_phase(name, Phase.READY) for name in ("m-1", "m-2", "m-3")]
    ready.sort(key=lambda record: record.phase_since_s[Phase.STARTING])
    for before, after in itertools.pairwise(ready):
        assert after.phase_since_s[Phase.STARTING] >= before.phase_since_s[Phase.READY]


async def test_engine_is_told_what_it_may_take(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(*_: object) -> StartMemory:
        return StartMemory(share=0.25)

    monkeypatch.setattr("xinf.agent.agent.read_start_memory", read)
    await bench.start_agent()
    await bench.place("m-1", card=0, need=MemoryNeed(weights_bytes=7, kv_bytes=1, overhead_bytes=1))
    await bench.until_phase("m-1", Phase.READY)
    spec = read_file(bench.directory("m-1").spec_path, ShimSpec)
    assert spec is not None
    assert (spec.memory_share, spec.kv_cache_bytes) == (0.25, None)
    await bench.place("m-2", need=MemoryNeed(weights_bytes=7, kv_bytes=5, overhead_bytes=1))
    await bench.until_phase("m-2", Phase.READY)
    beside = read_file(bench.directory("m-2").spec_path, ShimSpec)
    assert beside is not None
    assert beside.kv_cache_bytes == 5


async def test_driver_that_hangs_keeps_only_its_own_replicas_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking: list[str] = []
    answers = asyncio.Event()

    async def read(replica: ReplicaRecord, *_: object) -> StartMemory:
        if replica.device_uuids:
            looking.append(replica.id)
            await answers.wait()
        return StartMemory()

    monkeypatch.setattr("xinf.agent.agent.read_start_memory", read)
    cards = tuple(
        Device(vendor=Vendor.NVIDIA, index=n, uuid=f"GPU-test-{n}", name="card", visible=f"GPU-test-{n}")
        for n in range(6)
    )
    bench.node = msgspec.structs.replace(bench.node, devices=(*cards, bench.node.devices[-1]))
    await bench.start_agent()
    for card in range(6):
        await bench.place(f"m-{card}", card=card)
    async with asyncio.timeout(WAIT_S):
        while len(looking) < 6:
            await asyncio.sleep(0.01)
    await bench.place("n-1")
    await bench.until_phase("n-1", Phase.READY)
    await bench.aim_at_stop("m-5")
    await bench.until_phase("m-5", Phase.STOPPED)
    await bench.records.delete(ReplicaRecord, "m-4")
    answers.set()
    for card in range(4):
        await bench.until_phase(f"m-{card}", Phase.READY)
    # What was looked at in vain is free for the next.
    for name, card in (("o-1", 4), ("o-2", 5)):
        await bench.place(name, card=card)
        await bench.until_phase(name, Phase.READY)
    assert sorted(looking) == [*(f"m-{card}" for card in range(6)), "o-1", "o-2"]


async def test_engines_that_both_share_have_a_device_together(bench: Bench) -> None:
    await bench.start_agent()
    await bench.place("m-1", card=0)
    first = await bench.until_phase("m-1", Phase.READY)
    await bench.records.update(ReplicaRecord, "m-1", lambda r: msgspec.structs.replace(r, shares=True))
    second = msgspec.structs.replace(
        first, id=ReplicaId("m-2"), phase=Phase.PLACED, shares=True, pid=None, pid_start_ticks=None, address=None
    )
    await bench.records.create(ReplicaRecord, second.id, second)
    beside = await bench.until_phase("m-2", Phase.READY)
    assert is_alive(process_of(first))
    assert beside.device_uuids == first.device_uuids


async def test_lost_lease_is_taken_again(bench: Bench) -> None:
    await bench.start_agent(lease_ttl=0.6)
    found = await bench.store.get("nodes/here")
    assert found is not None
    assert found.lease is not None
    await bench.store.revoke(found.lease)
    async with asyncio.timeout(20):
        while (again := await bench.store.get("nodes/here")) is None or again.lease == found.lease:
            await asyncio.sleep(0.02)


async def test_second_agent_on_the_same_data_is_refused(bench: Bench) -> None:
    await bench.start_agent()
    with pytest.raises(Conflict, match=f"pid {os.getpid()}"):
        await bench.make_agent().run()


async def test_name_of_a_living_agent_is_not_taken(bench: Bench) -> None:
    """Another host's agent has the name and keeps its lease alive."""
    other = msgspec.structs.replace(bench.node, devices=(), agent_pid=1)
    lease = await bench.store.grant(60)
    await bench.records.put(NodeRecord, "here", other, lease=lease)
    with pytest.raises(Conflict, match="another agent"):
        await bench.make_agent(lease_ttl=0.3).run()


def _start_id(bench: Bench, name: str) -> str:
    return msgspec.json.decode((bench.directory(name).path / "spec.json").read_bytes())["start_id"]


async def test_models_that_cannot_be_looked_at_end_no_agent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(*_: object) -> tuple[str, ...]:
        monkeypatch.setattr("xinf.agent.agent.find_models", lambda *_: ("/m",))
        raise RuntimeError("there is no home directory")

    monkeypatch.setattr("xinf.agent.agent.find_models", find)
    await bench.start_agent()
    await bench.place("m-1")
    await bench.until_phase("m-1", Phase.READY)

    async def is_told() -> bool:
        found = await bench.records.get(NodeRecord, "here")
        return found is not None and found[0].models == ("/m",)

    async with asyncio.timeout(WAIT_S):
        while not await is_told():
            await asyncio.sleep(0.01)
