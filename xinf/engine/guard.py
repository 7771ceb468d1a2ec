"""`python -m xinf.engine.guard SPEC.JSON`: the parent that outlives an engine shim and cleans up after it.

    agent ──▶ guard ──PDEATHSIG──▶ (fetcher, which becomes the) shim ──▶ EngineCore, workers, whatever they start
                └── subreaper: descendants that lose their parent become its children, in whatever session they are

When the shim ends, for whatever reason, the guard kills every descendant that is left, removes the socket, writes
exit.json and exits as the shim did (128 + the signal that ended it). An exit.json therefore means: nothing is left.
When the guard itself is killed, the kernel kills the shim. It passes TERM and INT on and survives them itself.

One thread, standard library and core alone: it must start at once and can hardly fail.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from xinf.core.shim import ShimExit, ShimSpec, read_file, write_file

EXIT_BAD_SPEC = 2

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_FORWARDED = (signal.SIGTERM, signal.SIGINT)
# A killed process can stay a while in the kernel (a driver freeing device memory); after this it is only reported.
_KILL_TIMEOUT_S = 30.0


def main(argv: Sequence[str]) -> int:
    """Guard one shim. Returns the exit status."""
    if len(argv) != 1 or (spec := read_file(Path(argv[0]), ShimSpec)) is None:
        _say(f"usage: python -m xinf.engine.guard SPEC.JSON  (got {list(argv)}, which is not a readable spec)")
        return EXIT_BAD_SPEC
    fetch = spec.fetch
    if fetch is None:
        status = supervise([sys.executable, "-m", "xinf.engine", argv[0]])
    else:
        # It becomes the shim, by exec: one child from the first byte to the last token, and one way to end it.
        status = supervise([*fetch.command, argv[0], sys.executable], environ=fetch.environ)
    _say(_end(Path(argv[0]), status))
    if spec.listen.startswith("unix:"):
        Path(spec.listen.removeprefix("unix:")).unlink(missing_ok=True)
    write_file(spec.exit_path, ShimExit(start_id=spec.start_id, status=status, at_s=time.time()))
    return status if status >= 0 else 128 - status


def supervise(command: Sequence[str], *, environ: Mapping[str, str] | None = None) -> int:
    """Run `command` until it ends, then kill what it left, and say so. Returns its exit status, negative for a signal.

    `environ`: variables that it gets besides the guard's own.
    """
    _lead_own_session()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it was inherited as ignored, nobody could be waited for
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)  # until there is somebody to pass them on to
    guard_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(command, {**os.environ, **(environ or {})}, guard_pid)
    for number in _FORWARDED:
        signal.signal(number, lambda received, _: _send(pid, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    status = _wait_for(pid)
    for number in _FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    if n_killed := _kill_rest():
        _say(f"{n_killed} processes that it left were killed")
    return status


def _end(spec_path: Path, status: int) -> str:
    """What the log says last: of the engine, or that there was none, for whoever has just read why."""
    spec = read_file(spec_path, ShimSpec)
    if spec is not None and spec.fetch is not None and spec.model_path is None:
        return "the model's files were not fetched, so no engine was started"
    if status < 0:
        return f"the engine was ended by signal {-status}"
    return f"the engine ended with status {status}"


def _lead_own_session() -> None:
    # The agent starts us as a leader; somebody at a terminal may not have.
    if os.getpid() != os.getsid(0):
        try:
            os.setsid()
        except PermissionError:
            _say("cannot lead a session of its own: already a group leader")


def _become(command: Sequence[str], environ: Mapping[str, str], guard_pid: int) -> NoReturn:
    """In the child: die with the guard, then be the command."""
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard_pid:  # it died before the line above
            os._exit(1)
        for number in _FORWARDED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        os.execve(command[0], list(command), dict(environ))
    except OSError as error:
        _say(f"cannot start {command[0]}: {error}")
    finally:
        os._exit(127)


def _wait_for(pid: int) -> int:
    """Reap children, adopted ones too, until `pid` is among them."""
    while True:
        ended, wait_status = os.waitpid(-1, 0)
        if ended == pid:
            return os.waitstatus_to_exitcode(wait_status)


def _kill_rest() -> int:
    """Kill all descendants until none is left. Returns how many there were."""
    killed: set[int] = set()
    deadline_s = time.monotonic() + _KILL_TIMEOUT_S
    while True:
        # Those that are killed hand their children to us, so that the next round finds them.
        for pid, is_zombie in _descendants(os.getpid()):
            if not is_zombie:
                killed.add(pid)
            _send(pid, signal.SIGKILL)  # a zombie too: it may be a main thread that ended before its others
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return len(killed)
        if time.monotonic() > deadline_s:
            _say(f"{len(killed)} processes were killed, some have not ended after {_KILL_TIMEOUT_S:.0f} s")
            return len(killed)
        time.sleep(0.01)


def _descendants(ancestor: int) -> list[tuple[int, bool]]:
    """List the processes below `ancestor`, and whether each is a zombie."""
    children: dict[int, list[int]] = {}
    zombies: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]  # the name before may hold spaces and brackets
        children.setdefault(int(parent), []).append(int(entry.name))
        if state == "Z":
            zombies.add(int(entry.name))
    found: list[int] = []
    pending = [ancestor]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return [(pid, pid in zombies) for pid in found]


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def _say(sentence: str) -> None:
    sys.stderr.write(f"guard: {sentence}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
