"""Reading a request's body: bounded in bytes before it is read, and no receive() more than its length needs.

Each receive() is a hop between threads in Granian, so a body of known length is complete when its bytes are there,
without asking for the end.
"""

from __future__ import annotations

import asyncio
import time

from xinf.core.errors import BodyTooLarge, InvalidRequest, RequestTimeout
from xinf.gateway.asgi import Receive

LOOK_S = 0.5  # how often the bodies that are being read are looked at


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


def declared_length(headers: dict[bytes, bytes], limit_bytes: int) -> int | None:
    """Return the content-length, None if there is none (a chunked body).

    Raises: BodyTooLarge before a byte of it is read; InvalidRequest.
    """
    text = headers.get(b"content-length")
    if text is None:
        return None if b"transfer-encoding" in headers else 0
    if not text.isdigit() or len(text) > 18:
        raise InvalidRequest(f"content-length {text[:40]!r} is not a length", param="content-length")
    length = int(text)
    if length > limit_bytes:
        raise _too_large(length, limit_bytes)
    return length


class BodyReader:
    """Reads bodies in the time they may take.

    A timer per request would cost more than the body's own receive(): those that read are looked at together.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._until_s: dict[asyncio.Task[None], float] = {}
        self._expired: set[asyncio.Task[None]] = set()
        self._is_armed = False

    async def read(self, receive: Receive, length: int | None, limit_bytes: int) -> bytes:
        """Read the whole body. Raises: RequestTimeout, BodyTooLarge, ClientGone."""
        if length == 0:
            return b""
        task: asyncio.Task[None] | None = asyncio.current_task()
        assert task is not None
        self._until_s[task] = time.monotonic() + self._timeout_s
        if not self._is_armed:
            self._arm()
        try:
            return await read_body(receive, length, limit_bytes)
        except asyncio.CancelledError:
            if task not in self._expired:
                raise
            task.uncancel()
            # Not by way of a variable: frame and error would hold each other, and with them the server's connection.
            raise RequestTimeout(
                f"the request was not complete after {self._timeout_s:g} s", timeout_s=self._timeout_s
            ) from None
        finally:
            del self._until_s[task]
            self._expired.discard(task)

    def _arm(self) -> None:
        self._is_armed = True
        asyncio.get_running_loop().call_later(min(LOOK_S, max(self._timeout_s / 4, 0.01)), self._look)

    def _look(self) -> None:
        self._is_armed = False
        now_s = time.monotonic()
        for task, until_s in self._until_s.items():
            if now_s > until_s and task not in self._expired:
                self._expired.add(task)
                task.cancel()
        if self._until_s:
            self._arm()


async def read_body(receive: Receive, length: int | None, limit_bytes: int) -> bytes:
    """Read the whole body.

    Raises: ClientGone; BodyTooLarge as soon as a chunked body passes the limit.
    """
    if length == 0:
        return b""
    parts: list[bytes] = []
    n_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        n_bytes += len(part)
        if n_bytes > limit_bytes:
            raise _too_large(n_bytes, limit_bytes)
        is_last = n_bytes == length or not message.get("more_body", False)
        if is_last and not parts:
            return bytes(part)
        parts.append(part)
        if is_last:
            return b"".join(parts)


def _too_large(n_bytes: int, limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body has {n_bytes} bytes or more, the limit is {limit_bytes}",
        remedy="send less, or raise gateway.max_body_bytes",
        limit_bytes=limit_bytes,
    )
