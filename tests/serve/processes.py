"""Real `xinf` processes for the tests of serve and cli: a place of their own, started, waited for and ended by pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from tests.children import command_of, living_children
from tests.ports import free_port
from xinf.core.paths import Paths

T = TypeVar("T")

XINF = (sys.executable, "-m", "xinf.cli")


def wait_for(condition: Callable[[], T], *, deadline_s: float = 30.0, what: str) -> T:
    """Poll until `condition` is truthy and return its value; fail saying `what` after the deadline."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not happen within {deadline_s:g} s"
        time.sleep(0.02)
    return value


class Place:
    """A data directory with a short runtime directory and a free port, and the processes started in it."""

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="xs", dir="/tmp"))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("XINF_")}
        self.environ = {
            **inherited,
            "XDG_RUNTIME_DIR": str(self.dir),
            "DATA_DIR": str(self.dir / "data"),
            "XINF_GATEWAY_PORT": str(self.port),
            "XINF_GATEWAY_WORKERS": "1",
            "XINF_AGENT_ENGINES_DIR": str(self.dir / "engines"),
            "XINF_AGENT_BACKOFF_INITIAL": "200ms",
            "COLUMNS": "200",
        }
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def runtime_dir(self) -> Path:
        # This process may have no XDG_RUNTIME_DIR of its own; the digest at the end is the same either way.
        digest = Paths(self.dir / "data").runtime_dir.name.rpartition("-")[2]
        return self.dir / f"xinf-{digest}"

    def start(self, *args: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start `xinf ARGS` in the background, its output in `<first argument>.log`."""
        with (self.dir / f"{args[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                [*XINF, *args],
                env={**self.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def run(self, *args: str, timeout_s: float = 60, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `xinf ARGS` to its end."""
        return subprocess.run(
            [*XINF, *args],
            env={**self.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def ok(self, *args: str, **environ: str) -> str:
        """Run `xinf ARGS`, which must succeed; its standard output."""
        done = self.run(*args, **environ)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.log('serve')}\n{self.log('worker')}"
        return done.stdout

    def log(self, name: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.dir / f"{name}.log").read_text(errors="replace")
        return ""

    def serve(self, *args: str) -> subprocess.Popen[bytes]:
        """Start `xinf serve` and wait until it says that it is ready."""
        n_before = self.log("serve").count("ready: ")
        process = self.start("serve", *args)
        self.await_line(process, "serve", "ready: ", n_before + 1)
        return process

    def await_line(self, process: subprocess.Popen[bytes], name: str, text: str, count: int = 1) -> None:
        def is_there() -> bool:
            assert process.poll() is None, f"xinf {name} ended with {process.returncode}: {self.log(name)}"
            return self.log(name).count(text) >= count

        wait_for(is_there, what=f"{text!r} from xinf {name}")

    def child(self, supervisor: subprocess.Popen[bytes], module: str) -> psutil.Process:
        """The child of a supervisor that runs a module."""
        return next(child for child in living_children(supervisor.pid) if module in command_of(child))

    def processes(self) -> list[psutil.Process]:
        """Every living process that was started here, however deep."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("DATA_DIR") == self.environ["DATA_DIR"] and _lives(process):
                    found.append(process)
        return found

    def commands(self) -> list[str]:
        """The command line of each of them; one that ends meanwhile is left out."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                found.append(" ".join(process.cmdline()))
        return found

    def sockets(self) -> list[str]:
        return sorted(path.name for path in self.dir.rglob("*.sock"))

    def chat(self, model: str, **more: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, **more}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=30, trust_env=False)

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        for left in self.processes():
            with contextlib.suppress(psutil.Error):
                left.kill()
        shutil.rmtree(self.dir, ignore_errors=True)


def made_place() -> Iterator[Place]:
    """The body of a fixture."""
    place = Place()
    try:
        yield place
    finally:
        place.close()


def _lives(process: psutil.Process) -> bool:
    return bool(process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
