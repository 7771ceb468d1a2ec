"""Has the kernel end a process with its parent; apart from what starts processes, because every child loads it."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import signal
import sys

_PR_SET_PDEATHSIG = 1
# Looked up here: between fork and exec, where a tool may call it, nothing may be loaded any more.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, whatever it hangs on then."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


@functools.cache
def find_tether() -> tuple[str, ...]:
    """The words that, before a command, have it end with the process that starts it; none where there is no such.

    Of util-linux. With it a command starts without Python between fork and exec, which may crash or hang where other
    threads are: a vendor's library has them, and so has gRPC, whose fork handlers run a thread in the child.
    """
    setpriv = shutil.which("setpriv", path=os.defpath) if sys.platform == "linux" else None
    if setpriv is None:
        return ()
    words = (setpriv, "--pdeathsig", "KILL", "--")
    try:
        # BusyBox has one that knows no such flag.
        pid = os.posix_spawn(setpriv, [*words, setpriv, "--version"], os.environ, file_actions=_SILENT)
    except OSError:
        return ()
    return words if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 else ()


_SILENT = tuple((os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in (0, 1, 2))
