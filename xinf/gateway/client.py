"""What a front is to the core and the core to a front: the few calls that one request needs.

    front ──Head──▶ core.admit ──Admission──▶ front reads the body ──▶ core.serve(admission, body, client)
    client ◀──answer | start, write*, finish | drop── core                              │
                                              Exchange.on_gone, on_writable ◀── front ──┘

Everything runs on the event loop of the gateway process and nothing blocks, so a request needs no task, future or queue
of its own. A front is a server: Granian through ASGI or RSGI, or our own (`direct`).
"""

from __future__ import annotations

from typing import Protocol

from xinf.core.records import KeyRecord
from xinf.gateway.routes import Route

RawHeaders = list[tuple[bytes, bytes]]  # names in lower case


class Head:
    """A request up to its body. `headers`: names in lower case, the last of duplicates; `peer`: the client's host."""

    def __init__(self, method: str, path: str, query: bytes, headers: dict[bytes, bytes], peer: str | None) -> None:
        self.method = method
        self.path = path  # percent-decoded
        self.query = query
        self.headers = headers
        self.peer = peer


class Admission:
    """A request for an engine that may go on to its body. Made by `Core.admit`; fronts read the public part."""

    def __init__(
        self,
        head: Head,
        route: Route,
        *,
        key: KeyRecord | None,
        length: int | None,
        max_body_bytes: int,
        begun_s: float,
        deadline_s: float | None,
        request_id: str,
        extra_headers: RawHeaders,
    ) -> None:
        self.head = head
        self.route = route
        self.key = key
        self.length = length  # of the body as declared; 0 for none, None for a chunked one
        self.max_body_bytes = max_body_bytes
        self.begun_s = begun_s  # monotonic
        self.deadline_s = deadline_s  # monotonic; None: never
        self.request_id = request_id
        self.extra_headers = extra_headers  # go on every answer to this request


class Client(Protocol):
    """One client's side of one request, made by its front. No call raises when the client is gone, none blocks.

    `answer`, `write` and `finish` give False when what they got is not on its way yet: then nothing more is written
    until the front has called `Exchange.on_writable`. After an `answer` or `finish` that was taken, or `drop`, no call
    follows.
    """

    def answer(self, status: int, headers: RawHeaders, body: bytes) -> bool:
        """Give the whole answer. The front adds its content-length."""

    def start(self, status: int, headers: RawHeaders) -> None:
        """Begin an answer of unknown length; bytes follow at once."""

    def write(self, data: bytes) -> bool: ...

    def finish(self, data: bytes) -> bool:
        """Write the last bytes and end the answer."""

    def drop(self) -> None:
        """Cut the connection: the client must not take what it has for a whole answer."""

    def watch(self) -> None:
        """Begin to look for the client's disconnect, if that costs anything (in Granian, a hop between threads)."""


class Exchange(Protocol):
    """The core's side of one request, for the front."""

    def on_gone(self) -> None:
        """The client closed its connection; harmless when the answer is complete."""

    def on_writable(self) -> None:
        """What a call of the client did not take at once is on its way now."""
