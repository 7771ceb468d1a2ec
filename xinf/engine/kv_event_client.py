"""The shim's client of an engine's KV events: every batch once and in order, or a word that some are lost.

    engine: PUB    ══ topic, sequence, payload ══▶ SUB     ─▶ EventOrder ─▶ decode ─▶ on_batch
            ROUTER ◀═ "", first sequence ═════════ DEALER                       └───▶ on_reset: residency is unknown
                   ══ "", [topic], sequence, payload, ... sequence -1 ═▶

PUB drops what a slow or late subscriber does not take. A gap in the sequence is filled from the engine's replay
buffer; where that does not reach, or does not answer, `on_reset` is called and the stream goes on behind the gap:
whoever listens forgets all blocks and learns anew, so that it may know of too few of them, never of one that is gone.

What was lost last shows in no gap: a publisher that went and came back, a subscription that arrived just too late. So
when nothing has come for a while the client asks whether there is more.

The engine answers a replay between two batches, or within 0.1 s when it is idle. Its ROUTER silently drops what exceeds
its send queue (1000 messages), also in the middle: then the client asks again from the hole.

pyzmq comes with vLLM; it is imported in `start` and not before. One client serves one engine, or one rank of several.
Source: vLLM 0.32, distributed/kv_events.py, ZmqEventPublisher; before 0.32 replies carry no topic.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

import msgspec

from xinf.core.clock import Clock, SystemClock
from xinf.engine.kv_event_order import EventOrder, Place
from xinf.engine.kv_events import KvBatch, KvEventError, decode

if TYPE_CHECKING:
    import zmq.asyncio

_log = logging.getLogger(__name__)

# What waits in the socket while a replay runs or the loop is busy; a batch has about 1.5 kB. What exceeds it is
# dropped, seen as a gap, and replayed. The same number as vLLM's own for its end.
RECEIVE_QUEUE = 100_000
# Silence of the engine's replay after which it is given up; an idle engine answers within 0.1 s.
REPLAY_TIMEOUT_S = 5.0
# The same once the first reply is there: the others are sent in one go, so that silence means that they were dropped.
_NEXT_REPLY_S = 1.0
# Silence of the stream after which the engine is asked for more: one small message each way, for an idle engine only.
CHECK_S = 5.0
# A replay that brings nothing new is asked for again once: a hole at its start may be one that the ROUTER dropped.
_STALLS = 2
_END = b"\xff" * 8
_SEQUENCE_BYTES = 8

_LAG_SHARE = 1 / 16
_LAG_DECAY = 0.995


class KvCounters(msgspec.Struct):
    """What a client has seen since it was made."""

    batches: int = 0
    events: int = 0
    skipped: int = 0  # events of unknown kinds or of other memory than the device's
    replayed: int = 0  # batches that came from the replay buffer
    duplicates: int = 0  # messages that came a second time
    gaps: int = 0
    resets: int = 0
    malformed: int = 0  # payloads that are no batch
    foreign: int = 0  # messages that are none of an event stream


class EventLag:
    """How old live batches are when they arrive, in seconds; None before the first.

    The mean weighs about the last 16, the maximum loses half of its height in 140 batches.
    """

    def __init__(self) -> None:
        self.mean_s: float | None = None
        self.max_s: float | None = None

    def add(self, lag_s: float) -> None:
        lag_s = max(0.0, lag_s)  # two processes may read a clock that was set in between
        self.mean_s = lag_s if self.mean_s is None else self.mean_s + (lag_s - self.mean_s) * _LAG_SHARE
        self.max_s = lag_s if self.max_s is None else max(lag_s, self.max_s * _LAG_DECAY)


class KvEventClient:
    """One subscription, from `start` to `close`, on the running event loop; all three functions are called on it.

    on_batch(batch): the next batch. on_reset(reason): batches are lost; called once however many are lost in a row,
    before the first batch behind them. on_problem(what): something was skipped or did not answer, for a log.
    """

    def __init__(
        self,
        endpoint: str,
        replay_endpoint: str | None = None,
        *,
        on_batch: Callable[[KvBatch], None],
        on_reset: Callable[[str], None],
        on_problem: Callable[[str], None] = _log.warning,
        topic: str = "",
        replay_timeout_s: float = REPLAY_TIMEOUT_S,
        check_s: float = CHECK_S,
        clock: Clock | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._replay_endpoint = replay_endpoint
        self._on_batch = on_batch
        self._on_reset = on_reset
        self._on_problem = on_problem
        self._topic = topic.encode()
        self._replay_timeout_s = replay_timeout_s
        self._check_s = check_s
        self._clock = clock or SystemClock()
        self._order = EventOrder()
        self._has_told_loss = False  # since the last batch
        self._context: zmq.asyncio.Context | None = None
        self._task: asyncio.Task[None] | None = None
        self.counters = KvCounters()
        self.lag = EventLag()

    # ---- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Subscribe, and ask for what was published before. Raises: ImportError, zmq.ZMQError for a bad endpoint."""
        import zmq
        import zmq.asyncio

        self._context = zmq.asyncio.Context()
        socket = self._context.socket(zmq.SUB)
        socket.set(zmq.RCVHWM, RECEIVE_QUEUE)
        socket.set(zmq.SUBSCRIBE, self._topic)
        try:
            socket.connect(self._endpoint)
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise
        self._task = asyncio.get_running_loop().create_task(self._run(socket))

    async def close(self) -> None:
        """End the subscription; nothing is called any more. May be called again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    @property
    def is_running(self) -> bool:
        """Whether it still listens; False before `start`, after `close` and after an error of its own."""
        return self._task is not None and not self._task.done()

    async def _run(self, socket: zmq.asyncio.Socket) -> None:
        try:
            await self._catch_up()
            while True:
                # The poll also gives others their turn: a receive that need not wait does not let go of the loop.
                if not await socket.poll(round(self._check_s * 1000)):
                    await self._catch_up()
                    continue
                await self._take(await socket.recv_multipart())
        except Exception as error:
            _log.exception("the subscription to KV events ended")
            self._lose(f"the subscription ended: {type(error).__name__}")

    # ---- live -----------------------------------------------------------------------------------------------------

    async def _take(self, frames: list[bytes]) -> None:
        """Handle one live message."""
        if len(frames) != 3 or frames[0] != self._topic or len(frames[1]) != _SEQUENCE_BYTES or frames[1] == _END:
            self._skip_foreign(frames, "on the event stream")
            return
        sequence, payload = int.from_bytes(frames[1], "big"), frames[2]
        place = self._order.judge_live(sequence, payload)
        if place is Place.STARTED_OVER:
            self._start_over()
            place = self._order.judge_live(sequence, payload)
        if place is Place.AHEAD:
            place = await self._fill(sequence)
        if place is Place.SEEN:
            self.counters.duplicates += 1
            return
        if place is Place.AHEAD:
            self._lose(f"batches {self._order.next} to {sequence - 1} are lost")
        self._deliver(sequence, payload, is_live=True)

    async def _fill(self, sequence: int) -> Place:
        """Fill the gap before a live message as far as the engine can. Returns where the message belongs then."""
        self.counters.gaps += 1
        await self._catch_up()
        if sequence == self._order.next:
            return Place.NEXT
        return Place.SEEN if sequence < self._order.next else Place.AHEAD

    def _skip_foreign(self, frames: list[bytes], where: str) -> None:
        self.counters.foreign += 1
        self._on_problem(f"a message {where} is none of it: frames of {[len(frame) for frame in frames]} bytes")

    # ---- replay ---------------------------------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Deliver what the engine's buffer holds from the next batch on."""
        n_stalls = 0
        while self._replay_endpoint is not None and n_stalls < _STALLS:
            start = self._order.next
            try:
                if await self._replay(self._replay_endpoint, may_lose=n_stalls > 0):
                    return
            except TimeoutError:
                self._on_problem(f"no replay of KV events from {self._order.next} on, or not to its end")
            n_stalls = n_stalls + 1 if self._order.next == start else 0

    async def _replay(self, endpoint: str, *, may_lose: bool) -> bool:
        """Ask once. Returns whether that was all; not so at a hole, unless batches may be lost by now.

        Raises: TimeoutError.
        """
        # One more, to see that this is still the publisher whose batches those before were.
        first = max(0, self._order.next - 1)
        is_known = self._order.next == 0
        async with contextlib.aclosing(self._replies(endpoint, first)) as replies:
            async for sequence, payload in replies:
                is_known = True
                place = self._order.judge_replayed(sequence, payload)
                if place is Place.STARTED_OVER:
                    self._start_over()
                    return False
                if place is Place.AHEAD:
                    if not may_lose:
                        return False
                    self._lose(f"batches {self._order.next} to {sequence - 1} are lost: the engine keeps them no more")
                    may_lose = False
                if place is not Place.SEEN:
                    self._deliver(sequence, payload, is_live=False)
        if not is_known:
            # The last batch is always kept: a publisher that has none so late has not sent those before either.
            self._start_over()
        return is_known

    async def _replies(self, endpoint: str, first: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """Ask for all batches from `first` on; yields sequence and payload. Raises: TimeoutError."""
        import zmq

        assert self._context is not None
        # A socket for each, so that late replies to an earlier request cannot be taken for this one's.
        socket = self._context.socket(zmq.DEALER)
        try:
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.RCVHWM, RECEIVE_QUEUE)
            socket.connect(endpoint)
            await socket.send_multipart([b"", first.to_bytes(_SEQUENCE_BYTES, "big")])
            timeout_s = self._replay_timeout_s
            while True:
                if not await socket.poll(round(timeout_s * 1000)):
                    raise TimeoutError
                frames = await socket.recv_multipart()
                timeout_s = min(timeout_s, _NEXT_REPLY_S)
                # "", [topic], sequence, payload
                if len(frames) not in (3, 4) or frames[0] or len(frames[-2]) != _SEQUENCE_BYTES:
                    self._skip_foreign(frames, "of a replay")
                elif frames[-2] == _END:
                    return
                else:
                    yield int.from_bytes(frames[-2], "big"), frames[-1]
        finally:
            socket.close()

    # ---- out ------------------------------------------------------------------------------------------------------

    def _deliver(self, sequence: int, payload: bytes, *, is_live: bool) -> None:
        self._order.pass_on(sequence, payload)
        try:
            batch = decode(payload, sequence)
        except KvEventError as error:
            self.counters.malformed += 1
            self._on_problem(f"batch {sequence} of KV events cannot be read: {error}")
            self._lose(f"batch {sequence} cannot be read")
            return
        self.counters.batches += 1
        self.counters.events += len(batch.events)
        self.counters.skipped += batch.n_skipped
        if is_live:
            self.lag.add(self._clock.now_s() - batch.timestamp)
        else:
            self.counters.replayed += 1
        self._has_told_loss = False
        try:
            self._on_batch(batch)
        except Exception as error:
            _log.exception("batch %d of KV events could not be applied", sequence)
            self._lose(f"batch {sequence} could not be applied: {type(error).__name__}")

    def _start_over(self) -> None:
        self._order.start_over()
        self._lose("the engine's event stream started over")

    def _lose(self, reason: str) -> None:
        """Tell that batches are lost, once until the next batch."""
        if not self._has_told_loss:
            self._has_told_loss = True
            self.counters.resets += 1
            self._on_reset(reason)
