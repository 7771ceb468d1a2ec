"""A stand-in for the guard and the shim of an engine: two processes of one group.

As far as the agent can see it is the interpreter of an engine environment: it is called like the real one
(`PYTHON -m xinf.engine.guard SPEC.JSON`) and plays what `engine_args` of its spec say:

    phases    the phases it goes through, separated by spaces; the last one stays (default: all up to ready)
    say       a line for the log
    exit      end with this status after the phases
    failure   with phase failed: the cause that it tells
    hold      ignore TERM

Unlike the real shim it does not die with its guard: the agent must end it.

Proves what the agent does with processes and files. Does not prove that the real guard keeps to the same rules: that is
what test_agent_sim.py is for.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import msgspec

from xinf.core.records import Phase, ReplicaFailure
from xinf.core.shim import ShimExit, ShimSpec, ShimStatus, write_file


def main() -> None:
    spec = msgspec.json.decode(Path(sys.argv[-1]).read_bytes(), type=ShimSpec)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    shim = os.fork()
    if shim == 0:
        be_shim(spec)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(shim, signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    status = os.waitstatus_to_exitcode(os.waitpid(shim, 0)[1])
    write_file(spec.exit_path, ShimExit(start_id=spec.start_id, status=status, at_s=time.time()))


def be_shim(spec: ShimSpec) -> NoReturn:
    play = spec.engine.engine_args
    signal.signal(signal.SIGTERM, signal.SIG_IGN if play.get("hold") else lambda *_: os._exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    print(play.get("say", "hello"), flush=True)
    since: dict[str, float] = {}
    for name in str(play.get("phases", "starting loading warming ready")).split():
        since[name] = time.time()
        failure = None
        if name == Phase.FAILED:
            failure = ReplicaFailure(cause=str(play.get("failure", "crashed")), message="as told", remedy="none")
        status = ShimStatus(
            start_id=spec.start_id,
            pid=os.getpid(),
            phase=Phase(name),
            phase_since_s=dict(since),
            failure=failure,
            block_tokens=16,
        )
        write_file(spec.status_path, status)
    if "exit" in play:
        os._exit(int(play["exit"]))
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
