"""The hot path: from the bytes of a request to the bytes of its answer.

    key check ▸ route ▸ read body ▸ scan ▸ model ▸ [room] ▸ router.choose ▸ Link.submit ▸ relay ▸ router.finished
                                                      ▲                                     │
                                                      └─── engine died before first byte ───┘

What is refused is refused as early as it can be: without a key before anything else, too long a body before it is read.
An attempt reserves a place in the router's ledger in `choose` and gives it back exactly once, in `_attempt`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection, Mapping
from typing import NoReturn

import msgspec

from xinf._fast.scan import Scan, ScanError, scan
from xinf.core.config import GatewayConfig
from xinf.core.errors import (
    EngineDied,
    InvalidRequest,
    MalformedJson,
    Overloaded,
    RequestTimeout,
    Unavailable,
    XinfError,
)
from xinf.core.ids import ReplicaId
from xinf.core.records import KeyRecord
from xinf.gateway.admission import Room, Ticket
from xinf.gateway.asgi import RawHeaders, Receive, Scope, Send
from xinf.gateway.body import ClientGone, declared_length, read_body
from xinf.gateway.keys import check_model
from xinf.gateway.link import Submission
from xinf.gateway.metrics import NO_MODEL, Metrics, ModelCounters
from xinf.gateway.relay import Outcome, Relay, Verdict
from xinf.gateway.retry import RetryBudget
from xinf.gateway.routes import Route, match
from xinf.gateway.table import Model, Table
from xinf.router import Choice, Router

logger = logging.getLogger("xinf.access")

SWEEP_S = 0.02  # also how old a request is when its client's disconnect begins to be watched
SLOW_SWEEPS = 5  # deadlines are looked at once in so many sweeps
MAX_TIMEOUT_S = 7 * 86400.0

# Headers of the client that an engine may see; keys and cookies are not among them.
_FORWARDED = (b"content-type", b"accept", b"anthropic-version", b"anthropic-beta")


_JSON_TYPE = (b"content-type", b"application/json")


def _engine_headers(headers: Mapping[bytes, bytes], *, is_json: bool) -> RawHeaders:
    """What the engine is told. A body read as JSON is JSON whatever the client calls it (`curl -d`: a form)."""
    if not is_json:
        return [(name, headers[name]) for name in _FORWARDED if name in headers]
    return [_JSON_TYPE, *((name, headers[name]) for name in _FORWARDED[1:] if name in headers)]


class _Job(msgspec.Struct, kw_only=True):
    """One request, read and understood."""

    route: Route
    model: Model
    scanned: Scan | None
    submission: Submission
    relay: Relay
    counters: ModelCounters
    begun_s: float
    wants_decision: bool
    session: bytes | None
    replica: str = ""
    n_retries: int = 0
    verdict: Verdict | None = None


class HotPath:
    """The hot path of one gateway process."""

    def __init__(self, config: GatewayConfig, *, router: Router, table: Table, metrics: Metrics) -> None:
        self._config = config
        self._router = router
        self._table = table
        self._metrics = metrics
        self._budget = RetryBudget(config.retry_budget_pct)
        self._rooms: dict[str, Room] = {}
        self._open: dict[int, Relay] = {}
        self._young: list[Relay] = []
        self._reading: dict[asyncio.Task[None], float] = {}
        self._expired: set[asyncio.Task[None]] = set()
        self._has_work = asyncio.Event()

    @property
    def n_open(self) -> int:
        """Requests whose answer has not ended."""
        return len(self._open)

    def waiting(self) -> dict[str, int]:
        """Requests in each waiting room."""
        return {name: len(room) for name, room in self._rooms.items()}

    def on_ready(self, deployment: str) -> None:
        """A replica of `deployment` may take requests again."""
        if (room := self._rooms.get(deployment)) is not None:
            room.wake()

    def fail_open(self, error: XinfError) -> None:
        """End everything that is open, with an error: the gateway has no time left."""
        for relay in list(self._open.values()):
            relay.fail(error)

    async def handle(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        headers: dict[bytes, bytes],
        key: KeyRecord | None,
        request_id: str,
        extra_headers: RawHeaders,
    ) -> None:
        """Answer one request for an engine. `key`: already checked.

        Raises: XinfError before anything was sent; ClientGone; asyncio.CancelledError.
        """
        relay = Relay(send, receive, buffer_bytes=self._config.stream_buffer_bytes, extra_headers=extra_headers)
        try:
            job = await self._understand(scope, receive, relay, headers=headers, key=key, request_id=request_id)
        except XinfError as error:
            self._metrics.model(NO_MODEL).count_request(error.http_status)
            raise
        await self._serve(job)

    async def sweep(self) -> None:
        """Run for ever: watch for disconnects of requests that stay, enforce deadlines. Idle while nothing is open."""
        turn = 0
        while True:
            if not self._open and not self._reading:
                self._has_work.clear()
                await self._has_work.wait()
            await asyncio.sleep(SWEEP_S)
            turn += 1
            young, self._young = self._young, []
            for relay in young:
                if id(relay) in self._open:
                    relay.arm()
            if turn % SLOW_SWEEPS:
                continue
            now_s = time.monotonic()
            for relay in list(self._open.values()):
                relay.tick(now_s)
            for task, until_s in list(self._reading.items()):
                if now_s > until_s and task not in self._expired:
                    self._expired.add(task)
                    task.cancel()

    # ---- reading -----------------------------------------------------------------------------------------------

    async def _understand(
        self,
        scope: Scope,
        receive: Receive,
        relay: Relay,
        *,
        headers: dict[bytes, bytes],
        key: KeyRecord | None,
        request_id: str,
    ) -> _Job:
        """Read a request as far as routing needs it. Raises: XinfError, ClientGone."""
        begun_s = time.monotonic()
        route = match(scope["method"], scope["path"])
        length = declared_length(headers, self._config.max_body_bytes)
        deadline_s = self._deadline(headers, begun_s)
        body = await self._read(receive, length)
        scanned = self._scan(body) if route.is_json else None
        model = self._table.find(self._model_name(route, scanned, headers))
        check_model(key, model.names)
        self._table.check_path(model, route.path)
        relay.deadline_s = deadline_s
        relay.dialect = route.dialect
        query = scope.get("query_string") or b""
        return _Job(
            route=route,
            model=model,
            scanned=scanned,
            submission=Submission(
                method="POST",
                path=route.path + ("?" + query.decode("latin-1") if query else ""),
                headers=_engine_headers(headers, is_json=route.is_json),
                body=body,
                timeout_ms=0 if deadline_s is None else min(int((deadline_s - begun_s) * 1000), 2**32 - 1),
                trace=headers.get(b"traceparent", b"").decode("latin-1"),
                request_id=request_id,
            ),
            relay=relay,
            counters=self._metrics.model(model.deployment),
            begun_s=begun_s,
            session=headers.get(b"x-session-id"),
            wants_decision=headers.get(b"x-xinf-decision", b"0") not in (b"", b"0"),
        )

    async def _read(self, receive: Receive, length: int | None) -> bytes:
        """Read the body in the time it may take. Raises: RequestTimeout, BodyTooLarge, ClientGone."""
        task = asyncio.current_task()
        assert task is not None
        timeout_s = self._config.request_read_timeout
        # A timer per request would cost more than the body's own receive(); the sweep cancels the late ones.
        self._reading[task] = time.monotonic() + timeout_s
        self._has_work.set()
        try:
            return await read_body(receive, length, self._config.max_body_bytes)
        except asyncio.CancelledError:
            if task not in self._expired:
                raise
            task.uncancel()
            raise RequestTimeout(f"the request was not complete after {timeout_s:g} s", timeout_s=timeout_s) from None
        finally:
            del self._reading[task]
            self._expired.discard(task)

    def _scan(self, body: bytes) -> Scan:
        try:
            scanned = scan(body, self._config.max_json_depth)
        except ScanError as error:
            _refuse_json(error)
        if scanned.type_error is not None:
            field, expected = scanned.type_error
            raise InvalidRequest(f"{field} must be {expected}", param=field)
        return scanned

    def _model_name(self, route: Route, scanned: Scan | None, headers: dict[bytes, bytes]) -> str:
        """Which model is asked for: by path, by body, by header. Raises: InvalidRequest naming what exists."""
        if route.model is not None:
            return route.model
        if scanned is not None and scanned.model is not None:
            return scanned.model
        if (name := headers.get(b"x-xinf-model")) is not None:
            return name.decode("utf-8", "replace")
        self._table.check_read()
        shown = ", ".join(self._table.names()[:20]) or "none"
        raise InvalidRequest("the request names no model", remedy=f"these exist: {shown}", param="model")

    def _deadline(self, headers: dict[bytes, bytes], now_s: float) -> float | None:
        """When this request must have ended (monotonic). Raises: InvalidRequest."""
        limit_s = self._config.request_timeout
        text = headers.get(b"x-request-timeout")
        if text is None:
            return now_s + limit_s if limit_s > 0 else None
        try:
            wanted_s = float(text)
        except ValueError:
            wanted_s = -1.0
        if not 0 < wanted_s <= MAX_TIMEOUT_S:
            raise InvalidRequest(
                f"x-request-timeout {text[:40].decode('latin-1')!r} is not a number of seconds above 0",
                param="x-request-timeout",
            )
        return now_s + (min(wanted_s, limit_s) if limit_s > 0 else wanted_s)

    # ---- serving -----------------------------------------------------------------------------------------------

    async def _serve(self, job: _Job) -> None:
        relay = job.relay
        self._open[id(relay)] = relay
        self._young.append(relay)
        self._has_work.set()
        job.counters.in_flight += 1
        self._budget.earn()
        status = 499
        try:
            status = await self._run(job)
        except XinfError as error:
            status = error.http_status
            raise
        finally:
            del self._open[id(relay)]
            relay.close()
            job.counters.in_flight -= 1
            self._count(job, status)

    async def _run(self, job: _Job) -> int:
        """Attempt until it is decided. Returns the status the client saw. Raises: XinfError, ClientGone."""
        excluded: set[ReplicaId] = set()
        while True:
            choice = await self._choose(job, excluded)
            verdict = job.verdict = await self._attempt(job, choice)
            if verdict.outcome is Outcome.DONE:
                return job.relay.status
            if verdict.outcome is Outcome.GONE:
                raise ClientGone
            error = verdict.error or EngineDied("the answer was cut off")
            if verdict.outcome is Outcome.CUT:
                # Returning without an end makes the server drop the connection: the client must not take it for whole.
                job.counters.stream_errors += 1
                return job.relay.status
            excluded.add(ReplicaId(choice.replica_id))
            if not self._may_move(job, verdict, excluded):
                raise error
            job.n_retries += 1
            job.counters.retries += 1

    def _may_move(self, job: _Job, verdict: Verdict, excluded: Collection[ReplicaId]) -> bool:
        return (
            verdict.may_retry
            and job.n_retries < self._config.max_retries
            and bool(self._table.ready(job.model.deployment, exclude=excluded))
            and self._budget.take()
        )

    async def _choose(self, job: _Job, excluded: Collection[ReplicaId]) -> Choice:
        name = job.model.deployment
        room = self._rooms.get(name)
        if room is None:
            room = self._rooms[name] = Room()

        def attempt() -> Choice | None:
            return self._router.choose(
                name,
                job.scanned,
                seed=job.model.seed,
                exclude=excluded,
                order=self._table.order(name),
                session=job.session,
            )

        choice = attempt() if not room or excluded else None
        if choice is not None:
            return choice
        ticket = Ticket(
            attempt=attempt,
            refund=lambda unused: self._give_back(unused, name),
            refusal=lambda: self._refusal(job, room),
            is_picky=bool(excluded),
        )
        timeout_s = self._config.waiting_timeout
        if job.relay.deadline_s is not None:
            timeout_s = min(timeout_s, max(0.0, job.relay.deadline_s - time.monotonic()))
        bound = job.model.max_waiting if job.model.max_waiting is not None else self._config.max_waiting
        return await room.wait(ticket, job.relay, max_waiting=bound, timeout_s=timeout_s)

    def _refusal(self, job: _Job, room: Room) -> XinfError:
        """Why a request was not let in while it waited."""
        name = job.model.deployment
        if self._table.ready(name):
            return Overloaded(
                f"every replica of {name} is at its limit",
                remedy="retry later, or add replicas with `xinf scale`",
                retry_after_s=room.retry_after_s(time.monotonic()),
            )
        return Unavailable(f"no replica of {name} is ready: {self._table.why_not_ready(name)}")

    async def _attempt(self, job: _Job, choice: Choice) -> Verdict:
        """Run on one replica; whatever happens, its place is given back once."""
        relay = job.relay
        job.replica = choice.replica_id
        job.counters.count_decision(choice.reason)
        verdict: Verdict | None = None
        try:
            expected = relay.expect()
            link = self._table.link(choice.replica_id)
            if link is None or not link.is_up:
                error = EngineDied(f"replica {choice.replica_id} went away", replica=choice.replica_id)
                verdict = Verdict(Outcome.FAILED, error, may_retry=True)
                return verdict
            if job.wants_decision:
                relay.extra_headers = [*_without_decision(relay.extra_headers), _decision(choice, job.n_retries)]
            submission = job.submission
            if choice.chain:
                submission = msgspec.structs.replace(submission, chain=choice.chain)
            relay.on_first_byte = lambda: self._router.started(choice)
            submit_id = link.submit(submission, relay)
            self._router.submitted(choice, submit_id)
            relay.bind(link, submit_id)
            verdict = await expected
            return verdict
        finally:
            self._settle(job, choice, verdict)

    def _settle(self, job: _Job, choice: Choice, verdict: Verdict | None) -> None:
        ending = verdict.ending if verdict is not None else None
        is_ok = verdict is not None and verdict.outcome is Outcome.DONE and verdict.error is None
        is_ok = is_ok and job.relay.status < 400
        if ending is None:
            self._give_back(choice, job.model.deployment)
            return
        self._router.finished(
            choice,
            prompt_tokens=ending.prompt_tokens,
            cached_tokens=ending.cached_tokens,
            completion_tokens=ending.completion_tokens,
            is_ok=is_ok,
        )
        if is_ok and ending.prompt_tokens:
            job.counters.count_tokens(
                prompt=ending.prompt_tokens,
                cached=ending.cached_tokens,
                completion=ending.completion_tokens,
                predicted=choice.predicted_cached_tokens,
            )
        self._after(job.model.deployment)

    def _give_back(self, choice: Choice, deployment: str) -> None:
        """Release a place that came to nothing."""
        self._router.finished(choice, prompt_tokens=0, cached_tokens=0, completion_tokens=0, is_ok=False)
        if room := self._rooms[deployment]:
            room.wake()

    def _after(self, deployment: str) -> None:
        room = self._rooms[deployment]
        room.count_finished(time.monotonic())
        if room:
            room.wake()

    def _count(self, job: _Job, status: int) -> None:
        now_s = time.monotonic()
        counters, relay, verdict = job.counters, job.relay, job.verdict
        counters.count_request(status)
        counters.duration.observe(now_s - job.begun_s)
        if relay.first_byte_s is not None:
            counters.first_byte.observe(relay.first_byte_s - job.begun_s)
        error = verdict.error if verdict is not None else None
        if error is not None and verdict is not None and verdict.outcome is Outcome.DONE:
            counters.stream_errors += 1
            if isinstance(error, RequestTimeout):
                counters.slow_readers += 1
        sample = self._config.access_log_sample
        if sample > 0 and random.random() < sample:
            ending = verdict.ending if verdict is not None else None
            values: dict[str, object] = {
                "id": job.submission.request_id,
                "path": job.route.path,
                "model": job.model.deployment,
                "replica": job.replica,
                "status": status,
                "ms": round((now_s - job.begun_s) * 1000, 1),
                "retries": job.n_retries,
            }
            if ending is not None:
                values |= {"prompt_tokens": ending.prompt_tokens, "completion_tokens": ending.completion_tokens}
            if error is not None:
                values["error"] = error.code
            logger.info("request", extra={"kv": values})


def _refuse_json(error: ScanError) -> NoReturn:
    raise MalformedJson(f"the body is not JSON: {error.reason} at byte {error.offset}", offset=error.offset) from None


def _decision(choice: Choice, n_retries: int) -> tuple[bytes, bytes]:
    text = (
        f"replica={choice.replica_id};reason={choice.reason};matched_bytes={choice.matched_bytes}"
        f";predicted_cached_tokens={choice.predicted_cached_tokens};retries={n_retries}"
    )
    return b"x-xinf-decision", text.encode("latin-1", "replace")


def _without_decision(headers: RawHeaders) -> RawHeaders:
    return [pair for pair in headers if pair[0] != b"x-xinf-decision"]
