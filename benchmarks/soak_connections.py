"""What does an idle connection cost, and do thousands of them keep others out?

Three kinds, one after the other over a fresh gateway each: silent ones, ones that had an answer (kept alive), ones that
sent half their headers. Prints resident memory before, with all of them and after, and the p99 of others beside them.

    python -m benchmarks.soak_connections [--fronts granian,...] [--connections 10000] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.open_files import raise_limit
from tests.gateway.gateway_stack import FRONTS, GatewayStack, wait_for

KINDS = {
    "silent": b"",
    "kept alive": b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
    "half a head": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n",
}
SECONDS = 3.0
N_CLIENTS = 8


def p99_beside(port: int) -> tuple[float, int]:
    """p99 in ms of a closed loop, and how many of its requests failed."""
    command = [sys.executable, "-m", "benchmarks.closed_loop", str(port), str(SECONDS), str(N_CLIENTS)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    return found["p99_ms"], found["n_failed"]


def files(stack: GatewayStack) -> int:
    return sum(process.num_fds() for process in stack.workers())


def measure(front: str, kind: str, n: int) -> dict[str, Any]:
    """Open `n` connections of a kind and say what they cost."""
    with GatewayStack(front=front) as stack, contextlib.ExitStack() as opened:
        stack.deploy("m")
        p99_alone_ms, _ = p99_beside(stack.port)
        before, n_files = stack.worker_bytes(), files(stack)
        begin_s = time.monotonic()
        connections = []
        for _ in range(n):
            raw = opened.enter_context(socket.create_connection(("127.0.0.1", stack.port), timeout=60))
            raw.sendall(KINDS[kind])
            if kind == "kept alive":
                raw.recv(4096)
            connections.append(raw)
        wait_for(lambda: files(stack) >= n_files + n, what="every connection accepted")
        opened_s = time.monotonic() - begin_s
        full = stack.worker_bytes()
        p99_ms, n_failed = p99_beside(stack.port)
        still_open = files(stack) - n_files
        for raw in connections:
            raw.close()
        wait_for(lambda: files(stack) <= n_files + 20, what="every connection forgotten")
        return {
            "front": front,
            "kind": kind,
            "connections": n,
            "opened_s": round(opened_s, 2),
            "still_open": still_open,
            "rss_before_mib": round(before / 2**20, 1),
            "rss_with_mib": round(full / 2**20, 1),
            "rss_after_mib": round(stack.worker_bytes() / 2**20, 1),
            "bytes_per_connection": round((full - before) / n),
            "p99_alone_ms": p99_alone_ms,
            "p99_beside_ms": p99_ms,
            "n_failed": n_failed,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fronts", default=",".join(FRONTS))
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    n = min(asked.connections, raise_limit() - 500)
    results = [measure(front, kind, n) for front in asked.fronts.split(",") for kind in KINDS]
    if asked.json:
        machine = {"python": platform.python_version(), "kernel": platform.release(), "n_cpus": os.cpu_count()}
        asked.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1))
    columns = list(results[0])
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for result in results:
        print("| " + " | ".join(str(result[column]) for column in columns) + " |")


if __name__ == "__main__":
    main()
