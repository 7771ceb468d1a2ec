"""The Link: one gRPC stream to one replica, with every request of this gateway process on it.

    submit() ─┐                                        ┌─▶ sink.on_start, on_chunk, on_end ... then flush, once a frame
    submit() ─┼▶ waiting ──one write in flight──▶ engine ──frames──▶ _deliver
    cancel() ─┘   its completion is the batching       └─▶ on_load

Invariants:
- a sink hears on_end or on_lost once, unless its request was cancelled; after a cancel it hears nothing
- a delivery that raises costs its own request only (the reader goes on, the engine is told to stop it)
- while the Link is down nothing can be submitted; when it goes down, every open request is lost and says so at once
- it comes back by itself, with back-off, until `close`

A body over LARGE_BODY_BYTES takes a call of its own (`Generate`), so that it does not hold up the others.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Any, Protocol

import grpc
import grpc.aio
import msgspec
from grpc.aio import EOF  # type: ignore[attr-defined]

from xinf._pb import engine_service_pb2 as pb
from xinf._pb import engine_service_pb2_grpc as pb_grpc
from xinf.core.errors import EngineDied, EngineError, XinfError
from xinf.gateway.asgi import RawHeaders

logger = logging.getLogger("xinf.gateway")

PROTOCOL = 1
LARGE_BODY_BYTES = 256 << 10
MAX_MESSAGE_BYTES = 40 << 20
FRAME_BYTES = 4 << 20  # a frame takes no further bodies beyond this, so that one burst does not make a 40 MiB message
BACKOFF_FIRST_S = 0.05
BACKOFF_LAST_S = 2.0
# Load is told once a second at least; an engine process that is silent this long is hung (a busy one may miss a few).
SILENCE_S = 30.0
HELLO_TIMEOUT_S = 10.0

# A call of its own failed in a way that another replica would not mend.
_NOT_RETRYABLE = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,
}


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One request on its way to an engine."""

    method: str
    path: str
    headers: RawHeaders
    body: bytes
    chain: bytes = b""
    timeout_ms: int = 0
    trace: str = ""
    request_id: str = ""


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine ended a request. `error` is empty when it ended well."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    message: str = ""
    is_retryable: bool = False
    queued_s: float = 0.0


class Sink(Protocol):
    """Where the frames of one request go. Called from the Link's reader; must not block."""

    def on_start(self, status: int, headers: RawHeaders) -> None: ...

    def on_chunk(self, data: bytes) -> None: ...

    def on_end(self, ending: Ending) -> None: ...

    def on_lost(self, error: XinfError, *, may_retry: bool) -> None:
        """The engine, or the way to it, is gone."""

    def flush(self) -> None:
        """All of this frame was handed over."""


class LinkListener(Protocol):
    """What the owner of a Link hears of it."""

    def on_link_up(self, link: Link) -> None: ...

    def on_link_down(self, link: Link) -> None: ...

    def on_load(self, link: Link, load: Any) -> None: ...


class Link:
    """A Link to one replica at one address."""

    def __init__(self, replica: str, address: str, *, gateway: str, listener: LinkListener) -> None:
        self.replica = replica
        self.address = address
        self.info: Any = None  # EngineInfo, while and after it was up
        self.is_up = False
        self._gateway = gateway
        self._listener = listener
        self._sinks: dict[int, Sink] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._last_id = 0
        self._submits: list[Any] = []
        self._cancels: list[int] = []
        self._wake = asyncio.Event()
        self._call: Any = None
        self._last_frame_s = 0.0
        self._is_closed = False
        self._task: asyncio.Task[None] | None = None

    @property
    def n_open(self) -> int:
        """Requests that have not ended."""
        return len(self._sinks)

    def start(self) -> None:
        """Connect, and stay connected."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"link {self.replica}")

    async def close(self, reason: str) -> None:
        """Disconnect for good; open requests are lost with `reason`."""
        self._is_closed = True
        self._go_down(EngineDied(f"replica {self.replica} is gone: {reason}", replica=self.replica))
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def submit(self, submission: Submission, sink: Sink) -> int:
        """Send a request; its frames go to `sink`. Returns its id on this Link.

        Raises: EngineDied if the Link is down.
        """
        if not self.is_up:
            raise EngineDied(f"replica {self.replica} cannot be reached", replica=self.replica)
        self._last_id += 1
        submit_id = self._last_id
        self._sinks[submit_id] = sink
        message = pb.Submit(
            id=submit_id,
            method=submission.method,
            path=submission.path,
            headers=[pb.Header(name=name, value=value) for name, value in submission.headers],
            body=submission.body,
            chain=submission.chain,
            timeout_ms=submission.timeout_ms,
            trace=submission.trace,
            request_id=submission.request_id,
        )
        if len(submission.body) > LARGE_BODY_BYTES:
            # The number is taken from the same count, so that `last_submit` in the load reports stays comparable.
            message.id = 0
            self._calls[submit_id] = asyncio.get_running_loop().create_task(self._generate(submit_id, message))
        else:
            self._submits.append(message)
            self._wake.set()
        return submit_id

    def cancel(self, submit_id: int) -> None:
        """Stop a request at the engine; its sink hears nothing more. Harmless when it has ended."""
        if self._sinks.pop(submit_id, None) is None:
            return
        if (task := self._calls.pop(submit_id, None)) is not None:
            task.cancel()
        elif self.is_up:
            self._cancels.append(submit_id)
            self._wake.set()

    def tick(self, now_s: float) -> None:
        """Give up a stream that has been silent for too long. `now_s`: monotonic."""
        if self.is_up and now_s - self._last_frame_s > SILENCE_S and self._call is not None:
            logger.warning("replica is silent, reconnecting", extra={"kv": {"replica": self.replica}})
            self._call.cancel()

    # ---- the stream --------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        options = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", int(BACKOFF_LAST_S * 1000)),
        ]
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            self._stub: Any = pb_grpc.EngineServiceStub(channel)
            backoff_s = BACKOFF_FIRST_S
            while not self._is_closed:
                was_up = await self._connect_once()
                backoff_s = BACKOFF_FIRST_S if was_up else min(backoff_s * 2, BACKOFF_LAST_S)
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))

    async def _connect_once(self) -> bool:
        """Run one stream to its end. Returns whether it ever was up."""
        call = self._call = self._stub.Link()
        writer: asyncio.Task[None] | None = None
        was_up = False
        reason = "the stream ended"
        try:
            await call.write(
                pb.GatewayFrame(hello=pb.GatewayHello(gateway=self._gateway, version=PROTOCOL, wants_residency=False))
            )
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                first = await call.read()
            if first is EOF or not first.HasField("hello"):
                return False
            self._go_up(first.hello)
            was_up = True
            writer = asyncio.get_running_loop().create_task(self._write(call))
            frame = first
            while frame is not EOF:
                self._last_frame_s = time.monotonic()
                self._deliver(frame)
                frame = await call.read()
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name.lower()}: {error.details()}"
        except TimeoutError:
            reason = f"no hello within {HELLO_TIMEOUT_S:.0f} s"
        except asyncio.InvalidStateError as error:
            reason = f"the stream broke: {error}"
        except asyncio.CancelledError:
            # The stream's own cancellation (`tick`) arrives here as well as ours.
            if self._is_closed:
                raise
            reason = "given up"
        finally:
            call.cancel()
            if writer is not None:
                writer.cancel()
            self._go_down(EngineDied(f"replica {self.replica} went away ({reason})", replica=self.replica))
        return was_up

    async def _write(self, call: Any) -> None:
        try:
            while True:
                if not self._submits and not self._cancels:
                    self._wake.clear()
                    await self._wake.wait()
                await call.write(self._next_frame())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            call.cancel()  # the reader learns of it and says why

    def _next_frame(self) -> Any:
        """Take what waits into one frame, bodies up to FRAME_BYTES."""
        n_bytes = 0
        count = 0
        for message in self._submits:
            if count and n_bytes + len(message.body) > FRAME_BYTES:
                break
            n_bytes += len(message.body)
            count += 1
        frame = pb.GatewayFrame(submits=self._submits[:count], cancels=self._cancels)
        del self._submits[:count]
        self._cancels.clear()
        return frame

    def _go_up(self, info: Any) -> None:
        if info.protocol != PROTOCOL:
            logger.error(
                "replica speaks another protocol",
                extra={"kv": {"replica": self.replica, "theirs": info.protocol, "ours": PROTOCOL}},
            )
            raise asyncio.InvalidStateError(f"protocol {info.protocol}, not {PROTOCOL}")
        self.info = info
        self.is_up = True
        self._last_frame_s = time.monotonic()
        logger.info("link is up", extra={"kv": {"replica": self.replica, "address": self.address}})
        self._listener.on_link_up(self)

    def _go_down(self, error: EngineDied) -> None:
        was_up, self.is_up = self.is_up, False
        self._submits.clear()
        self._cancels.clear()
        # The owner first: a request that moves must not be sent here again.
        if was_up:
            level = logging.INFO if self._is_closed else logging.WARNING
            logger.log(level, "link is down", extra={"kv": {"replica": self.replica, "reason": error.message}})
            self._listener.on_link_down(self)
        sinks, self._sinks = self._sinks, {}
        calls, self._calls = self._calls, {}
        for task in calls.values():
            task.cancel()
        for submit_id, sink in sinks.items():
            self._lose(submit_id, sink, error, may_retry=True)

    # ---- deliveries --------------------------------------------------------------------------------------------

    def _deliver(self, frame: Any) -> None:
        """Hand a frame over in one go, each delivery guarded."""
        sinks = self._sinks
        touched: dict[int, Sink] = {}
        for start in frame.starts:
            if (sink := sinks.get(start.id)) is not None:
                touched[start.id] = sink
                headers = [(header.name, header.value) for header in start.headers]
                self._guard(start.id, sink, sink.on_start, start.status, headers)
        for chunk in frame.chunks:
            if (sink := sinks.get(chunk.id)) is not None:
                touched[chunk.id] = sink
                self._guard(chunk.id, sink, sink.on_chunk, chunk.data)
        for end in frame.ends:
            if (sink := sinks.pop(end.id, None)) is not None:
                touched[end.id] = sink
                self._guard(end.id, sink, sink.on_end, _ending(end))
        for submit_id, sink in touched.items():
            self._guard(submit_id, sink, sink.flush)
        if frame.HasField("load"):
            self._listener.on_load(self, frame.load)

    def _guard(self, submit_id: int, sink: Sink, deliver: Callable[..., None], *args: Any) -> None:
        """Make one delivery. If it fails, end its request; the others must not notice."""
        try:
            deliver(*args)
        except Exception as error:
            logger.exception("delivery failed", extra={"kv": {"replica": self.replica, "submit": submit_id}})
            self.cancel(submit_id)
            self._lose(submit_id, sink, EngineError(f"the answer could not be handed over: {error}"), may_retry=False)

    def _lose(self, submit_id: int, sink: Sink, error: XinfError, *, may_retry: bool) -> None:
        try:
            sink.on_lost(error, may_retry=may_retry)
        except Exception:
            logger.exception("delivery failed", extra={"kv": {"replica": self.replica, "submit": submit_id}})

    async def _generate(self, submit_id: int, message: Any) -> None:
        """One request on a call of its own."""
        sink = self._sinks[submit_id]
        try:
            async for event in self._stub.Generate(message):
                if submit_id not in self._sinks:
                    return
                self._hand_over(submit_id, sink, event)
            if self._sinks.pop(submit_id, None) is not None:
                error = EngineDied(f"replica {self.replica} ended a call without an end", replica=self.replica)
                self._lose(submit_id, sink, error, may_retry=True)
        except grpc.aio.AioRpcError as failure:
            if self._sinks.pop(submit_id, None) is None:
                return
            code: grpc.StatusCode = failure.code()
            text = f"replica {self.replica}: {code.name.lower()}: {failure.details()}"
            if code in _NOT_RETRYABLE:
                self._lose(submit_id, sink, EngineError(text, replica=self.replica), may_retry=False)
            else:
                self._lose(submit_id, sink, EngineDied(text, replica=self.replica), may_retry=True)
        finally:
            self._calls.pop(submit_id, None)

    def _hand_over(self, submit_id: int, sink: Sink, event: Any) -> None:
        kind = event.WhichOneof("kind")
        if kind == "start":
            headers = [(header.name, header.value) for header in event.start.headers]
            self._guard(submit_id, sink, sink.on_start, event.start.status, headers)
        elif kind == "chunk":
            self._guard(submit_id, sink, sink.on_chunk, event.chunk)
        elif kind == "end":
            self._sinks.pop(submit_id, None)
            self._guard(submit_id, sink, sink.on_end, _ending(event.end))
        self._guard(submit_id, sink, sink.flush)


def _ending(end: Any) -> Ending:
    return Ending(
        prompt_tokens=end.prompt_tokens,
        cached_tokens=end.cached_tokens,
        completion_tokens=end.completion_tokens,
        error=end.error,
        message=end.message,
        is_retryable=end.retryable,
        queued_s=end.queued_s,
    )
