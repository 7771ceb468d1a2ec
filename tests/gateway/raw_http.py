"""Just enough HTTP over a plain socket to misbehave on purpose: vanish, dawdle, lie about lengths."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from dataclasses import dataclass, field
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


def scripted_chat(word: str, **fields: Any) -> bytes:
    """The body of a streaming chat request to a ScriptedReplica."""
    return chat("scripted", **{"messages": [{"role": "user", "content": word}], "stream": True, **fields})


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


def reset(raw: socket.socket) -> None:
    """Close with a reset instead of an end."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


@dataclass
class RawResponse:
    """One answer as it came. `headers`: names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)  # of a chunked body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class AnswerReader:
    """Reads one answer after the other from a connection, strictly: whatever is not HTTP/1.1 fails the test."""

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw
        self._data = b""

    def answer(self, *, is_head: bool = False) -> RawResponse:
        """Read the next answer that is not a 1xx. `is_head`: it answers HEAD, so it has no body."""
        while True:
            found = self._one(is_head=is_head)
            if found.status >= 200:
                return found

    def interim(self) -> RawResponse:
        """Read the next answer, a 1xx too."""
        return self._one(is_head=False)

    def is_closed(self) -> bool:
        """Wait until the other side closes; False if it says something instead."""
        with contextlib.suppress(ConnectionResetError):
            self._data += self._raw.recv(65536)
        return not self._data

    def _one(self, *, is_head: bool) -> RawResponse:
        lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        version, status, *_ = lines[0].split(" ")
        assert version in ("HTTP/1.1", "HTTP/1.0"), lines[0]
        pairs = [line.partition(":") for line in lines[1:]]
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        assert len(headers) == len(pairs), f"a header stands twice: {lines}"
        found = RawResponse(int(status), headers)
        if is_head or found.status < 200 or found.status == 204:
            return found
        if headers.get("transfer-encoding") == "chunked":
            assert "content-length" not in headers
            while size := int(self._until(b"\r\n"), 16):
                found.chunks.append(self._take(size))
                assert self._take(2) == b"\r\n"
            assert self._until(b"\r\n") == b""
            found.body = b"".join(found.chunks)
        elif "content-length" in headers:
            found.body = self._take(int(headers["content-length"]))
        else:
            found.body, self._data = self._data + read_all(self._raw), b""
        return found

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._data:
            self._fill()
        found, _, self._data = self._data.partition(mark)
        return found

    def _take(self, n_bytes: int) -> bytes:
        while len(self._data) < n_bytes:
            self._fill()
        found, self._data = self._data[:n_bytes], self._data[n_bytes:]
        return found

    def _fill(self) -> None:
        part = self._raw.recv(1 << 20)
        assert part, f"closed in the middle of an answer, after {self._data[-200:]!r}"
        self._data += part
