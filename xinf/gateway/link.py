"""The Link: one gRPC stream to one replica, with every request of this gateway process on it.

    submit() ─┐                                             ┌─▶ sink.on_start, on_chunk, on_end, then flush once
    submit() ─┼▶ frames ──take, one at a time──▶ engine ──frame─▶ on_message
    cancel() ─┘   paced by what the engine sends            └─▶ on_residency, on_load, on_info

The stream is HTTP/2 on this event loop (`xinf.link`): gRPC's own client hands everything between threads.

Invariants:
- a sink hears on_end or on_lost once, unless its request was cancelled; after a cancel it hears nothing
- a delivery that raises costs its own request only (the reader goes on, the engine is told to stop it)
- the listener hears of residency in order and without gaps, from a snapshot on: what breaks that is dropped up to the
  next snapshot, which is asked for. No request notices
- while the Link is down nothing can be submitted; when it goes down, every open request is lost and says so at once
- it comes back by itself, with back-off, until `close`

A body over LARGE_BODY_BYTES takes a call of its own (`Generate`), so that it does not hold up the others.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Any, Protocol

import grpc
import grpc.aio
import msgspec
from google.protobuf.message import DecodeError

from xinf._fast.frame import EngineFrame, WireError, decode_engine_frame, decode_generate_event
from xinf._fast.framewriter import GatewayFrameWriter, encode_submit
from xinf._pb import engine_service_pb2 as pb
from xinf.core.errors import EngineDied, EngineError, XinfError
from xinf.gateway.client import RawHeaders
from xinf.link import ClientStream, open_stream
from xinf.router import LoadView, ResidencyUpdate

logger = logging.getLogger("xinf.gateway")

PROTOCOL = 1
METHODS = "/xinf.engine.v1.EngineService/"
LARGE_BODY_BYTES = 256 << 10
MAX_MESSAGE_BYTES = 40 << 20
FRAME_BYTES = 4 << 20  # a frame takes no further bodies beyond this, so that one burst does not make a 40 MiB message
BACKOFF_FIRST_S = 0.05
BACKOFF_LAST_S = 2.0
# Load is told once a second at least; an engine process that is silent this long is hung (a busy one may miss a few).
SILENCE_S = 30.0
HELLO_TIMEOUT_S = 10.0
# A snapshot is asked for that seldom, so that an engine that counts wrong does not send nothing else.
RESYNC_INTERVAL_S = 1.0

# What the residency of the open stream stands on.
_NO_SNAPSHOT, _AWAITED, _KNOWN = range(3)

# A call of its own failed in a way that another replica would not mend.
_NOT_RETRYABLE = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,
}


class Submission(Protocol):
    """One request on its way to an engine; a job."""

    head: bytes  # method, path and headers: `wire.encode_head`
    body: bytes
    timeout_ms: int
    trace: str
    request_id: str


class Ending(msgspec.Struct, frozen=True, gc=False):
    """How the engine ended a request. `error` is empty when it ended well. In the order of the wire."""

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

    def on_info(self, link: Link) -> None:
        """The engine said anew what it is."""

    def on_load(self, link: Link, load: LoadView) -> None: ...

    def on_residency(self, link: Link, update: ResidencyUpdate) -> None: ...


class _Refused(Exception):
    """The engine is not one that we can talk to."""


class Link:
    """A Link to one replica at one address. `wants_residency`: the engine is asked to say what it holds."""

    def __init__(
        self, replica: str, address: str, *, gateway: str, listener: LinkListener, wants_residency: bool = True
    ) -> None:
        self.replica = replica
        self.address = address
        self.info: Any = None  # EngineInfo, while and after it was up
        self.following: Any = None  # Following: how the engine's events are followed, as it said last
        self.is_up = False
        self.n_resyncs = 0  # snapshots asked for because something was missing or wrong
        self._wants_residency = wants_residency
        self._base = _NO_SNAPSHOT
        self._next_sequence = 1
        self._is_resync_due = False  # but not yet
        self._resynced_s = -RESYNC_INTERVAL_S
        self._gateway = gateway
        self._listener = listener
        self._sinks: dict[int, Sink] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._last_id = 0
        self._frames = GatewayFrameWriter()  # what waits to be written
        self._stream: ClientStream | None = None
        self._over: asyncio.Future[str] | None = None  # why the stream that is open ended
        self._was_up = False  # the stream that is open
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
        submit_id = self._last_id = self._last_id + 1
        self._sinks[submit_id] = sink
        body = submission.body
        if len(body) > LARGE_BODY_BYTES:
            # The number is taken from the same count, so that `last_submit` in the load reports stays comparable.
            message = encode_submit(
                0, submission.head, body, 0, submission.timeout_ms, submission.trace, submission.request_id
            )
            self._calls[submit_id] = asyncio.get_running_loop().create_task(self._generate(submit_id, message))
        else:
            self._frames.submit(
                submit_id,
                submission.head,
                body,
                0,
                submission.timeout_ms,
                submission.trace,
                submission.request_id,
            )
            self._wake()
        return submit_id

    def cancel(self, submit_id: int) -> None:
        """Stop a request at the engine; its sink hears nothing more. Harmless when it has ended."""
        if self._sinks.pop(submit_id, None) is None:
            return
        if (task := self._calls.pop(submit_id, None)) is not None:
            task.cancel()
        elif self.is_up:
            self._frames.cancel(submit_id)
            self._wake()

    def tick(self, now_s: float) -> None:
        """Give up a stream that has been silent for too long. `now_s`: monotonic."""
        if self.is_up and now_s - self._last_frame_s > SILENCE_S:
            logger.warning("replica is silent, reconnecting", extra={"kv": {"replica": self.replica}})
            self._give_up_stream(f"nothing came for {SILENCE_S:.0f} s")
        elif self._is_resync_due:
            self.resync(now_s)

    def _wake(self) -> None:
        if self._stream is not None:
            self._stream.wake()

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
        # For `Generate`; it connects when there is a first one.
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            # Bytes in and out: the codec is ours, and knows nothing that it need not.
            self._open_call: Any = channel.unary_stream(METHODS + "Generate", None, None)
            backoff_s = BACKOFF_FIRST_S
            while not self._is_closed:
                was_up = await self._connect_once()
                backoff_s = BACKOFF_FIRST_S if was_up else min(backoff_s * 2, BACKOFF_LAST_S)
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))

    async def _connect_once(self) -> bool:
        """Run one stream to its end. Returns whether it ever was up."""
        loop = asyncio.get_running_loop()
        over = self._over = loop.create_future()
        self._was_up = False
        self._frames.clear()
        self._frames.hello(self._gateway, PROTOCOL, self._wants_residency)
        self._base = _NO_SNAPSHOT
        self._is_resync_due = False
        self._next_sequence = 1
        timer = loop.call_later(HELLO_TIMEOUT_S, self._expect_hello)
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                self._stream = await open_stream(
                    self.address, METHODS + "Link", self, max_message_bytes=MAX_MESSAGE_BYTES
                )
            self._stream.wake()
            reason = await over
        except TimeoutError:
            reason = f"no connection within {HELLO_TIMEOUT_S:.0f} s"
        except OSError as error:
            reason = f"unavailable: {error}"
        finally:
            timer.cancel()
            if self._stream is not None:
                self._stream.close()
                self._stream = None
            self._over = None
        self._go_down(self._died(reason))
        return self._was_up

    def take(self) -> bytes:
        """The stream asks for the next frame; bodies up to FRAME_BYTES go into one."""
        frame = self._frames.take(FRAME_BYTES)
        if len(self._frames):
            self._wake()
        return frame

    def is_worthwhile(self) -> bool:
        """The stream asks whether to send while the engine is busy: with as many requests as it still has, yes."""
        n_waiting = len(self._frames)
        return 2 * n_waiting >= len(self._sinks)

    def on_message(self, data: bytes) -> None:
        """The stream brought a frame."""
        self._last_frame_s = time.monotonic()
        try:
            frame = decode_engine_frame(data)
            if not self.is_up:
                self._greet(frame)
            elif frame.hello is not None:
                self._hear_again(frame.hello)
            if frame.following is not None:
                self.following = pb.Following.FromString(frame.following)
        except (WireError, DecodeError, _Refused) as error:
            logger.error("replica cannot be talked to", extra={"kv": {"replica": self.replica, "reason": str(error)}})
            self._give_up_stream(f"the stream broke: {error}")
            return
        self._deliver(frame)

    def on_lost(self, reason: str) -> None:
        """The stream is over. What was open is told at once, before anybody can submit again."""
        self._go_down(self._died(reason))
        if self._over is not None and not self._over.done():
            self._over.set_result(reason)

    def _give_up_stream(self, reason: str) -> None:
        if self._stream is not None:
            self._stream.close()
        self.on_lost(reason)

    def _expect_hello(self) -> None:
        if not self._was_up:
            self._give_up_stream(f"no hello within {HELLO_TIMEOUT_S:.0f} s")

    def _greet(self, frame: EngineFrame) -> None:
        """The first frame of a stream. Raises: _Refused, DecodeError."""
        if frame.hello is None:
            raise _Refused("the first frame has no hello")
        self._go_up(_info_of(frame.hello))

    def _hear_again(self, hello: bytes) -> None:
        """Something of what the engine is has changed. Raises: _Refused, DecodeError."""
        self.info = _info_of(hello)
        self._listener.on_info(self)

    def _died(self, reason: str) -> EngineDied:
        return EngineDied(f"replica {self.replica} went away ({reason})", replica=self.replica)

    def _go_up(self, info: Any) -> None:
        self.info = info
        self.is_up = self._was_up = True
        self._last_frame_s = time.monotonic()
        logger.info("link is up", extra={"kv": {"replica": self.replica, "address": self.address}})
        self._listener.on_link_up(self)

    def _go_down(self, error: EngineDied) -> None:
        was_up, self.is_up = self.is_up, False
        self._frames.clear()
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

    def _deliver(self, frame: EngineFrame) -> None:
        """Hand a frame over in one go, each delivery guarded."""
        sinks = self._sinks
        touched: dict[int, Sink] = {}
        for submit_id, status, headers in frame.starts:
            if (sink := sinks.get(submit_id)) is not None:
                touched[submit_id] = sink
                try:
                    sink.on_start(status, headers)
                except Exception as error:
                    self._give_up(submit_id, sink, error)
        for submit_id, data in frame.chunks:
            if (sink := sinks.get(submit_id)) is not None:
                touched[submit_id] = sink
                try:
                    sink.on_chunk(data)
                except Exception as error:
                    self._give_up(submit_id, sink, error)
        # Before the ends: one that makes room for another request lets it be routed at once.
        if frame.residency is not None:
            self._hear_residency(frame.residency)
        for end in frame.ends:
            submit_id = end[0]
            if (sink := sinks.pop(submit_id, None)) is not None:
                touched[submit_id] = sink
                try:
                    sink.on_end(Ending(*end[1:]))
                except Exception as error:
                    self._give_up(submit_id, sink, error)
        for submit_id, sink in touched.items():
            try:
                sink.flush()
            except Exception as error:
                self._give_up(submit_id, sink, error)
        if frame.load is not None:
            self._listener.on_load(self, LoadView(*frame.load))

    # ---- residency ---------------------------------------------------------------------------------------------

    def resync(self, now_s: float) -> None:
        """Ask for the residency from its start, now or when the last time is long enough ago. `now_s`: monotonic."""
        self._base = _AWAITED
        self._is_resync_due = now_s - self._resynced_s < RESYNC_INTERVAL_S
        if self._is_resync_due or not self.is_up:
            return
        self._resynced_s = now_s
        self.n_resyncs += 1
        self._frames.resync()
        self._wake()

    def _hear_residency(self, message: tuple[int, bool, bytes, bytes, bytes, str, bool]) -> None:
        """Hand residency on, if nothing is missing before it. Whatever it is, requests go on."""
        sequence, cleared, added, tokens, removed, state, is_partial = message
        is_next = sequence == self._next_sequence
        self._next_sequence = sequence + 1
        if not self._wants_residency:
            return
        if not cleared and self._base == _AWAITED:
            return  # older than what was asked for
        if not cleared and (self._base == _NO_SNAPSHOT or not is_next):
            self._distrust(f"message {sequence} has no snapshot or not all of the others before it")
        elif 2 * len(tokens) != len(added):
            self._distrust(f"{len(added) // 8} chunks have {len(tokens) // 4} positions")
        else:
            self._base = _KNOWN
            self._is_resync_due = False
            try:
                update = ResidencyUpdate(cleared, added, tokens, removed, state, is_partial)
                self._listener.on_residency(self, update)
            except Exception as error:
                logger.error("residency not taken in", extra={"kv": {"replica": self.replica}}, exc_info=error)
                self._distrust(f"it could not be taken in: {error}")

    def _distrust(self, reason: str) -> None:
        logger.info("residency is asked for anew", extra={"kv": {"replica": self.replica, "reason": reason}})
        self.resync(time.monotonic())

    # ---- endings -----------------------------------------------------------------------------------------------

    def _give_up(self, submit_id: int, sink: Sink, error: Exception) -> None:
        """A delivery failed: end its request; the others must not notice."""
        logger.error("delivery failed", extra={"kv": {"replica": self.replica, "submit": submit_id}}, exc_info=error)
        self.cancel(submit_id)
        self._lose(submit_id, sink, EngineError(f"the answer could not be handed over: {error}"), may_retry=False)

    def _lose(self, submit_id: int, sink: Sink, error: XinfError, *, may_retry: bool) -> None:
        try:
            sink.on_lost(error, may_retry=may_retry)
        except Exception:
            logger.exception("delivery failed", extra={"kv": {"replica": self.replica, "submit": submit_id}})

    async def _generate(self, submit_id: int, message: bytes) -> None:
        """One request on a call of its own."""
        sink = self._sinks[submit_id]
        try:
            async for data in self._open_call(message):
                if submit_id not in self._sinks:
                    return
                self._hand_over(submit_id, sink, decode_generate_event(data))
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
        except WireError as failure:
            if self._sinks.pop(submit_id, None) is not None:
                text = f"replica {self.replica} sent what is no event: {failure}"
                self._lose(submit_id, sink, EngineError(text, replica=self.replica), may_retry=False)
        finally:
            self._calls.pop(submit_id, None)

    def _hand_over(self, submit_id: int, sink: Sink, event: EngineFrame) -> None:
        """One event of a call of its own; its id is not of the Link's."""
        try:
            for _, status, headers in event.starts:
                sink.on_start(status, headers)
            for _, data in event.chunks:
                sink.on_chunk(data)
            for end in event.ends:
                self._sinks.pop(submit_id, None)
                sink.on_end(Ending(*end[1:]))
            sink.flush()
        except Exception as error:
            self._give_up(submit_id, sink, error)


def _info_of(hello: bytes) -> Any:
    """EngineInfo, of an engine that we can talk to. Raises: _Refused, DecodeError."""
    info = pb.EngineInfo.FromString(hello)
    if info.protocol != PROTOCOL:
        raise _Refused(f"the engine speaks protocol {info.protocol}, not {PROTOCOL}")
    return info
