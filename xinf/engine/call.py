"""One request on its way through the shim: where the adapter puts the answer, and the outbox it leaves by.

    adapter ──start, chunk──▶ Call ──queued once──▶ Outbox ──put──▶ frames of a Link, or events of a Generate
                                └── finish: exactly one End, whoever says it first; what comes after is ignored

Values are checked and headers encoded as they arrive, in the context of the request they belong to, so that a wrong one
hurts that request and not the writer that serves all of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from xinf._fast.framewriter import encode_headers
from xinf.core.errors import EngineDied, EngineError, Unavailable, XinfError
from xinf.engine.adapter import RawHeader, Usage, Work

_UINT32_MAX = 2**32 - 1
_MESSAGE_BYTES = 64  # about what a start or an end takes of a frame


class MessageWriter(Protocol):
    """What the messages of an answer are put into: the writer of a Link's frames, or of a Generate's events."""

    def start(self, id: int, status: int, headers_block: bytes) -> None: ...  # noqa: A002

    def chunk(self, id: int, data: bytes) -> None: ...  # noqa: A002

    def end(
        self,
        id: int,  # noqa: A002
        prompt: int,
        cached: int,
        completion: int,
        error: str,
        message: str,
        retryable: bool,
        queued_s: float,
    ) -> None: ...


class End(NamedTuple):
    """How an answer ended, as it goes on the wire."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    error: str
    message: str
    is_retryable: bool
    queued_s: float


class Outbox:
    """Calls that have something to send, in order, with a bound on the bytes they hold."""

    def __init__(self, max_bytes: int, *, on_over: Callable[[], None], wake: Callable[[], None]) -> None:
        self.max_bytes = max_bytes
        self.on_over = on_over  # called when the calls hold more
        self.wake = wake  # called when a call has something to send
        self._calls: deque[Call] = deque()
        self.n_bytes = 0  # held by all calls
        self.last_begun = 0  # the last call whose work has begun; they begin in the order of their submits

    def __len__(self) -> int:
        return len(self._calls)

    def queue(self, call: Call) -> None:
        """Note that `call` has something to send, which it had not."""
        call.is_queued = True
        self._calls.append(call)
        self.wake()

    def put(self, writer: MessageWriter, room_bytes: int, on_ended: Callable[[int], None]) -> bool:
        """Put what waits into `writer`, about `room_bytes` of it. False when nothing waits.

        `on_ended` is told the id of each call whose end is put.
        """
        calls = self._calls
        if not calls:
            return False
        while calls and room_bytes > 0:
            call = calls[0]
            n_bytes = call.put(writer, room_bytes)
            self.n_bytes -= n_bytes
            room_bytes -= n_bytes + _MESSAGE_BYTES
            if call.has_data:
                continue
            call.is_queued = False
            calls.popleft()
            if call.is_finished:
                on_ended(call.id)
        return True


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
        self._start: tuple[int, bytes] | None = None  # status, headers as they go on the wire
        self._chunks: list[bytes] = []
        self._end: End | None = None

    # ---- what the adapter says ------------------------------------------------------------------------------------

    def start(self, status: int, headers: Sequence[RawHeader]) -> None:
        if self.is_finished:
            return
        if self.has_started:
            raise RuntimeError(f"request {self.request_id or self.id} was started twice")
        if not 0 <= status <= _UINT32_MAX:
            raise ValueError(f"status is {status}")
        self._start = (int(status), encode_headers(list(headers)))
        self.has_started = True
        if not self.is_queued:
            self._outbox.queue(self)

    def chunk(self, data: bytes) -> None:
        if self.is_finished or not data:
            return
        if not self.has_started:
            raise RuntimeError(f"request {self.request_id or self.id} got a chunk before its start")
        if type(data) is not bytes:
            data = bytes(data)
        self._chunks.append(data)
        n_bytes = len(data)
        self.n_sent_bytes += n_bytes
        outbox = self._outbox
        if not self.is_queued:
            outbox.queue(self)
        outbox.n_bytes += n_bytes
        if outbox.n_bytes > outbox.max_bytes:
            outbox.on_over()

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
            End(
                _uint32(usage.prompt_tokens),
                _uint32(usage.cached_tokens),
                _uint32(usage.completion_tokens),
                "",
                "",
                False,
                float(usage.queued_s),
            )
        )

    def fail(self, error: XinfError) -> None:
        """End badly. Another replica may take the request if this one is going away and sent nothing of the answer."""
        is_retryable = isinstance(error, EngineDied | Unavailable) and not self.n_sent_bytes
        # A message may quote what a client sent, lone surrogates too.
        message = str(error).encode("utf-8", "replace").decode()
        self._finish(End(0, 0, 0, error.code, message, is_retryable, 0.0))

    def abandon(self) -> None:
        """Nobody wants the answer any more: send nothing further, stop the work."""
        self.is_finished = True
        if self._chunks:
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

    def _finish(self, end: End) -> None:
        if not self.is_finished:
            self.is_finished = True
            self._end = end
            if not self.is_queued:
                self._outbox.queue(self)

    # ---- what the writer takes ------------------------------------------------------------------------------------

    @property
    def has_data(self) -> bool:
        """Whether bytes of the answer, and what follows them, still wait to be sent."""
        return bool(self._chunks)

    def put(self, writer: MessageWriter, room_bytes: int) -> int:
        """Put what waits into `writer`, at most `room_bytes` of the answer. Returns how many bytes of it were put.

        What was said since the last time becomes one chunk; the end follows once everything before it is put.
        """
        if self._start is not None:
            writer.start(self.id, *self._start)
            self._start = None
        chunks = self._chunks
        n_bytes = 0
        if chunks:
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            n_bytes = len(data)
            if n_bytes > room_bytes:
                self._chunks = [data[room_bytes:]]
                writer.chunk(self.id, data[:room_bytes])
                return room_bytes
            self._chunks = []
            writer.chunk(self.id, data)
        if self._end is not None:
            writer.end(self.id, *self._end)
            self._end = None
        return n_bytes


def _uint32(value: int) -> int:
    return min(max(value, 0), _UINT32_MAX)
