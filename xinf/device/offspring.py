"""The child processes that ask vendor libraries: how they begin, and how they are ended without waiting for a driver.

    agent ── python -P -m xinf.device ... ── a vendor's tool
          dies with ◀──────┘    dies with ◀──────┘            on Linux; elsewhere a write to a closed pipe ends it

`-P`: without it `-m` looks for modules in the working directory first, and a `queue.py` of the user would be ours.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from xinf.core.device import VISIBLE_ENV, Vendor

_KILL_GRACE_S = 1.0  # a child stuck inside the kernel cannot even be killed; it is left behind then
_MASKS = frozenset(name for names in VISIBLE_ENV.values() for name in names)
_PR_SET_PDEATHSIG = 1
# Looked up here: between fork and exec, where a tool calls it, nothing may be loaded any more.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


async def start_child(
    *words: str, vendor: Vendor, root: Path, environ: Mapping[str, str] | None, stderr: int, limit: int = 1 << 16
) -> asyncio.subprocess.Process:
    """Start `xinf.device WORD VENDOR [WORD...] ROOT` with its output in a pipe. Raises: OSError."""
    first, *others = words
    inherited = os.environ if environ is None else environ
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "xinf.device", first, vendor, *others, str(root)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        # A mask that the agent was started with would hide devices and count the others anew.
        env={name: value for name, value in inherited.items() if name not in _MASKS},
        limit=limit,
    )


async def end_child(process: asyncio.subprocess.Process) -> None:
    """Kill a child and wait a moment for its end; one that is stuck in the kernel ends when the driver lets go."""
    if process.returncode is None:
        try:
            process.kill()
        except ProcessLookupError:
            pass
    try:
        # Not wait_for: in Python 3.11 it may swallow a cancellation that comes as the process ends.
        async with asyncio.timeout(_KILL_GRACE_S):
            await process.wait()
    except TimeoutError:
        pass


def in_words(status: int) -> str:
    """Name how a child ended."""
    return f"signal {-status}" if status < 0 else f"status {status}"


def die_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, whatever it hangs on then."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
