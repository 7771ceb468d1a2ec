"""Answers the gateway makes itself: JSON pages and errors in OpenAI's shape. The one place that maps errors to HTTP.

An error of an answer that has not begun becomes a status and a body; one in the middle of a stream becomes its last
event, written the way the route's clients read events.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from xinf.core.errors import BodyTooLarge, EngineError, Overloaded, RequestTimeout, XinfError, all_errors, openai_body
from xinf.gateway.client import RawHeaders

JSON = (b"content-type", b"application/json")
DONE = b"data: [DONE]\n\n"
_BY_CODE = {cls.code: cls for cls in all_errors()}


class Answer(msgspec.Struct, frozen=True):
    """A complete answer."""

    status: int
    body: bytes
    headers: RawHeaders = []


def json_answer(content: Any, *, status: int = 200) -> Answer:
    """Make an answer of a JSON document."""
    return Answer(status, orjson.dumps(content), [JSON])


def error_answer(error: XinfError) -> Answer:
    """Make the answer for an error: its status, OpenAI's body, Retry-After where it applies."""
    headers: RawHeaders = [JSON]
    if isinstance(error, Overloaded):
        headers.append((b"retry-after", str(error.fields.get("retry_after_s") or 1).encode()))
    if isinstance(error, BodyTooLarge | RequestTimeout):
        # The rest of the body is still on its way; nothing after it can be told apart from it.
        headers.append((b"connection", b"close"))
    if error.http_status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="xinf"'))
    return Answer(error.http_status, orjson.dumps(openai_body(error)), headers)


def error_events(error: XinfError, *, dialect: str, tail: bytes) -> bytes:
    """Write the end of a stream that failed: one error event, then what this dialect ends with.

    `dialect`: "openai" (chat and completions), else "events" (responses, messages: named events, no [DONE]).
    `tail`: the last bytes that went out; an engine that has told its own error, or was done, is not contradicted.
    """
    if tail.endswith(DONE):
        return b""
    # An event that was cut in the middle must end before ours begins.
    parts = [b"" if not tail or tail.endswith(b"\n\n") else b"\n\n"]
    last_event = tail.rstrip(b"\n").rpartition(b"\n\n")[2]
    if not last_event.startswith((b'data: {"error"', b"event: error")):
        body = openai_body(error)
        if dialect == "openai":
            parts.append(b"data: " + orjson.dumps(body) + b"\n\n")
        else:
            parts.append(b"event: error\ndata: " + orjson.dumps({"type": "error", **body}) + b"\n\n")
    if dialect == "openai":
        parts.append(DONE)
    return b"".join(parts)


def error_of_code(code: str, message: str) -> XinfError:
    """Restore an error that an engine named by its code; an unknown one is the engine's."""
    cls = _BY_CODE.get(code, EngineError)
    return cls(message or f"the engine ended the request with {code}")
