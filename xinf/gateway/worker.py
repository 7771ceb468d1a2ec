"""Which of several gateway processes this is, and how they find each other.

A worker takes the first number whose lock file nobody holds, and serves its admin socket under that number; the lock
ends with the process, however it ends. One line of JSON each way:

    {"ask": "metrics"}                    ->  {"xinf_requests_total{...}": 12, ...}
    {"ask": "replicas"}                   ->  [{"replica": ..., "is_up": ..., "inflight": ...}, ...]
    {"ask": "decision", "about": "<id>"}  ->  {"decisions": [...], "reach": [...]}
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable
from typing import Any

import msgspec

from xinf.core.errors import ConfigError
from xinf.core.paths import Paths

MAX_WORKERS = 512
ASK_TIMEOUT_S = 1.0
LINE_BYTES = 16 << 20

Answers = dict[str, Callable[[], Any]]
Lookups = dict[str, Callable[[str], Any]]


class WorkerNumber:
    """A number held by a lock file."""

    def __init__(self, number: int, lock_fd: int) -> None:
        self.number = number
        self._lock_fd = lock_fd

    @classmethod
    def claim(cls, paths: Paths) -> WorkerNumber:
        """Take the first free number. Raises: ConfigError when all are taken."""
        directory = paths.make_runtime_dir()
        for number in range(MAX_WORKERS):
            fd = os.open(directory / f"gw{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            return cls(number, fd)
        raise ConfigError(f"all {MAX_WORKERS} worker numbers in {directory} are taken", key="gateway.workers")

    def release(self) -> None:
        """Give the number back."""
        os.close(self._lock_fd)


class AdminSocket:
    """Answers its siblings' and the CLI's questions.

    `answers`: what can be asked, and who answers it. `lookups`: the same for questions about something.
    """

    def __init__(self, paths: Paths, number: int, answers: Answers, lookups: Lookups | None = None) -> None:
        self._paths = paths
        self._number = number
        self._answers = answers
        self._lookups = lookups or {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        path = self._paths.gateway_admin_socket(self._number)
        path.unlink(missing_ok=True)  # left by a killed process; the lock says that it is ours
        self._server = await asyncio.start_unix_server(self._serve, path=str(path))

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        self._paths.gateway_admin_socket(self._number).unlink(missing_ok=True)

    async def ask_siblings(self, question: str, about: str | None = None) -> list[Any]:
        """Ask every worker, this one too. One that is not there, or too slow, is left out."""
        numbers = [
            int(path.stem.removeprefix("gw"))
            for path in self._paths.runtime_dir.glob("gw*.sock")
            if path.stem.removeprefix("gw").isdigit()
        ]
        found = await asyncio.gather(*(self.ask_one(number, question, about) for number in sorted(numbers)))
        return [answer for answer in found if answer is not None]

    async def ask_one(self, number: int, question: str, about: str | None = None) -> Any:
        """Ask one worker; None when it is not there, or too slow."""
        if number == self._number:
            return self._answer(question, about)
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                return await ask(self._paths, number, question, about)
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, msgspec.DecodeError):
            return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, TimeoutError, msgspec.DecodeError):
            async with asyncio.timeout(ASK_TIMEOUT_S):
                asked = msgspec.json.decode(await reader.readline(), type=dict[str, str])
                content = self._answer(asked.get("ask", ""), asked.get("about"))
                writer.write(msgspec.json.encode(content) + b"\n")
                await writer.drain()
        writer.close()

    def _answer(self, question: str, about: str | None) -> Any:
        if about is None and (answer := self._answers.get(question)) is not None:
            return answer()
        if about is not None and (lookup := self._lookups.get(question)) is not None:
            return lookup(about)
        return {"error": f"cannot be asked: {question!r}"}


async def ask(paths: Paths, number: int, question: str, about: str | None = None) -> Any:
    """Ask one worker. Raises: OSError when it is not there."""
    reader, writer = await asyncio.open_unix_connection(str(paths.gateway_admin_socket(number)), limit=LINE_BYTES)
    try:
        asked = {"ask": question} if about is None else {"ask": question, "about": about}
        writer.write(msgspec.json.encode(asked) + b"\n")
        return msgspec.json.decode(await reader.readline())
    finally:
        writer.close()
