"""python -m xinf.serve.tether SIGNAL PARENT_PID MODULE [ARGUMENT...]: run MODULE, tied to the life of the parent.

The kernel sends SIGNAL when the parent is gone, however it went, so that kill -9 of the supervisor leaves no gateway on
its port and no control process on its store. Done in the child and not in a `preexec_fn`: Python code between fork and
exec can deadlock.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    name, parent, module, *rest = arguments
    _die_with(int(parent), signal.Signals[f"SIG{name}"])
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _die_with(parent: int, signal_: signal.Signals) -> None:
    """Arrange for the signal. On other systems than Linux there is no such thing and the child may be left behind."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal_), 0, 0, 0)
    if os.getppid() != parent:  # it went before we asked
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
