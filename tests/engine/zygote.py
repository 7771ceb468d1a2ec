"""A fork server for shims with the real vLLM: imports vLLM once and forks a process per engine, ready in 2-4 s.

Run with the interpreter of the engine environment:  python zygote.py SOCKET

One line of JSON per connection, {"spec": PATH, "log": PATH}, answered with the pid of the shim. It ends, and ends what
it forked, when its standard input is closed. What it proves: everything behind the shim's start. What it cannot: the
start itself (spawned processes, import of vLLM); one test does that the way production does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path

# Where a shim and its EngineCore spend their time importing.
MODULES = (
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.gpu_model_runner",
    "vllm.v1.structured_output.backend_xgrammar",
    "vllm.model_executor.models.qwen2",
    "vllm.entrypoints.launchers.app",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.entrypoints.launchers.api_server.app_state",
    "transformers.models.qwen2",
    "uvloop",
    "xinf.engine.process",
    "xinf.engine.vllm_adapter",
)
VARIABLES = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


def main(path: str) -> None:
    os.environ.update(VARIABLES)
    for name in MODULES:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    os.write(1, b"ready\n")
    children: set[int] = set()
    while True:
        readable, _, _ = select.select([listener, sys.stdin], [], [], 1.0)
        reap(children)
        if sys.stdin in readable:
            break
        if listener in readable:
            connection, _ = listener.accept()
            with connection:
                order = json.loads(connection.makefile("rb").readline())
                child = fork_shim(listener, order["spec"], order["log"])
                children.add(child)
                connection.sendall(b"%d\n" % child)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)


def fork_shim(listener: socket.socket, spec: str, log: str) -> int:
    child = os.fork()
    if child:
        return child
    listener.close()
    os.setsid()
    os.chdir(Path(spec).parent)
    nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from xinf.engine.process import exit_now
    from xinf.engine.process import main as run_shim

    exit_now(run_shim([spec]))
    raise AssertionError("unreachable")


def reap(children: set[int]) -> None:
    for child in list(children):
        if os.waitpid(child, os.WNOHANG)[0]:
            children.discard(child)


if __name__ == "__main__":
    main(sys.argv[1])
