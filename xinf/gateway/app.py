"""The ASGI application of one gateway process: what is answered here, and the lifespan that opens and closes it all.

`create` is what Granian calls in each worker. Nothing before it imports gRPC: the master forks.
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
from typing import Any

from xinf.core import log
from xinf.core.config import Config, from_environ
from xinf.core.errors import ConfigError, NotFound, Unavailable, UnknownModel, XinfError
from xinf.core.records import KeyRecord
from xinf.gateway.answers import Answer, error_answer, json_answer, send_answer
from xinf.gateway.asgi import RawHeaders, Receive, Scope, Send
from xinf.gateway.body import ClientGone
from xinf.gateway.hotpath import HotPath
from xinf.gateway.keys import KeyRing, check_exposure, check_model, is_loopback
from xinf.gateway.metrics import NO_MODEL, Metrics, Snapshot, add, escape, fold_router, render
from xinf.gateway.table import Table
from xinf.gateway.worker import AdminSocket, WorkerNumber
from xinf.meta import MetaClient
from xinf.router import Router, RouterSettings

logger = logging.getLogger("xinf.gateway")

RETRY_STORE_S = 0.5
MASTER_POLL_S = 1.0
SERVING_AFTER_S = 0.05
_ID_CHARACTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+=@")
MAX_REQUEST_ID_BYTES = 128


class Application:
    """The gateway as an ASGI application; runs under any ASGI server."""

    def __init__(self, config: Config, meta_target: str, *, master_pid: int | None = None) -> None:
        self._config = config
        self._meta_target = meta_target
        self._master_pid = master_pid
        self._keys = KeyRing(config.gateway)
        self._metrics = Metrics()
        self._started_s = time.time()
        self._is_draining = False
        self._n_requests = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._origins = frozenset(origin.strip() for origin in config.gateway.cors_origins.split(",") if origin.strip())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            raise NotImplementedError(f"scope type {scope['type']}")

    # ---- life --------------------------------------------------------------------------------------------------

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self._open()
                except XinfError as error:
                    logger.error(str(error))
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _open(self) -> None:
        config = self._config
        loop = asyncio.get_running_loop()
        self._number = WorkerNumber.claim(config.paths)
        worker = self._number.number
        self._id_prefix = f"req-{worker}-{secrets.token_hex(3)}-"
        self._router = Router(RouterSettings.of(config.routing, max_inflight=config.gateway.max_inflight_per_replica))
        self._store = MetaClient(self._meta_target)
        self._table = Table(
            self._store,
            self._router,
            self._keys,
            gateway=f"{socket.gethostname()}/{os.getpid()}/{worker}",
            on_ready=lambda deployment: self._hotpath.on_ready(deployment),
        )
        self._hotpath = HotPath(config.gateway, router=self._router, table=self._table, metrics=self._metrics)
        self._admin = AdminSocket(
            config.paths, worker, {"metrics": self._snapshot, "replicas": self._replicas, "drain": self._start_drain}
        )
        await self._admin.start()
        loop.add_signal_handler(signal.SIGUSR1, self._start_drain)
        self._spawn(self._hotpath.sweep())
        self._spawn(self._follow_store())
        if self._master_pid is not None:
            self._spawn(self._follow_master(self._master_pid))
        # The master starts workers with their signals held back: Granian loses a TERM that comes before it serves, and
        # deadlocks on one that comes while it begins to. By the loop's next run it does serve.
        loop.call_later(
            SERVING_AFTER_S,
            lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}),
        )
        # What exists now lives as long as the process; the collector need not look at it again.
        gc.collect()
        gc.freeze()

    async def _follow_store(self) -> None:
        """Read the store as soon as somebody serves it; until then requests get 503."""
        while True:
            try:
                await self._table.start()
                break
            except XinfError as error:
                logger.warning("the store cannot be read yet", extra={"kv": {"error": str(error)}})
                await asyncio.sleep(RETRY_STORE_S)
        try:
            check_exposure(self._config.gateway, has_keys=self._keys.has_keys)
        except ConfigError as error:
            logger.error("every request is refused: %s", error)

    async def _follow_master(self, master_pid: int) -> None:
        """End with the master: one that was killed must not leave workers on its port."""
        while True:
            await asyncio.sleep(MASTER_POLL_S)
            if os.getppid() != master_pid:
                os.kill(os.getpid(), signal.SIGTERM)

    def _start_drain(self) -> bool:
        """The server will stop: readiness goes, and what is open after the drain timeout is told so and ended."""
        if not self._is_draining:
            self._is_draining = True
            error = Unavailable("the gateway stops and the request took longer than gateway.drain_timeout")
            asyncio.get_running_loop().call_later(
                self._config.gateway.drain_timeout, lambda: self._hotpath.fail_open(error)
            )
        return True

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._table.stop()
        await self._store.close()
        await self._admin.stop()
        self._number.release()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a background task ended", exc_info=error)

    # ---- requests ----------------------------------------------------------------------------------------------

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        request_id = self._request_id(headers)
        extra: RawHeaders = [(b"x-request-id", request_id.encode())]
        if self._origins:
            extra += self._cors(headers)
        try:
            answer = await self._answer(scope, receive, send, headers=headers, request_id=request_id, extra=extra)
        except XinfError as error:
            answer = error_answer(error)
        except ClientGone:
            return
        except Exception:
            # The edge of the process: one request may fail, the gateway goes on.
            logger.exception("request failed", extra={"kv": {"id": request_id}})
            answer = error_answer(XinfError("the gateway failed to handle the request", request_id=request_id))
        if answer is not None:
            await send_answer(send, answer, extra)

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        headers: dict[bytes, bytes],
        request_id: str,
        extra: RawHeaders,
    ) -> Answer | None:
        """Answer here, or by an engine (None: it has been sent)."""
        method, path = scope["method"], scope["path"]
        if method == "OPTIONS" and self._origins:
            return Answer(204, b"", [])
        if method in ("GET", "HEAD") and (path == "/healthz" or path == "/readyz" or path.startswith("/readyz/")):
            return self._health(path, headers)
        if path == "/metrics" and method == "GET" and _is_local(scope):
            return await self._metrics_page()
        key = self._check_key(headers)
        if method == "POST":
            await self._hotpath.handle(
                scope, receive, send, headers=headers, key=key, request_id=request_id, extra_headers=extra
            )
            return None
        if method == "GET" and path == "/metrics":
            return await self._metrics_page()
        if method == "GET" and path == "/v1/models":
            return json_answer({"object": "list", "data": self._list_models(key)})
        if method == "GET" and path.startswith("/v1/models/"):
            return self._one_model(path.removeprefix("/v1/models/"), key)
        raise NotFound(f"there is no route {method} {path[:200]}")

    def _check_key(self, headers: dict[bytes, bytes]) -> KeyRecord | None:
        # Without the store nobody knows whether keys exist: nothing may pass.
        self._table.check_read()
        try:
            return self._keys.check(headers, time.time())
        except XinfError as error:
            self._metrics.model(NO_MODEL).count_request(error.http_status)
            raise

    def _request_id(self, headers: dict[bytes, bytes]) -> str:
        given = headers.get(b"x-request-id")
        if given and len(given) <= MAX_REQUEST_ID_BYTES and _ID_CHARACTERS.issuperset(given):
            return given.decode("ascii")
        self._n_requests += 1
        return f"{self._id_prefix}{self._n_requests}"

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

    # ---- pages -------------------------------------------------------------------------------------------------

    def _health(self, path: str, headers: dict[bytes, bytes]) -> Answer:
        if path == "/healthz":
            return json_answer({"status": "ok"})
        if self._is_draining:
            raise Unavailable("the gateway stops")
        self._table.check_read()
        try:
            self._keys.check(headers, time.time())
            may_see = True
        except XinfError:
            may_see = False  # an anonymous probe gets the status without names and reasons
        name = path.removeprefix("/readyz").strip("/")
        models = [self._table.find(name)] if name else self._table.models()
        waiting = [model.deployment for model in models if not self._table.ready(model.deployment)]
        if waiting:
            reasons = "; ".join(self._table.why_not_ready(deployment) for deployment in waiting[:8])
            raise Unavailable(f"not ready: {reasons}" if may_see else "not ready")
        ready = {model.deployment: len(self._table.ready(model.deployment)) for model in models}
        return json_answer({"status": "ready", "replicas": ready} if may_see else {"status": "ready"})

    def _list_models(self, key: KeyRecord | None) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = []
        for name in self._table.names():
            model = self._table.find(name)
            try:
                check_model(key, model.names)
            except XinfError:
                continue
            listed.append({"id": name, "object": "model", "created": int(model.created_s), "owned_by": "xinf"})
        return listed

    def _one_model(self, name: str, key: KeyRecord | None) -> Answer:
        for entry in self._list_models(key):
            if entry["id"] == name:
                return json_answer(entry)
        self._table.check_read()
        raise UnknownModel(f"model {name[:200]!r} does not exist, or not for this key", param="model")

    async def _metrics_page(self) -> Answer:
        total = add(await self._admin.ask_siblings("metrics"))
        return Answer(200, render(total).encode(), [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")])

    def _snapshot(self) -> Snapshot:
        """What this process counted; the gauges that others keep are read now."""
        folded = self._metrics.snapshot()
        for deployment, n_waiting in self._hotpath.waiting().items():
            folded[f'xinf_requests_waiting{{model="{escape(deployment)}"}}'] = n_waiting
        for link in self._table.links():
            label = f'replica="{escape(link.replica)}"'
            folded[f"xinf_link_up{{{label}}}"] = int(link.is_up)
            folded[f"xinf_replica_in_flight{{{label}}}"] = link.n_open
        fold_router(self._router.snapshot(), folded)
        folded["xinf_store_read"] = int(self._table.is_read)
        folded[f'xinf_worker_start_time_seconds{{worker="{self._number.number}"}}'] = self._started_s
        return folded

    def _replicas(self) -> list[dict[str, Any]]:
        return [
            {"replica": link.replica, "address": link.address, "is_up": link.is_up, "in_flight": link.n_open}
            for link in self._table.links()
        ]


def create() -> Application:
    """Build the application of this worker from the environment; Granian's factory.

    Raises: ConfigError when it was not started by `xinf.gateway.front`.
    """
    text, target = os.environ.get("XINF_EFFECTIVE_CONFIG"), os.environ.get("XINF_META_TARGET")
    if not text or not target:
        raise ConfigError("XINF_EFFECTIVE_CONFIG and XINF_META_TARGET are not set", remedy="start `xinf serve`")
    config = from_environ(text)
    log.configure("gateway", level=config.log_level)
    master = os.environ.get("XINF_GATEWAY_MASTER")
    return Application(config, target, master_pid=int(master) if master else None)


def _is_local(scope: Scope) -> bool:
    client = scope.get("client")
    return client is not None and is_loopback(str(client[0]))
