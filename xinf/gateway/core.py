"""The gateway of one process, whatever server stands in front: its parts, their life, and who may ask.

front ──▶ admit(head) ──▶ read the body ──▶ serve(admission, body, client) ──▶ HotPath
              │ raises                                                   └── never raises
              └──▶ refuse(head, error) is the answer to give
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Coroutine
from typing import Any

import msgspec

from xinf.core.config import Config
from xinf.core.decision import Found
from xinf.core.errors import ConfigError, Unavailable, XinfError
from xinf.core.records import KeyRecord
from xinf.gateway.access_log import AccessLog
from xinf.gateway.admin import Admin, Answered, open_admin_key
from xinf.gateway.answers import Answer, error_answer
from xinf.gateway.client import Admission, Client, Exchange, Head, RawHeaders
from xinf.gateway.decisions import Decisions
from xinf.gateway.hotpath import HotPath
from xinf.gateway.intake import Intake
from xinf.gateway.keys import KeyRing, check_exposure
from xinf.gateway.metrics import NO_MODEL, Metrics, Snapshot, add, escape, fold_following, fold_router
from xinf.gateway.routes import DRY_RUN
from xinf.gateway.table import Table
from xinf.gateway.worker import AdminSocket, WorkerNumber
from xinf.gateway.workforce import HELD_BACK
from xinf.meta import MetaClient
from xinf.router import Router, RouterSettings

logger = logging.getLogger("xinf.gateway")

RETRY_STORE_S = 0.5
FIRST_READ_S = 2.0  # a new process takes no connection before it has read the store, unless that takes longer
MASTER_POLL_S = 1.0
# Objects that the collector lets pile up before it looks for cycles. Python's own 700 is some 40 open requests, which
# it would look at with every burst; from some thousands on the resident memory grows by megabytes.
COLLECT_AFTER = 2_000
# After so many turns of its loop, this far apart, a worker of Granian serves: turns, because a starved one may get its
# next turn only seconds after its start, and time alone would have passed by then.
SERVING_AFTER_TURNS = 10
TURN_S = 0.05
_ID_CHARACTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+=@")
MAX_REQUEST_ID_BYTES = 128


class Core:
    """One per gateway process, behind one front."""

    def __init__(self, config: Config, meta_target: str, *, master_pid: int | None = None) -> None:
        self.config = config
        self.keys = KeyRing(config.gateway)
        self.table: Table
        self.is_draining = False
        self.n_turned_away = 0  # connections that the front closed because it had too many; the front counts them
        self._meta_target = meta_target
        self._master_pid = master_pid
        self._metrics = Metrics()
        self._started_s = time.time()
        self._n_requests = 0
        self._id_prefix = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._origins = frozenset(origin.strip() for origin in config.gateway.cors_origins.split(",") if origin.strip())

    # ---- life --------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Start everything; returns when the store has been read, or with nobody serving it after FIRST_READ_S.

        Until then connections wait in the port's backlog: one worker that is started again among others that serve is a
        delay to its clients, not a 503. Raises: ConfigError.
        """
        config = self.config
        loop = asyncio.get_running_loop()
        self._number = WorkerNumber.claim(config.paths)
        worker = self._number.number
        self._id_prefix = f"req-{worker}-{secrets.token_hex(3)}-"
        self._router = Router(RouterSettings.of(config.routing, max_inflight=config.gateway.max_inflight_per_replica))
        self._store = MetaClient(self._meta_target)
        self.table = Table(
            self._store,
            self._router,
            self.keys,
            gateway=f"{socket.gethostname()}/{os.getpid()}/{worker}",
            on_ready=lambda deployment: self._hotpath.on_ready(deployment),
        )
        self._intake = Intake(config.gateway, table=self.table, metrics=self._metrics)
        self._access_log = AccessLog(config.gateway.access_log_sample)
        self._decisions = Decisions(config.gateway.recent_decisions, sample_every=config.gateway.candidates_every)
        self._decisions.worker = worker
        self._hotpath = HotPath(
            config.gateway,
            intake=self._intake,
            router=self._router,
            table=self.table,
            metrics=self._metrics,
            access_log=self._access_log,
            decisions=self._decisions,
        )
        self._socket = AdminSocket(
            config.paths,
            worker,
            {"metrics": self._snapshot, "replicas": self._replicas, "drain": self.start_drain},
            {"decision": self._decision, "decisions": self._last_decisions},
        )
        await self._socket.start()
        self.admin = Admin(
            open_admin_key(config.paths),
            socket=self._socket,
            decisions=self._decisions,
            intake=self._intake,
            table=self.table,
            router=self._router,
        )
        loop.add_signal_handler(signal.SIGUSR1, self.start_drain)
        self._spawn(self._hotpath.sweep())
        reading = self._spawn(self._follow_store())
        if self._master_pid is not None:
            self._spawn(self._follow_master(self._master_pid))
        if reading not in (await asyncio.wait({reading}, timeout=FIRST_READ_S))[0]:
            logger.warning("connections are taken before the store has been read: no answer in %g s", FIRST_READ_S)
        self._spawn(self._let_signals_through())
        # What exists now lives as long as the process; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])

    async def close(self) -> None:
        """Stop following the store and close the Links."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.table.stop()
        await self._store.close()
        await self._socket.stop()
        self._access_log.close()
        self._number.release()

    async def _follow_store(self) -> None:
        """Read the store as soon as somebody serves it; until then requests get 503."""
        while True:
            try:
                await self.table.start()
                break
            except XinfError as error:
                logger.warning("the store cannot be read yet", extra={"kv": {"error": str(error)}})
                await asyncio.sleep(RETRY_STORE_S)
        try:
            check_exposure(self.config.gateway, has_keys=self.keys.has_keys)
        except ConfigError as error:
            logger.error("every request is refused: %s", error)

    async def _let_signals_through(self) -> None:
        """Lift what the master held back: Granian loses a TERM before it serves, and deadlocks on one as it begins."""
        for _ in range(SERVING_AFTER_TURNS):
            await asyncio.sleep(TURN_S)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)

    async def _follow_master(self, master_pid: int) -> None:
        """End with the master: one that was killed must not leave workers on its port."""
        while True:
            await asyncio.sleep(MASTER_POLL_S)
            if os.getppid() != master_pid:
                os.kill(os.getpid(), signal.SIGTERM)

    def start_drain(self) -> bool:
        """The server will stop: readiness goes, and what is open after the drain timeout is told so and ended."""
        if not self.is_draining:
            self.is_draining = True
            error = Unavailable("the gateway stops and the request took longer than gateway.drain_timeout")
            asyncio.get_running_loop().call_later(
                self.config.gateway.drain_timeout, lambda: self._hotpath.fail_open(error)
            )
        return True

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a background task ended", exc_info=error)

    # ---- requests ----------------------------------------------------------------------------------------------

    def admit(self, head: Head) -> Admission | None:
        """Decide on a request before a byte of its body is read. None: a page, for the ASGI application to answer.

        Raises: XinfError; `refuse` makes the answer of it.
        """
        if head.method != "POST":
            return None
        if head.path == DRY_RUN.path:
            return self._admit_dry_run(head)
        key = self.check_key(head)
        try:
            request_id = self._request_id(head.headers)
            extra = self._extra_headers(head.headers, request_id)
            return self._intake.admit(head, key=key, request_id=request_id, extra_headers=extra)
        except XinfError as error:
            self._metrics.model(NO_MODEL).count_request(error.http_status)
            raise

    def _admit_dry_run(self, head: Head) -> Admission:
        """Let the body of a dry run be read, in the same way and within the same limits."""
        self.admin.check(head)
        self.table.check_read()
        request_id = self._request_id(head.headers)
        extra = self._extra_headers(head.headers, request_id)
        return self._intake.admit_dry_run(head, request_id=request_id, extra_headers=extra)

    def serve(self, admission: Admission, body: bytes, client: Client) -> Exchange:
        """Answer an admitted request through `client`. Never raises: errors are answers too."""
        if admission.route is DRY_RUN:
            return self._dry_run(admission, body, client)
        return self._hotpath.serve(admission, body, client)

    def _dry_run(self, admission: Admission, body: bytes, client: Client) -> Exchange:
        try:
            answer = self.admin.dry_run(admission.head, body)
        except XinfError as error:
            answer = error_answer(error)
        client.answer(answer.status, [*answer.headers, *admission.extra_headers], answer.body)
        return Answered()

    def refuse(self, head: Head, error: XinfError) -> Answer:
        """The answer for an error, with everything that goes on every answer."""
        answer = error_answer(error)
        extra = self.extra_headers(head)
        return msgspec.structs.replace(answer, headers=[*answer.headers, *extra])

    def extra_headers(self, head: Head) -> RawHeaders:
        """What goes on every answer: the request's id, and what a browser needs to see it."""
        return self._extra_headers(head.headers, self._request_id(head.headers))

    def check_key(self, head: Head) -> KeyRecord | None:
        """The key of a request, None where none is needed. Raises: Unauthenticated, Unavailable."""
        # Without the store nobody knows whether keys exist: nothing may pass.
        self.table.check_read()
        if not self.keys.is_required:
            return None
        try:
            return self.keys.check(head.headers, time.time())
        except XinfError as error:
            self._metrics.model(NO_MODEL).count_request(error.http_status)
            raise

    @property
    def has_cors(self) -> bool:
        return bool(self._origins)

    def _request_id(self, headers: dict[bytes, bytes]) -> str:
        given = headers.get(b"x-request-id")
        if given and len(given) <= MAX_REQUEST_ID_BYTES and _ID_CHARACTERS.issuperset(given):
            return given.decode("ascii")
        self._n_requests += 1
        return f"{self._id_prefix}{self._n_requests}"

    def _extra_headers(self, headers: dict[bytes, bytes], request_id: str) -> RawHeaders:
        extra: RawHeaders = [(b"x-request-id", request_id.encode())]
        if self._origins:
            extra += self._cors(headers)
        return extra

    def _cors(self, headers: dict[bytes, bytes]) -> RawHeaders:
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not origin or ("*" not in self._origins and origin not in self._origins):
            return []
        allowed: RawHeaders = [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"vary", b"origin"),
            (b"access-control-expose-headers", b"x-request-id, x-xinf-decision, retry-after"),
        ]
        if b"access-control-request-method" in headers:
            wanted = headers.get(b"access-control-request-headers", b"authorization, content-type")
            allowed += [
                (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
                (b"access-control-allow-headers", wanted),
                (b"access-control-max-age", b"600"),
            ]
        return allowed

    # ---- what it tells -----------------------------------------------------------------------------------------

    async def metrics(self) -> Snapshot:
        """What all gateway processes of this installation counted."""
        return add(await self._socket.ask_siblings("metrics"))

    def _snapshot(self) -> Snapshot:
        """What this process counted; the gauges that others keep are read now."""
        folded = self._metrics.snapshot()
        for deployment, n_waiting in self._hotpath.waiting().items():
            folded[f'xinf_requests_waiting{{model="{escape(deployment)}"}}'] = n_waiting
        for link in self.table.links():
            label = f'replica="{escape(link.replica)}"'
            folded[f"xinf_link_up{{{label}}}"] = int(link.is_up)
            folded[f"xinf_replica_in_flight{{{label}}}"] = link.n_open
            folded[f"xinf_residency_resyncs_total{{{label}}}"] = link.n_resyncs
            if link.following is not None:
                fold_following(link.following, link.replica, folded)
        folded["xinf_access_log_dropped_total"] = self._access_log.dropped
        fold_router(self._router.snapshot(), folded)
        folded["xinf_connections_turned_away_total"] = self.n_turned_away
        folded["xinf_store_read"] = int(self.table.is_read)
        folded[f'xinf_worker_start_time_seconds{{worker="{self._number.number}"}}'] = self._started_s
        return folded

    def _decision(self, request_id: str) -> Found:
        found = self._decisions.find(request_id, self._hotpath.open_jobs())
        return Found(decisions=tuple(found), reach=(self._decisions.reach(),))

    def _last_decisions(self, n: str) -> Found:
        return Found(decisions=tuple(self._decisions.last(int(n))), reach=(self._decisions.reach(),))

    def _replicas(self) -> list[dict[str, Any]]:
        return [
            {"replica": link.replica, "address": link.address, "is_up": link.is_up, "in_flight": link.n_open}
            for link in self.table.links()
        ]
