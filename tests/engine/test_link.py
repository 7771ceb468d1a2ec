"""The Link protocol over real gRPC, with the sim engine and with adapters that misbehave.

Each test runs twice: on a connection that others may share, served by gRPC's server, and on one of its own, served by
ours. The client is gRPC's both times.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest

from tests.engine.conftest import Serve, ServedShim
from tests.engine.link_client import Answer, LinkClient, until
from xinf._pb import engine_service_pb2 as pb
from xinf.core.errors import EngineDied
from xinf.engine import link as link_module
from xinf.engine.adapter import EngineDescription, LoadReport, Reply, Request, Usage
from xinf.engine.contextstream import ContextStream
from xinf.engine.residency import Residency, State

COMPLETIONS = "/v1/completions"


def prompt(text: str = "hello", max_tokens: int = 3, **fields: Any) -> dict[str, Any]:
    return {"model": "sim", "prompt": text, "max_tokens": max_tokens, **fields}


class Naughty:
    """An adapter whose requests go wrong in the way that their path names. Proves what the shim does about it, not what
    engines do."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.release = asyncio.Event()

    def build(self, progress: Callable[[str], None]) -> None:
        progress("nothing to build")

    async def open(self) -> EngineDescription:
        return EngineDescription(
            engine="naughty",
            engine_version="0",
            model="m",
            served_names=("m",),
            block_tokens=16,
            kv_blocks=1,
            max_model_len=1,
            max_running=1,
        )

    async def warm_up(self) -> None: ...

    async def handle(self, request: Request, reply: Reply) -> Usage:
        way = request.path.strip("/")
        if way == "raises":
            raise KeyError("secret prompt text")
        if way == "dies":
            raise EngineDied("the engine is gone")
        if way == "says-nothing":
            return Usage()
        if way == "chunk-first":
            reply.chunk(b"x")
        if way == "wrong-type":
            reply.start(200, [("not", "bytes", "at all")])  # type: ignore[list-item]
        reply.start(200, ())
        if way == "dies-late":
            reply.chunk(b"part")
            raise EngineDied("the engine is gone")
        if way == "dies-before-data":
            raise EngineDied("the engine is gone")
        if way == "ignores-cancel":
            while not self.release.is_set():
                try:
                    await self.release.wait()
                except asyncio.CancelledError:
                    self.cancelled.append(way)
                    reply.chunk(b"after the end")
        if way == "waits":
            await self.release.wait()
        if way == "floods":
            for _ in range(40):
                reply.chunk(bytes(1 << 20))
                await asyncio.sleep(0)
        reply.chunk(b"ok")
        return Usage(prompt_tokens=2**40, completion_tokens=-1)

    def residency(self) -> Residency:
        return Residency(None, State.OFF)

    def load(self) -> LoadReport:
        return LoadReport()

    def on_step(self, listener: Callable[[], None]) -> None: ...

    def last_step_age_s(self) -> float | None:
        return None

    def dead_reason(self) -> str | None:
        return None

    async def load_lora(self, name: str, path: str) -> None: ...

    async def unload_lora(self, name: str) -> None: ...

    async def sleep(self, level: int) -> None: ...

    async def wake(self) -> None: ...

    async def close(self) -> None:
        self.release.set()


@pytest.fixture(params=["shared", "dedicated"], autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Which server the Links of a test come to; that it is that one is checked."""
    n_shared = []
    run = ContextStream.run
    monkeypatch.setattr(ContextStream, "run", lambda *arguments: (n_shared.append(1), run(*arguments))[1])
    if request.param == "dedicated":
        monkeypatch.setattr(LinkClient, "metadata", (("xinf-dedicated", "1"),))
    yield request.param
    assert bool(n_shared) == (request.param == "shared")


@contextlib.asynccontextmanager
async def raw_link(target: str) -> AsyncIterator[Any]:
    """A Link on a channel of its own, to which bytes can be written that are no frame."""
    client = LinkClient(target)
    yield client.channel.stream_stream("/xinf.engine.v1.EngineService/Link")(metadata=client.metadata)
    await client.channel.close()


async def end_of(call: Any) -> grpc.StatusCode:
    """Read a Link to its end; gives the status."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    return await call.code()


async def test_link_begins_with_what_the_engine_is(serve: Serve) -> None:
    shim: ServedShim = await serve(block_tokens=32, kv_blocks=64)
    async with LinkClient(shim.spec.listen) as link:
        assert link.info is not None
        assert link.frames[0].HasField("hello")
        assert (link.info.replica, link.info.engine, link.info.protocol) == ("r-1", "sim", 1)
        assert (link.info.block_tokens, link.info.kv_blocks, list(link.info.served_names)) == (32, 64, ["sim"])


async def test_link_serves_many_requests_at_once_each_ending_once(serve: Serve) -> None:
    shim = await serve(step_ms=1, max_running=8)
    async with LinkClient(shim.spec.listen) as link:
        bodies = [prompt(f"prompt {n}", max_tokens=1 + n % 7, stream=bool(n % 2)) for n in range(60)]
        answers = [await link.submit("POST", COMPLETIONS, body) for body in bodies]
        await link.wait(lambda: all(answer.ends for answer in answers), "all ends")
        for body, answer in zip(bodies, answers, strict=True):
            assert answer.status == 200
            assert answer.end.error == ""
            assert answer.end.completion_tokens == body["max_tokens"]
            assert answer.end.prompt_tokens == -(-len(body["prompt"]) // 4)


async def test_link_batches_what_happens_in_one_step(serve: Serve) -> None:
    shim = await serve(step_ms=20, max_running=64)
    async with LinkClient(shim.spec.listen) as link:
        body = json.dumps(prompt(max_tokens=4, stream=True)).encode()
        answers = [link.answers.setdefault(n, Answer(n)) for n in range(1, 33)]
        submits = [pb.Submit(id=answer.id, method="POST", path=COMPLETIONS, body=body) for answer in answers]
        await link.send(pb.GatewayFrame(submits=submits))
        await link.wait(lambda: all(answer.ends for answer in answers), "all ends")
        with_tokens = [frame for frame in link.frames if frame.chunks]
        # The first request begins a step alone, the others join the next one: 32 times 4 tokens in 5 steps.
        assert max(len(frame.chunks) for frame in with_tokens) >= 31
        assert len(with_tokens) <= 5


async def test_cancel_stops_the_engine_and_sends_nothing_more(serve: Serve) -> None:
    shim = await serve(step_ms=5)
    async with LinkClient(shim.spec.listen) as link:
        answer = await link.submit("POST", COMPLETIONS, prompt(max_tokens=20_000, stream=True))
        await link.wait(lambda: answer.chunks, "the first token")
        await link.cancel(answer.id)
        await link.wait_load(lambda load: load.running == 0 and load.kv_blocks_used == 0, "an idle engine")
        n_chunks = len(answer.chunks)
        other = await link.ask("POST", COMPLETIONS, prompt("other"))
        assert other.end.completion_tokens == 3
        assert len(answer.chunks) == n_chunks
        assert not answer.ends


@pytest.mark.parametrize("is_stream", [True, False])
async def test_cancel_is_heard_within_steps(serve: Serve, is_stream: bool) -> None:
    """100 ms at 5 ms a step are 20 steps. The best of three, as another process may have the cores for a while."""
    shim = await serve(step_ms=5)
    engine = shim.adapter._engine
    steps = []
    async with LinkClient(shim.spec.listen) as link:
        for _ in range(3):
            wanted = engine.n_tokens + 3
            answer = await link.submit("POST", COMPLETIONS, prompt(max_tokens=20_000, stream=is_stream))
            await until(lambda wanted=wanted: engine.n_tokens >= wanted, "tokens")
            sent_at = engine.n_steps
            await link.cancel(answer.id)
            await until(lambda: engine.n_unfinished == 0, "an idle engine")
            steps.append(engine.n_steps - sent_at)
    assert min(steps) <= 20


async def test_end_of_the_link_cancels_its_requests_only(serve: Serve) -> None:
    shim = await serve(step_ms=5)
    async with LinkClient(shim.spec.listen) as stays:
        kept = await stays.submit("POST", COMPLETIONS, prompt(max_tokens=60, stream=True))
        async with LinkClient(shim.spec.listen) as goes:
            lost = [await goes.submit("POST", COMPLETIONS, prompt(max_tokens=20_000)) for _ in range(3)]
            await goes.wait_load(lambda load: load.running == 4, "four running")
        assert not any(answer.ends for answer in lost)
        await stays.wait_load(lambda load: load.running <= 1, "one running")
        await stays.wait(lambda: kept.ends, "the end of the other")
        assert kept.end.completion_tokens == 60


async def test_deadline_ends_the_request_and_the_work(serve: Serve) -> None:
    shim = await serve(step_ms=5)
    async with LinkClient(shim.spec.listen) as link:
        answer = await link.ask("POST", COMPLETIONS, prompt(max_tokens=20_000, stream=True), timeout_ms=80)
        assert answer.end.error == "deadline_exceeded"
        assert not answer.end.retryable
        await link.wait_load(lambda load: load.running == 0, "an idle engine")


async def test_load_counts_submits_and_repeats_itself(serve: Serve) -> None:
    shim = await serve(step_ms=5, max_running=2)
    async with LinkClient(shim.spec.listen) as link:
        for _ in range(5):
            await link.submit("POST", COMPLETIONS, prompt("x" * 400, max_tokens=20_000))
        load = await link.wait_load(lambda load: load.last_submit == 5, "a load that counts all")
        assert (load.running, load.waiting, load.queued_prefill_tokens) == (2, 3, 300)
        assert load.kv_blocks_total == 8192
        await link.cancel(1, 2, 3, 4, 5)
        await link.wait_load(lambda load: load.running == load.waiting == 0, "an idle engine")
        n_loads = len(link.loads)
        await link.wait(lambda: len(link.loads) > n_loads, "a load although nothing changed")


async def test_hostile_frames_are_answered_or_ignored(serve: Serve) -> None:
    shim = await serve(step_ms=5)
    async with LinkClient(shim.spec.listen) as link:
        running = await link.submit("POST", COMPLETIONS, prompt(max_tokens=40, stream=True))
        await link.cancel(0, 99, 2**64 - 1)
        await link.send(pb.GatewayFrame())
        # The id of a request in flight again: the first one must go on undisturbed.
        await link.send(pb.GatewayFrame(submits=[pb.Submit(id=running.id, method="POST", path=COMPLETIONS)]))
        zero = await link.ask("POST", COMPLETIONS, prompt(), id=0)
        assert zero.end.error == "invalid_request"
        garbage = [
            ("POST", "", b"", []),
            ("", "/\x00\r\n?%zz#", b"\xff\xfe", []),
            ("POST", "/v1/../../etc/passwd", b"{}", [pb.Header(name=b"\xff\x00", value=b"\r\n")]),
            ("POST", COMPLETIONS, b"\x00" * 1000, [pb.Header()]),
            ("POST", COMPLETIONS, b"[" * 100_000, []),
            ("DELETE", COMPLETIONS, b"", []),
            ("POST", "/v1/chat/completions?" + "x" * 100_000, b'{"messages":[{"role":"u","content":"\\ud800"}]}', []),
        ]  # fmt: skip
        for method, path, body, headers in garbage:
            answer = await link.ask(method, path, body, headers=headers, priority=-(2**31))
            assert answer.end.error == ""
            assert answer.status in (200, 400, 404)
        await link.wait(lambda: running.ends, "the end of the first")
        assert running.end.completion_tokens == 40
        late = await link.ask("POST", COMPLETIONS, prompt(), id=2)  # counts down
        assert "does not count up" in late.ends[-1].message


@pytest.mark.parametrize(
    ("way", "error", "is_retryable"),
    [
        ("raises", "engine_error", False),
        ("dies", "engine_died", True),
        ("dies-before-data", "engine_died", True),
        ("dies-late", "engine_died", False),
        ("says-nothing", "engine_error", False),
        ("chunk-first", "engine_error", False),
        ("wrong-type", "engine_error", False),
    ],
)
async def test_request_that_goes_wrong_ends_alone(serve: Serve, way: str, error: str, is_retryable: bool) -> None:
    shim = await serve(adapter=Naughty())
    async with LinkClient(shim.spec.listen) as link:
        answer = await link.ask("POST", f"/{way}")
        assert (answer.end.error, answer.end.retryable) == (error, is_retryable)
        assert "secret" not in answer.end.message
        well = await link.ask("POST", "/fine")
        assert (well.body, well.end.error) == (b"ok", "")
        assert (well.end.prompt_tokens, well.end.completion_tokens) == (2**32 - 1, 0)


async def test_adapter_that_ignores_cancel_cannot_speak_any_more(serve: Serve) -> None:
    adapter = Naughty()
    shim = await serve(adapter=adapter)
    async with LinkClient(shim.spec.listen) as link:
        answer = await link.ask("POST", "/ignores-cancel", timeout_ms=30)
        assert answer.end.error == "deadline_exceeded"
        await until(lambda: adapter.cancelled, "the cancellation")
        assert (await link.ask("POST", "/fine")).body == b"ok"
        assert answer.body == b""


@pytest.mark.parametrize("hello", [pb.GatewayFrame(), pb.GatewayFrame(hello=pb.GatewayHello(version=9))])
async def test_link_without_the_right_hello_is_refused(serve: Serve, hello: pb.GatewayFrame) -> None:
    shim = await serve()
    async with LinkClient(shim.spec.listen) as good:
        async with raw_link(shim.spec.listen) as bad:
            await bad.write(hello.SerializeToString())
            assert await end_of(bad) == grpc.StatusCode.FAILED_PRECONDITION
            assert "version 1" in await bad.details()
        assert (await good.ask("POST", COMPLETIONS, prompt())).status == 200


async def test_bytes_that_are_no_frame_end_that_link_alone(serve: Serve) -> None:
    shim = await serve()
    async with LinkClient(shim.spec.listen) as good:
        async with raw_link(shim.spec.listen) as bad:
            await bad.write(b"\xff" * 50)
            assert await end_of(bad) == grpc.StatusCode.INVALID_ARGUMENT
        assert (await good.ask("POST", COMPLETIONS, prompt())).status == 200


async def test_large_answer_is_cut_into_frames(serve: Serve) -> None:
    shim = await serve(adapter=Naughty())
    async with LinkClient(shim.spec.listen) as link:
        answer = await link.ask("POST", "/floods")
        assert len(answer.body) == (40 << 20) + 2
        assert max(frame.ByteSize() for frame in link.frames) < link_module.FRAME_BYTES + 1024


async def test_gateway_that_does_not_read_loses_its_link(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "OUTBOX_BYTES", 16 << 20)
    shim = await serve(adapter=Naughty())
    async with LinkClient(shim.spec.listen) as good, raw_link(shim.spec.listen) as deaf:
        await deaf.write(pb.GatewayFrame(hello=pb.GatewayHello(version=1)).SerializeToString())
        floods = pb.GatewayFrame(submits=[pb.Submit(id=n, path="/floods") for n in (1, 2, 3)])
        await deaf.write(floods.SerializeToString())
        await until(lambda: not shim.intake._calls, "the end of its requests")
        await until(lambda: len(shim.server._service._links) <= 2, "links")
        assert (await good.ask("POST", "/fine")).body == b"ok"
        assert await end_of(deaf) == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_gateway_that_closes_its_side_ends_its_requests_and_hears_ok(serve: Serve) -> None:
    shim = await serve(step_ms=5)
    async with LinkClient(shim.spec.listen) as link:
        answer = await link.submit("POST", COMPLETIONS, prompt(max_tokens=20_000))
        await link.wait_load(lambda load: load.running == 1, "a running request")
        await link.call.done_writing()
        assert await link.wait_end() == grpc.StatusCode.OK
        await until(lambda: not shim.intake._calls, "the end of its request")
        assert not answer.ends


async def test_link_is_closed_when_everything_was_sent(serve: Serve) -> None:
    shim = await serve(adapter=Naughty())
    async with LinkClient(shim.spec.listen) as link:
        answer = await link.submit("POST", "/floods")
        await link.wait(lambda: answer.chunks, "a first part")
        shim.intake.fail_all(EngineDied("the engine is gone"))
        await shim.server.stop(flush_s=5.0)
        assert await link.wait_end() == grpc.StatusCode.OK
        assert answer.end.error in ("engine_died", "")  # the latter if it was quicker


async def test_message_over_the_limit_ends_the_link(serve: Serve) -> None:
    shim = await serve(adapter=Naughty(), limits={"max_message_bytes": 1 << 20})
    async with raw_link(shim.spec.listen) as link:
        await link.write(pb.GatewayFrame(hello=pb.GatewayHello(version=1)).SerializeToString())
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await link.write(bytes(2 << 20))
        assert await end_of(link) == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_gateway_that_asks_and_never_reads_is_ended(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that hold no bytes count as well."""
    monkeypatch.setattr(link_module, "OPEN_CALLS", 4)
    shim = await serve(adapter=Naughty())
    async with LinkClient(shim.spec.listen) as link:
        await link.send(pb.GatewayFrame(submits=[pb.Submit(id=0, path="/fine") for _ in range(20)]))
        assert await link.wait_end() == grpc.StatusCode.RESOURCE_EXHAUSTED
