"""The front `direct` in a thread of the test, over a core that does what the path of a request says.

It proves what the front does with bytes and with the core's calls; what the real core does is proved elsewhere.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import uvloop

from xinf.core.errors import PermissionDenied, XinfError
from xinf.gateway.answers import Answer, error_answer
from xinf.gateway.asgi import Receive, Scope, Send
from xinf.gateway.client import Admission, Client, Head, RawHeaders
from xinf.gateway.direct_server import DirectServer, Limits
from xinf.gateway.routes import Route

T = TypeVar("T")
DEADLINE_S = 20.0
MAX_BODY_BYTES = 1 << 20
TEXT: RawHeaders = [(b"content-type", b"text/plain")]


class Call:
    """One request as the core got it; its Exchange."""

    def __init__(self, head: Head, body: bytes, client: Client) -> None:
        self.head = head
        self.body = body
        self.client = client
        self.n_gone = 0
        self.n_writable = 0
        self.when_writable: Callable[[], None] = lambda: None
        self.gone = threading.Event()

    def on_gone(self) -> None:
        self.n_gone += 1
        self.gone.set()

    def on_writable(self) -> None:
        self.n_writable += 1
        self.when_writable()


class ScriptedCore:
    """POST /sync and /later answer with length and bytes of the body, /hold leaves that to the test, others fail."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.held: list[Call] = []
        self.n_refused = 0
        self.n_turned_away = 0

    def admit(self, head: Head) -> Admission | None:
        if head.method != "POST":
            return None
        if head.path == "/deny":
            raise PermissionDenied("not this one")
        if head.path == "/boom":
            raise RuntimeError("a bug")
        return Admission(
            head,
            Route(head.path),
            key=None,
            length=0,
            max_body_bytes=MAX_BODY_BYTES,
            begun_s=0.0,
            deadline_s=None,
            request_id="r",
            extra_headers=[],
        )

    def refuse(self, head: Head, error: XinfError) -> Answer:
        self.n_refused += 1
        answer = error_answer(error)
        return Answer(answer.status, answer.body, [*answer.headers, (b"x-request-id", b"r")])

    def serve(self, admission: Admission, body: bytes, client: Client) -> Call:
        call = Call(admission.head, body, client)
        self.calls.append(call)
        path = admission.head.path
        if path == "/sync":
            self.echo(call)
        elif path == "/later":
            asyncio.get_running_loop().call_soon(self.echo, call)
        else:
            self.held.append(call)
        return call

    def echo(self, call: Call) -> None:
        call.client.answer(200, TEXT, b"%d:%b" % (len(call.body), call.body[:100]))


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """GET /pieces answers in two, /boom fails, /half does after its first piece, others answer with their path."""
    message = await receive()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"999")]
    if scope["path"] == "/boom":
        raise RuntimeError("a bug")
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] in ("/pieces", "/half"):
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        if scope["path"] == "/half":
            raise RuntimeError("a bug")
        await send({"type": "http.response.body", "body": b"two"})
    elif scope["path"] == "/wait":
        assert (await receive())["type"] == "http.disconnect"
    else:
        body = b"%b|%b|%b" % (scope["path"].encode(), scope["query_string"], message["body"])
        await send({"type": "http.response.body", "body": body})


class DirectStack:
    """`with DirectStack() as stack:` serves; `stack.call(f)` runs `f` on the server's loop."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, **limits: Any) -> None:
        self.core = ScriptedCore()
        self._tls = tls
        self._limits = Limits(**{"max_connections": 1000, "body_timeout_s": 60.0, **limits})
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="direct")
        self._sockets: list[socket.socket] = []
        self.server: DirectServer
        self.port = 0

    def __enter__(self) -> DirectStack:
        self._thread.start()
        self.run(self._open())
        return self

    def __exit__(self, *exc: object) -> None:
        for raw in self._sockets:
            raw.close()
        self.run(self.server.drain(0.0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()

    async def _open(self) -> None:
        self.server = DirectServer(self.core, application, self._limits)
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        self.port = bound.getsockname()[1]
        await self.server.listen(bound, backlog=128, tls=self._tls)

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(DEADLINE_S)

    def call(self, function: Callable[[], T]) -> T:
        """Run on the server's loop and give what it returned or raised."""
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                done.set_result(function())
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return done.result(DEADLINE_S)

    def connect(self, *, receive_bytes: int | None = None) -> socket.socket:
        """A plain connection, closed with the stack. `receive_bytes`: size of its receive buffer."""
        raw = socket.socket()
        if receive_bytes is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.settimeout(DEADLINE_S)
        raw.connect(("127.0.0.1", self.port))
        self._sockets.append(raw)
        return raw

    def talk(self, *parts: bytes) -> bytes:
        """Send, and give all that comes back until the server closes."""
        raw = self.connect()
        answer = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                raw.sendall(part)
            while data := raw.recv(65536):
                answer += data
        raw.close()
        return answer

    def hold(self) -> Call:
        """The next held request, when it is there."""
        return self._wait(lambda: self.core.held.pop(0) if self.core.held else None)

    def wait_until(self, condition: Callable[[], Any]) -> None:
        self._wait(lambda: condition() or None)

    def _wait(self, find: Callable[[], T | None]) -> T:
        async def poll() -> T:
            async with asyncio.timeout(DEADLINE_S):
                while (found := find()) is None:
                    await asyncio.sleep(0.002)
            return found

        return self.run(poll())


def read_answer(raw: socket.socket, rest: bytes = b"") -> tuple[bytes, bytes, bytes]:
    """Read one answer with a content-length: its head, its body, and what came behind it."""
    data = rest
    while b"\r\n\r\n" not in data:
        part = raw.recv(65536)
        assert part, data
        data += part
    head, _, data = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(data) < length:
        part = raw.recv(65536)
        assert part, data
        data += part
    return head, data[:length], data[length:]
