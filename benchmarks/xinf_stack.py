"""xinf as its users start it: `xinf serve`, `xinf worker`, `xinf launch`, each a real process.

Engines, control process, agent and supervisor share the load generator's core; the gateway has the other to itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.contestant import Family, Site, trial_body
from benchmarks.cpu import tree
from benchmarks.engines import MODEL, N_ENGINES, XINF
from benchmarks.pin import GATEWAY_CPU, LOAD_CPU, pin_process, pinned
from benchmarks.service import Service, free_port

# Limits that 1,000 streams on two replicas would meet; none of them changes what a request costs.
_SET = ("gateway.max_inflight_per_replica=4096", "gateway.max_waiting=4096")
_LAUNCH_TIMEOUT_S = 120


class XinfStack:
    """One installation with one front."""

    family = Family.XINF

    def __init__(self, front: str, *, workers: int = 1) -> None:
        self.name = f"xinf {front}" if workers == 1 else f"xinf {front}, {workers} workers"
        self.settings = f"xinf serve --workers {workers} --front {front} " + " ".join(f"--set {one}" for one in _SET)
        self.port = 0
        self._front = front
        self._workers = workers
        self._directory: Path | None = None
        self._serve: Service | None = None
        self._agent: Service | None = None

    @property
    def ports(self) -> tuple[int, ...]:
        return (self.port,)

    def version(self) -> str:
        return subprocess.run([XINF, "version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]

    def start(self, site: Site) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="xb", dir="/tmp"))  # short: Unix socket paths end at 108 bytes
        self.port = free_port()
        environ = {
            "XDG_RUNTIME_DIR": str(self._directory),
            "DATA_DIR": str(self._directory / "data"),
            "XINF_AGENT_ENGINES_DIR": str(self._directory / "engines"),
        }
        name = self.name.replace(" ", "-").replace(",", "")
        serve = [XINF, "serve", "--port", str(self.port), "--workers", str(self._workers), "--log-level", "warning"]
        if has_fronts():
            serve += ["--front", self._front]
        for one in _SET:
            serve += ["--set", one]
        self._serve = Service(
            self.name, serve, cpus=LOAD_CPU, log=site.directory / f"{name}-serve.log", environ=environ
        )
        self._serve.wait_http(f"http://127.0.0.1:{self.port}/healthz")
        for pid in self.gateway_pids():
            pin_process(pid, GATEWAY_CPU)
        agent_log = site.directory / f"{name}-worker.log"
        self._agent = Service(f"{self.name} agent", [XINF, "worker"], cpus=LOAD_CPU, log=agent_log, environ=environ)
        launch = [XINF, "launch", "--model", MODEL, "--engine", "sim", "--replicas", str(N_ENGINES)]
        for key, value in site.profile.engine_arguments().items():
            launch += ["--engine-arg", f"{key}={value}"]
        subprocess.run(
            pinned(launch, LOAD_CPU),
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LAUNCH_TIMEOUT_S,
            check=True,
        )
        self._serve.wait_http(f"http://127.0.0.1:{self.port}/v1/chat/completions", body=trial_body(MODEL))

    def gateway_pids(self) -> tuple[int, ...]:
        """The gateway's master and its workers, without the supervisor and the control process."""
        assert self._serve is not None
        for pid in self._serve.tree():
            if is_gateway(pid):
                return tree(pid)
        return ()

    def engine_pids(self) -> tuple[int, ...]:
        """The shims, with their guards: all below the agent."""
        assert self._agent is not None
        return tuple(pid for pid in self._agent.tree() if pid != self._agent.pid)

    def close(self) -> None:
        if self._agent is not None:
            self._agent.stop(signal.SIGINT, signal.SIGINT)  # the second ends the engines too
        if self._serve is not None:
            self._serve.stop(signal.SIGINT)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._agent = self._serve = self._directory = None


def is_gateway(pid: int) -> bool:
    """Whether a process is the gateway's master or one of its workers."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return b"xinf.gateway" in command


def has_fronts() -> bool:
    """Whether this version of xinf lets one choose the front."""
    shown = subprocess.run([XINF, "serve", "--help"], capture_output=True, text=True, check=True)
    return "--front" in shown.stdout


def fronts() -> tuple[str, ...]:
    """The fronts that this version has."""
    if not has_fronts():
        return ("granian",)
    code = "from xinf.core.config import FRONTS; print(*FRONTS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return tuple(done.stdout.split()) if done.returncode == 0 else ("granian", "granian-rsgi", "direct")
