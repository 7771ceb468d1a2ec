"""Follows what the devices are doing: one resident child per vendor, replaced when it dies or falls silent.

    vendor A ── python -m xinf.device read A ──┐
    vendor B ── python -m xinf.device read B ──┼──▶ one stream of readings
    processor ── read here, files only ────────┘

A driver that hangs costs its own vendor one late reading; the others and the reader of the stream do not notice. A
child is killed at its deadline; a new one starts after a wait that doubles while children keep failing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

import msgspec

from xinf.core.device import Vendor
from xinf.device.offspring import Child, in_words, start_child, with_words
from xinf.device.probe import IN_PROCESS, find_present, read_vendor
from xinf.device.reading import Reading

DEADLINE_S = 15.0  # silence beyond the interval after which a child counts as hung
MAX_BACKOFF_S = 60.0
_MAX_QUEUED = 64  # beyond it the children wait: a slow reader makes readings rare, not many


class ReadingStream:
    """Iterates over the readings of all vendors as they come.

    `async with ReadingStream(interval_s=5) as stream: async for reading in stream: ...`

    `vendors`: whom to read; None: those that the host seems to have. A reading with `misses` stands for one that did
    not come.
    """

    def __init__(
        self,
        *,
        interval_s: float,
        deadline_s: float = DEADLINE_S,
        vendors: Iterable[Vendor] | None = None,
        root: Path = Path("/"),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._interval_s = interval_s
        self._deadline_s = deadline_s
        self._root = root
        self._environ = environ
        self._vendors = None if vendors is None else tuple(vendors)
        self._readings: asyncio.Queue[Reading] = asyncio.Queue(_MAX_QUEUED)
        self._tasks: list[asyncio.Task[None]] = []
        self._children: set[Child] = set()

    async def __aenter__(self) -> ReadingStream:
        for vendor in find_present(self._root) if self._vendors is None else self._vendors:
            follow = self._read_here if vendor in IN_PROCESS else self._follow
            self._tasks.append(asyncio.create_task(follow(vendor)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # A task that was cancelled while it waited for a child's end has left it behind.
        await asyncio.gather(*(child.end() for child in self._children))

    async def __aiter__(self) -> AsyncIterator[Reading]:
        while True:
            yield await self._readings.get()

    async def _read_here(self, vendor: Vendor) -> None:
        while True:
            await self._readings.put(read_vendor(vendor, self._root))
            await asyncio.sleep(self._interval_s)

    async def _follow(self, vendor: Vendor) -> None:
        """Keep a child of this vendor running and pass on what it says."""
        misses = n_failures = 0
        while True:
            last = await self._follow_child(vendor)
            # A child that was read before it failed is the first failure of a new row.
            n_failures = 1 if last.n_read else n_failures + 1
            if last.is_silent:
                misses = 1 if last.n_read else misses + 1
                await self._readings.put(Reading(vendor=vendor, fault=last.reason, misses=misses))
            else:
                misses = 0
            await asyncio.sleep(min(MAX_BACKOFF_S, self._interval_s * 2 ** min(n_failures - 1, 16)))

    async def _follow_child(self, vendor: Vendor) -> _Ending:
        """Start a child and follow it to its end; what it said to standard error belongs to a reason."""
        limit_s = self._interval_s + self._deadline_s
        try:
            child = await start_child(
                *("read", str(self._interval_s)),
                vendor=vendor,
                root=self._root,
                environ=self._environ,
                deadline_s=limit_s,
            )
        except OSError as error:
            return _Ending(n_read=0, reason=f"no reader can be started: {error}")
        self._children.add(child)
        try:
            ending = await self._read_lines(child, limit_s)
        finally:
            await child.end()
            self._children.discard(child)
        return msgspec.structs.replace(ending, reason=with_words(ending.reason, child.last_words))

    async def _read_lines(self, child: Child, limit_s: float) -> _Ending:
        """Pass on the lines of one child until it ends, is silent beyond its deadline or writes nonsense."""
        n_read = 0
        loop = asyncio.get_running_loop()
        due_s = loop.time() + limit_s
        try:
            while True:
                async with asyncio.timeout_at(due_s):
                    line = await child.output.readline()
                    # Its output is closed before the driver is, which may hang on that.
                    status = None if line else await child.wait()
                if status is not None:
                    return _Ending(n_read=n_read, reason=f"its reader ended with {in_words(status)}")
                reading = msgspec.json.decode(line, type=Reading)
                await self._readings.put(reading)
                if reading.fault is not None or any(event.kind == "driver" for event in reading.events):
                    return _Ending(n_read=n_read, is_silent=False)
                if not reading.events:  # events come by a thread of their own and do not say that samples do
                    n_read += 1
                    due_s = loop.time() + limit_s
        except TimeoutError:
            return _Ending(n_read=n_read, reason=f"the driver did not answer within {limit_s:g} s: look at `dmesg`")
        except (ValueError, msgspec.MsgspecError) as error:
            return _Ending(n_read=n_read, reason=f"its reader wrote what cannot be read: {error}")


async def read_once(
    vendors: Iterable[Vendor],
    *,
    deadline_s: float = DEADLINE_S,
    root: Path = Path("/"),
    environ: Mapping[str, str] | None = None,
) -> tuple[Reading, ...]:
    """Read each of these vendors once, now; one that does not answer by the deadline is left out."""
    wanted = set(vendors)
    found: dict[Vendor, Reading] = {}
    stream = ReadingStream(interval_s=deadline_s, deadline_s=deadline_s, vendors=wanted, root=root, environ=environ)
    try:
        async with asyncio.timeout(deadline_s), stream:
            while wanted - found.keys():
                async for reading in stream:
                    if not reading.events:
                        found[reading.vendor] = reading
                        break
    except TimeoutError:
        pass
    return tuple(found.values())


class _Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How one child ended: after how many readings, and whether it said why itself."""

    n_read: int
    is_silent: bool = True
    reason: str = ""
