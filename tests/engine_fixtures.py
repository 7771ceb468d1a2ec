"""Fixtures with the real vLLM on CPU. A pytest plugin: engines are shared over a session, they take seconds to start.

    engine_python      the interpreter of the engine environment; fails with what to do if there is none
    scripted_model     the directory of the scripted checkpoint
    zygote             the fork server: `zygote.start(spec)` forks a shim, ready in 2-4 s
    vllm_engine        one engine with the scripted model for the whole session; tests must not harm it
    start_vllm         a function that starts an engine for one test alone: `start_vllm(engine_args={...})`
    installed_python   as engine_python, with the xinf of this checkout installed there; fails if it is another

A started engine is a `VllmEngine`: `.target` (gRPC address), `.pid` of the shim, `.core_pids()`, `.status`, `.log`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from xinf.agent.environment import MANIFEST, Manifest, find_environments
from xinf.agent.wheel import package_digest
from xinf.core.ids import ReplicaId
from xinf.core.records import EngineSpec, Phase
from xinf.core.shim import ShimSpec, ShimStatus, read_file, write_file
from xinf.registry import write_scripted_model

CHECKOUT = Path(__file__).resolve().parent.parent
SERVED_NAME = "scripted"
START_S = 90.0  # deadline of a start from the zygote; ready in 2-4 s on an idle machine

# The scripted model thinks only when asked to, and writes its thoughts as Qwen3 does.
ENGINE_ARGS: dict[str, Any] = {
    "reasoning-parser": "qwen3",
    "default-chat-template-kwargs": '{"enable_thinking": false}',
    "max-num-seqs": 32,
}


def engines_dir() -> Path:
    return Path(os.environ.get("XINF_AGENT_ENGINES_DIR") or CHECKOUT / ".engines")


class VllmEngine:
    """One shim with the real vLLM."""

    def __init__(self, spec: ShimSpec, pid: int) -> None:
        self.spec = spec
        self.pid = pid

    @property
    def target(self) -> str:
        return self.spec.listen

    @property
    def directory(self) -> Path:
        return Path(self.spec.directory)

    @property
    def status(self) -> ShimStatus | None:
        return read_file(self.spec.status_path, ShimStatus)

    @property
    def log(self) -> str:
        return (self.directory / "engine.log").read_text(errors="replace")

    @property
    def is_alive(self) -> bool:
        return is_alive(self.pid)

    def core_pids(self) -> list[int]:
        """The processes below the shim: EngineCore and what it has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self.pid).children(recursive=True) if is_alive(child.pid)]
        return []

    def wait_ready(self, deadline_s: float = START_S) -> VllmEngine:
        """Wait until it is ready; fails at once, with its log, when its start failed."""

        def is_over() -> bool:
            status = self.status
            return (status is not None and status.phase in (Phase.READY, Phase.FAILED)) or not self.is_alive

        wait_until(is_over, "the engine being ready", deadline_s)
        assert self.status is not None, self.log
        assert self.status.phase is Phase.READY, f"{self.status.failure}\n{self.log}"
        return self

    def wait_failed(self) -> ShimStatus:
        """Wait until it has failed and its process has ended."""
        wait_until(lambda: not self.is_alive, "the end of the shim", START_S)
        status = self.status
        assert status is not None, self.log
        assert status.failure is not None, self.log
        return status

    def kill(self) -> None:
        """End the shim and all below it."""
        below = self.core_pids()
        for pid in (self.pid, *below):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, (self.pid, *below))), "the end of the engine", 30)


class Zygote:
    """The fork server and the engines it made."""

    def __init__(self, python: Path, directory: Path) -> None:
        self._directory = directory
        self._socket = directory / "z.sock"
        self._log = (directory / "zygote.log").open("w+b")
        self._process = subprocess.Popen(
            [str(python), str(CHECKOUT / "tests" / "engine" / "zygote.py"), str(self._socket)],
            # The package under test, whatever is installed there; vLLM and all else are the environment's.
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        self._is_ready = False

    def start(self, spec: ShimSpec) -> VllmEngine:
        """Fork a shim for `spec`, whose directory must exist. Does not wait until it is ready."""
        self._wait_ready()
        spec_path = Path(spec.directory) / "spec.json"
        write_file(spec_path, spec)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(self._socket))
            order = {"spec": str(spec_path), "log": str(Path(spec.directory) / "engine.log")}
            connection.sendall(json.dumps(order).encode() + b"\n")
            return VllmEngine(spec, int(connection.makefile("rb").readline()))

    def _wait_ready(self) -> None:
        if not self._is_ready:
            assert self._process.stdout is not None
            self._is_ready = self._process.stdout.readline() == b"ready\n"
            if not self._is_ready:
                self._process.wait(30)
                self._log.seek(0)
                pytest.fail(f"the zygote did not start:\n{self._log.read().decode(errors='replace')[-4000:]}")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._log.close()


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float) -> None:
    """Wait until `condition` is truthy; fail with `what` after the deadline."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, f"{what} did not happen within {deadline_s:.0f} s"
        time.sleep(0.02)


def vllm_spec(
    directory: Path,
    model: Path | str,
    engine_args: dict[str, Any],
    *,
    limits: dict[str, Any] | None = None,
    **engine: Any,
) -> ShimSpec:
    """The spec of a vLLM engine on CPU that listens in `directory`. `limits`: fields of ShimSpec."""
    engine.setdefault("served_names", (SERVED_NAME,))
    return ShimSpec(
        replica=ReplicaId(f"{SERVED_NAME}-test"),
        start_id="s-1",
        engine=EngineSpec(model=str(model), engine="vllm", device="cpu", engine_args=engine_args, **engine),
        devices=("cpu",),
        listen=f"unix:{directory}/e.sock",
        directory=str(directory),
        **(limits or {}),
    )


@pytest.fixture(scope="session")
def engine_python() -> Path:
    for environment in find_environments(engines_dir()):
        if "vllm" in environment.engines and "cpu" in environment.device_kinds:
            return Path(environment.python)
    pytest.fail(f"there is no vLLM environment for CPU below {engines_dir()} ({MANIFEST}): run `make engine`")


@pytest.fixture(scope="session")
def installed_python(engine_python: Path) -> Path:
    manifest = msgspec.json.decode((engine_python.parents[1] / MANIFEST).read_bytes(), type=Manifest)
    if manifest.xinf_sha256 != package_digest():
        pytest.fail(f"{engine_python.parents[1]} holds another xinf than this checkout: run `make engine`")
    return engine_python


@contextlib.contextmanager
def production_shim(python: Path, spec: ShimSpec) -> Iterator[VllmEngine]:
    """Start a shim with the interpreter's own packages only, as the guard does: vLLM's processes are spawned."""
    directory = Path(spec.directory)
    write_file(directory / "spec.json", spec)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (directory / "engine.log").open("ab") as output:
        process = subprocess.Popen(
            [str(python), "-m", "xinf.engine", str(directory / "spec.json")],
            cwd=directory,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    engine = VllmEngine(spec, process.pid)
    try:
        yield engine
    finally:
        engine.kill()
        process.wait(30)


@pytest.fixture(scope="session")
def scripted_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scripted_model(tmp_path_factory.mktemp("models") / "scripted")


@pytest.fixture(scope="session")
def zygote(engine_python: Path) -> Iterator[Zygote]:
    directory = Path(tempfile.mkdtemp(prefix="xz", dir="/tmp"))
    made = Zygote(engine_python, directory)
    yield made
    made.close()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def vllm_engine(zygote: Zygote, scripted_model: Path) -> Iterator[VllmEngine]:
    directory = Path(tempfile.mkdtemp(prefix="xv", dir="/tmp"))
    engine = zygote.start(vllm_spec(directory, scripted_model, ENGINE_ARGS))
    try:
        yield engine.wait_ready()
    finally:
        engine.kill()
        shutil.rmtree(directory, ignore_errors=True)


StartVllm = Callable[..., VllmEngine]


@pytest.fixture
def start_vllm(zygote: Zygote, scripted_model: Path) -> Iterator[StartVllm]:
    """Give a function that starts an engine for this test: `start(engine_args, model=..., is_awaited=True, ...)`."""
    engines: list[VllmEngine] = []

    def start(
        engine_args: dict[str, Any] | None = None,
        *,
        model: Path | str | None = None,
        is_awaited: bool = True,
        **others: Any,
    ) -> VllmEngine:
        directory = Path(tempfile.mkdtemp(prefix="xv", dir="/tmp"))
        spec = vllm_spec(directory, model or scripted_model, engine_args or {}, **others)
        engines.append(zygote.start(spec))
        return engines[-1].wait_ready() if is_awaited else engines[-1]

    yield start
    for engine in engines:
        engine.kill()
        shutil.rmtree(engine.directory, ignore_errors=True)
