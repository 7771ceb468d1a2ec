"""How the store lies in LMDB: five tables in one file, integers big-endian so that they sort.

    state       name                          ->  u64         format, revision, oldest, restored
    kv          key                           ->  entry       create u64 · mod u64 · version u64 · lease u64 · value
    history     revision u64 · index u32      ->  event       at_s f64 · key length u16 · key · entry (empty: deleted)
    leases      lease u64                     ->  ttl_s f64
    lease_keys  lease u64 · key               ->  (empty)     which keys to delete when the lease ends

Invariants, walked by check.py:

- `revision` counts transactions that wrote; history holds each of `oldest` ... `revision`, with its events 0..n-1;
- the newest event of a key in history is how the key stands in kv; a key whose mod >= oldest has such an event;
- create <= mod <= revision, and version is 1 exactly when create == mod;
- an entry with a lease has a row in lease_keys and the lease one in leases, and nothing else is in lease_keys.

`restored` marks a copy made by backup until it is first opened: then the revision jumps ahead and the history is
dropped, so that a watcher of the original is told to list again rather than miss what differs.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from xinf.core.errors import StoreCorrupt
from xinf.core.ids import LeaseId, Revision
from xinf.meta.contract import Event, KeyValue

FORMAT = 1
RESTORE_JUMP = 1 << 20  # more revisions than a store makes between a backup and its loss, by far

TABLES = (b"state", b"kv", b"history", b"leases", b"lease_keys")

_ENTRY = struct.Struct(">QQQQ")
_EVENT = struct.Struct(">dH")
_HISTORY_KEY = struct.Struct(">QI")
_U64 = struct.Struct(">Q")
_F64 = struct.Struct(">d")

ENTRY_HEADER_BYTES = _ENTRY.size


class StoredEvent(NamedTuple):
    """A row of history; `entry` is empty for a deletion."""

    at_s: float
    key: bytes
    entry: bytes


def encode_u64(value: int) -> bytes:
    return _U64.pack(value)


def decode_u64(data: bytes) -> int:
    if len(data) != _U64.size:
        raise StoreCorrupt(f"a counter of the store has {len(data)} bytes instead of {_U64.size}")
    value: int = _U64.unpack(data)[0]
    return value


def encode_entry(kv: KeyValue) -> bytes:
    return _ENTRY.pack(kv.create_revision, kv.mod_revision, kv.version, kv.lease or 0) + kv.value


def decode_entry(key: bytes, data: bytes) -> KeyValue:
    if len(data) < _ENTRY.size:
        raise StoreCorrupt(f"entry of key {key!r} has {len(data)} bytes, its header alone needs {_ENTRY.size}")
    create, mod, version, lease = _ENTRY.unpack_from(data)
    return KeyValue(
        key=key.decode("ascii", "replace"),
        value=data[_ENTRY.size :],
        create_revision=Revision(create),
        mod_revision=Revision(mod),
        version=version,
        lease=LeaseId(lease) if lease else None,
    )


def encode_history_key(revision: int, index: int) -> bytes:
    return _HISTORY_KEY.pack(revision, index)


def decode_history_key(data: bytes) -> tuple[int, int]:
    if len(data) != _HISTORY_KEY.size:
        raise StoreCorrupt(f"a key of the history has {len(data)} bytes instead of {_HISTORY_KEY.size}")
    revision, index = _HISTORY_KEY.unpack(data)
    return revision, index


def encode_event(event: StoredEvent) -> bytes:
    return _EVENT.pack(event.at_s, len(event.key)) + event.key + event.entry


def decode_event(data: bytes) -> StoredEvent:
    if len(data) < _EVENT.size:
        raise StoreCorrupt(f"an event of the history has {len(data)} bytes, its header alone needs {_EVENT.size}")
    at_s, key_bytes = _EVENT.unpack_from(data)
    end = _EVENT.size + key_bytes
    if len(data) < end:
        raise StoreCorrupt(f"an event of the history ends inside its key: {len(data)} of {end} bytes")
    return StoredEvent(at_s, data[_EVENT.size : end], data[end:])


def event_of(revision: int, stored: StoredEvent) -> Event:
    """Give a row of history as the contract's event."""
    kv = decode_entry(stored.key, stored.entry) if stored.entry else None
    return Event(stored.key.decode("ascii", "replace"), Revision(revision), kv)


def encode_ttl(ttl_s: float) -> bytes:
    return _F64.pack(ttl_s)


def decode_ttl(data: bytes) -> float:
    if len(data) != _F64.size:
        raise StoreCorrupt(f"the ttl of a lease has {len(data)} bytes instead of {_F64.size}")
    value: float = _F64.unpack(data)[0]
    return value
