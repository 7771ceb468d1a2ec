"""Events in the store: written by whoever saw something, read by people, the oldest removed by the scheduler.

events/001764315661042-3x7kq   milliseconds since the epoch, so that keys are in order of time; then chance
"""

from __future__ import annotations

import msgspec

from xinf.core.ids import random_suffix
from xinf.core.records import EVENTS, EventRecord, encode_record
from xinf.meta.contract import MAX_TXN_OPS, Delete, Op, Put, Store

_MAX_MESSAGE_CHARS = 2000


async def record_event(store: Store, event: EventRecord, *, repeats: str | None = None) -> str:
    """Write an event down and return its key.

    `repeats`: the key of an event that is the same again; this one replaces it and must have the count of both.

    Raises: StoreError and, over gRPC, Unavailable. Nothing depends on an event: log that and go on.
    """
    if len(event.message) > _MAX_MESSAGE_CHARS:
        event = msgspec.structs.replace(event, message=event.message[: _MAX_MESSAGE_CHARS - 1] + "…")
    key = f"{EVENTS}{int(event.at_s * 1000):015d}-{random_suffix()}"
    ops: list[Op] = [Put(key, encode_record(event))]
    if repeats is not None:
        ops.append(Delete(repeats))
    await store.txn([], ops)
    return key


async def trim_events(store: Store, n_kept: int) -> int:
    """Remove all but the last `n_kept` events; return how many went. Raises: as `record_event`."""
    keys = [kv.key for kv in (await store.list(EVENTS)).items]
    old = keys[: max(0, len(keys) - n_kept)]
    for start in range(0, len(old), MAX_TXN_OPS):
        await store.txn([], [Delete(key) for key in old[start : start + MAX_TXN_OPS]])
    return len(old)
