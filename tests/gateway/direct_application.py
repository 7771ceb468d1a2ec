"""An application for workers of the front `direct` without a store or gRPC: what the master's tests start.

GET /pid tells the worker's process, POST answers with its body after the milliseconds that it says. With
XINF_TEST_FAIL in the environment, opening fails.
"""

from __future__ import annotations

import asyncio
import os
import signal

from tests.gateway.direct_stack import TEXT, Call, ScriptedCore
from xinf.core.errors import ConfigError
from xinf.gateway.asgi import Receive, Scope, Send
from xinf.gateway.client import Admission, Client


class Core(ScriptedCore):
    def __init__(self) -> None:
        super().__init__()
        self.is_draining = False

    async def open(self) -> None:
        if "XINF_TEST_FAIL" in os.environ:
            raise ConfigError("told to fail")
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.start_drain)

    async def close(self) -> None:
        os.write(1, f"closed {os.getpid()}\n".encode())  # whole: two workers write to one file

    def start_drain(self) -> bool:
        self.is_draining = True
        return True

    def serve(self, admission: Admission, body: bytes, client: Client) -> Call:
        call = Call(admission.head, body, client)
        if self.is_draining:
            raise AssertionError("a new request while draining")
        asyncio.get_running_loop().call_later(int(body) / 1000, lambda: client.answer(200, TEXT, body))
        return call


class Application:
    def __init__(self) -> None:
        self.core = Core()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % os.getpid()})


def create() -> Application:
    return Application()
