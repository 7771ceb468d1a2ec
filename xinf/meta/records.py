"""Typed access to the records of the store: which prefix, which struct, and every write with a comparison.

create   the key must be absent              replace, delete   it must stand at the revision that was read
put      no comparison: for its only writer  update            read, change, write; again when it moved meanwhile
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xinf.core.errors import Conflict, NotFound
from xinf.core.ids import LeaseId, Revision
from xinf.core.records import (
    CORDONS,
    DEPLOYMENTS,
    EVENTS,
    KEYS,
    MEASURED,
    NODES,
    REPLICAS,
    CordonRecord,
    DeploymentRecord,
    EventRecord,
    KeyRecord,
    MeasuredRecord,
    NodeRecord,
    R,
    Record,
    ReplicaRecord,
    decode_record,
    encode_record,
)
from xinf.meta.contract import Compare, Delete, Put, Store

if TYPE_CHECKING:
    import builtins

PREFIXES: dict[type[Record], str] = {
    NodeRecord: NODES,
    DeploymentRecord: DEPLOYMENTS,
    ReplicaRecord: REPLICAS,
    KeyRecord: KEYS,
    MeasuredRecord: MEASURED,
    CordonRecord: CORDONS,
    EventRecord: EVENTS,
}
MAX_UPDATE_TRIES = 32


def key_of(kind: type[Record], name: str) -> str:
    """Name the key of a record: `key_of(NodeRecord, "a")` is `nodes/a`."""
    return PREFIXES[kind] + name


class Records:
    """The records of one store. Everything may raise StoreError and, over gRPC, Unavailable."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def get(self, kind: type[R], name: str) -> tuple[R, Revision] | None:
        """Read one record and its revision. Raises: StoreCorrupt when it is not such a record."""
        key = key_of(kind, name)
        kv = await self.store.get(key)
        return None if kv is None else (decode_record(kv.value, kind, key=key), kv.mod_revision)

    async def list(self, kind: type[R]) -> builtins.list[tuple[R, Revision]]:
        """Read all records of a kind, sorted by name. Raises: StoreCorrupt naming one that is not such a record."""
        listing = await self.store.list(PREFIXES[kind])
        return [(decode_record(kv.value, kind, key=kv.key), kv.mod_revision) for kv in listing.items]

    async def create(self, kind: type[R], name: str, record: R, *, lease: LeaseId | None = None) -> Revision:
        """Write a new record. Raises: Conflict if there is one, LeaseExpired."""
        key = key_of(kind, name)
        result = await self.store.txn([Compare(key, None)], [Put(key, encode_record(record), lease)])
        if not result.succeeded:
            raise Conflict(f"{key} exists already", key=key)
        return result.revision

    async def replace(
        self, kind: type[R], name: str, record: R, mod_revision: Revision, *, lease: LeaseId | None = None
    ) -> Revision:
        """Write over the record that was read at `mod_revision`. Without `lease` it hangs on none from then on.

        Raises: Conflict if it changed meanwhile or is gone, LeaseExpired.
        """
        key = key_of(kind, name)
        result = await self.store.txn([Compare(key, mod_revision)], [Put(key, encode_record(record), lease)])
        if not result.succeeded:
            raise _moved(key, mod_revision)
        return result.revision

    async def put(self, kind: type[R], name: str, record: R, *, lease: LeaseId | None = None) -> Revision:
        """Write whatever is there, as the one writer of this record. Raises: LeaseExpired."""
        result = await self.store.txn([], [Put(key_of(kind, name), encode_record(record), lease)])
        return result.revision

    async def update(self, kind: type[R], name: str, change: Callable[[R], R]) -> tuple[R, Revision]:
        """Apply `change` to the record as it stands and write the result, again if it moved meanwhile; keep its lease.

        `change` may run several times and may return its argument to write nothing; what it raises passes through.

        Raises: NotFound, Conflict when it moved MAX_UPDATE_TRIES times.
        """
        key = key_of(kind, name)
        for _ in range(MAX_UPDATE_TRIES):
            kv = await self.store.get(key)
            if kv is None:
                raise NotFound(f"{key} does not exist", key=key)
            before = decode_record(kv.value, kind, key=key)
            after = change(before)
            if after == before:
                return before, kv.mod_revision
            result = await self.store.txn([Compare(key, kv.mod_revision)], [Put(key, encode_record(after), kv.lease)])
            if result.succeeded:
                return after, result.revision
        raise Conflict(f"{key} changed {MAX_UPDATE_TRIES} times while it was being changed", key=key)

    async def delete(self, kind: type[R], name: str, mod_revision: Revision | None = None) -> bool:
        """Delete a record, with `mod_revision` only as it was read; False if there is none.

        Raises: Conflict if it changed meanwhile.
        """
        key = key_of(kind, name)
        kv = await self.store.get(key)
        if kv is None:
            return False
        expected = kv.mod_revision if mod_revision is None else mod_revision
        while not (await self.store.txn([Compare(key, expected)], [Delete(key)])).succeeded:
            kv = await self.store.get(key)
            if kv is None:
                return False
            if mod_revision is not None:
                raise _moved(key, mod_revision)
            expected = kv.mod_revision
        return True


def _moved(key: str, mod_revision: Revision) -> Conflict:
    return Conflict(
        f"{key} is no longer as it was read at revision {mod_revision}",
        remedy="read it again",
        key=key,
        mod_revision=mod_revision,
    )
