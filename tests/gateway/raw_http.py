"""Just enough HTTP over a plain socket to misbehave on purpose: vanish, dawdle, lie about lengths."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """The bytes of a POST. `length`: what content-length claims."""
    lines = [
        f"POST {path} HTTP/1.1",
        "host: x",
        "content-type: application/json",
        f"content-length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chat(model: str, **fields: Any) -> bytes:
    """The body of a chat request."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def read_until(raw: socket.socket, mark: bytes) -> bytes:
    """Read until `mark` has come, or the other side closed."""
    data = b""
    while mark not in data:
        part = raw.recv(65536)
        if not part:
            break
        data += part
    return data


def read_all(raw: socket.socket) -> bytes:
    """Read until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := raw.recv(65536):
            data += part
    return data
