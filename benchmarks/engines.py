"""The simulated engines behind every gateway: what they are told, and the two that the peers share as plain HTTP."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from benchmarks.cpu import total_cpu_s
from benchmarks.pin import LOAD_CPU
from benchmarks.service import Service, free_port

N_ENGINES = 2
MODEL = "sim"
XINF = str(Path(sys.executable).parent / "xinf")
IDLE_SHARE = 0.05  # of a core; engines that use more are not done with the last cell yet
IDLE_TIMEOUT_S = 10.0


class Profile(msgspec.Struct, frozen=True):
    """What an engine is like. Prefill takes no time: the gateway is measured, not the model."""

    name: str
    step_ms: float

    def engine_arguments(self) -> dict[str, str]:
        """As `xinf launch --engine-arg` takes them, on both faces of the engine.

        Without its cache model: what the engine pays for hashing prompts, it takes from the core of the load generator.
        """
        return {
            "cache": "false",
            "step_ms": str(self.step_ms),
            "max_running": "2048",
            "max_batched_tokens": "1000000",
            "block_tokens": "256",
            "kv_blocks": "16384",
        }


INSTANT = Profile("instant", 0.0)
STEP_10_MS = Profile("10 ms steps", 10.0)
STEP_50_MS = Profile("50 ms steps", 50.0)


class HttpEngines:
    """`xinf sim --http`, for everybody who talks HTTP to engines."""

    def __init__(self, profile: Profile, directory: Path) -> None:
        self.ports = tuple(free_port() for _ in range(N_ENGINES))
        self._services = [
            Service(f"engine {port}", _command(port, profile), cpus=LOAD_CPU, log=directory / f"engine-{port}.log")
            for port in self.ports
        ]
        for service, port in zip(self._services, self.ports, strict=True):
            service.wait_http(f"http://127.0.0.1:{port}/health")

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(f"http://127.0.0.1:{port}" for port in self.ports)

    def pids(self) -> tuple[int, ...]:
        return tuple(pid for service in self._services for pid in service.tree())

    def close(self) -> None:
        for service in self._services:
            service.stop()


def _command(port: int, profile: Profile) -> list[str]:
    command = [XINF, "sim", "--http", "--port", str(port), "--model", MODEL]
    for name, value in profile.engine_arguments().items():
        command += ["--engine-arg", f"{name}={value}"]
    return command


def core_share(pids: tuple[int, ...], seconds: float) -> float:
    """How much of one core processes use, watched for a while."""
    before_s, began = total_cpu_s(pids), time.monotonic()
    time.sleep(seconds)
    return (total_cpu_s(pids) - before_s) / (time.monotonic() - began)


def wait_until_idle(pids: tuple[int, ...]) -> bool:
    """Wait until processes use next to nothing; False if they still did after a while."""
    deadline = time.monotonic() + IDLE_TIMEOUT_S
    while time.monotonic() < deadline:
        if core_share(pids, 0.1) < IDLE_SHARE:
            return True
    return False
