"""The metastore: one ordered map of records under one revision counter, durable when acknowledged, watched by everyone.

Owns the contract (`Store`), its LMDB backend (`LmdbStore`), its gRPC server and client (`MetaServer`, `MetaClient`) and
what is built on the contract alone: typed records (`Records`), a local copy of a prefix (`Mirror`), the work queue of
level-triggered loops (`KeyQueue`), what happened (`record_event`) and how the control process is found (`connect`).
Knows nothing of what the records mean.

Names are loaded on first use: a gateway does not load LMDB, and a command that only needs the errors loads nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xinf.core.first_use import names_on_first_use

if TYPE_CHECKING:
    from xinf.meta.check import check_directory
    from xinf.meta.client import MetaClient
    from xinf.meta.contract import (
        MAX_KEY_BYTES,
        MAX_LISTING_BYTES,
        MAX_TXN_BYTES,
        MAX_TXN_OPS,
        MAX_VALUE_BYTES,
        Backup,
        Compare,
        Delete,
        Event,
        KeyValue,
        Listing,
        Op,
        Put,
        Store,
        StoreStatus,
        TxnResult,
        WatchBatch,
    )
    from xinf.meta.discovery import Discovery, connect, read_discovery, remove_discovery, write_discovery
    from xinf.meta.events import record_event, trim_events
    from xinf.meta.key_queue import KeyQueue
    from xinf.meta.lmdb_store import LmdbStore
    from xinf.meta.measured import record_measured
    from xinf.meta.mirror import Mirror
    from xinf.meta.records import Records
    from xinf.meta.server import MetaServer

_MODULES = {
    "check": ("check_directory",),
    "client": ("MetaClient",),
    "contract": (
        "MAX_KEY_BYTES",
        "MAX_LISTING_BYTES",
        "MAX_TXN_BYTES",
        "MAX_TXN_OPS",
        "MAX_VALUE_BYTES",
        "Backup",
        "Compare",
        "Delete",
        "Event",
        "KeyValue",
        "Listing",
        "Op",
        "Put",
        "Store",
        "StoreStatus",
        "TxnResult",
        "WatchBatch",
    ),
    "discovery": ("Discovery", "connect", "read_discovery", "remove_discovery", "write_discovery"),
    "events": ("record_event", "trim_events"),
    "key_queue": ("KeyQueue",),
    "lmdb_store": ("LmdbStore",),
    "measured": ("record_measured",),
    "mirror": ("Mirror",),
    "records": ("Records",),
    "server": ("MetaServer",),
}
__getattr__ = names_on_first_use(__name__, _MODULES)


__all__ = [
    "MAX_KEY_BYTES",
    "MAX_LISTING_BYTES",
    "MAX_TXN_BYTES",
    "MAX_TXN_OPS",
    "MAX_VALUE_BYTES",
    "Backup",
    "Compare",
    "Delete",
    "Discovery",
    "Event",
    "KeyQueue",
    "KeyValue",
    "Listing",
    "LmdbStore",
    "MetaClient",
    "MetaServer",
    "Mirror",
    "Op",
    "Put",
    "Records",
    "Store",
    "StoreStatus",
    "TxnResult",
    "WatchBatch",
    "check_directory",
    "connect",
    "read_discovery",
    "record_event",
    "record_measured",
    "remove_discovery",
    "trim_events",
    "write_discovery",
]
