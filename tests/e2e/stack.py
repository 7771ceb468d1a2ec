"""A whole xinf installation as its users start it: `xinf serve`, `xinf worker`, `xinf launch`, each a real process.

Everything lies below one short directory and ends with the stack, engines included; what is left then is an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.ports import free_port

XINF = str(Path(sys.executable).parent / "xinf")
ROOT = Path(__file__).resolve().parents[2]


def wait_until(condition: Callable[[], Any], *, deadline_s: float, what: str) -> Any:
    """Poll until `condition` is truthy and return its value; fail with `what` after the deadline."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {deadline_s:.0f} s")


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie is dead."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Stack:
    """`with Stack() as stack:` gives serve and worker running; `stack.launch(...)` adds engines."""

    def __init__(self, *, workers: int = 1, serve_args: tuple[str, ...] = ()) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="xe", dir="/tmp"))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environ = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(self.dir),
            "XINF_GATEWAY_PORT": str(self.port),
            "XINF_GATEWAY_WORKERS": str(workers),
            "XINF_AGENT_ENGINES_DIR": os.environ.get("XINF_AGENT_ENGINES_DIR", str(ROOT / ".engines")),
            "XINF_AGENT_BACKOFF_INITIAL": "200ms",
            "DATA_DIR": str(self.dir / "data"),
        }
        self._serve_args = serve_args
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Stack:
        try:
            self.start("serve", "serve", *self._serve_args)
            self.wait_http("/healthz", 60)
            self.start("worker", "worker")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self, name: str, *args: str) -> subprocess.Popen[bytes]:
        """Start `xinf ARGS` in the background under `name`, its output in a file."""
        log = (self.dir / f"{name}.log").open("ab")
        process = subprocess.Popen(
            [XINF, *args], env=self.environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
        log.close()
        self._processes[name] = process
        return process

    def run(self, *args: str, timeout_s: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `xinf ARGS` to its end."""
        done = subprocess.run(
            [XINF, *args],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"xinf {' '.join(args)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
            )
        return done

    def json(self, *args: str) -> Any:
        """Run `xinf ARGS --json` and decode what it prints."""
        return json.loads(self.run(*args, "--json").stdout)

    def process(self, name: str) -> subprocess.Popen[bytes]:
        return self._processes[name]

    def wait_http(self, path: str, deadline_s: float) -> None:
        def answered() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(self.url + path, timeout=5).status_code == 200
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise AssertionError(f"{name} ended with {process.returncode}\n{self.logs()}")
            return False

        try:
            wait_until(answered, deadline_s=deadline_s, what=f"200 from {path}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def logs(self) -> str:
        """The last lines of everything, for a failing test."""
        parts = []
        for log in [*self.dir.glob("*.log"), *self.dir.glob("data/**/*.log")]:
            tail = log.read_text(errors="replace").splitlines()[-40:]
            parts.append(f"--- {log.relative_to(self.dir)}\n" + "\n".join(tail))
        return "\n".join(parts)

    def replicas(self, deployment: str) -> list[dict[str, Any]]:
        """The replica records of a deployment, as `xinf describe --json` gives them."""
        described: dict[str, Any] = self.json("describe", deployment)
        found: list[dict[str, Any]] = described["replicas"]
        return found

    def processes_below(self) -> list[psutil.Process]:
        """Every process that was started with this stack's data directory in its environment or arguments."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = str(self.dir) in " ".join(process.cmdline()) or process.environ().get("DATA_DIR") == str(
                    self.dir / "data"
                )
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def close(self) -> None:
        """End everything this stack started, by pid, and remove its directory."""
        # The worker first: it needs the control process to end its engines in order.
        for name, process in sorted(self._processes.items(), key=lambda item: item[0] == "serve"):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            if name == "worker" and process.poll() is None:
                time.sleep(0.3)
                process.send_signal(signal.SIGINT)  # the second tells an agent to end its engines too
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        for left in self.processes_below():
            with contextlib.suppress(psutil.Error):
                left.kill()
        shutil.rmtree(self.dir, ignore_errors=True)
