"""One request on its way through the shim: where the adapter puts the answer, and the outbox it leaves by.

    adapter ──start, chunk──▶ Call ──queued once──▶ Outbox ──drain──▶ frames of a Link, or events of a Generate
                                └── finish: exactly one End, whoever says it first; what comes after is ignored

Messages are built as they arrive, in the context of the request they belong to, so that a wrong value hurts that
request and not the writer that serves all of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from xinf._pb import engine_service_pb2 as pb
from xinf.core.errors import EngineDied, EngineError, Unavailable, XinfError
from xinf.engine.adapter import RawHeader, Usage, Work

_UINT32_MAX = 2**32 - 1


class Outbox:
    """Calls that have something to send, in order, with a bound on the bytes they hold."""

    def __init__(self, max_bytes: int, on_over: Callable[[], None]) -> None:
        self._max_bytes = max_bytes
        self._on_over = on_over
        self._calls: deque[Call] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_woken = False
        self.n_bytes = 0
        self.last_begun = 0  # the last call whose work has begun; they begin in the order of their submits

    def __len__(self) -> int:
        return len(self._calls)

    def queue(self, call: Call, n_bytes: int) -> None:
        """Note that `call` has something to send, `n_bytes` more of it."""
        self.n_bytes += n_bytes
        if self.n_bytes > self._max_bytes:
            self._on_over()
        if not call.is_queued:
            call.is_queued = True
            self._calls.append(call)
        self.wake()

    def first(self) -> Call | None:
        """The call that has waited longest."""
        return self._calls[0] if self._calls else None

    def taken(self, n_bytes: int) -> None:
        """Note that `n_bytes` of the first call left; with nothing left of it, it leaves the queue."""
        self.n_bytes -= n_bytes
        call = self._calls[0]
        if not call.has_something:
            call.is_queued = False
            self._calls.popleft()

    def wake(self) -> None:
        """Let `wait` return."""
        self._is_woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until `wake` has been called since the last return."""
        if not self._is_woken:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._is_woken = False


class Call:
    """One request. Implements the adapter's FinalReply."""

    __slots__ = (
        "_chunks",
        "_end",
        "_outbox",
        "_start",
        "has_started",
        "id",
        "is_finished",
        "is_queued",
        "n_sent_bytes",
        "on_over",
        "request_id",
        "timer",
        "work",
    )

    def __init__(self, call_id: int, request_id: str, outbox: Outbox) -> None:
        self.id = call_id
        self.request_id = request_id
        self.work: Work | None = None
        self.on_over: Callable[[Call, XinfError | None], None] | None = None  # told when work by callbacks is over
        self.timer: asyncio.TimerHandle | None = None
        self.is_queued = False
        self.is_finished = False
        self.has_started = False
        self.n_sent_bytes = 0  # of the answer's body, handed over for sending
        self._outbox = outbox
        self._start: pb.Start | None = None
        self._chunks: list[bytes] = []
        self._end: pb.End | None = None

    # ---- what the adapter says ------------------------------------------------------------------------------------

    def start(self, status: int, headers: Sequence[RawHeader]) -> None:
        if self.is_finished:
            return
        if self.has_started:
            raise RuntimeError(f"request {self.request_id or self.id} was started twice")
        start = pb.Start(id=self.id, status=status)
        for name, value in headers:
            start.headers.add(name=name, value=value)
        self._start = start
        self.has_started = True
        self._outbox.queue(self, 0)

    def chunk(self, data: bytes) -> None:
        if self.is_finished or not data:
            return
        if not self.has_started:
            raise RuntimeError(f"request {self.request_id or self.id} got a chunk before its start")
        if type(data) is not bytes:
            data = bytes(data)
        self._chunks.append(data)
        self.n_sent_bytes += len(data)
        self._outbox.queue(self, len(data))

    def done(self, usage: Usage) -> None:
        """End well, or badly if there was no answer."""
        if self.has_started:
            self.finish(usage)
        else:
            self.fail(EngineError("the engine gave no answer"))
        self._over(None)

    def failed(self, error: XinfError) -> None:
        self.fail(error)
        self._over(error)

    # ---- what the shim says ---------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The adapter has it now, and counts it in its load."""
        self._outbox.last_begun = self.id

    def finish(self, usage: Usage) -> None:
        """End well."""
        self._finish(
            pb.End(
                id=self.id,
                prompt_tokens=_uint32(usage.prompt_tokens),
                cached_tokens=_uint32(usage.cached_tokens),
                completion_tokens=_uint32(usage.completion_tokens),
                queued_s=usage.queued_s,
            )
        )

    def fail(self, error: XinfError) -> None:
        """End badly. Another replica may take the request if this one is going away and sent nothing of the answer."""
        is_retryable = isinstance(error, EngineDied | Unavailable) and not self.n_sent_bytes
        self._finish(pb.End(id=self.id, error=error.code, message=str(error), retryable=is_retryable))

    def abandon(self) -> None:
        """Nobody wants the answer any more: send nothing further, stop the work."""
        self.is_finished = True
        self._outbox.n_bytes -= sum(map(len, self._chunks))
        self._start = None
        self._chunks = []
        self._end = None
        self.stop()

    def stop(self) -> None:
        """Stop the work."""
        if self.timer is not None:
            self.timer.cancel()
        if self.work is not None:
            self.work.cancel()
        self._over(None)

    def _over(self, error: XinfError | None) -> None:
        on_over, self.on_over = self.on_over, None
        if on_over is not None:
            on_over(self, error)

    def _finish(self, end: pb.End) -> None:
        if not self.is_finished:
            self.is_finished = True
            self._end = end
            self._outbox.queue(self, 0)

    # ---- what the writer takes ------------------------------------------------------------------------------------

    @property
    def has_something(self) -> bool:
        """Whether anything waits to be sent."""
        return self._start is not None or bool(self._chunks) or self._end is not None

    def take_start(self) -> pb.Start | None:
        start, self._start = self._start, None
        return start

    def take_data(self, room_bytes: int) -> bytes:
        """Take what was said since the last time, joined, at most `room_bytes` of it."""
        chunks = self._chunks
        if not chunks:
            return b""
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if len(data) <= room_bytes:
            self._chunks = []
            return data
        self._chunks = [data[room_bytes:]]
        return data[:room_bytes]

    def take_end(self) -> pb.End | None:
        """Take the end, once everything before it is taken."""
        if self._chunks:
            return None
        end, self._end = self._end, None
        return end


def _uint32(value: int) -> int:
    return min(max(value, 0), _UINT32_MAX)
