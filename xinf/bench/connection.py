"""One keep-alive HTTP/1.1 connection: an asyncio protocol around llhttp (httptools).

No reader, writer, task or queue: the loop's call with the bytes is the one that takes the time, so that a time stamp
is as close to the socket as Python gets.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from xinf.bench.record import Failure


class Listener(Protocol):
    """What a connection tells of the one answer it waits for."""

    def on_sent(self, now_s: float) -> None: ...

    def on_head(self, status: int, content_type: bytes, decision: bytes) -> None: ...

    def on_data(self, data: bytes, now_s: float) -> None: ...

    def on_complete(self, now_s: float) -> None: ...

    def on_lost(self, now_s: float, reason: str) -> None: ...

    def fail(self, failure: Failure, message: str, now_s: float) -> None: ...


class Connection(asyncio.Protocol):
    """`on_idle(self)` is called when it can take another request, `on_closed(self)` once when it is gone."""

    def __init__(self, on_idle: Callable[[Connection], None], on_closed: Callable[[Connection], None]) -> None:
        self._on_idle = on_idle
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._listener: Listener | None = None
        self._now_s = 0.0
        self._content_type = b""
        self._decision = b""
        self._has_length = False
        self._has_head = False
        self._has_unasked = False
        self.n_requests = 0

    def send(self, request: bytes, listener: Listener) -> None:
        """Send one request; the connection must be idle."""
        assert self._listener is None, "one request at a time"
        assert self._transport is not None
        self._listener = listener
        self._content_type = self._decision = b""
        self._has_length = self._has_head = False
        self.n_requests += 1
        listener.on_sent(time.monotonic())
        self._transport.write(request)

    def abort(self) -> None:
        """Close at once; whoever waits for an answer is not told."""
        self._listener = None
        if self._transport is not None:
            self._transport.abort()

    @property
    def is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    # ---- asyncio --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._listener is None:
            # Nothing was asked: whatever it says cannot be an answer.
            self.abort()
            return
        self._now_s = time.monotonic()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._break(f"the answer is not HTTP/1.1: {error}")
        except httptools.HttpParserUpgrade:
            self._break("the server switched protocols")
        if self._has_unasked:
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        listener, self._listener = self._listener, None
        self._transport = None
        if listener is not None:
            now_s = time.monotonic()
            if self._has_head and not self._has_length and error is None:
                # Without a length the end of the connection is the end of the answer (RFC 9112, 6.3).
                listener.on_complete(now_s)
            else:
                listener.on_lost(now_s, str(error) if error is not None else "")
        self._on_closed(self)

    # ---- llhttp ---------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        # A second answer to one question would be taken for the answer to the next one.
        self._has_unasked = self._listener is None

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self._content_type = value
        elif name in (b"content-length", b"transfer-encoding"):
            self._has_length = True
        elif name == b"x-xinf-decision":
            self._decision = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._listener is not None and status >= 200:
            self._has_head = True
            self._listener.on_head(status, self._content_type, self._decision)

    def on_body(self, data: bytes) -> None:
        if self._listener is not None:
            self._listener.on_data(data, self._now_s)

    def on_message_complete(self) -> None:
        if self._listener is None or self._parser.get_status_code() < 200:
            return
        listener, self._listener = self._listener, None
        listener.on_complete(self._now_s)
        if self._parser.should_keep_alive():
            self._on_idle(self)
        elif self._transport is not None:
            self._transport.abort()

    def _break(self, message: str) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.fail(Failure.MALFORMED, message, self._now_s)
        self.abort()
