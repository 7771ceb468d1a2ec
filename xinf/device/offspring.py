"""The child processes that ask vendor libraries: how they begin, and how they are ended without waiting for a driver.

    agent ── python -P -m xinf.device ... ── a vendor's tool
          dies with ◀──────┘    dies with ◀──────┘            on Linux; elsewhere a write to a closed pipe ends it

`-P`: without it `-m` looks for modules in the working directory first, and a `queue.py` of the user would be ours.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from xinf.core.device import VISIBLE_ENV, Vendor

_PIPE_GRACE_S = 0.2
_KILL_GRACE_S = 1.0  # a child stuck inside the kernel cannot even be killed; it is left behind then
_MASKS = frozenset(name for names in VISIBLE_ENV.values() for name in names)
# Of what a child may take: a tool that is cut off by then leaves it the time to say so.
_SHARE_OF_TOOLS = 0.8
_MAX_LINE_BYTES = 1 << 20
_MAX_WORDS_BYTES = 4096
_MAX_LINES, _MAX_CHARS = 3, 300


class Child:
    """A child process whose standard error is read all the time and of which the end is kept.

    `output`: what it writes to standard output.
    """

    def __init__(self, transport: asyncio.SubprocessTransport, protocol: _Protocol) -> None:
        assert protocol.stdout is not None
        self.output = protocol.stdout
        self._transport = transport
        self._protocol = protocol
        self._said = b""
        self._listening = asyncio.create_task(self._listen())

    async def wait(self) -> int:
        """Wait for its end, whoever still holds its pipes; gives its status, negative for a signal."""
        await self._protocol.has_exited.wait()
        status = self._transport.get_returncode()
        assert status is not None
        return status

    @property
    def last_words(self) -> str:
        """The last lines that it wrote to standard error before it was ended, in one; empty if there were none."""
        lines = [line.strip() for line in self._said.decode(errors="replace").splitlines() if line.strip()]
        # Of an exception its own line says all; libraries say what went wrong before they say that they give up.
        n_lines = 1 if any(line.startswith("Traceback ") for line in lines) else _MAX_LINES
        return " | ".join(lines[-n_lines:])[-_MAX_CHARS:]

    async def end(self) -> None:
        """Kill it and wait a moment for its end; one that is stuck in the kernel ends when the driver lets go."""
        if self._transport.get_returncode() is None:
            try:
                self._transport.kill()
            except ProcessLookupError:
                pass
        try:
            # Not wait_for: in Python 3.11 it may swallow a cancellation that comes as the process ends.
            async with asyncio.timeout(_KILL_GRACE_S):
                await self.wait()
            # What a library started may hold the other end of the pipe for longer.
            await asyncio.wait((self._listening,), timeout=_PIPE_GRACE_S)
        except TimeoutError:
            pass
        finally:
            self._listening.cancel()
            self._transport.close()

    async def _listen(self) -> None:
        assert self._protocol.stderr is not None
        while part := await self._protocol.stderr.read(_MAX_WORDS_BYTES):
            self._said = (self._said + part)[-_MAX_WORDS_BYTES:]


class _Protocol(asyncio.subprocess.SubprocessStreamProtocol):
    """Tells of the end of a process when it ends: asyncio's own wait() may wait for the last heir of its pipes."""

    def __init__(self) -> None:
        super().__init__(limit=_MAX_LINE_BYTES, loop=asyncio.get_running_loop())
        self.has_exited = asyncio.Event()

    def process_exited(self) -> None:
        super().process_exited()
        self.has_exited.set()


async def start_child(
    *words: str,
    vendor: Vendor,
    root: Path,
    environ: Mapping[str, str] | None,
    deadline_s: float,
) -> Child:
    """Start `xinf.device WORD VENDOR [WORD...] ROOT SECONDS` with its output in a pipe. Raises: OSError.

    `deadline_s`: what one answer of it may take; the vendor's tools together get less, so that it can still say why.
    """
    first, *others = words
    inherited = os.environ if environ is None else environ
    transport, protocol = await asyncio.get_running_loop().subprocess_exec(
        _Protocol,
        *(sys.executable, "-P", "-m", "xinf.device", first, vendor, *others),
        *(str(root), f"{deadline_s * _SHARE_OF_TOOLS:g}"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # A mask that the agent was started with would hide devices and count the others anew.
        env={name: value for name, value in inherited.items() if name not in _MASKS},
    )
    return Child(transport, protocol)


def in_words(status: int) -> str:
    """Name how a child ended."""
    return f"signal {-status}" if status < 0 else f"status {status}"


def with_words(reason: str, words: str) -> str:
    """Add to a reason what the child said of it last."""
    return f"{reason}: it said {words!r}" if reason and words else reason
