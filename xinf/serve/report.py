"""How a child tells the supervisor that it is ready, or why it never will be: one line on an inherited pipe.

`ready`, or the error as xinf/core/errors.py writes it for the wire, so that the command that was typed can print it as
its own. A pipe that ends without a line means that the child died.
"""

from __future__ import annotations

import asyncio
import os

from xinf.core.errors import XinfError, from_wire, to_wire

VARIABLE = "XINF_REPORT_FD"
_READY = b"ready"


class Report:
    """The child's end. Without a supervisor (no variable in the environment) it goes nowhere."""

    def __init__(self) -> None:
        text = os.environ.pop(VARIABLE, None)
        self._fd = None if text is None else int(text)
        if self._fd is not None:
            os.set_inheritable(self._fd, False)

    @property
    def is_heard(self) -> bool:
        return self._fd is not None

    def ready(self) -> None:
        self._send(_READY)

    def fail(self, error: XinfError) -> None:
        self._send(to_wire(error))

    def _send(self, line: bytes) -> None:
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            os.write(fd, line + b"\n")
        except BrokenPipeError:  # the supervisor is gone; so are we soon
            pass
        os.close(fd)


async def read_report(fd: int) -> bool:
    """Wait for the child's line and close the pipe; False if the child ended without one.

    Raises: what the child said was wrong.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0))
    try:
        line = (await reader.readline()).strip()
    finally:
        transport.close()
    if line and line != _READY:
        raise from_wire(line)
    return bool(line)
