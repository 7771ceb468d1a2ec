"""A process under test or beside it: started on given cores, waited for until it answers, stopped by pid."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.cpu import tree
from benchmarks.pin import pinned

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 15.0


class NotReady(RuntimeError):
    """A process ended or did not answer in time; the message has its last lines."""


class Service:
    """One started command and everything it starts."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        cpus: Sequence[int],
        log: Path,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                pinned(command, cpus),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def tree(self) -> tuple[int, ...]:
        """Its pids, children's too."""
        return tree(self.pid)

    def wait_http(self, url: str, *, timeout_s: float = START_TIMEOUT_S, body: bytes | None = None) -> None:
        """Wait until `url` answers 200 to a GET, or a POST of `body`. Raises: NotReady."""
        self.wait(lambda: answers(url, body), f"200 from {url}", timeout_s=timeout_s)

    def wait(self, condition: Callable[[], bool], what: str, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until `condition` holds. Raises: NotReady."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self._process.poll() is not None:
                raise NotReady(f"{self.name} ended with {self._process.returncode}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise NotReady(f"{self.name}: no {what} within {timeout_s:.0f} s\n{self.tail()}")
            time.sleep(0.05)

    def tail(self) -> str:
        """The last lines of its output."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def stop(self, *signals: signal.Signals) -> None:
        """End it: the given signals one after another (TERM if none), then KILL for whatever is left of its tree."""
        members = self.tree()
        for number in signals or (signal.SIGTERM,):
            if self._process.poll() is None:
                self._process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(0.5)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        alive = {pid for member in members for pid in tree(member)}
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


def free_port() -> int:
    """Ask the kernel for a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str, body: bytes | None = None) -> bool:
    """Whether `url` answers 200."""
    request = urllib.request.Request(url, data=body, headers={"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
