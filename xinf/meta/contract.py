"""What a metastore promises, whatever keeps the bytes: the one interface that everything else is written against.

The store is an ordered map from text keys to bytes under one revision counter. Each transaction that writes takes the
next revision. Acknowledged means durable. `tests/meta/contract_suite.py` is run against every backend and against the
gRPC client; what it asserts is the contract, this page only describes it.

Keys are 1 to 400 bytes of printable ASCII without spaces. Values are up to 1 MiB. One transaction takes up to 1,024
operations with 8 MiB of keys and values together, one listing returns up to 48 MiB; xinf/meta/bounds.py enforces all
four for every backend.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from xinf.core.ids import LeaseId, Revision

MAX_KEY_BYTES = 400
MAX_VALUE_BYTES = 1 << 20
MAX_TXN_OPS = 1024
MAX_TXN_BYTES = 8 << 20
MAX_LISTING_BYTES = 48 << 20


class KeyValue(msgspec.Struct, frozen=True):
    """One key as it stands at a revision."""

    key: str
    value: bytes
    create_revision: Revision
    mod_revision: Revision
    version: int = 1  # number of writes since it was created
    lease: LeaseId | None = None


class Listing(msgspec.Struct, frozen=True):
    """All keys of a prefix, sorted, from one snapshot taken at `revision`."""

    items: tuple[KeyValue, ...]
    revision: Revision


class Compare(msgspec.Struct, frozen=True):
    """Holds when the key's mod_revision is this; None: when the key is absent."""

    key: str
    mod_revision: Revision | None


class Put(msgspec.Struct, frozen=True):
    key: str
    value: bytes
    lease: LeaseId | None = None


class Delete(msgspec.Struct, frozen=True):
    """Delete a key; of one that is absent, nothing happens and no event is made."""

    key: str


Op = Put | Delete


class TxnResult(msgspec.Struct, frozen=True):
    """`revision` is the new one if the transaction succeeded and wrote, else the store's current one."""

    succeeded: bool
    revision: Revision


class Event(msgspec.Struct, frozen=True):
    """`kv` is None for a deletion."""

    key: str
    revision: Revision
    kv: KeyValue | None


class WatchBatch(msgspec.Struct, frozen=True):
    """Events of whole revisions, in order. `revision`: everything up to here was delivered; events may be empty."""

    events: tuple[Event, ...]
    revision: Revision


class StoreStatus(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    pid: int
    backend: str
    revision: Revision
    oldest_revision: Revision
    n_keys: int
    used_bytes: int  # live pages; pages that a deletion freed are not counted
    max_bytes: int
    started_s: float
    gateway_url: str = ""


class Backup(msgspec.Struct, frozen=True):
    """What a backup wrote; it holds everything up to `revision`."""

    revision: Revision
    written_bytes: int


class Store(Protocol):
    """The contract. All methods may raise StoreError and, over gRPC, Unavailable when the owner cannot be reached."""

    async def get(self, key: str) -> KeyValue | None:
        """Read one key."""

    async def list(self, prefix: str) -> Listing:
        """Read all keys that start with `prefix`, from one snapshot. Watching from `revision + 1` misses nothing.

        Raises: InvalidRequest when the listing would exceed MAX_LISTING_BYTES.
        """

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        """Apply all operations at one new revision if every comparison holds, none otherwise; return when durable.

        A key may appear once among `ops`. A transaction without effect (no ops, or deletions of absent keys) takes no
        revision.

        Raises: InvalidRequest for a key or value out of bounds, LeaseExpired for an unknown lease, StoreFull.
        """

    def watch(self, prefix: str, from_revision: Revision) -> AsyncIterator[WatchBatch]:
        """Yield every event of the prefix with revision >= `from_revision`, in order, each once, without end.

        A batch never splits a revision. A `from_revision` in the future waits for it. A batch without events is a
        progress mark; one comes every few seconds when nothing happens, so its absence means a lost store.

        Raises: Compacted when history before `from_revision` is gone: list again and watch from there.
        """

    async def grant(self, ttl_s: float) -> LeaseId:
        """Make a lease. Its keys are deleted, with events, when it has not been kept alive for `ttl_s` seconds.

        After a restart of the owner every lease has a full ttl again.
        """

    async def keep_alive(self, lease: LeaseId) -> float:
        """Give the lease a full ttl again and return it. Raises: LeaseExpired."""

    async def revoke(self, lease: LeaseId) -> None:
        """End the lease now and delete its keys. Raises: LeaseExpired."""

    async def status(self) -> StoreStatus:
        """Describe the store."""

    async def check(self) -> Sequence[str]:
        """Walk every invariant; list what is broken, nothing if sound."""

    async def close(self) -> None:
        """Release everything; watches end."""
