"""What loads took: the last ones are kept, whatever they are called."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from xinf.core.records import MEASURED, MeasuredRecord, encode_record
from xinf.meta import Compare, LmdbStore, Op, Put, Records, TxnResult, record_measured


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LmdbStore]:
    opened = LmdbStore.open(tmp_path, max_bytes=64 << 20, history_revisions=1000, history_age_s=60, no_sync=True)
    yield opened
    await opened.close()


def took(name: str) -> MeasuredRecord:
    return MeasuredRecord(
        fingerprint=name,
        model="m",
        engine="vllm",
        device_bytes=3,
        kv_bytes=1,
        fixed_bytes=2,
        kv_blocks=1,
        block_tokens=1,
    )


async def names(store: LmdbStore) -> list[str]:
    return [record.fingerprint for record, _ in await Records(store).list(MeasuredRecord)]


async def test_those_longest_not_seen_go_first(store: LmdbStore) -> None:
    for name in ("z", "b", "c"):
        assert await record_measured(store, took(name), n_kept=3) == 0
    assert await record_measured(store, took("z"), n_kept=3) == 0, "seen again"
    assert await record_measured(store, took("a"), n_kept=3) == 1
    assert await names(store) == ["a", "c", "z"]
    assert await record_measured(store, took("d"), n_kept=1) == 3
    assert await names(store) == ["d"]


async def test_one_that_is_seen_again_meanwhile_stays(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await record_measured(store, took("a"), n_kept=9)
    write = store.txn

    async def txn(compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        if compares:  # the removal: another agent is faster
            await write([], [Put(MEASURED + "a", encode_record(took("a")))])
        return await write(compares, ops)

    monkeypatch.setattr(store, "txn", txn)
    assert await record_measured(store, took("b"), n_kept=1) == 0
    assert await names(store) == ["a", "b"]
