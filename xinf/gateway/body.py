"""Reading a request's body: bounded in bytes before it is read, and no receive() more than its length needs.

Each receive() is a hop between threads in Granian, so a body of known length is complete when its bytes are there,
without asking for the end.
"""

from __future__ import annotations

from xinf.core.errors import BodyTooLarge, InvalidRequest
from xinf.gateway.asgi import Receive


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
