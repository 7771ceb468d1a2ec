"""Typed access: every write with a comparison, conflicts by name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.meta.backends import open_lmdb
from xinf.core.errors import Conflict, NotFound, StoreCorrupt
from xinf.core.ids import DeploymentName, KeyId
from xinf.core.records import DeploymentRecord, EngineSpec, KeyRecord, Record
from xinf.meta import Put, Records, records


@pytest.fixture
async def typed(short_dir: Path) -> AsyncIterator[Records]:
    store = open_lmdb(short_dir / "m")
    yield Records(store)
    await store.close()


def deployment(name: str, n_replicas: int = 1) -> DeploymentRecord:
    return DeploymentRecord(name=DeploymentName(name), spec=EngineSpec(model="m"), replicas=n_replicas)


def test_every_kind_of_record_has_a_prefix() -> None:
    assert set(records.PREFIXES) == set(Record.__args__)


async def test_create_writes_only_what_is_new(typed: Records) -> None:
    revision = await typed.create(DeploymentRecord, "a", deployment("a"))
    assert await typed.get(DeploymentRecord, "a") == (deployment("a"), revision)
    with pytest.raises(Conflict, match="deployments/a exists"):
        await typed.create(DeploymentRecord, "a", deployment("a", 2))
    assert await typed.get(DeploymentRecord, "b") is None


async def test_list_gives_one_kind(typed: Records) -> None:
    await typed.create(DeploymentRecord, "b", deployment("b"))
    await typed.create(DeploymentRecord, "a", deployment("a"))
    await typed.create(KeyRecord, "k", KeyRecord(id=KeyId("k"), sha256="0"))
    assert [(record.name, revision) for record, revision in await typed.list(DeploymentRecord)] == [("a", 2), ("b", 1)]


async def test_replace_writes_only_over_what_was_read(typed: Records) -> None:
    first = await typed.create(DeploymentRecord, "a", deployment("a"))
    second = await typed.replace(DeploymentRecord, "a", deployment("a", 2), first)
    with pytest.raises(Conflict, match=f"revision {first}"):
        await typed.replace(DeploymentRecord, "a", deployment("a", 3), first)
    await typed.delete(DeploymentRecord, "a")
    with pytest.raises(Conflict):
        await typed.replace(DeploymentRecord, "a", deployment("a", 3), second)


async def test_update_tries_again_when_the_record_moved(typed: Records) -> None:
    await typed.create(DeploymentRecord, "a", deployment("a"))
    calls = 0

    def add_one(record: DeploymentRecord) -> DeploymentRecord:
        nonlocal calls
        calls += 1
        return msgspec.structs.replace(record, replicas=record.replicas + 1)

    real_get = typed.store.get

    async def get_and_move(key: str) -> object:
        kv = await real_get(key)
        if calls < 2:
            await typed.store.txn([], [Put(key, kv.value)])  # type: ignore[union-attr]
        return kv

    typed.store.get = get_and_move  # type: ignore[method-assign, assignment]
    record, _ = await typed.update(DeploymentRecord, "a", add_one)
    assert (record.replicas, calls) == (2, 3)


async def test_update_without_change_writes_nothing(typed: Records) -> None:
    revision = await typed.create(DeploymentRecord, "a", deployment("a"))
    assert await typed.update(DeploymentRecord, "a", lambda record: record) == (deployment("a"), revision)
    with pytest.raises(NotFound):
        await typed.update(DeploymentRecord, "b", lambda record: record)


async def test_update_keeps_the_lease_and_replace_does_not(typed: Records) -> None:
    lease = await typed.store.grant(60)
    for name in "ab":
        await typed.put(DeploymentRecord, name, deployment(name), lease=lease)
    _, revision = await typed.update(DeploymentRecord, "a", lambda record: msgspec.structs.replace(record, replicas=7))
    await typed.replace(DeploymentRecord, "b", deployment("b", 7), revision - 1)  # type: ignore[arg-type]
    await typed.store.revoke(lease)
    assert [record.name for record, _ in await typed.list(DeploymentRecord)] == ["b"]


async def test_delete_compares_when_asked(typed: Records) -> None:
    first = await typed.create(DeploymentRecord, "a", deployment("a"))
    await typed.put(DeploymentRecord, "a", deployment("a", 2))
    with pytest.raises(Conflict):
        await typed.delete(DeploymentRecord, "a", first)
    assert await typed.delete(DeploymentRecord, "a") is True
    assert await typed.delete(DeploymentRecord, "a") is False
    assert await typed.delete(DeploymentRecord, "a", first) is False


async def test_bytes_that_are_no_record_are_named(typed: Records) -> None:
    await typed.store.txn([], [Put("deployments/bad", b"{}")])
    with pytest.raises(StoreCorrupt, match="deployments/bad"):
        await typed.list(DeploymentRecord)
