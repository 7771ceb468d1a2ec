"""A small client of a shim for tests: starts one, opens a Link to it, collects what comes back per request.

spec = shim_spec(directory, step_ms=5)
with running_shim(spec) as shim:                        # guard and shim, real processes
    await shim.wait_phase(Phase.READY)
    async with LinkClient(spec.listen) as link:
        answer = await link.ask("POST", "/v1/completions", {"model": "sim", "prompt": "x", "max_tokens": 3})
        assert answer.status == 200 and answer.json()["usage"]["completion_tokens"] == 3
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio

from xinf._fast.scan import TOOLS_FIRST, scan
from xinf._pb import engine_service_pb2 as pb
from xinf._pb import engine_service_pb2_grpc as pb_grpc
from xinf.core.ids import ReplicaId
from xinf.core.records import EngineSpec, Phase
from xinf.core.shim import ShimExit, ShimSpec, ShimStatus, read_file, write_file

CHECKOUT = Path(__file__).resolve().parents[2]
DEADLINE_S = 30.0  # of every wait here: generous, a test that needs it has failed


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition` is truthy and give its value; fail after DEADLINE_S."""
    end_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < end_s:
        if value := condition():
            return value
        await asyncio.sleep(0.005)
    raise AssertionError(f"{what} did not happen within {DEADLINE_S:.0f} s")


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def shim_spec(
    directory: Path,
    *,
    model: str = "sim",
    max_model_len: int | None = None,
    limits: dict[str, float] | None = None,
    listen: str = "",
    **engine_args: Any,
) -> ShimSpec:
    """A spec of a sim engine listening in `directory`. `limits`: fields of ShimSpec (watchdog_timeout_s, ...)."""
    engine = EngineSpec(model=model, engine="sim", max_model_len=max_model_len, engine_args=engine_args)
    return ShimSpec(
        replica=ReplicaId("r-1"),
        start_id="s-1",
        engine=engine,
        devices=("cpu",),
        listen=listen or f"unix:{directory}/e.sock",
        directory=str(directory),
        **(limits or {}),
    )


class RunningShim:
    """A guard and its shim."""

    def __init__(self, spec: ShimSpec, process: subprocess.Popen[bytes]) -> None:
        self.spec = spec
        self.process = process

    @property
    def status(self) -> ShimStatus | None:
        return read_file(self.spec.status_path, ShimStatus)

    @property
    def exit(self) -> ShimExit | None:
        return read_file(self.spec.exit_path, ShimExit)

    @property
    def log(self) -> str:
        return (Path(self.spec.directory) / "engine.log").read_text()

    async def wait_phase(self, phase: Phase) -> ShimStatus:
        """Wait for a phase; fails at once when the start failed instead."""

        def reached() -> ShimStatus | None:
            status = self.status
            assert phase is Phase.FAILED or status is None or status.failure is None, status
            assert phase is Phase.FAILED or self.process.poll() is None, self.log
            return status if status is not None and status.phase is phase else None

        found: ShimStatus = await until(reached, f"phase {phase.value}")
        return found

    async def wait_exit(self) -> int:
        """Wait for the guard to end; gives its exit status."""
        await until(lambda: self.process.poll() is not None, "the end of the guard")
        return int(self.process.returncode)


@contextlib.contextmanager
def running_shim(spec: ShimSpec, *, module: str = "xinf.engine.guard") -> Iterator[RunningShim]:
    """Start a guard the way the agent does; whatever is left at the end is killed."""
    directory = Path(spec.directory)
    write_file(directory / "spec.json", spec)
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with (directory / "engine.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(directory / "spec.json")],
            cwd=directory,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    shim = RunningShim(spec, process)
    try:
        yield shim
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait(DEADLINE_S)


class Answer:
    """What came back for one request so far."""

    def __init__(self, call_id: int) -> None:
        self.id = call_id
        self.status: int | None = None
        self.headers: dict[bytes, bytes] = {}
        self.chunks: list[bytes] = []
        self.ends: list[pb.End] = []

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def end(self) -> pb.End:
        assert len(self.ends) == 1, f"request {self.id} ended {len(self.ends)} times"
        return self.ends[0]

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The events of a stream, without the [DONE] that must end it."""
        lines = [line for line in self.body.decode().split("\n\n") if line]
        assert lines[-1] == "data: [DONE]", lines[-1:]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


class LinkClient:
    """One Link, as a third party opens it with gRPC's own client."""

    # (("xinf-dedicated", "1"),): served on the shim's event loop, as a gateway's; nothing else may use the channel.
    metadata: tuple[tuple[str, str], ...] = ()

    def __init__(
        self, target: str, *, gateway: str = "test/1/0", version: int = 1, wants_residency: bool = False
    ) -> None:
        self.answers: dict[int, Answer] = {}
        self.loads: list[pb.Load] = []
        self.held: dict[int, int] = {}  # chunk -> tokens, as residency messages say
        self.residency_state = ""
        self.n_residencies = 0
        self.frames: list[pb.EngineFrame] = []
        self.followings: list[pb.Following] = []
        self.info: pb.EngineInfo | None = None
        self.next_id = 1
        self._changed = asyncio.Event()
        self._hello = pb.GatewayHello(gateway=gateway, version=version, wants_residency=wants_residency)
        self.channel = grpc.aio.insecure_channel(
            target,
            options=[
                ("grpc.max_receive_message_length", 40 << 20),
                ("grpc.max_send_message_length", 40 << 20),
                ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
            ],
        )
        self.stub = pb_grpc.EngineServiceStub(self.channel)
        self.call: Any = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> LinkClient:
        self.call = self.stub.Link(metadata=self.metadata)
        await self.call.write(pb.GatewayFrame(hello=self._hello))
        self._reader = asyncio.create_task(self._read())
        await self.wait(lambda: self.info is not None, "the hello of the engine")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self.channel.close()

    async def submit(self, method: str, path: str, body: Any = b"", **fields: Any) -> Answer:
        """Send one request; `body` is bytes or becomes JSON. Gives its answer, still growing."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        submit = pb.Submit(id=fields.pop("id", self.next_id), method=method, path=path, body=data, **fields)
        self.next_id = max(self.next_id, submit.id) + 1
        answer = self.answers.setdefault(submit.id, Answer(submit.id))
        await self.send(pb.GatewayFrame(submits=[submit]))
        return answer

    async def ask(self, method: str, path: str, body: Any = b"", **fields: Any) -> Answer:
        """Send one request and wait for its end."""
        answer = await self.submit(method, path, body, **fields)
        await self.wait(lambda: answer.ends, f"the end of request {answer.id}")
        return answer

    async def cancel(self, *ids: int) -> None:
        await self.send(pb.GatewayFrame(cancels=ids))

    async def send(self, frame: pb.GatewayFrame) -> None:
        await self.call.write(frame)

    async def wait(self, condition: Callable[[], Any], what: str) -> None:
        """Wait until a frame makes `condition` true; fails when the Link ends first."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                if self._reader is not None and self._reader.done():
                    error = self._reader.exception()
                    raise AssertionError(f"the Link ended before {what}: {error}") from error
                self._changed.clear()
                waiting = asyncio.ensure_future(self._changed.wait())
                tasks = {waiting, self._reader} if self._reader is not None else {waiting}
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()

    async def wait_load(self, condition: Callable[[pb.Load], bool], what: str) -> pb.Load:
        """Wait until the newest load report fulfils `condition`."""
        await self.wait(lambda: self.loads and condition(self.loads[-1]), what)
        return self.loads[-1]

    async def wait_end(self) -> grpc.StatusCode:
        """Wait until the engine ends the Link; gives the status it ended with."""
        async with asyncio.timeout(DEADLINE_S):
            if self._reader is not None:
                await asyncio.gather(self._reader, return_exceptions=True)
            code: grpc.StatusCode = await self.call.code()
            return code

    async def _read(self) -> None:
        while True:
            frame = await self.call.read()
            if frame is grpc.aio.EOF:
                return
            self._take(frame)
            self._changed.set()

    def _take(self, frame: pb.EngineFrame) -> None:
        self.frames.append(frame)
        if frame.HasField("hello"):
            self.info = frame.hello
        if frame.HasField("following"):
            self.followings.append(frame.following)
        for start in frame.starts:
            answer = self.answers.setdefault(start.id, Answer(start.id))
            assert answer.status is None, f"request {start.id} started twice"
            answer.status = start.status
            answer.headers = {header.name: header.value for header in start.headers}
        for chunk in frame.chunks:
            self.answers[chunk.id].chunks.append(chunk.data)
        for end in frame.ends:
            self.answers.setdefault(end.id, Answer(end.id)).ends.append(end)
        if frame.HasField("load"):
            self.loads.append(frame.load)
        if frame.HasField("residency"):
            self._take_residency(frame.residency)

    def _take_residency(self, residency: pb.Residency) -> None:
        self.n_residencies += 1
        assert residency.sequence == self.n_residencies
        if residency.cleared:
            self.held.clear()
        self.held.update(zip(residency.added, residency.tokens, strict=True))
        for chunk in residency.removed:
            del self.held[chunk]
        self.residency_state = residency.state or self.residency_state

    def promised(self, body: bytes, seed: int) -> int:
        """Tokens of a prompt that the engine says it holds: up to the furthest chunk that it named."""
        assert self.info is not None
        chain = scan(body).chain(seed, TOOLS_FIRST, self.info.chunk_bytes)
        return max((self.held.get(chunk, 0) for (chunk,) in struct.iter_unpack("<Q", chain)), default=0)


async def generate(stub: pb_grpc.EngineServiceStub, submit: pb.Submit) -> Answer:
    """Send one request through Generate and collect its answer."""
    answer = Answer(0)
    events: AsyncIterator[pb.GenerateEvent] = stub.Generate(submit)
    async for event in events:
        if event.HasField("start"):
            answer.status = event.start.status
        elif event.HasField("chunk"):
            answer.chunks.append(event.chunk)
        else:
            answer.ends.append(event.end)
    return answer
