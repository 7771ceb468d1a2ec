"""Reads what the devices are doing, every few seconds, in a resident child that is replaced when it falls silent.

    python -m xinf.device sample INTERVAL_S [ROOT]     one JSON line of samples per interval on standard output

The child lives as long as somebody reads: a write to a closed pipe ends it, so it never outlives its reader by more
than an interval.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec

from xinf.core.device import Sample
from xinf.device.probe import PROBES

_DEADLINE_S = 15.0  # silence beyond the interval after which the child counts as hung


class SampleStream:
    """Iterates over batches of samples; restarts its child when it dies or hangs.

    `async with SampleStream(interval_s=5) as stream: async for samples in stream: ...`
    """

    def __init__(
        self,
        *,
        interval_s: float,
        deadline_s: float = _DEADLINE_S,
        root: Path = Path("/"),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._interval_s = interval_s
        self._deadline_s = deadline_s
        self._root = root
        self._environ = environ
        self._process: asyncio.subprocess.Process | None = None
        self.restarts = 0

    async def __aenter__(self) -> SampleStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end_child()

    async def __aiter__(self) -> AsyncIterator[tuple[Sample, ...]]:
        while True:
            process = self._process or await self._start_child()
            assert process.stdout is not None
            try:
                async with asyncio.timeout(self._interval_s + self._deadline_s):
                    line = await process.stdout.readline()
            except TimeoutError:
                line = b""
            if line:
                yield msgspec.json.decode(line, type=tuple[Sample, ...])
                continue
            await self._end_child()
            self.restarts += 1
            await asyncio.sleep(self._interval_s)  # a child that dies at once must not become a busy loop

    async def _start_child(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "xinf.device", "sample", str(self._interval_s), str(self._root)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=dict(os.environ if self._environ is None else self._environ),
        )
        return self._process

    async def _end_child(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        try:
            await asyncio.wait_for(process.wait(), 1.0)
        except TimeoutError:
            pass  # stuck in the kernel; it ends when the driver lets go


def write_samples(interval_s: float, root: Path = Path("/")) -> None:
    """Write a line of samples per interval to standard output until nobody reads it."""
    present = [probe for probe in PROBES.values() if probe.is_present(root)]
    pause = threading.Event()
    while True:
        samples = [sample for probe in present for sample in probe.sample(root)]
        try:
            sys.stdout.buffer.write(msgspec.json.encode(samples) + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            os._exit(0)  # the interpreter's own flush at exit would complain
        pause.wait(interval_s)
