"""Bodies of the requests of a routing workload: streamed chats that ask for their usage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from xinf.bench.route_session import Message, RouteSession


class RouteBody:
    """Writes the bodies of one run."""

    def __init__(self, model: str) -> None:
        self._common: dict[str, Any] = {
            "model": model,
            "stream": True,
            "stream_options": {"include_usage": True},
            # Engines that would stop earlier make the workload another one.
            "ignore_eos": True,
        }
        self._encode = msgspec.json.Encoder().encode

    def write(self, session: RouteSession, messages: Sequence[Message], max_tokens: int) -> bytes:
        """Write the body of a request with these messages."""
        body = {**self._common, "max_tokens": max_tokens, "messages": messages}
        if session.tools is not None:
            body["tools"] = msgspec.Raw(session.tools)
        if session.name is not None:
            body["user"] = session.name
        return self._encode(body)
