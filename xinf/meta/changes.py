"""What each kind of request does to the tables, inside one LMDB transaction that the writer commits for many of them.

Requests are applied in order and see each other's effects. Every request is checked before its first write, so a
refused one leaves nothing behind in the shared transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from xinf.core.errors import StoreCorrupt
from xinf.core.ids import LeaseId, Revision
from xinf.meta.contract import Compare, Delete, KeyValue, Op, Put, TxnResult
from xinf.meta.layout import (
    FORMAT,
    RESTORE_JUMP,
    StoredEvent,
    decode_entry,
    decode_event,
    decode_history_key,
    decode_u64,
    encode_entry,
    encode_event,
    encode_history_key,
    encode_ttl,
    encode_u64,
)
from xinf.meta.lease_table import lease_expired

if TYPE_CHECKING:
    from lmdb import Transaction, _Database

COMPACT_EVENTS_PER_COMMIT = 2000  # amortised: a commit makes far fewer events than this


class Counters:
    """The store's counters as a transaction sees them."""

    def __init__(self, txn: Transaction[bytes], state: _Database) -> None:
        self.revision = Revision(self._read(txn, state, b"revision", 0))
        self.oldest = Revision(self._read(txn, state, b"oldest", 1))

    @staticmethod
    def _read(txn: Transaction[bytes], state: _Database, name: bytes, default: int) -> int:
        data = txn.get(name, db=state)
        return default if data is None else decode_u64(data)


class Changes:
    """The open write transaction of the writer."""

    def __init__(self, txn: Transaction[bytes], tables: dict[bytes, _Database], now_s: float) -> None:
        self._txn = txn
        self._state = tables[b"state"]
        self._kv = tables[b"kv"]
        self._history = tables[b"history"]
        self._leases = tables[b"leases"]
        self._lease_keys = tables[b"lease_keys"]
        self._now_s = now_s
        counters = Counters(txn, self._state)
        self.revision = counters.revision
        self.oldest = counters.oldest
        self._start = (self.revision, self.oldest)

    def prepare(self) -> None:
        """Make a fresh file a store, and a restored backup one that its former watchers cannot mistake for theirs.

        Raises: StoreCorrupt for a format that this version does not know.
        """
        found = self._txn.get(b"format", db=self._state)
        if found is None:
            self._txn.put(b"format", encode_u64(FORMAT), db=self._state)
        elif decode_u64(found) != FORMAT:
            raise StoreCorrupt(
                f"the store has format {decode_u64(found)}, this version knows {FORMAT}",
                remedy="use the version of xinf that wrote it",
            )
        if self._txn.delete(b"restored", db=self._state):
            self._txn.drop(self._history, delete=False)
            self.revision = Revision(self.revision + RESTORE_JUMP)
            self.oldest = Revision(self.revision + 1)

    def finish(self) -> None:
        """Write the counters; the last thing before the commit."""
        if (self.revision, self.oldest) != self._start:
            self.touch()

    def touch(self) -> None:
        """Make a commit of a transaction that changes nothing."""
        self._txn.put(b"revision", encode_u64(self.revision), db=self._state)
        self._txn.put(b"oldest", encode_u64(self.oldest), db=self._state)

    def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        """Raises: LeaseExpired before anything is written."""
        for compare in compares:
            found = self._entry(compare.key.encode())
            if (None if found is None else found.mod_revision) != compare.mod_revision:
                return TxnResult(succeeded=False, revision=self.revision)
        for op in ops:
            if isinstance(op, Put) and op.lease is not None and not self._has_lease(op.lease):
                raise lease_expired(op.lease)
        return TxnResult(succeeded=True, revision=self._apply(ops))

    def grant(self, lease: LeaseId, ttl_s: float) -> None:
        self._txn.put(encode_u64(lease), encode_ttl(ttl_s), db=self._leases)

    def end_lease(self, lease: LeaseId) -> None:
        """Delete the lease and, at one revision, its keys. Raises: LeaseExpired."""
        row = encode_u64(lease)
        if not self._has_lease(lease):
            raise lease_expired(lease)
        keys = []
        with self._txn.cursor(db=self._lease_keys) as cursor:
            if cursor.set_range(row):
                for found in cursor.iternext(keys=True, values=False):
                    if not found.startswith(row):
                        break
                    keys.append(found[len(row) :].decode("ascii"))
        self._apply([Delete(key) for key in keys])
        self._txn.delete(row, db=self._leases)

    def compact(self, *, keep_from: int, keep_since_s: float, max_events: int = COMPACT_EVENTS_PER_COMMIT) -> None:
        """Forget revisions before `keep_from` and those written before `keep_since_s`, whole ones, oldest first.

        Stops after about `max_events` events; the next commit goes on. A revision's age is its first event's.
        """
        n_events = 0
        with self._txn.cursor(db=self._history) as cursor:
            cursor.first()
            while key := cursor.key():  # empty behind the last row
                revision, index = decode_history_key(key)
                is_first = index == 0
                if is_first and n_events >= max_events:
                    break
                if is_first and revision >= keep_from and decode_event(cursor.value()).at_s >= keep_since_s:
                    break
                self.oldest = Revision(revision + 1)
                n_events += 1
                cursor.delete()  # moves to the next row

    def _has_lease(self, lease: LeaseId) -> bool:
        return lease > 0 and self._txn.get(encode_u64(lease), db=self._leases) is not None

    def _entry(self, key: bytes) -> KeyValue | None:
        data = self._txn.get(key, db=self._kv)
        return None if data is None else decode_entry(key, data)

    def _apply(self, ops: Iterable[Op]) -> Revision:
        revision = Revision(self.revision + 1)
        n_events = 0
        for op in ops:
            key = op.key.encode("ascii")
            before = self._entry(key)
            if isinstance(op, Put):
                entry = encode_entry(_next_entry(op, before, revision))
                self._txn.put(key, entry, db=self._kv)
            elif before is None:
                continue
            else:
                entry = b""
                self._txn.delete(key, db=self._kv)
            self._move_lease(key, before.lease if before else None, op.lease if isinstance(op, Put) else None)
            event = encode_event(StoredEvent(self._now_s, key, entry))
            self._txn.put(encode_history_key(revision, n_events), event, append=True, db=self._history)
            n_events += 1
        if n_events:
            self.revision = revision
        return self.revision

    def _move_lease(self, key: bytes, before: LeaseId | None, after: LeaseId | None) -> None:
        if before == after:
            return
        if before is not None:
            self._txn.delete(encode_u64(before) + key, db=self._lease_keys)
        if after is not None:
            self._txn.put(encode_u64(after) + key, b"", db=self._lease_keys)


def _next_entry(op: Put, before: KeyValue | None, revision: Revision) -> KeyValue:
    return KeyValue(
        key=op.key,
        value=op.value,
        create_revision=before.create_revision if before else revision,
        mod_revision=revision,
        version=before.version + 1 if before else 1,
        lease=op.lease,
    )
