"""A local copy of one prefix, kept up to date by a watch: what loops and gateways read without asking anybody.

    start: list ─▶ items ─▶ watch from revision + 1 ─▶ each batch changes items, then listeners hear the names
                     ▲                │
                     └── list, diff ◀─┘ Compacted

While the owner of the store is away the copy stays as it is and `is_stale_s` grows. Belongs to one event loop; `items`
changes only between awaits of its user.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Generic, cast

from xinf.core.clock import Clock, SystemClock
from xinf.core.errors import Compacted, DeadlineExceeded, StoreCorrupt, StoreError, Unavailable
from xinf.core.ids import Revision
from xinf.core.records import R, decode_record
from xinf.meta.contract import KeyValue, Listing, Store, WatchBatch

log = logging.getLogger("xinf.meta")

RETRY_INITIAL_S = 0.1
RETRY_MAX_S = 5.0


class Mirror(Generic[R]):
    """All records below `prefix`, by name: the key without the prefix. See above."""

    def __init__(self, store: Store, prefix: str, kind: type[R], *, clock: Clock | None = None) -> None:
        self._store = store
        self._prefix = prefix
        self._kind: type[R] = kind
        self._clock = clock or SystemClock()
        self._listeners: list[Callable[[str], None]] = []
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._heard_s = self._clock.monotonic_s()
        self.items: dict[str, tuple[R, Revision]] = {}
        self.revision = Revision(0)

    async def start(self) -> None:
        """Read everything once, then follow. Raises: Unavailable, StoreError; nothing runs then."""
        self._take_listing(await self._store.list(self._prefix))
        self._task = asyncio.create_task(self._follow(), name=f"mirror {self._prefix}")

    async def stop(self) -> None:
        """End following; `items` stays."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def get(self, name: str) -> R | None:
        """The record of that name, None if there is none."""
        held = self.items.get(name)
        return None if held is None else held[0]

    def listen(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call `callback(name)` in the event loop after each change of a record; return what ends that."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    @property
    def is_stale_s(self) -> float:
        """Seconds since the store was last heard of; a quiet one is heard of every few seconds."""
        return self._clock.monotonic_s() - self._heard_s

    async def wait(self, predicate: Callable[[Mapping[str, tuple[R, Revision]]], bool], timeout_s: float) -> None:
        """Wait until `predicate(items)` holds. Raises: DeadlineExceeded."""
        try:
            async with asyncio.timeout(timeout_s):
                while not predicate(self.items):
                    changed = self._changed
                    await changed.wait()
        except TimeoutError:
            raise DeadlineExceeded(f"{self._prefix} did not come to what was waited for in {timeout_s:g} s") from None

    async def _follow(self) -> None:
        must_list = False
        delay_s = RETRY_INITIAL_S
        while True:
            heard_s = self._heard_s
            try:
                if must_list:
                    self._take_listing(await self._store.list(self._prefix))
                    must_list = False
                await self._watch()
                return  # the store was closed
            except Compacted:
                must_list = True
            except (StoreError, Unavailable) as error:
                if self._heard_s != heard_s:
                    delay_s = RETRY_INITIAL_S
                log.warning("mirror goes on with what it has", extra={"kv": {"prefix": self._prefix, "error": error}})
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, RETRY_MAX_S)

    async def _watch(self) -> None:
        batches = cast(AsyncGenerator[WatchBatch, None], self._store.watch(self._prefix, Revision(self.revision + 1)))
        async with contextlib.aclosing(batches):
            async for batch in batches:
                self._take_batch(batch)

    def _take_listing(self, listing: Listing) -> None:
        """Change `items` to what the listing says and tell about the differences."""
        names = {kv.key[len(self._prefix) :]: kv for kv in listing.items}
        changed = [name for name in self.items if name not in names]
        for name in changed:
            del self.items[name]
        for name, kv in names.items():
            held = self.items.get(name)
            if held is None or held[1] != kv.mod_revision:
                self._put(name, kv)
                changed.append(name)
        self._advance(listing.revision, changed)

    def _take_batch(self, batch: WatchBatch) -> None:
        changed = {}  # a dict for its order
        for event in batch.events:
            name = event.key[len(self._prefix) :]
            if event.kv is None:
                self.items.pop(name, None)
            else:
                self._put(name, event.kv)
            changed[name] = True
        self._advance(batch.revision, changed)

    def _put(self, name: str, kv: KeyValue) -> None:
        try:
            self.items[name] = (decode_record(kv.value, self._kind, key=kv.key), kv.mod_revision)
        except StoreCorrupt as error:  # one bad record must not stop the others
            self.items.pop(name, None)
            log.error("record is left out", extra={"kv": {"key": kv.key, "error": error}})

    def _advance(self, revision: Revision, changed: list[str] | dict[str, bool]) -> None:
        self.revision = revision
        self._heard_s = self._clock.monotonic_s()
        if not changed:
            return
        self._changed.set()
        self._changed = asyncio.Event()
        for name in changed:
            for callback in tuple(self._listeners):
                try:
                    callback(name)
                except Exception:  # a listener's fault is not the next one's
                    log.exception("listener failed", extra={"kv": {"key": self._prefix + name}})
