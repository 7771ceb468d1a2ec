"""Sends a plan's sessions to a server, each at its time. Decides nothing about figures."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

import msgspec

from xinf.bench.alarm import Alarm
from xinf.bench.client import Client
from xinf.bench.exchange import Exchange
from xinf.bench.host import allow_files
from xinf.bench.record import Record
from xinf.bench.route_body import RouteBody
from xinf.bench.route_plan import RoutePlan
from xinf.bench.route_session import RouteSession
from xinf.bench.target import Endpoint, Target

_MAX_CONNECTIONS = 4096
_TELL_INTERVAL_S = 0.5
# A generator that is behind sends what is due, but lets answers in now and then.
_BURST = 16


class RouteOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one run left. `n_skipped`: requests that were not sent, because one that they follow failed."""

    records: list[Record]
    n_skipped: int
    replicas: tuple[str, ...] = ()  # all that there were, where that is known
    gateway_cpu_s: float | None = None


class _Talk(msgspec.Struct, gc=False):
    """A session under way."""

    number: int
    session: RouteSession
    answers: dict[int, str]


class RouteDriver:
    """One run against one server."""

    def __init__(self, target: Target, model: str, plan: RoutePlan, *, timeout_s: float) -> None:
        self._client = Client(target, timeout_s=timeout_s, max_connections=allow_files(_MAX_CONNECTIONS))
        self._head = target.head("POST", Endpoint.CHAT.path)
        self._writer = RouteBody(model)
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._zero_s = time.monotonic()
        self._numbers = itertools.count()
        self._records: list[Record] = []
        self._n_skipped = 0
        self._group: asyncio.TaskGroup

    async def run(self, on_progress: Callable[[int], None]) -> RouteOutcome:
        """Send everything and wait for the answers. `on_progress` hears how many have ended, twice a second."""
        telling = self._loop.create_task(self._tell(on_progress))
        try:
            with Alarm() as alarm:
                self._zero_s = time.monotonic()
                async with asyncio.TaskGroup() as self._group:
                    for number, at_s in enumerate(self._plan.starts_s):
                        session = self._plan.workload.session(number)
                        if at_s > self._now_s() or number % _BURST == 0:
                            await alarm.until(self._zero_s + at_s)
                        talk = _Talk(number, session, {})
                        for step in session.roots():
                            self._group.create_task(self._send(talk, step, at_s))
        finally:
            telling.cancel()
            await self._client.close()
        return RouteOutcome(records=self._records, n_skipped=self._n_skipped)

    async def _send(self, talk: _Talk, number: int, intended_s: float) -> None:
        """Send one step; then let those begin that follow it."""
        session = talk.session
        step = session.steps[number]
        if intended_s > self._now_s():
            await asyncio.sleep(intended_s - self._now_s())
        body = self._writer.write(session, session.history(number, talk.answers), step.max_tokens)
        record = Record(
            number=next(self._numbers),
            session=talk.number,
            turn=number,
            intended_s=intended_s,
            dispatched_s=self._now_s(),
            max_tokens=step.max_tokens,
        )
        record.request_bytes = len(body)
        followers = session.followers(number)
        exchange = Exchange(
            record,
            self._loop.create_future(),
            endpoint=Endpoint.CHAT,
            is_stream=True,
            keep_text=bool(followers),
            zero_s=self._zero_s,
        )
        await self._client.send(b"%s%d\r\n\r\n%s" % (self._head, len(body), body), exchange)
        self._records.append(record)
        if record.failure is not None:
            self._n_skipped += session.below(number)
            return
        talk.answers[number] = exchange.text
        for follower in followers:
            begins_s = record.end_s + session.steps[follower].pause_s
            self._group.create_task(self._send(talk, follower, begins_s))

    async def _tell(self, on_progress: Callable[[int], None]) -> None:
        while True:
            on_progress(len(self._records))
            await asyncio.sleep(_TELL_INTERVAL_S)

    def _now_s(self) -> float:
        return time.monotonic() - self._zero_s
