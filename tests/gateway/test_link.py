"""Link against a scripted EngineService over a real gRPC connection."""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.scripted_engine import ScriptedEngine, eventually
from xinf._fast.framewriter import encode_head
from xinf._pb import engine_service_pb2 as pb
from xinf.core.errors import EngineDied, XinfError
from xinf.gateway import link as link_module
from xinf.gateway.client import RawHeaders
from xinf.gateway.link import Ending, Link
from xinf.router import ResidencyUpdate


class Recorder:
    """A sink and a listener that write down what they hear."""

    def __init__(self, *, fails: bool = False) -> None:
        self.heard: list[Any] = []
        self.chunks = b""
        self.ending: Ending | None = None
        self.lost: XinfError | None = None
        self.n_flushes = 0
        self.loads: list[Any] = []
        self.residency: list[ResidencyUpdate] = []
        self.infos: list[Any] = []
        self.refuses_residency = False
        self.states: list[str] = []
        self._fails = fails

    def on_start(self, status: int, headers: RawHeaders) -> None:
        self.heard.append((status, headers))

    def on_chunk(self, data: bytes) -> None:
        if self._fails:
            raise OSError("the client's transport is closed")
        self.chunks += data

    def on_end(self, ending: Ending) -> None:
        assert self.ending is None
        assert self.lost is None
        self.ending = ending

    def on_lost(self, error: XinfError, *, may_retry: bool) -> None:
        assert self.ending is None
        assert self.lost is None
        self.lost = error

    def flush(self) -> None:
        self.n_flushes += 1

    def on_link_up(self, link: Link) -> None:
        self.states.append("up")

    def on_link_down(self, link: Link) -> None:
        self.states.append("down")

    def on_info(self, link: Link) -> None:
        self.infos.append(link.info)

    def on_load(self, link: Link, load: Any) -> None:
        self.loads.append(load)

    def on_residency(self, link: Link, update: ResidencyUpdate) -> None:
        if self.refuses_residency:
            raise MemoryError("no room for it")
        self.residency.append(update)


class Asking:
    """A submission."""

    timeout_ms = 0
    trace = ""
    request_id = "req-1"
    head = encode_head("POST", "/v1/x", [(b"content-type", b"application/json")])

    def __init__(self, body: bytes) -> None:
        self.body = body


def submit(link: Link, body: str | bytes, sink: Recorder) -> int:
    return link.submit(Asking(body if isinstance(body, bytes) else body.encode()), sink)


@pytest.fixture
async def engine(short_dir: Path) -> AsyncIterator[ScriptedEngine]:
    scripted = ScriptedEngine(short_dir / "e.sock")
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest.fixture
async def listener() -> Recorder:
    return Recorder()


@pytest.fixture
async def link(engine: ScriptedEngine, listener: Recorder) -> AsyncIterator[Link]:
    made = Link("r1", engine.address, gateway="host/1/0", listener=listener)
    made.start()
    await eventually(lambda: made.is_up and engine.hellos)
    yield made
    await made.close("the test is over")


async def test_link_says_hello_and_learns_what_the_engine_is(
    engine: ScriptedEngine, link: Link, listener: Recorder
) -> None:
    assert link.info.block_tokens == 16
    assert listener.states == ["up"]
    assert listener.loads[0].kv_blocks_total == 100
    await eventually(lambda: engine.hellos)
    assert engine.hellos[0].gateway == "host/1/0"
    assert engine.hellos[0].version == 1
    assert engine.hellos[0].wants_residency


async def test_submit_brings_start_chunks_and_end(link: Link, engine: ScriptedEngine) -> None:
    sink = Recorder()
    submit_id = submit(link, "echo", sink)
    await eventually(lambda: sink.ending)
    assert submit_id == 1
    assert sink.heard == [(200, [(b"content-type", b"application/json")])]
    assert sink.chunks == b'{"ok":true}'
    assert sink.ending == Ending(prompt_tokens=7, cached_tokens=3, completion_tokens=2)
    assert sink.n_flushes == 1  # one frame, one flush
    assert link.n_open == 0
    assert engine.submits[0].headers[0].name == b"content-type"


async def test_submits_of_one_turn_share_a_frame(link: Link, engine: ScriptedEngine) -> None:
    sinks = [Recorder() for _ in range(50)]
    before = engine.frames
    ids = [submit(link, "echo", sink) for sink in sinks]
    await eventually(lambda: all(sink.ending for sink in sinks))
    assert ids == list(range(1, 51))
    assert engine.frames - before == 1


async def test_busy_engine_is_not_sent_every_request_by_itself(link: Link, engine: ScriptedEngine) -> None:
    stream = link._stream
    assert stream is not None
    for _ in range(8):
        submit(link, "hang", Recorder())
    await eventually(lambda: len(engine.submits) == 8)
    engine.push(load=pb.Load(running=8))
    await eventually(lambda: stream._has_heard)
    stream._gate_opens_s = asyncio.get_running_loop().time() + 60.0  # as if PACE_S were not over for long
    sinks = [Recorder() for _ in range(8)]
    for sink in sinks[:7]:
        submit(link, "echo", sink)
        assert stream._turn is None  # with 8 at the engine, fewer are not worth a frame
    submit(link, "echo", sinks[7])
    await eventually(lambda: all(sink.ending for sink in sinks))


async def test_idle_engine_is_sent_a_request_at_once(link: Link, engine: ScriptedEngine) -> None:
    stream = link._stream
    assert stream is not None
    stream._gate_opens_s = asyncio.get_running_loop().time() + 60.0
    await eventually(lambda: stream._has_heard)
    sink = Recorder()
    submit(link, "echo", sink)
    await eventually(lambda: sink.ending)


async def test_frame_is_bounded_in_bytes(link: Link, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "FRAME_BYTES", 10)
    sinks = [Recorder() for _ in range(6)]
    before = engine.frames
    for sink in sinks:
        submit(link, "echo", sink)
    await eventually(lambda: all(sink.ending for sink in sinks))
    assert engine.frames - before == 3


async def test_cancel_reaches_the_engine_and_the_sink_hears_nothing_more(link: Link, engine: ScriptedEngine) -> None:
    sink = Recorder()
    submit_id = submit(link, "hang", sink)
    await eventually(lambda: engine.submits)
    link.cancel(submit_id)
    link.cancel(submit_id)
    await eventually(lambda: engine.cancels)
    engine.push(chunks=[pb.Chunk(id=submit_id, data=b"late")], ends=[pb.End(id=submit_id)])
    other = Recorder()
    submit(link, "echo", other)
    await eventually(lambda: other.ending)
    assert engine.cancels == [submit_id]
    assert sink.chunks == b""
    assert sink.ending is None


async def test_one_failing_sink_does_not_hurt_the_others(
    link: Link, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Recorder(fails=True), Recorder()
    with caplog.at_level(logging.CRITICAL):
        submit(link, "echo", bad)
        submit(link, "stream", good)
        await eventually(lambda: good.ending and bad.lost)
    assert good.chunks.endswith(b"[DONE]\n\n")
    assert bad.lost is not None
    assert bad.lost.code == "engine_error"
    assert link.is_up
    await eventually(lambda: engine.cancels == [1])


async def test_dead_engine_loses_every_open_request_at_once(
    link: Link, engine: ScriptedEngine, listener: Recorder
) -> None:
    sinks = [Recorder() for _ in range(3)]
    for sink in sinks:
        submit(link, "hang", sink)
    await eventually(lambda: len(engine.submits) == 3)
    await engine.stop()
    await eventually(lambda: all(sink.lost for sink in sinks))
    assert {type(sink.lost) for sink in sinks} == {EngineDied}
    assert listener.states == ["up", "down"]
    with pytest.raises(EngineDied, match="cannot be reached"):
        submit(link, "echo", Recorder())


async def test_link_comes_back_by_itself(link: Link, engine: ScriptedEngine, listener: Recorder) -> None:
    await engine.stop()
    await eventually(lambda: not link.is_up)
    await engine.start()
    await eventually(lambda: link.is_up)
    sink = Recorder()
    submit_id = submit(link, "echo", sink)
    await eventually(lambda: sink.ending)
    assert submit_id == 1
    assert listener.states == ["up", "down", "up"]


async def test_silent_engine_is_given_up(
    link: Link, engine: ScriptedEngine, listener: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Recorder()
    submit(link, "hang", sink)
    link.tick(link._last_frame_s + link_module.SILENCE_S + 1)
    await eventually(lambda: sink.lost)
    await eventually(lambda: listener.states == ["up", "down", "up"])


async def test_other_protocol_is_refused(short_dir: Path, listener: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    engine = ScriptedEngine(short_dir / "p.sock")
    engine.protocol = 9
    await engine.start()
    link = Link("r1", engine.address, gateway="g", listener=listener)
    link.start()
    await eventually(lambda: len(caplog.records) > 1)  # refused, and tried again
    assert {record.getMessage() for record in caplog.records} == {"replica cannot be talked to"}
    assert not link.is_up
    await link.close("the test is over")
    await engine.stop()
    assert listener.states == []


async def test_large_body_takes_a_call_of_its_own(link: Link, engine: ScriptedEngine) -> None:
    body = b"x" * (link_module.LARGE_BODY_BYTES + 1)
    sink = Recorder()
    first = submit(link, body, sink)
    await eventually(lambda: sink.ending)
    assert sink.chunks == b'{"bytes":%d}' % len(body)
    assert sink.ending is not None
    assert sink.ending.prompt_tokens == 9
    assert engine.submits == []
    assert engine.generated[0].id == 0
    assert submit(link, "echo", Recorder()) == first + 1


async def test_close_loses_what_is_open(engine: ScriptedEngine, listener: Recorder) -> None:
    link = Link("r1", engine.address, gateway="g", listener=listener)
    link.start()
    await eventually(lambda: link.is_up)
    sink = Recorder()
    submit(link, "hang", sink)
    await link.close("it is draining")
    assert sink.lost is not None
    assert "it is draining" in str(sink.lost)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "link r1"]


# ---- residency -------------------------------------------------------------------------------------------------------


def tell(engine: ScriptedEngine, sequence: int, *added: int, n_tokens: int | None = None, **fields: Any) -> None:
    """One Residency message; each chunk stands for ten times its number in tokens."""
    tokens = [10 * chunk for chunk in added] if n_tokens is None else [1] * n_tokens
    engine.push(residency=pb.Residency(sequence=sequence, added=added, tokens=tokens, **fields))


def heard(listener: Recorder) -> list[tuple[bool, list[int], list[int]]]:
    return [
        (update.cleared, array("Q", update.added).tolist(), array("Q", update.removed).tolist())
        for update in listener.residency
    ]


@pytest.fixture
def resyncs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "RESYNC_INTERVAL_S", 0.0)


async def echo(link: Link) -> None:
    """Whatever was sent before has been handled, and requests go on."""
    sink = Recorder()
    submit(link, "echo", sink)
    await eventually(lambda: sink.ending)


async def test_residency_is_handed_on_in_order(link: Link, engine: ScriptedEngine, listener: Recorder) -> None:
    tell(engine, 1, 5, 6, cleared=True, state="exact", is_partial=True)
    tell(engine, 2, 7)
    tell(engine, 3, 8, removed=[5, 6])
    await echo(link)
    assert heard(listener) == [(True, [5, 6], []), (False, [7], []), (False, [8], [5, 6])]
    assert listener.residency[0] == ResidencyUpdate(
        True, array("Q", [5, 6]).tobytes(), array("I", [50, 60]).tobytes(), b"", "exact", True
    )
    assert engine.resyncs == link.n_resyncs == 0


async def test_how_events_are_followed_is_kept(link: Link, engine: ScriptedEngine) -> None:
    assert link.following is None
    engine.push(following=pb.Following(events=3, lag_max_s=0.5))
    await echo(link)
    assert link.following == pb.Following(events=3, lag_max_s=0.5)
    engine.push(load=pb.Load(running=1))
    await echo(link)
    assert link.following.events == 3


async def test_a_following_that_is_none_ends_the_stream(
    link: Link, listener: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL):
        link.on_message(b"\x3a\x01\xff")
    assert listener.states[-1] == "down"
    assert link.following is None


@pytest.mark.usefixtures("resyncs_at_once")
@pytest.mark.parametrize("fault", ["gap", "again", "lengths", "listener"])
async def test_what_breaks_residency_is_dropped_up_to_the_next_snapshot(
    link: Link, engine: ScriptedEngine, listener: Recorder, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL):
        tell(engine, 1, 5, cleared=True)
        await echo(link)
        if fault == "gap":
            tell(engine, 3, 7)
        elif fault == "again":
            tell(engine, 1, 7)
        elif fault == "lengths":
            tell(engine, 2, 7, n_tokens=3)
        else:
            listener.refuses_residency = True
            tell(engine, 2, 7)
            await echo(link)
            listener.refuses_residency = False
        tell(engine, 4, 8)
        tell(engine, 5, 9)
        await eventually(lambda: engine.resyncs)
        tell(engine, 6, 10)
        tell(engine, 7, 11, cleared=True)
        tell(engine, 8, 12)
        await echo(link)
    assert heard(listener) == [(True, [5], []), (True, [11], []), (False, [12], [])]
    assert engine.resyncs == link.n_resyncs == 1
    assert listener.states == ["up"]


@pytest.mark.usefixtures("resyncs_at_once")
async def test_residency_that_does_not_begin_with_a_snapshot_is_asked_for(
    link: Link, engine: ScriptedEngine, listener: Recorder
) -> None:
    tell(engine, 1, 5)
    tell(engine, 2, 6)
    await eventually(lambda: engine.resyncs)
    await echo(link)
    assert listener.residency == []
    assert engine.resyncs == 1


async def test_snapshots_are_asked_for_once_a_second_at_most(
    link: Link, engine: ScriptedEngine, listener: Recorder
) -> None:
    tell(engine, 1, 5, cleared=True)
    tell(engine, 3, 6)
    await eventually(lambda: engine.resyncs)
    tell(engine, 9, 7, cleared=True)
    tell(engine, 99, 8)
    await echo(link)
    assert link.n_resyncs == 1
    assert listener.residency[-1].cleared
    link.tick(link._last_frame_s + link_module.RESYNC_INTERVAL_S + 0.1)
    await eventually(lambda: engine.resyncs == 2)


async def test_a_new_stream_begins_to_count_anew(link: Link, engine: ScriptedEngine, listener: Recorder) -> None:
    tell(engine, 1, 5, cleared=True)
    tell(engine, 2, 6)
    await echo(link)
    await engine.stop()
    await eventually(lambda: not link.is_up)
    await engine.start()
    await eventually(lambda: link.is_up)
    tell(engine, 1, 7, cleared=True)
    tell(engine, 2, 8)
    await echo(link)
    assert heard(listener)[2:] == [(True, [7], []), (False, [8], [])]
    assert link.n_resyncs == 0


async def test_residency_is_heard_before_the_ends_of_its_frame(
    link: Link, engine: ScriptedEngine, listener: Recorder
) -> None:
    class Watching(Recorder):
        def on_end(self, ending: Ending) -> None:
            super().on_end(ending)
            self.heard.append(len(listener.residency))

    sink = Watching()
    submit_id = submit(link, "hang", sink)
    await eventually(lambda: engine.submits)
    engine.push(residency=pb.Residency(sequence=1, cleared=True), ends=[pb.End(id=submit_id)])
    await eventually(lambda: sink.ending)
    assert sink.heard == [1]


async def test_who_wants_no_residency_says_so_and_hears_none(engine: ScriptedEngine, listener: Recorder) -> None:
    link = Link("r1", engine.address, gateway="g", listener=listener, wants_residency=False)
    link.start()
    await eventually(lambda: link.is_up and engine.hellos)
    assert not engine.hellos[0].wants_residency
    tell(engine, 1, 5, cleared=True)
    tell(engine, 5, 6)
    await echo(link)
    assert listener.residency == []
    assert engine.resyncs == 0
    await link.close("the test is over")


async def test_an_engine_that_introduces_itself_again_is_heard(
    link: Link, engine: ScriptedEngine, listener: Recorder
) -> None:
    engine.push(hello=pb.EngineInfo(replica="r1", protocol=1, loras=["tuned"]))
    await echo(link)
    assert list(link.info.loras) == ["tuned"]
    assert listener.infos == [link.info]
    assert listener.states == ["up"]


async def test_an_engine_that_becomes_another_protocol_s_is_given_up(
    link: Link, engine: ScriptedEngine, listener: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    engine.push(hello=pb.EngineInfo(replica="r1", protocol=9))
    await eventually(lambda: listener.states == ["up", "down", "up"])
    assert "replica cannot be talked to" in {record.getMessage() for record in caplog.records}
