"""Ties vLLM's processes to the life of the shim: EngineCore and workers die with whoever started them.

vLLM does not watch its parent: when a shim is killed its EngineCore stays, with the device's memory (measured: 15 s and
more). This is declared as a `vllm.general_plugins` entry point, which vLLM loads in each of its processes.

    spawn   the child loads the plugin early in its start-up: it asks the kernel for SIGKILL at its parent's death
    fork    the child inherits the plugins as loaded and calls nothing: a hook registered in the parent does it

The kernel sends the signal when the *thread* that made the child ends; the engine is built in the main thread.
Source: prctl(2), PR_SET_PDEATHSIG; vLLM 0.32, plugins/__init__.py.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal

_PR_SET_PDEATHSIG = 1


def register() -> None:
    """Make this process, if it is a child of vLLM's, and all that it forks from now on die with their parents."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        _die_with(parent.pid)
    _ForkHook().install()


class _ForkHook:
    """Lets forked children die with the process that forked them."""

    def __init__(self) -> None:
        self._pid = 0

    def install(self) -> None:
        os.register_at_fork(before=self._before, after_in_child=self._after_in_child)

    def _before(self) -> None:
        self._pid = os.getpid()

    def _after_in_child(self) -> None:
        _die_with(self._pid)


def _die_with(parent_pid: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        # It ended before the request reached the kernel; nobody would send the signal any more.
        os.kill(os.getpid(), signal.SIGKILL)
