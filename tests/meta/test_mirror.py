"""The local copy: follows every change, survives compaction and an owner that is away, leaves bad records out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.meta.backends import open_lmdb
from xinf.core.clock import FakeClock
from xinf.core.errors import DeadlineExceeded, StoreError, Unavailable
from xinf.core.ids import KeyId, Revision
from xinf.core.records import KEYS, KeyRecord
from xinf.meta import Delete, LmdbStore, MetaClient, MetaServer, Mirror, Put, Records, lmdb_store, mirror


@pytest.fixture
async def store(short_dir: Path) -> AsyncIterator[LmdbStore]:
    store = open_lmdb(short_dir / "m", history_revisions=20)
    yield store
    await store.close()


def key(name: str, label: str = "") -> KeyRecord:
    return KeyRecord(id=KeyId(name), sha256="0", label=label)


async def put(store: LmdbStore, name: str, label: str = "") -> Revision:
    return await Records(store).put(KeyRecord, name, key(name, label))


async def test_mirror_starts_full_and_follows(store: LmdbStore) -> None:
    await put(store, "a")
    copy = Mirror(store, KEYS, KeyRecord)
    heard: list[str] = []
    await copy.start()
    copy.listen(heard.append)
    assert copy.items == {"a": (key("a"), 1)}
    await put(store, "b")
    await put(store, "a", "new")
    await store.txn([], [Delete("keys/b"), Put("other/c", b"")])
    await copy.wait(lambda items: set(items) == {"a"} and items["a"][1] == 3, 30)
    assert copy.get("a") == key("a", "new")
    assert copy.get("b") is None
    await copy.wait(lambda _: heard[-1] == "b", 30)
    assert set(heard) == {"a", "b"}
    await copy.stop()


async def test_listener_sees_the_new_state_and_can_leave(store: LmdbStore) -> None:
    copy = Mirror(store, KEYS, KeyRecord)
    await copy.start()
    seen: list[KeyRecord | None] = []
    leave = copy.listen(lambda name: seen.append(copy.get(name)))
    copy.listen(lambda name: 1 / 0)  # another one's fault
    await put(store, "a", "1")
    await copy.wait(lambda items: "a" in items, 30)
    leave()
    await put(store, "a", "2")
    await copy.wait(lambda items: items["a"][0].label == "2", 30)
    assert seen == [key("a", "1")]
    await copy.stop()


async def test_mirror_agrees_with_the_store_after_random_changes(store: LmdbStore) -> None:
    rng = random.Random(seed := random.SystemRandom().randrange(1 << 32))
    print(f"seed {seed}")
    copy = Mirror(store, KEYS, KeyRecord)
    await copy.start()
    replayed: dict[str, KeyRecord | None] = {}
    copy.listen(lambda name: replayed.__setitem__(name, copy.get(name)))
    for i in range(200):
        name = f"k{rng.randrange(8)}"
        if rng.random() < 0.4:
            await store.txn([], [Delete(f"keys/{name}")])
        else:
            await put(store, name, str(i))
        if rng.random() < 0.2:
            await asyncio.sleep(0)
    await put(store, "end")
    await copy.wait(lambda items: "end" in items, 30)
    expected = {record.id: (record, revision) for record, revision in await Records(store).list(KeyRecord)}
    assert copy.items == expected
    assert {name: record for name, record in replayed.items() if record} == {
        name: record for name, (record, _) in expected.items()
    }
    await copy.stop()


class _Gap:
    """A store whose watch stands still until it is let go; proves how the mirror takes a Compacted."""

    def __init__(self, store: LmdbStore) -> None:
        self._store = store
        self.gate = asyncio.Event()
        self.n_lists = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def list(self, prefix: str) -> object:
        self.n_lists += 1
        return await self._store.list(prefix)

    async def watch(self, prefix: str, from_revision: Revision) -> AsyncIterator[object]:
        await self.gate.wait()
        async for batch in self._store.watch(prefix, from_revision):
            yield batch


async def test_mirror_lists_again_when_history_is_gone_and_tells_only_the_differences(store: LmdbStore) -> None:
    for name in ("same", "changed", "deleted"):
        await put(store, name)
    gap = _Gap(store)
    copy = Mirror(gap, KEYS, KeyRecord)  # type: ignore[arg-type]
    await copy.start()
    heard: list[str] = []
    copy.listen(heard.append)
    await store.txn([], [Delete("keys/deleted")])
    await put(store, "made")
    for i in range(50):
        await put(store, "changed", str(i))
    gap.gate.set()
    await copy.wait(lambda items: "made" in items, 30)
    assert sorted(heard) == ["changed", "deleted", "made"]
    assert set(copy.items) == {"same", "changed", "made"}
    assert gap.n_lists == 2
    await put(store, "after")
    await copy.wait(lambda items: "after" in items, 30)
    await copy.stop()


async def test_mirror_goes_on_when_the_owner_is_back(
    store: LmdbStore, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "RETRY_INITIAL_S", 0.01)
    target = f"unix:{short_dir}/control.sock"
    server = MetaServer(store)
    await server.start([target])
    client = MetaClient(target, timeout_s=0.2)
    copy = Mirror(client, KEYS, KeyRecord)
    await copy.start()
    await server.stop(0)
    for i in range(50):  # more than the history holds: it has to list again, which fails until the owner is back
        await put(store, "a", str(i))
    assert copy.items == {}
    server = MetaServer(store)
    await server.start([target])
    await copy.wait(lambda items: "a" in items and items["a"][0].label == "49", 30)
    await copy.stop()
    await client.close()
    await server.stop(0)


async def test_mirror_of_nobody_says_so_at_the_start(short_dir: Path) -> None:
    client = MetaClient(f"unix:{short_dir}/nobody.sock", timeout_s=0.1)
    with pytest.raises(Unavailable):
        await Mirror(client, KEYS, KeyRecord).start()
    await client.close()


async def test_bad_record_is_left_out(store: LmdbStore) -> None:
    await store.txn([], [Put("keys/bad", b"{"), Put("keys/turns", b"{}")])
    copy = Mirror(store, KEYS, KeyRecord)
    await copy.start()
    assert copy.items == {}
    await put(store, "turns")
    await put(store, "good")
    await copy.wait(lambda items: set(items) == {"turns", "good"}, 30)
    await store.txn([], [Put("keys/good", b"no longer")])
    await copy.wait(lambda items: set(items) == {"turns"}, 30)
    await copy.stop()


async def test_staleness_counts_from_the_last_sign_of_the_store(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    copy = Mirror(store, KEYS, KeyRecord, clock=clock)
    await copy.start()
    clock.advance(7)
    assert copy.is_stale_s == 7
    monkeypatch.setattr(lmdb_store, "HEARTBEAT_S", 0.01)
    await put(store, "a")  # its watch waits with the heartbeat of before until something happens
    await copy.wait(lambda items: "a" in items, 30)
    clock.advance(7)
    async with asyncio.timeout(30):
        while copy.is_stale_s > 0:
            await asyncio.sleep(0.001)
    await copy.stop()


async def test_wait_gives_up_by_name(store: LmdbStore) -> None:
    copy = Mirror(store, KEYS, KeyRecord)
    await copy.start()
    with pytest.raises(DeadlineExceeded, match="keys/"):
        await copy.wait(lambda items: "never" in items, 0.01)
    await copy.stop()
    await copy.stop()


async def test_mirror_outlives_its_store(short_dir: Path) -> None:
    store = open_lmdb(short_dir / "m")
    await put(store, "a")
    copy = Mirror(store, KEYS, KeyRecord)
    await copy.start()
    await store.close()
    with pytest.raises(StoreError):
        await store.get("keys/a")
    assert copy.get("a") == key("a")
    await copy.stop()
