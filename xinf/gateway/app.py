"""The ASGI application of one gateway process: the reference front, and the pages that every front hands on to it.

`create` is what Granian calls in each worker. Nothing before it imports gRPC: the master forks.
"""

from __future__ import annotations

import logging
import os

from xinf.core import log
from xinf.core.config import Config, from_environ
from xinf.core.errors import ConfigError, InvalidRequest, NotFound, XinfError
from xinf.gateway.admin import PREFIX
from xinf.gateway.answers import Answer
from xinf.gateway.asgi import Receive, Scope, Send
from xinf.gateway.asgi_client import AsgiClient, send_answer
from xinf.gateway.body import BodyReader, ClientGone
from xinf.gateway.client import Head
from xinf.gateway.core import Core
from xinf.gateway.keys import is_loopback
from xinf.gateway.pages import Pages

logger = logging.getLogger("xinf.gateway")


class Application:
    """The gateway as an ASGI application; runs under any ASGI server."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._pages = Pages(core)
        self._bodies = BodyReader(core.config.gateway.request_read_timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            raise NotImplementedError(f"scope type {scope['type']}")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.core.open()
                except XinfError as error:
                    logger.error(str(error))
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.core.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        peer = scope.get("client")
        head = Head(
            scope["method"],
            scope["path"],
            scope.get("query_string") or b"",
            dict(scope["headers"]),
            str(peer[0]) if peer is not None else None,
        )
        try:
            admission = self.core.admit(head)
            if admission is None:
                await send_answer(send, await self._page(head), self.core.extra_headers(head))
                return
            body = await self._bodies.read(receive, admission.length, admission.max_body_bytes)
        except XinfError as error:
            await send_answer(send, self.core.refuse(head, error), [])
            return
        except ClientGone:
            # Granian says the same of chunks that are malformed; without an answer of ours it would say 500.
            early = InvalidRequest("the body ended early, or its chunks are malformed")
            await send_answer(send, self.core.refuse(head, early), [])
            return
        client = AsgiClient(send, receive)
        client.exchange = self.core.serve(admission, body, client)
        await client.wait()

    async def _page(self, head: Head) -> Answer:
        """What is no request for an engine. Raises: XinfError."""
        method, path = head.method, head.path
        if method == "OPTIONS" and self.core.has_cors:
            return Answer(204, b"", [])
        if method in ("GET", "HEAD") and (path == "/healthz" or path == "/readyz" or path.startswith("/readyz/")):
            return self._pages.health(head)
        if path == "/metrics" and method == "GET" and head.peer is not None and is_loopback(head.peer):
            return await self._pages.metrics()
        if method == "GET" and path.startswith(PREFIX):
            return await self.core.admin.page(head)
        key = self.core.check_key(head)
        if method == "GET" and path == "/metrics":
            return await self._pages.metrics()
        if method == "GET" and path == "/v1/models":
            return self._pages.models(key)
        if method == "GET" and path.startswith("/v1/models/"):
            return self._pages.model(path.removeprefix("/v1/models/"), key)
        raise NotFound(f"there is no route {method} {path[:200]}")


def make_core() -> Core:
    """The core of this worker, from the environment that the master sets.

    Raises: ConfigError when it was not started by a master of ours.
    """
    text, target = os.environ.get("XINF_EFFECTIVE_CONFIG"), os.environ.get("XINF_META_TARGET")
    if not text or not target:
        raise ConfigError("XINF_EFFECTIVE_CONFIG and XINF_META_TARGET are not set", remedy="start `xinf serve`")
    config: Config = from_environ(text)
    log.configure("gateway", level=config.log_level)
    master = os.environ.get("XINF_GATEWAY_MASTER")
    return Core(config, target, master_pid=int(master) if master else None)


def create() -> Application:
    """Build the application of this worker; Granian's factory. Raises: ConfigError."""
    return Application(make_core())
