"""The naive comparison: a plain ASGI proxy as one writes it in an afternoon, httpx behind it, round robin, no routing.

Run with `granian --interface asgi benchmarks.naive_proxy:app`; NAIVE_PROXY_UPSTREAMS names the engines' URLs.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import httpx

Message = MutableMapping[str, Any]
_HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"host", b"te", b"upgrade"}


class NaiveProxy:
    """An ASGI application."""

    def __init__(self, upstreams: list[str]) -> None:
        self._upstreams = itertools.cycle(upstreams)
        self._client: httpx.AsyncClient | None = None

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            return
        if self._client is None:  # needs the running loop
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
            self._client = httpx.AsyncClient(limits=limits, timeout=None)
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        url = next(self._upstreams) + scope["path"]
        headers = [(name, value) for name, value in scope["headers"] if name not in _HOP_BY_HOP]
        async with self._client.stream(scope["method"], url, headers=headers, content=body) as answer:
            kept = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in _HOP_BY_HOP]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
            async for chunk in answer.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


app = NaiveProxy(os.environ.get("NAIVE_PROXY_UPSTREAMS", "http://127.0.0.1:8000").split(","))
