"""The embedded backend: the contract on one LMDB file, owned by this process.

    txn grant revoke ─▶ Writer (one thread) ─▶ MapFile          get list watch status ─▶ a snapshot, in the caller
                          │                                      check backup ─▶ a snapshot, in a thread of their own
                          └─ wakes ─▶ watchers, each reading history from its own position

Reads run in the event loop: they are microseconds on mapped memory that this process keeps warm.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from xinf import __version__
from xinf.core.clock import Clock, SystemClock
from xinf.core.errors import StoreError
from xinf.core.ids import LeaseId, Revision
from xinf.meta.backup import write_backup
from xinf.meta.bounds import check_key, check_listing, check_prefix, check_ttl, check_txn
from xinf.meta.changes import Changes, Counters
from xinf.meta.check import check_snapshot
from xinf.meta.contract import Backup, Compare, Delete, KeyValue, Listing, Op, Put, StoreStatus, TxnResult, WatchBatch
from xinf.meta.history import read_page
from xinf.meta.layout import ENTRY_HEADER_BYTES, decode_entry, decode_ttl, decode_u64
from xinf.meta.lease_table import LeaseTable
from xinf.meta.map_file import MapFile
from xinf.meta.owner import OwnerLock
from xinf.meta.wakeups import Wakeups
from xinf.meta.writer import OVERHEAD_BYTES, Request, Writer

if TYPE_CHECKING:
    from lmdb import Transaction

HEARTBEAT_S = 5.0  # between progress marks of a watch to which nothing happens


class LmdbStore:
    """A Store; see xinf/meta/contract.py. Made by `LmdbStore.open`."""

    def __init__(
        self, file: MapFile, owner: OwnerLock, clock: Clock, *, history_revisions: int, history_age_s: float
    ) -> None:
        self._file = file
        self._owner = owner
        self._clock = clock
        self._leases = LeaseTable()
        self._wakeups = Wakeups()
        self._is_closed = False
        self._started_s = clock.now_s()
        self._writer = Writer(
            file,
            self._leases,
            clock,
            history_revisions=history_revisions,
            history_age_s=history_age_s,
            committed=self._wakeups.wake,
        )

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        max_bytes: int,
        history_revisions: int,
        history_age_s: float,
        no_sync: bool = False,
        clock: Clock | None = None,
    ) -> LmdbStore:
        """Open or create the store in `directory` and become its owner.

        Raises: StoreHeld naming the owner, StoreCorrupt, StoreFull when the disk is, StoreError.
        """
        clock = clock or SystemClock()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot create {directory}: {error.strerror}") from error
        owner = OwnerLock(directory, clock.now_s())
        try:
            file = MapFile(directory, max_bytes=max_bytes, no_sync=no_sync)
            try:
                store = cls(file, owner, clock, history_revisions=history_revisions, history_age_s=history_age_s)
                store._prepare()
            except BaseException:
                file.close()
                raise
        except BaseException:
            owner.release()
            raise
        store._writer.start()
        return store

    def _prepare(self) -> None:
        """Make the file a store if it is new, and give every lease of the file a full ttl."""
        self._file.prepare(self._clock.now_s())
        now_s = self._clock.monotonic_s()
        with self._file.read() as txn, txn.cursor(db=self._file.tables[b"leases"]) as cursor:
            for lease, ttl in cursor:
                self._leases.add(LeaseId(decode_u64(lease)), decode_ttl(ttl), now_s)

    async def get(self, key: str) -> KeyValue | None:
        check_key(key)
        with self._read() as txn:
            data = txn.get(key.encode("ascii"), db=self._file.tables[b"kv"])
        return None if data is None else decode_entry(key.encode("ascii"), data)

    async def list(self, prefix: str) -> Listing:
        check_prefix(prefix)
        start = prefix.encode("ascii")
        items = []
        n_bytes = 0
        with self._read() as txn, txn.cursor(db=self._file.tables[b"kv"]) as cursor:
            cursor.set_range(start) if start else cursor.first()
            while (key := cursor.key()) and key.startswith(start):
                data = cursor.value()
                n_bytes += len(key) + len(data) + ENTRY_HEADER_BYTES
                check_listing(prefix, n_bytes)
                items.append(decode_entry(key, data))
                cursor.next()
            revision = Counters(txn, self._file.tables[b"state"]).revision
        return Listing(tuple(items), revision)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        check_txn(compares, ops)
        request = Request(
            lambda changes: changes.txn(compares, ops),
            n_bytes=OVERHEAD_BYTES + sum(len(op.value) for op in ops if isinstance(op, Put)),
            only_shrinks=all(isinstance(op, Delete) for op in ops),
        )
        return cast(TxnResult, await self._write(request))

    async def watch(self, prefix: str, from_revision: Revision) -> AsyncIterator[WatchBatch]:
        check_prefix(prefix)
        start = prefix.encode("ascii")
        position = Revision(max(1, from_revision))
        with self._wakeups.subscribe() as wakeup:
            while not self._is_closed:
                wakeup.clear()  # before reading: a commit after the read wakes again
                with self._read() as txn:
                    page = read_page(txn, self._file.tables, start, position)
                position = Revision(page.through + 1)
                if page.events or not page.is_last:
                    yield WatchBatch(page.events, page.through)
                elif not await wakeup.wait(HEARTBEAT_S):
                    yield WatchBatch((), page.through)

    async def grant(self, ttl_s: float) -> LeaseId:
        check_ttl(ttl_s)
        # Random, so that a restored backup never gives out an id that somebody still holds; 53 bits fit JSON's numbers.
        lease = LeaseId(secrets.randbelow((1 << 53) - 1) + 1)
        await self._write(
            Request(
                lambda changes: changes.grant(lease, ttl_s),
                applied=lambda: self._leases.add(lease, ttl_s, self._clock.monotonic_s()),
            )
        )
        return lease

    async def keep_alive(self, lease: LeaseId) -> float:
        self._check_open()
        return self._leases.renew(lease, self._clock.monotonic_s())

    async def revoke(self, lease: LeaseId) -> None:
        await self._write(
            Request(
                lambda changes: changes.end_lease(lease),
                only_shrinks=True,
                applied=lambda: self._leases.remove(lease),
            )
        )

    async def tick(self) -> None:
        """End the leases that are over and forget old history now; the writer does so every second by itself."""
        await self._write(Request(_nothing, only_shrinks=True))

    async def status(self) -> StoreStatus:
        tables = self._file.tables
        with self._read() as txn:
            counters = Counters(txn, tables[b"state"])
            return StoreStatus(
                version=__version__,
                pid=os.getpid(),
                backend="lmdb",
                revision=counters.revision,
                oldest_revision=counters.oldest,
                n_keys=txn.stat(tables[b"kv"])["entries"],
                used_bytes=self._file.used_bytes(txn),
                max_bytes=self._file.max_bytes,
                started_s=self._started_s,
            )

    async def check(self) -> Sequence[str]:
        self._check_open()
        return await asyncio.to_thread(self._check)

    def _check(self) -> Sequence[str]:
        with self._file.read_long() as txn:
            return check_snapshot(txn, self._file.tables)

    async def backup(self, directory: Path) -> Backup:
        """Write a consistent, compacted copy of the live store into a directory that is empty or does not exist.

        Raises: InvalidRequest when something is there, StoreFull, StoreError.
        """
        self._check_open()
        return await asyncio.to_thread(write_backup, self._file, directory)

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._wakeups.wake()
        await asyncio.to_thread(self._writer.close)
        await asyncio.to_thread(self._file.close)  # waits for a check or a backup
        self._owner.release()

    async def _write(self, request: Request) -> object:
        return await asyncio.wrap_future(self._writer.submit(request))

    def _read(self) -> AbstractContextManager[Transaction[bytes]]:
        self._check_open()
        return self._file.read()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreError("the store is closed")


def _nothing(changes: Changes) -> None:
    """What a tick asks for; the writer adds what is due to every batch."""
