"""The contract of xinf/meta/contract.py as tests. A backend runs them by subclassing in a test module:

    class TestMyBackend(StoreContract):
        @pytest.fixture
        def backend(self, short_dir): return MyBackend(short_dir)      # tests/meta/backends.py: Backend

Every test gets a store of its own. Random ones print their seed and take it from XINF_TEST_SEED.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable

import pytest

from tests.meta.backends import Backend
from xinf.core.errors import Compacted, InvalidRequest, LeaseExpired, StoreError
from xinf.core.ids import LeaseId, Revision
from xinf.meta import (
    MAX_KEY_BYTES,
    MAX_TXN_BYTES,
    MAX_TXN_OPS,
    MAX_VALUE_BYTES,
    Compare,
    Delete,
    Event,
    KeyValue,
    Op,
    Put,
    Store,
    WatchBatch,
)

DEADLINE_S = 30.0


def seeded() -> random.Random:
    seed = int(os.environ.get("XINF_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"XINF_TEST_SEED={seed}")
    return random.Random(seed)


async def put(store: Store, key: str, value: bytes = b"", lease: LeaseId | None = None) -> Revision:
    result = await store.txn([], [Put(key, value, lease)])
    assert result.succeeded
    return result.revision


async def collect(
    store: Store, prefix: str, from_revision: int, until: Callable[[list[WatchBatch]], bool]
) -> list[WatchBatch]:
    """Watch until `until(batches)` holds."""
    batches: list[WatchBatch] = []
    watch = store.watch(prefix, Revision(from_revision))
    async with asyncio.timeout(DEADLINE_S), contextlib.aclosing(watch):  # type: ignore[type-var]
        async for batch in watch:
            batches.append(batch)
            if until(batches):
                break
    return batches


def events_of(batches: list[WatchBatch]) -> list[Event]:
    return [event for batch in batches for event in batch.events]


def until_revision(revision: int) -> Callable[[list[WatchBatch]], bool]:
    return lambda batches: batches[-1].revision >= revision


class Model:
    """The obviously right store: a dict, a counter and a list of all events."""

    def __init__(self) -> None:
        self.kvs: dict[str, KeyValue] = {}
        self.revision = 0
        self.events: list[Event] = []

    def txn(self, compares: list[Compare], ops: list[Op]) -> tuple[bool, int]:
        for compare in compares:
            kv = self.kvs.get(compare.key)
            if (kv.mod_revision if kv else None) != compare.mod_revision:
                return False, self.revision
        revision = Revision(self.revision + 1)
        events = []
        for op in ops:
            before = self.kvs.pop(op.key, None)
            if isinstance(op, Put):
                create, version = (before.create_revision, before.version + 1) if before else (revision, 1)
                self.kvs[op.key] = KeyValue(op.key, op.value, create, revision, version, op.lease)
            elif before is None:
                continue
            events.append(Event(op.key, revision, self.kvs.get(op.key)))
        if events:
            self.revision = revision
            self.events += events
        return True, self.revision


class StoreContract:
    """Subclass with a `backend` fixture; see above."""

    @pytest.fixture
    async def store(self, backend: Backend) -> AsyncIterator[Store]:
        store = await backend.open()
        yield store
        await backend.close()

    # -- reading and writing ------------------------------------------------------------------------------------------

    async def test_store_starts_empty(self, store: Store) -> None:
        listing = await store.list("")
        assert (listing.items, listing.revision) == ((), 0)
        assert await store.get("a") is None

    async def test_put_counts_revisions_and_versions(self, store: Store) -> None:
        assert await put(store, "a", b"1") == 1
        assert await put(store, "b", b"2") == 2
        assert await put(store, "a", b"3") == 3
        assert await store.get("a") == KeyValue("a", b"3", Revision(1), Revision(3), 2)

    async def test_key_that_was_deleted_starts_anew(self, store: Store) -> None:
        await put(store, "a")
        assert (await store.txn([], [Delete("a")])).revision == 2
        assert await store.get("a") is None
        await put(store, "a", b"x")
        assert await store.get("a") == KeyValue("a", b"x", Revision(3), Revision(3), 1)

    async def test_value_may_hold_any_bytes(self, store: Store) -> None:
        value = bytes(range(256))
        await put(store, "a", value)
        await put(store, "empty", b"")
        assert [kv.value for kv in (await store.list("")).items] == [value, b""]

    async def test_list_is_sorted_and_keeps_to_its_prefix(self, store: Store) -> None:
        for key in ("b/2", "a/1", "b0", "b/10", "b/", "b", "c/1", "b.x"):
            await put(store, key)
        assert [kv.key for kv in (await store.list("b/")).items] == ["b/", "b/10", "b/2"]
        assert [kv.key for kv in (await store.list("")).items] == sorted(
            ["b/2", "a/1", "b0", "b/10", "b/", "b", "c/1", "b.x"]
        )
        assert (await store.list("zzz")).items == ()
        assert (await store.list("zzz")).revision == 8

    # -- transactions -------------------------------------------------------------------------------------------------

    async def test_txn_compares_revisions(self, store: Store) -> None:
        assert (await store.txn([Compare("a", None)], [Put("a", b"1")])).succeeded
        again = await store.txn([Compare("a", None)], [Put("a", b"2")])
        assert (again.succeeded, again.revision) == (False, 1)
        assert (await store.txn([Compare("a", Revision(1))], [Put("a", b"3")])).succeeded
        assert not (await store.txn([Compare("a", Revision(1))], [Put("a", b"4")])).succeeded
        kv = await store.get("a")
        assert kv is not None
        assert kv.value == b"3"

    async def test_txn_is_all_or_nothing(self, store: Store) -> None:
        await put(store, "a")
        result = await store.txn([Compare("a", Revision(1)), Compare("b", Revision(9))], [Put("c", b""), Delete("a")])
        assert (result.succeeded, result.revision) == (False, 1)
        assert [kv.key for kv in (await store.list("")).items] == ["a"]

    async def test_txn_writes_all_at_one_revision(self, store: Store) -> None:
        await put(store, "gone")
        result = await store.txn([], [Put("b", b"2"), Delete("gone"), Put("a", b"1")])
        assert (result.succeeded, result.revision) == (True, 2)
        assert [(kv.key, kv.mod_revision) for kv in (await store.list("")).items] == [("a", 2), ("b", 2)]

    async def test_txn_without_effect_takes_no_revision(self, store: Store) -> None:
        await put(store, "a")
        for ops in ([], [Delete("absent")]):
            result = await store.txn([Compare("a", Revision(1))], ops)
            assert (result.succeeded, result.revision) == (True, 1)
        assert await put(store, "b") == 2

    async def test_increments_from_many_tasks_lose_nothing(self, store: Store) -> None:
        await put(store, "n", b"0")

        async def increment() -> None:
            while True:
                kv = await store.get("n")
                assert kv is not None
                if (
                    await store.txn([Compare("n", kv.mod_revision)], [Put("n", b"%d" % (int(kv.value) + 1))])
                ).succeeded:
                    return

        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(increment() for _ in range(25)))
        kv = await store.get("n")
        assert kv is not None
        assert (kv.value, kv.version) == (b"25", 26)

    async def test_random_transactions_agree_with_the_model(self, store: Store) -> None:
        rng = seeded()
        model = Model()
        keys = [f"{prefix}/{i}" for prefix in "ab" for i in range(4)]
        for _ in range(250):
            compares = [
                Compare(key, rng.choice([None, Revision(rng.randint(1, model.revision + 1)), self._mod(model, key)]))
                for key in rng.sample(keys, rng.choice([0, 0, 1, 2]))
            ]
            ops: list[Op] = [
                Put(key, rng.randbytes(rng.choice([0, 3, 3000]))) if rng.random() < 0.6 else Delete(key)
                for key in rng.sample(keys, rng.choice([0, 1, 1, 3]))
            ]
            result = await store.txn(compares, ops)
            assert (result.succeeded, result.revision) == model.txn(compares, ops)
        assert (await store.list("")).items == tuple(model.kvs[key] for key in sorted(model.kvs))
        batches = await collect(store, "", 1, until_revision(model.revision))
        assert events_of(batches) == model.events
        assert list(await store.check()) == []

    @staticmethod
    def _mod(model: Model, key: str) -> Revision | None:
        kv = model.kvs.get(key)
        return kv.mod_revision if kv else None

    # -- bounds -------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("key", ["", "a b", "a\n", "ä", "a\0", "x" * (MAX_KEY_BYTES + 1), "\ud800"])
    async def test_key_out_of_bounds_is_refused(self, store: Store, key: str) -> None:
        for refused in (
            store.get(key),
            store.txn([], [Put("fine", b""), Put(key, b"")]),
            store.txn([], [Delete(key)]),
            store.txn([Compare(key, None)], [Put("fine", b"")]),
        ):
            with pytest.raises(InvalidRequest):
                await refused
        assert (await store.list("")).revision == 0

    async def test_prefix_out_of_bounds_is_refused(self, store: Store) -> None:
        with pytest.raises(InvalidRequest):
            await store.list("a b")
        with pytest.raises(InvalidRequest):
            await collect(store, "a b", 1, lambda _: True)

    async def test_longest_key_and_largest_value_fit(self, store: Store) -> None:
        key, value = "~" * MAX_KEY_BYTES, b"v" * MAX_VALUE_BYTES
        await put(store, key, value, await store.grant(60))
        kv = await store.get(key)
        assert kv is not None
        assert kv.value == value
        with pytest.raises(InvalidRequest):
            await put(store, "a", value + b"v")

    async def test_transaction_out_of_bounds_is_refused(self, store: Store) -> None:
        too_many = [Put(f"k{i}", b"") for i in range(MAX_TXN_OPS + 1)]
        too_large = [Put(f"k{i}", b"v" * MAX_VALUE_BYTES) for i in range(MAX_TXN_BYTES // MAX_VALUE_BYTES)]
        twice = [Put("a", b""), Delete("a")]
        for ops in (too_many, too_large, twice):
            with pytest.raises(InvalidRequest):
                await store.txn([], ops)
        with pytest.raises(InvalidRequest):
            await store.txn([Compare("a", Revision(0))], [Put("a", b"")])
        result = await store.txn([], too_many[:-1])
        assert result.revision == 1

    # -- watching -----------------------------------------------------------------------------------------------------

    async def test_watch_gives_past_and_present(self, store: Store) -> None:
        await put(store, "a", b"1")
        await put(store, "other", b"1")
        task = asyncio.create_task(collect(store, "a", 1, until_revision(4)))
        await store.txn([], [Delete("a")])
        await put(store, "a", b"2")
        events = events_of(await task)
        assert [(e.key, e.revision, e.kv and e.kv.value) for e in events] == [
            ("a", 1, b"1"),
            ("a", 3, None),
            ("a", 4, b"2"),
        ]

    async def test_watch_carries_the_whole_entry(self, store: Store) -> None:
        lease = await store.grant(60)
        await put(store, "a", b"1")
        await put(store, "a", b"2", lease)
        events = events_of(await collect(store, "", 2, until_revision(2)))
        assert events == [Event("a", Revision(2), await store.get("a"))]
        assert events[0].kv is not None
        assert events[0].kv.lease == lease

    async def test_watch_from_the_future_waits_for_it(self, store: Store) -> None:
        task = asyncio.create_task(collect(store, "", 3, lambda batches: bool(batches[-1].events)))
        for i in range(4):
            await put(store, f"k{i}")
        assert events_of(await task)[0].revision == 3

    async def test_watch_from_a_listing_misses_nothing(self, store: Store) -> None:
        for i in range(5):
            await put(store, f"k{i}")
        listing = await store.list("")
        task = asyncio.create_task(collect(store, "", listing.revision + 1, until_revision(10)))
        for i in range(5, 10):
            await put(store, f"k{i}")
        seen = [kv.key for kv in listing.items] + [e.key for e in events_of(await task)]
        assert seen == [f"k{i}" for i in range(10)]

    async def test_watch_never_splits_a_revision(self, store: Store) -> None:
        for i in range(6):
            await store.txn([], [Put(f"{i}/{j}", b"v" * 60_000) for j in range(15)])
        batches = await collect(store, "", 1, until_revision(6))
        assert len(batches) > 1, "5.4 MB in one batch: the test splits nothing"
        last = 0
        for batch in batches:
            assert {e.revision for e in batch.events} <= set(range(last + 1, batch.revision + 1))
            last = batch.revision
        assert [(e.revision, e.key) for e in events_of(batches)] == [
            (i + 1, f"{i}/{j}") for i in range(6) for j in range(15)
        ]

    async def test_watchers_beside_random_writers_see_everything_once_in_order(self, store: Store) -> None:
        rng = seeded()
        n_writers, n_writes = 4, 60
        n_revisions = n_writers * n_writes

        async def write(writer: int) -> None:
            for i in range(n_writes):
                prefix = rng.choice("ab")
                await put(store, f"{prefix}/{rng.randrange(10)}", b"%d.%d" % (writer, i))
                if rng.random() < 0.3:
                    await asyncio.sleep(0)

        starts = [rng.randint(1, n_revisions) for _ in range(4)]
        watchers = [
            asyncio.create_task(collect(store, prefix, start, until_revision(n_revisions)))
            for start in [1, *starts]
            for prefix in ("", "a/")
        ]
        await asyncio.gather(*(write(i) for i in range(n_writers)))
        # A watch of one prefix may end before the last revision is its own; a final write to each ends it.
        await store.txn([], [Put("a/end", b""), Put("b/end", b"")])
        seen = [events_of(await watcher) for watcher in watchers]
        everything = [e for e in seen[0] if e.revision <= n_revisions]
        assert [e.revision for e in everything] == list(range(1, n_revisions + 1))
        index = 0
        for start in [1, *starts]:
            for prefix in ("", "a/"):
                expected = [e for e in everything if e.revision >= start and e.key.startswith(prefix)]
                assert [e for e in seen[index] if e.revision <= n_revisions] == expected
                index += 1

    async def test_watch_of_compacted_history_is_refused(self, backend: Backend) -> None:
        store = await backend.open(history_revisions=20)
        try:
            for i in range(50):
                await put(store, "k", b"%d" % i)
            with pytest.raises(Compacted) as caught:
                await collect(store, "", 1, lambda _: True)
            oldest = caught.value.fields["oldest_revision"]
            assert oldest == (await store.status()).oldest_revision == 31
            events = events_of(await collect(store, "", int(oldest), until_revision(50)))
            assert [e.revision for e in events] == list(range(31, 51))
            kv = await store.get("k")
            assert kv is not None
            assert (kv.create_revision, kv.version) == (1, 50)
            assert list(await store.check()) == []
        finally:
            await backend.close()

    async def test_old_history_is_forgotten(self, backend: Backend) -> None:
        store = await backend.open(history_age_s=100)
        try:
            await put(store, "a")
            await backend.pass_time(60)
            await put(store, "b")
            assert (await store.status()).oldest_revision == 1
            await backend.pass_time(60)
            assert (await store.status()).oldest_revision == 2
            assert [e.key for e in events_of(await collect(store, "", 2, until_revision(2)))] == ["b"]
        finally:
            await backend.close()

    # -- leases -------------------------------------------------------------------------------------------------------

    async def test_lease_that_ends_deletes_its_keys_with_events(self, store: Store, backend: Backend) -> None:
        lease = await store.grant(10)
        await put(store, "mine/1", b"", lease)
        await put(store, "mine/2", b"", lease)
        await put(store, "free")
        await backend.pass_time(9)
        assert await store.get("mine/1") is not None
        await backend.pass_time(2)
        assert [kv.key for kv in (await store.list("")).items] == ["free"]
        events = events_of(await collect(store, "", 4, until_revision(4)))
        assert [(e.key, e.revision, e.kv) for e in events] == [("mine/1", 4, None), ("mine/2", 4, None)]
        for late in (store.keep_alive(lease), store.revoke(lease), put(store, "x", b"", lease)):
            with pytest.raises(LeaseExpired):
                await late
        assert list(await store.check()) == []

    async def test_lease_kept_alive_goes_on(self, store: Store, backend: Backend) -> None:
        lease = await store.grant(10)
        await put(store, "mine", b"", lease)
        for _ in range(5):
            await backend.pass_time(6)
            assert await store.keep_alive(lease) == 10
        assert await store.get("mine") is not None

    async def test_revoke_deletes_at_once(self, store: Store) -> None:
        lease, other = await store.grant(10), await store.grant(10)
        assert lease != other
        await put(store, "mine", b"", lease)
        await put(store, "theirs", b"", other)
        await store.revoke(lease)
        assert [kv.key for kv in (await store.list("")).items] == ["theirs"]
        with pytest.raises(LeaseExpired):
            await store.revoke(lease)

    async def test_key_follows_its_last_lease(self, store: Store, backend: Backend) -> None:
        short, long = await store.grant(10), await store.grant(1000)
        await store.txn([], [Put(key, b"", short) for key in ("freed", "moved", "deleted", "kept")])
        await store.txn([], [Put("freed", b"2"), Put("moved", b"2", long), Delete("deleted")])
        await put(store, "deleted", b"again")
        await backend.pass_time(11)
        assert [kv.key for kv in (await store.list("")).items] == ["deleted", "freed", "moved"]
        await store.revoke(long)
        assert [kv.key for kv in (await store.list("")).items] == ["deleted", "freed"]
        assert list(await store.check()) == []

    async def test_unknown_lease_refuses_the_whole_transaction(self, store: Store) -> None:
        with pytest.raises(LeaseExpired):
            await store.txn([], [Put("a", b""), Put("b", b"", LeaseId(12345))])
        assert (await store.list("")).revision == 0
        with pytest.raises(LeaseExpired):
            await store.keep_alive(LeaseId(12345))

    @pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf"), 1e12])
    async def test_ttl_out_of_bounds_is_refused(self, store: Store, ttl_s: float) -> None:
        with pytest.raises(InvalidRequest):
            await store.grant(ttl_s)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def test_everything_is_there_after_a_restart_and_leases_have_a_full_ttl(self, backend: Backend) -> None:
        store = await backend.open()
        try:
            lease = await store.grant(10)
            await put(store, "mine", b"1", lease)
            await put(store, "free", b"2")
            before = await store.list("")
            await backend.pass_time(9)
            await backend.close()
            store = await backend.open()
            assert await store.list("") == before
            assert len(events_of(await collect(store, "", 1, until_revision(2)))) == 2
            await backend.pass_time(9)
            assert await store.get("mine") is not None
            await backend.pass_time(2)
            assert await store.get("mine") is None
            assert await put(store, "next") == 4
        finally:
            await backend.close()

    async def test_status_describes_the_store(self, store: Store) -> None:
        await put(store, "a")
        await put(store, "a")
        status = await store.status()
        assert (status.revision, status.oldest_revision, status.n_keys) == (2, 1, 1)
        assert 0 < status.used_bytes < status.max_bytes
        assert status.pid == os.getpid()
        assert status.backend

    async def test_close_ends_watches_and_refuses_calls(self, backend: Backend) -> None:
        store = await backend.open()
        task = asyncio.create_task(collect(store, "", 1, lambda _: False))
        await put(store, "a")
        await asyncio.sleep(0)
        await store.close()
        await task
        with pytest.raises(StoreError):
            await store.get("a")
        await store.close()
        await backend.close()
