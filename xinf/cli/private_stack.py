"""An installation of its own for a measurement: `xinf serve`, `xinf worker`, simulated engines, a temporary directory.

It uses what any user can type, knows nothing of the configuration around it, and is gone with everything it started
when it is closed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from xinf.core.errors import Unavailable

T = TypeVar("T")

_START_TIMEOUT_S = 60.0
_LAUNCH_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 40.0
_POLL_S = 0.05
_LINK_UP = re.compile(rb"^xinf_link_up\{[^}]*\} 1$", re.MULTILINE)


class PrivateStack:
    """`with PrivateStack(...) as stack:`; `launch` and `stop` engines, as often as need be."""

    def __init__(self, *, front: str | None, settings: Sequence[str]) -> None:
        # Short, as Unix socket paths end at 108 bytes.
        self._directory = Path(tempfile.mkdtemp(prefix="xr", dir="/tmp"))
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("XINF_")} | {
            "XDG_RUNTIME_DIR": str(self._directory),
            "DATA_DIR": str(self._directory / "data"),
            "XINF_AGENT_ENGINES_DIR": str(self._directory / "engines"),
        }
        self._serve_arguments = ["serve", "--port", "0", "--workers", "1", "--log-level", "warning"]
        self._serve_arguments += ["--front", front] if front else []
        self._serve_arguments += [word for one in settings for word in ("--set", one)]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.url = ""

    def __enter__(self) -> PrivateStack:
        try:
            self._start("serve", *self._serve_arguments)
            self.url = self._wait(self._read_url, "an answer of the gateway", _START_TIMEOUT_S)
            self._start("worker", "worker", "--log-level", "warning")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def launch(self, name: str, *, policy: str, replicas: int, engine_args: Sequence[str], max_model_len: int) -> None:
        """Start simulated engines and wait until the gateway reaches all of them. Raises: Unavailable."""
        arguments = ["launch", "--model", name, "--engine", "sim", "--replicas", str(replicas), "--policy", policy]
        arguments += ["--name", name, "--max-model-len", str(max_model_len)]
        arguments += [word for one in engine_args for word in ("--engine-arg", one)]
        self._run(*arguments)
        self._wait(lambda: self._n_links() == replicas, f"Links to {replicas} replicas", _START_TIMEOUT_S)

    def stop(self, name: str) -> None:
        """End the engines of a deployment. Raises: Unavailable."""
        self._run("stop", name)
        self._wait(lambda: self._n_links() == 0, "the end of all Links", _START_TIMEOUT_S)

    def gateway_pids(self) -> list[int]:
        """The gateway's master and its workers, without the supervisor and the control process."""
        from xinf.bench import descendants

        return descendants(self._processes["serve"].pid, b"xinf.gateway")

    def close(self) -> None:
        """End everything that was started here. The worker first: it ends its engines through the control process."""
        for name in ("worker", "serve"):
            process = self._processes.pop(name, None)
            if process is not None:
                self._end(process, signals=2 if name == "worker" else 1)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self, name: str, *arguments: str) -> None:
        # In a session of its own: Ctrl-C is for us, and we end the children in order.
        with self._log(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                self._command(arguments),
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _run(self, *arguments: str) -> None:
        try:
            done = subprocess.run(
                self._command(arguments),
                env=self._environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_LAUNCH_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(
                f"`xinf {arguments[0]}` of the simulated engines took more than {_LAUNCH_TIMEOUT_S:g} s",
                remedy="ask for fewer replicas",
            ) from None
        if done.returncode != 0:
            said = " ".join((done.stderr or done.stdout).split())
            raise Unavailable(f"`xinf {arguments[0]}` of the simulated engines failed: {said[-600:]}")

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-P", "-m", "xinf.cli", *arguments]

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"

    def _read_url(self) -> str:
        found = re.search(r"^ready: (\S+)$", self._log("serve").read_text(errors="replace"), re.MULTILINE)
        return found[1] if found else ""

    def _n_links(self) -> int:
        import httpx

        with contextlib.suppress(httpx.HTTPError):
            page = httpx.get(f"{self.url}/metrics", timeout=5.0, trust_env=False).content
            return len(_LINK_UP.findall(page))
        return -1

    def _wait(self, condition: Callable[[], T], what: str, timeout_s: float) -> T:
        deadline_s = time.monotonic() + timeout_s
        while True:
            if value := condition():
                return value
            ended = next((name for name, process in self._processes.items() if process.poll() is not None), None)
            if ended is not None or time.monotonic() > deadline_s:
                why = f"`xinf {ended}` ended" if ended else f"not within {timeout_s:g} s"
                tail = " ".join(self._log(ended or "serve").read_text(errors="replace").split())[-600:]
                raise Unavailable(f"no {what}: {why}; it said: {tail or 'nothing'}")
            time.sleep(_POLL_S)

    def _end(self, process: subprocess.Popen[bytes], *, signals: int) -> None:
        for _ in range(signals):  # the second tells an agent to end its engines too
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.5)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
