"""Runs a vendor's command-line tool: in English, in a directory of its own, for so long and no longer.

The PATH is looked at first, then the places where the vendors' packages put their tools. What a tool prints is data of
somebody else: bounded in size, decoded leniently, and refused by the parsers where its layout is not known.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from xinf.device.parent_death import die_with_parent, find_tether

TIMEOUT_S = 8.0  # below the deadline of the whole inventory, so that the reason names the tool
_MAX_OUTPUT_BYTES = 8 << 20
# Of any file that a tool writes: one that prints without end must not fill the disk until it is ended. So large since
# it counts for logs that the vendor's library keeps, too.
_MAX_FILE_BYTES = 1 << 30
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
# When the time that all tools have together is over, as time.monotonic() counts; None: nobody waits for them.
_END_S: ContextVar[float | None] = ContextVar("end of the tools' time", default=None)


class ToolError(Exception):
    """A tool is not there, failed, or did not end. The message names it and says what happened."""


class FormatError(ToolError):
    """What was printed has a layout that is not known here."""


def find_tool(*names: str, directories: Sequence[str] = (), root: Path = Path("/")) -> str | None:
    """Find the first of the names on the PATH, or below `root` in the vendor's own directories."""
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return found
    for directory in directories:
        for name in names:
            path = root / directory.lstrip("/") / name
            if os.access(path, os.X_OK) and path.is_file():
                return str(path)
    return None


@contextmanager
def time_for_tools(seconds: float) -> Iterator[None]:
    """Give the tools that run inside so much time together, whatever each of them may take.

    A vendor whose tool hangs is mostly asked for something else with it next: one after the other they would take the
    time of the whole probe, and the reasons would be lost with it.
    """
    token = _END_S.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _END_S.reset(token)


def run_tool(argv: Sequence[str], *, timeout_s: float = TIMEOUT_S, output: str | None = None) -> str:
    """Run a tool and give what it printed, or what it wrote to the file `output` in its working directory.

    Raises: ToolError.
    """
    name = Path(argv[0]).name
    end_s = _END_S.get()
    if end_s is not None:
        timeout_s = min(timeout_s, end_s - time.monotonic())
        if timeout_s <= 0:
            raise ToolError(f"{name} was not asked: what was asked before it took all the time")
    with (
        tempfile.TemporaryDirectory(prefix="xinf-probe-") as directory,
        tempfile.TemporaryFile() as printed,
        tempfile.TemporaryFile() as complaint,  # no pipe: what the tool leaves running would hold its other end
    ):
        tether, environ = find_tether(), _environ()
        try:
            if tether and shutil.which(argv[0], path=environ.get("PATH")) is None:
                # The tether would tell of it in its own name.
                why = errno.EACCES if Path(argv[0]).exists() else errno.ENOENT
                raise OSError(why, os.strerror(why))
            process = subprocess.Popen(
                [*tether, *argv],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=complaint,
                cwd=directory,
                env={**environ, "LC_ALL": "C", "LANG": "C", "NO_COLOR": "1", "COLUMNS": "400"},
                start_new_session=True,
                # A child that is killed at its deadline cannot end its tool any more, and each successor runs one more.
                preexec_fn=None if tether else die_with_parent,
            )
        except OSError as error:
            raise ToolError(f"{name} cannot be run: {error.strerror}") from error
        _limit_files(process.pid)
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            _end(process)
            raise ToolError(f"{name} did not end within {timeout_s:.3g} s: look at `dmesg` for the driver") from error
        if status != 0:
            said = (_read(complaint.fileno()) or "").strip() or (_read(printed.fileno()) or "").strip()
            last = "".join(said.splitlines()[-1:])[:300]
            raise ToolError(f"{name} ended with status {status}: {last or 'it said nothing'}")
        text = _read(printed.fileno()) if output is None else _read_file(Path(directory) / output, name)
        if text is None:
            raise FormatError(f"{name} gave more than {_MAX_OUTPUT_BYTES >> 20} MiB")
        return text


def _environ() -> dict[str, str]:
    """The environment without our Python: amd-smi and hy-smi are scripts that want the system's, and its modules."""
    environ = {name: value for name, value in os.environ.items() if name not in _OURS}
    if sys.prefix != sys.base_prefix:
        places = environ.get("PATH", os.defpath).split(os.pathsep)
        own = Path(sys.prefix, "bin")
        environ["PATH"] = os.pathsep.join(place for place in places if Path(place) != own)
    return environ


def _limit_files(pid: int) -> None:
    """Bound what a process and those that it starts write to one file; where that cannot be done, its time does."""
    if sys.platform != "linux":
        return
    import resource  # not on every system

    with suppress(OSError):  # it has ended
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        is_less = hard != resource.RLIM_INFINITY and hard < _MAX_FILE_BYTES
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if is_less else _MAX_FILE_BYTES, hard))


def _read(descriptor: int) -> str | None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as file:
        return _decode(file)


def _read_file(path: Path, name: str) -> str | None:
    try:
        with path.open("rb") as file:
            return _decode(file)
    except FileNotFoundError:
        raise ToolError(f"{name} wrote no {path.name}") from None


def _decode(file: BinaryIO) -> str | None:
    """Read a text leniently; None: there is more than anybody's answer, and its beginning may look like the whole."""
    content = file.read(_MAX_OUTPUT_BYTES + 1)
    return None if len(content) > _MAX_OUTPUT_BYTES else content.decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the tool and what it started. One that is stuck in the kernel cannot be waited for."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        pass
