"""Writes the scheduler's events into the store, beside the planning, and keeps their number bounded.

Nothing waits for an event: they go through a bounded queue, and while the store cannot be written the oldest are lost.
An event that is the same as the last one of its object replaces it, with a count.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

import msgspec

from xinf.core.errors import StoreError, Unavailable
from xinf.core.records import EventRecord
from xinf.meta import Store, record_event, trim_events
from xinf.scheduler.journal import Journal

logger = logging.getLogger(__name__)

_MAX_WAITING = 1000
_MAX_OBJECTS = 4096  # whose last event is remembered
_RETRY_S = 1.0


class Chronicle:
    """See above. `journal` says what there is to tell. Belongs to one event loop."""

    def __init__(self, store: Store, *, n_kept: int) -> None:
        self.journal = Journal()
        self._store = store
        self._n_kept = n_kept
        self._waiting: deque[EventRecord] = deque(maxlen=_MAX_WAITING)
        self._must_trim = True
        self._changed = asyncio.Event()
        self._changed.set()
        self._last: dict[str, tuple[str, EventRecord]] = {}  # object -> key and content, the latest at the end

    def add(self, event: EventRecord | None) -> None:
        """Have it written soon; None: there was nothing to tell."""
        if event is not None:
            self._waiting.append(event)
            self._changed.set()

    def trim(self) -> None:
        """Have what is too old removed soon."""
        self._must_trim = True
        self._changed.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                while self._waiting:
                    event = self._waiting[0]
                    await self._write(event)
                    if self._waiting and self._waiting[0] is event:  # not pushed out by later ones meanwhile
                        self._waiting.popleft()
                if self._must_trim:
                    await trim_events(self._store, self._n_kept)
                    self._must_trim = False
            except (StoreError, Unavailable) as error:
                logger.warning("events wait: %s", error)
                await asyncio.sleep(_RETRY_S)
                self._changed.set()

    async def _write(self, event: EventRecord) -> None:
        before = self._last.get(event.object)
        repeats = None
        if before is not None and _is_same(before[1], event):
            repeats = before[0]
            event = msgspec.structs.replace(event, count=before[1].count + 1)
        key = await record_event(self._store, event, repeats=repeats)
        self._last.pop(event.object, None)
        self._last[event.object] = (key, event)
        if len(self._last) > _MAX_OBJECTS:
            self._last.pop(next(iter(self._last)))


def _is_same(before: EventRecord, event: EventRecord) -> bool:
    return (before.kind, before.message, before.node) == (event.kind, event.message, event.node)
