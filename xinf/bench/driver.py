"""Sends a workload at a load: the loop of a run. Decides nothing about figures."""

from __future__ import annotations

import asyncio
import itertools
import time
from array import array
from collections import deque
from collections.abc import Sequence

import msgspec

from xinf.bench.alarm import Alarm
from xinf.bench.body import BodyWriter
from xinf.bench.client import Client
from xinf.bench.collector import Collector, Sample
from xinf.bench.exchange import Exchange
from xinf.bench.load import ClosedLoop, Load, OpenLoop, arrivals
from xinf.bench.record import Failure, Record
from xinf.bench.target import Endpoint
from xinf.bench.workload import Session, Workload

# A client of a closed loop that cannot connect waits before it tries again: it measures, it does not flood.
_PAUSE_S = 0.1
_SAMPLE_INTERVAL_S = 0.5
# A generator that is behind sends what is due, but lets answers in now and then.
_BURST = 16


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """When to stop sending; what is open then is waited for."""

    n_requests: int | None = None
    duration_s: float | None = None


class _Ready(msgspec.Struct, frozen=True, gc=False):
    """A session whose first request is written."""

    number: int
    session: Session
    request: bytes


class Driver:
    """One run. `on_sample` is called twice a second while it runs."""

    def __init__(
        self,
        client: Client,
        workload: Workload,
        writer: BodyWriter,
        head: bytes,
        *,
        endpoint: Endpoint,
        is_stream: bool,
        think_time_s: float,
        limits: Limits,
    ) -> None:
        self.collector = Collector()
        self.n_sent = 0
        self.n_in_flight = 0
        self.is_interrupted = False
        self._client = client
        self._workload = workload
        self._writer = writer
        self._head = head
        self._endpoint = endpoint
        self._is_stream = is_stream
        self._think_time_s = think_time_s
        self._limits = limits
        self._record_numbers = itertools.count()
        self._loop = asyncio.get_running_loop()
        self._zero_s = time.monotonic()
        self._cpu_zero_s = time.process_time()
        self._gate: asyncio.Semaphore | None = None
        self._work: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def run(self, load: Load, seed: int, *, first_session: int = 0) -> Collector:
        """Send until a limit is reached and all answers are in, or until `interrupt`."""
        if isinstance(load, ClosedLoop):
            self._work = self._loop.create_task(self._run_closed(load, first_session))
        else:
            self._work = self._loop.create_task(self._run_open(load, seed, first_session))
        try:
            await self._work
        except asyncio.CancelledError:
            if not self.is_interrupted:
                raise
        finally:
            if self._watching is not None:
                self._watching.cancel()
                self._sample()
        return self.collector

    def interrupt(self) -> None:
        """Stop now: what is open is cut off and counted as unfinished."""
        self.is_interrupted = True
        if self._work is not None:
            self._work.cancel()

    # ---- loops ----------------------------------------------------------------------------------------------------

    async def _run_closed(self, load: ClosedLoop, first_session: int) -> None:
        # The next request is written while answers are waited for, so that no client stands idle for its sake. They
        # leave in the order of their numbers: which requests a run sends is no matter of timing.
        numbers = itertools.count(first_session)
        ready: deque[_Ready] = deque()

        def prepare() -> None:
            if len(ready) < load.concurrency and not self.is_interrupted:
                ready.append(self._prepare(next(numbers)))

        async def client() -> None:
            while self._has_room(self._now_s()):
                first = ready.popleft() if ready else self._prepare(next(numbers))
                self._loop.call_soon(prepare)
                self.n_sent += 1
                await self._run_session(first, None)

        n_first = min(load.concurrency, self._limits.n_requests or load.concurrency)
        ready.extend(self._prepare(next(numbers)) for _ in range(n_first))
        self._start_clock()
        async with asyncio.TaskGroup() as group:
            for _ in range(load.concurrency):
                group.create_task(client())

    async def _run_open(self, load: OpenLoop, seed: int, first_session: int) -> None:
        if load.max_concurrency is not None:
            self._gate = asyncio.Semaphore(load.max_concurrency)
        # `rate` speaks of requests: a session of several turns arrives as many times less often.
        session_load = msgspec.structs.replace(load, rate=load.rate / self._workload.n_turns)
        with Alarm() as alarm:
            self._start_clock()
            async with asyncio.TaskGroup() as group:
                for number, at_s in enumerate(arrivals(session_load, seed), first_session):
                    first = self._prepare(number)
                    if at_s > self._now_s() or number % _BURST == 0:
                        await alarm.until(self._zero_s + min(at_s, self._limits.duration_s or at_s))
                    if not self._has_room(at_s):
                        return
                    self.n_sent += 1
                    group.create_task(self._run_session(first, at_s))

    def _start_clock(self) -> None:
        self._zero_s = time.monotonic()
        self._cpu_zero_s = time.process_time()
        self._watching = self._loop.create_task(self._watch())

    def _has_room(self, at_s: float) -> bool:
        limits = self._limits
        return (limits.n_requests is None or self.n_sent < limits.n_requests) and (
            limits.duration_s is None or at_s < limits.duration_s
        )

    def _prepare(self, number: int) -> _Ready:
        session = self._workload.session(number)
        return _Ready(number, session, self._request(session, 0, ()))

    def _request(self, session: Session, turn: int, answers: Sequence[str]) -> bytes:
        body = self._writer.write(session, turn, answers)
        return b"%s%d\r\n\r\n%s" % (self._head, len(body), body)

    async def _run_session(self, first: _Ready, intended_s: float | None) -> None:
        """Send a session's turns one after the other; the first is counted and allowed for already.

        `intended_s`: of the first one in an open loop.
        """
        session = first.session
        answers: list[str] = []
        is_open_loop = intended_s is not None
        for turn in range(len(session.turns)):
            if turn:
                if not self._has_room(self._now_s()):
                    return
                self.n_sent += 1
                if self._think_time_s:
                    await asyncio.sleep(self._think_time_s)
            request = self._request(session, turn, answers) if turn else first.request
            now_s = self._now_s()
            record = Record(
                number=next(self._record_numbers),
                session=first.number,
                turn=turn,
                intended_s=now_s if intended_s is None else intended_s,
                dispatched_s=now_s,
                max_tokens=session.turns[turn].max_tokens,
            )
            exchange = Exchange(
                record,
                self._loop.create_future(),
                endpoint=self._endpoint,
                is_stream=self._is_stream,
                keep_text=len(session.turns) > 1,
                zero_s=self._zero_s,
            )
            record.request_bytes = len(request)
            await self._send(request, exchange)
            if record.failure is not None:
                self.collector.n_skipped_turns += len(session.turns) - turn - 1
                if record.failure is Failure.CONNECT and not is_open_loop:
                    await asyncio.sleep(_PAUSE_S)
                return
            answers.append(exchange.text)
            intended_s = record.end_s + self._think_time_s if is_open_loop else None

    async def _send(self, request: bytes, exchange: Exchange) -> None:
        self.n_in_flight += 1
        try:
            if self._gate is None:
                await self._client.send(request, exchange)
            else:
                async with self._gate:
                    await self._client.send(request, exchange)
        except asyncio.CancelledError:
            exchange.fail(Failure.UNFINISHED, "the run was interrupted", time.monotonic())
            raise
        finally:
            self.n_in_flight -= 1
            self.collector.add(exchange.record, exchange.token_times if exchange.record.failure is None else array("d"))

    # ---- the generator itself -------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            self._sample()
            await asyncio.sleep(_SAMPLE_INTERVAL_S)

    def _sample(self) -> None:
        self.collector.samples.append(Sample(self._now_s(), time.process_time() - self._cpu_zero_s, self.n_in_flight))

    def _now_s(self) -> float:
        return time.monotonic() - self._zero_s
