"""What loads took, in the store: whoever writes one down keeps their number bounded.

measured/<fingerprint>   written again each time such a load becomes ready, so the oldest write is of the load that was
                         longest not seen
"""

from __future__ import annotations

from xinf.core.records import MEASURED, MeasuredRecord, encode_record
from xinf.meta.contract import MAX_TXN_OPS, Compare, Delete, Put, Store


async def record_measured(store: Store, record: MeasuredRecord, *, n_kept: int) -> int:
    """Write down what a load took, and remove all but the `n_kept` written last; return how many went.

    One that is written again meanwhile stays, with all that were to go beside it; the next to write tries again.

    Raises: StoreError and, over gRPC, Unavailable. Nothing depends on it: log that and go on.
    """
    await store.txn([], [Put(MEASURED + record.fingerprint, encode_record(record))])
    kept = sorted((await store.list(MEASURED)).items, key=lambda kv: kv.mod_revision)
    old = kept[: max(0, len(kept) - n_kept)]
    n_gone = 0
    for start in range(0, len(old), MAX_TXN_OPS):
        part = old[start : start + MAX_TXN_OPS]
        compares = [Compare(kv.key, kv.mod_revision) for kv in part]
        if (await store.txn(compares, [Delete(kv.key) for kv in part])).succeeded:
            n_gone += len(part)
    return n_gone
