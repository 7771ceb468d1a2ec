"""An installation with one replica of the real vLLM, as its users start it: `xinf serve`, `worker` and `launch`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import msgspec

from benchmarks.engines import XINF
from benchmarks.exact.checkpoint import ADAPTERS, MAX_TOKENS, adapter_directory
from benchmarks.pin import BOTH_CPUS
from benchmarks.service import Service, free_port
from xinf.agent import find_environments

NAME = "exact"
_ROOT = Path(__file__).resolve().parents[2]
_LAUNCH_S = 300
_KV_BYTES = 128 << 20  # more than the blocks take that are asked for


class EngineSettings(msgspec.Struct, frozen=True):
    """What the engine is told."""

    model: Path
    block_tokens: int
    n_blocks: int
    has_events: bool


class ExactStack:
    """`with ExactStack(settings, logs) as stack:` it answers at `stack.url`, KV events come at `stack.events`."""

    def __init__(self, settings: EngineSettings, logs: Path) -> None:
        self._settings = settings
        self._directory = Path(tempfile.mkdtemp(prefix="xx", dir="/tmp"))  # short: Unix socket paths end at 108 bytes
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.events = f"ipc://{self._directory}/kv"
        self.log = logs / "engine.log"
        self._environ = {
            "XDG_RUNTIME_DIR": str(self._directory),
            "DATA_DIR": str(self._directory / "data"),
            "XINF_AGENT_ENGINES_DIR": str(engines_dir()),
        }
        self._logs = logs
        self._services: list[Service] = []

    def __enter__(self) -> ExactStack:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start(self) -> None:
        serve = [XINF, "serve", "--port", str(self._port), "--workers", "1", "--log-level", "warning"]
        self._serve("serve", serve).wait_http(f"{self.url}/healthz")
        self._serve("worker", [XINF, "worker"])
        done = subprocess.run(
            self._launch(),
            env={**os.environ, **self._environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LAUNCH_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(
                f"xinf launch: exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{self._engine_log()}"
            )

    def _serve(self, name: str, command: list[str]) -> Service:
        service = Service(name, command, cpus=BOTH_CPUS, log=self._logs / f"{name}.log", environ=self._environ)
        self._services.append(service)
        return service

    def _launch(self) -> list[str]:
        settings = self._settings
        command = [XINF, "launch", "--model", str(settings.model), "--engine", "vllm", "--device", "cpu"]
        command += ["--name", NAME, "--max-model-len", str(MAX_TOKENS)]
        events: dict[str, object] = {"enable_kv_cache_events": settings.has_events}
        if settings.has_events:
            events |= {"publisher": "zmq", "endpoint": self.events, "replay_endpoint": f"{self.events}r"}
        arguments = {
            "block-size": settings.block_tokens,
            "num-gpu-blocks-override": settings.n_blocks,
            "kv-cache-memory-bytes": _KV_BYTES,
            "max-num-seqs": 32,
            "enable-lora": "true",
            "max-loras": len(ADAPTERS),
            "max-lora-rank": 8,
            "lora-modules": " ".join(f"{each}={adapter_directory(settings.model, each)}" for each in ADAPTERS),
            "kv-events-config": json.dumps(events),
        }
        for name, value in arguments.items():
            command += ["--engine-arg", f"{name}={value}"]
        # The xinf of this checkout in the engine too. EngineCore forked, and with one thread: it shares two cores.
        for variable in (
            f"PYTHONPATH={_ROOT}",
            "VLLM_WORKER_MULTIPROC_METHOD=fork",
            "OMP_NUM_THREADS=1",
            "VLLM_CPU_OMP_THREADS_BIND=nobind",
        ):
            command += ["--env", variable]
        return command

    def _engine_log(self) -> str:
        logs = sorted((self._directory / "data").glob("**/engine.log"))
        return "\n".join(log.read_text(errors="replace")[-4000:] for log in logs)

    def close(self) -> None:
        """End everything that was started, keep the engine's log."""
        self.log.write_text(self._engine_log())
        for service in reversed(self._services):
            # The second ends the worker's engines too.
            service.stop(signal.SIGINT, signal.SIGINT)
        self._services.clear()
        shutil.rmtree(self._directory, ignore_errors=True)


def engines_dir() -> Path:
    """Where the engine environments are."""
    return Path(os.environ.get("XINF_AGENT_ENGINES_DIR") or _ROOT / ".engines")


def engine_python() -> str:
    """The interpreter of the environment that runs vLLM. Raises: FileNotFoundError."""
    for environment in find_environments(engines_dir()):
        if "vllm" in environment.engines:
            return environment.python
    raise FileNotFoundError(f"no vLLM below {engines_dir()}: run `make engine` first")
