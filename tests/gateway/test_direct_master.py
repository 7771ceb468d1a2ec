"""The master of the front `direct`: its port, its workers' deaths, stopping."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.children import living_children
from tests.gateway.gateway_stack import wait_for
from tests.gateway.raw_http import post, read_all
from tests.ports import free_port
from xinf.core.config import load
from xinf.core.errors import ConfigError
from xinf.gateway.direct_master import Port
from xinf.gateway.workforce import BACKOFF_FIRST_S, BACKOFF_LAST_S, STEADY_S, Backoff

SERVE = """
import sys
from xinf.core import log
from xinf.core.config import load
from xinf.core.errors import XinfError
from xinf.gateway.direct_master import serve
log.configure("gateway")
overrides = dict(pair.split("=") for pair in sys.argv[1:])
try:
    serve(load(environ={}, overrides=overrides), "unix:none", target="tests.gateway.direct_application:create")
except XinfError as error:
    sys.exit(f"error: {error}")
"""


class MasterProcess:
    """`python -c SERVE` with a log file. It proves the master's part; its workers serve a scripted application."""

    def __init__(self, directory: Path, *, environ: dict[str, str] | None = None, **overrides: object) -> None:
        self.port = int(str(overrides.get("port") or free_port()))
        pairs = {"workers": "2", **{key: str(value) for key, value in overrides.items()}, "port": str(self.port)}
        self._log = directory / f"log-{time.monotonic_ns()}"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, *(f"gateway.{key}={value}" for key, value in pairs.items())],
                stdout=log,
                stderr=log,
                env={**os.environ, **(environ or {})},
                cwd=Path(__file__).parent.parent.parent,
            )

    def workers(self) -> set[int]:
        return {child.pid for child in living_children(self.process.pid)}

    def log(self) -> str:
        return self._log.read_text()

    def who(self) -> int:
        """Which worker answers a new connection; 0 when none does."""
        try:
            return int(httpx.get(f"http://127.0.0.1:{self.port}/pid", timeout=10).text)
        except httpx.TransportError:
            return 0

    def wait_until_served(self) -> None:
        wait_for(lambda: self.who() and len(self.workers()) == 2, what="two workers")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                for pid in self.workers():
                    os.kill(pid, signal.SIGKILL)
                self.process.kill()
                self.process.wait(30)
                raise


@pytest.fixture
def master(tmp_path: Path) -> Iterator[MasterProcess]:
    made = MasterProcess(tmp_path)
    yield made
    made.close()


def test_both_workers_serve(master: MasterProcess) -> None:
    master.wait_until_served()
    wait_for(lambda: {master.who() for _ in range(20)} == master.workers(), what="answers of both workers")


def test_dead_workers_are_replaced_again_and_again(master: MasterProcess) -> None:
    master.wait_until_served()
    for _ in range(3):
        before = master.workers()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda before=before: len(master.workers() - before) == 2, what="new workers")
    wait_for(master.who, what="an answer")
    assert master.log().count("a worker died") == 6
    master.close()
    assert master.process.returncode == 0


def test_failing_workers_are_tried_later_and_later(tmp_path: Path) -> None:
    master = MasterProcess(tmp_path, workers=1, environ={"XINF_TEST_FAIL": "1"})
    try:
        wait_for(lambda: master.log().count("a worker died") >= 3, what="three deaths")
        log = master.log()
        assert "told to fail" in log
        assert "Traceback" not in log
        assert "next_s=0.100" in log
        assert "next_s=0.400" in log
        with pytest.raises(ConnectionRefusedError):  # nobody lives, and the port is still ours
            socket.create_connection(("127.0.0.1", master.port), timeout=5)
        with pytest.raises(ConfigError):
            Port("127.0.0.1", master.port)
    finally:
        master.close()
    assert master.process.returncode == 0


def test_busy_port_is_told_once(master: MasterProcess, tmp_path: Path) -> None:
    master.wait_until_served()
    second = MasterProcess(tmp_path, port=master.port)
    assert second.process.wait(30) == 1
    assert second.log().count("Address already in use") == 1
    assert f"127.0.0.1:{master.port}" in second.log()
    assert "Traceback" not in second.log()


def test_port_is_free_again_at_once(tmp_path: Path) -> None:
    port = free_port()
    for _ in range(3):
        master = MasterProcess(tmp_path, port=port)
        try:
            master.wait_until_served()
        finally:
            master.close()
        assert master.process.returncode == 0, master.log()


def test_term_lets_open_requests_end_and_closes_idle_ones(master: MasterProcess) -> None:
    master.wait_until_served()
    idle = socket.create_connection(("127.0.0.1", master.port), timeout=20)
    busy = [socket.create_connection(("127.0.0.1", master.port), timeout=20) for _ in range(6)]
    for raw in busy:
        raw.sendall(post("/x", b"4000"))
    # An answer to a later request says that the requests before it have been read.
    wait_for(lambda: {master.who() for _ in range(10)} == master.workers(), what="answers of both workers")
    master.process.terminate()
    assert read_all(idle) == b""
    for raw in busy:
        answer = read_all(raw)
        assert answer.endswith(b"4000")
        assert b"connection: close" in answer
        raw.close()
    idle.close()
    assert master.process.wait(30) == 0
    assert master.log().count("closed ") == 2
    assert "Traceback" not in master.log()


def test_worker_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    master = MasterProcess(tmp_path, drain_timeout="0s")
    try:
        master.wait_until_served()
        stuck = min(master.workers())
        os.kill(stuck, signal.SIGSTOP)
        begun_s = time.monotonic()
        master.process.terminate()
        assert master.process.wait(30) == 0
        assert time.monotonic() - begun_s >= 4.0
        assert "workers are killed" in master.log()
        assert not psutil.pid_exists(stuck)
    finally:
        master.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_workers_start_is_not_lost(tmp_path: Path, number: signal.Signals) -> None:
    for _ in range(3):
        master = MasterProcess(tmp_path)
        try:
            wait_for(lambda master=master: len(master.workers()) == 2, what="workers forked")
            master.process.send_signal(number)
            assert master.process.wait(30) == 0, master.log()
            assert "workers are killed" not in master.log()
        finally:
            master.close()


def test_master_imports_neither_grpc_nor_the_application() -> None:
    code = (
        "import sys, xinf.gateway.direct_master;"
        "heavy = ('grpc', 'granian', 'xinf.gateway.app', 'xinf.gateway.link', 'lmdb', 'xinf.router');"
        "print(*[m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_unusable_host_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        Port("192.0.2.1", 0)
    assert load(environ={}).gateway.port  # the default is a port, so that 0 above is the test's own


def test_backoff_grows_and_begins_anew_after_a_steady_life() -> None:
    backoff = Backoff()
    waits = [backoff.next_s(0.0) for _ in range(10)]
    assert waits[:3] == [BACKOFF_FIRST_S, BACKOFF_FIRST_S * 2, BACKOFF_FIRST_S * 4]
    assert waits[-1] == BACKOFF_LAST_S
    assert backoff.next_s(STEADY_S + 1) == 0.0
    assert backoff.next_s(0.0) == BACKOFF_FIRST_S
