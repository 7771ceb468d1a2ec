"""What only the embedded backend promises: growth and fullness, stale readers, torn files, backups, its bounds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import lmdb
import pytest

from tests.meta.backends import open_lmdb
from xinf.core.clock import FakeClock
from xinf.core.errors import Compacted, InvalidRequest, Overloaded, StoreCorrupt, StoreError, StoreFull
from xinf.core.ids import Revision
from xinf.meta import Compare, Delete, LmdbStore, Put, check_directory, lmdb_store, map_file, writer
from xinf.meta.layout import RESTORE_JUMP

MIB = 1 << 20


@pytest.fixture
async def store(short_dir: Path) -> AsyncIterator[LmdbStore]:
    store = open_lmdb(short_dir / "m")
    yield store
    await store.close()


async def fill(store: LmdbStore, n_values: int, n_bytes: int = 100_000) -> int:
    """Put keys until the store is full or has `n_values` more; return how many fitted."""
    for i in range(n_values):
        try:
            await store.txn([], [Put(f"fill/{i:06}", os.urandom(n_bytes))])
        except StoreFull:
            return i
    return n_values


async def is_sound(store: LmdbStore) -> bool:
    return list(await store.check()) == []


# -- size -------------------------------------------------------------------------------------------------------------


async def test_map_grows_by_doubling_under_load(store: LmdbStore) -> None:
    assert store._file._map_bytes == 4 * MIB
    values = {f"k{i}": os.urandom(200_000) for i in range(60)}
    await asyncio.gather(*(store.txn([], [Put(key, value)]) for key, value in values.items()))
    assert store._file._map_bytes in (32 * MIB, 64 * MIB)  # 12 MB in kv and again in history
    assert {kv.key: kv.value for kv in (await store.list("")).items} == values
    assert await is_sound(store)


async def test_map_grows_while_others_read(store: LmdbStore) -> None:
    """Resizing waits for readers, readers wait for resizing, nobody for ever."""
    ended = threading.Event()
    n_reads = 0

    def read() -> None:
        nonlocal n_reads
        while not ended.is_set():
            assert asyncio.run(store.list("")).revision >= 0
            n_reads += 1

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert await fill(store, 150) == 150
        assert list(await store.check()) == []
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert n_reads > 0


async def test_growth_waits_for_a_long_read_and_short_reads_go_on(store: LmdbStore) -> None:
    entered, leave = threading.Event(), threading.Event()

    def read_long() -> None:
        with store._file.read_long():
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=read_long)
    thread.start()
    await asyncio.to_thread(entered.wait, 30)
    writes = [asyncio.create_task(store.txn([], [Put(f"k{i}", os.urandom(MIB))])) for i in range(8)]
    reached = asyncio.create_task(asyncio.to_thread(_until, lambda: store._file._map_bytes > 4 * MIB))
    await reached  # the writer wants to resize
    assert store._file._env.info()["map_size"] == 4 * MIB
    assert (await store.list("")).revision == 0
    leave.set()
    assert [(await write).succeeded for write in writes] == [True] * 8
    thread.join()


def _until(condition: object) -> None:
    deadline = threading.Event()
    for _ in range(3000):
        if condition():  # type: ignore[operator]
            return
        deadline.wait(0.01)
    raise AssertionError("it did not happen within 30 s")


async def test_full_store_says_so_and_recovers_after_deletions(short_dir: Path) -> None:
    store = open_lmdb(short_dir / "m", max_bytes=6 * MIB)
    try:
        n_fitted = await fill(store, 1000)
        assert 40 <= n_fitted <= 62
        with pytest.raises(StoreFull, match=r"6 MiB.*store\.max_bytes") as caught:
            await store.txn([], [Put("more", b"v" * 200_000)])
        assert caught.value.fields["max_bytes"] == 6 * MIB
        kv = await store.get("fill/000000")
        assert kv is not None
        assert len(kv.value) == 100_000
        assert (await store.status()).n_keys == n_fitted
        assert await is_sound(store)
        for i in range(20):
            assert (await store.txn([], [Delete(f"fill/{i:06}")])).succeeded
        assert await fill(store, 15) == 15
        assert await is_sound(store)
    finally:
        await store.close()
    assert list(check_directory(short_dir / "m")) == []


async def test_full_store_forgets_history_before_it_refuses(short_dir: Path) -> None:
    store = open_lmdb(short_dir / "m", max_bytes=6 * MIB)
    try:
        for _ in range(300):  # 30 MB written over one key: all but the last is history
            await store.txn([], [Put("k", os.urandom(100_000))])
        kv = await store.get("k")
        assert kv is not None
        assert kv.version == 300
        with pytest.raises(Compacted):
            await anext(aiter(store.watch("", Revision(1))))
        assert await is_sound(store)
    finally:
        await store.close()


async def test_full_store_opened_again_is_still_full_and_still_recovers(short_dir: Path) -> None:
    store = open_lmdb(short_dir / "m", max_bytes=4 * MIB)
    n_fitted = await fill(store, 1000)
    await store.close()
    store = open_lmdb(short_dir / "m", max_bytes=4 * MIB)
    try:
        with pytest.raises(StoreFull):
            await store.txn([], [Put("more", b"v" * 500_000)])
        for i in range(n_fitted):
            await store.txn([], [Delete(f"fill/{i:06}")])
        assert await fill(store, n_fitted - 5) == n_fitted - 5
    finally:
        await store.close()


async def test_one_that_does_not_fit_does_not_take_others_with_it(short_dir: Path) -> None:
    store = open_lmdb(short_dir / "m", max_bytes=4 * MIB)
    try:
        big = [Put(f"big{i}", os.urandom(MIB)) for i in range(6)]
        results = await asyncio.gather(
            store.txn([], big),
            *(store.txn([], [Put(f"small{i}", b"v")]) for i in range(10)),
            return_exceptions=True,
        )
        assert isinstance(results[0], StoreFull)
        assert not any(isinstance(result, BaseException) for result in results[1:])
        assert (await store.status()).n_keys == 10
    finally:
        await store.close()


async def test_leases_end_in_a_full_store(short_dir: Path) -> None:
    clock = FakeClock()
    store = open_lmdb(short_dir / "m", clock, max_bytes=4 * MIB)
    try:
        lease = await store.grant(10)
        await store.txn([], [Put(f"mine/{i}", b"v", lease) for i in range(100)])
        await fill(store, 1000, 10_000)
        clock.advance(11)
        await store.tick()
        assert (await store.list("mine/")).items == ()
        assert await is_sound(store)
    finally:
        await store.close()


async def test_too_many_waiting_writes_are_refused(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_QUEUED_BYTES", 3 * MIB)
    results = await asyncio.gather(
        *(store.txn([], [Put(f"k{i}", b"v" * MIB)]) for i in range(100)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, Overloaded)]
    assert refused
    assert refused[0].fields["retry_after_s"]
    assert (await store.status()).n_keys == 100 - len(refused) > 0


async def test_write_cancelled_while_it_waits_is_not_made_and_harms_nobody(store: LmdbStore) -> None:
    entered, leave = threading.Event(), threading.Event()

    def block(_: object) -> None:
        entered.set()
        leave.wait(30)

    blocking = asyncio.wrap_future(store._writer.submit(writer.Request(block)))
    assert await asyncio.to_thread(entered.wait, 30)  # the writer has taken its batch: the next ones wait
    tasks = [asyncio.create_task(store.txn([], [Put(f"k{i}", b"v")])) for i in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.sleep(0)
    leave.set()
    await blocking
    await asyncio.gather(*tasks, return_exceptions=True)
    await store.txn([], [Put("after", b"v")])
    assert {kv.key for kv in (await store.list("")).items} == {"after", "k1", "k3", "k5", "k7", "k9"}


async def test_deletions_work_when_no_page_is_left(short_dir: Path) -> None:
    store = open_lmdb(short_dir / "m", max_bytes=4 * MIB)
    try:
        n_fitted = 0
        for n_bytes in (100_000, 10_000, 3_000, 900, 1):  # 900: of bytes alone, thousands would still fit
            for i in range(100_000):
                try:
                    await store.txn([], [Put(f"fill/{n_bytes}/{i:06}", b"v" * n_bytes)])
                except StoreFull:
                    break
                n_fitted += 1
        assert (await store.status()).n_keys == n_fitted
        for kv in (await store.list("fill/100000")).items:
            await store.txn([], [Delete(kv.key)])
        assert await fill(store, 10) == 10
        assert await is_sound(store)
    finally:
        await store.close()


async def test_compaction_in_steps_keeps_whole_revisions(short_dir: Path) -> None:
    store = open_lmdb(short_dir / "m")
    for i in range(5):
        await store.txn([], [Put(f"{i}/{j}", b"") for j in range(900)])  # a step takes 2,000 events
    await store.close()
    store = open_lmdb(short_dir / "m", history_revisions=1)
    try:
        oldest = []
        for _ in range(3):
            await store.tick()
            assert await is_sound(store)
            oldest.append((await store.status()).oldest_revision)
        assert oldest[-1] == 5  # the writer's own ticks may have come between
    finally:
        await store.close()


# -- readers ----------------------------------------------------------------------------------------------------------

_READER = """
import lmdb, sys, time
env = lmdb.Environment(sys.argv[1], max_dbs=8, readonly=True)
txn = env.begin()
print("reading", flush=True)
time.sleep(600)
"""


async def test_reader_that_was_killed_is_cleared(store: LmdbStore, short_dir: Path) -> None:
    reader = subprocess.Popen([sys.executable, "-c", _READER, str(short_dir / "m")], stdout=subprocess.PIPE, text=True)
    try:
        assert reader.stdout is not None
        assert await asyncio.to_thread(reader.stdout.readline) == "reading\n"
        assert str(reader.pid) in store._file._env.readers()
        assert store._file.clear_stale_readers() == 0
    finally:
        reader.send_signal(signal.SIGKILL)
        reader.communicate()
    assert store._file.clear_stale_readers() == 1
    assert str(reader.pid) not in store._file._env.readers()


async def test_writer_clears_stale_readers_by_itself(
    store: LmdbStore, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "READER_CHECK_TICKS", 1)
    reader = subprocess.Popen([sys.executable, "-c", _READER, str(short_dir / "m")], stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    await asyncio.to_thread(reader.stdout.readline)
    reader.send_signal(signal.SIGKILL)
    reader.communicate()
    await store.tick()
    await store.tick()
    assert str(reader.pid) not in store._file._env.readers()


# -- damage -----------------------------------------------------------------------------------------------------------


async def some_store(directory: Path) -> Path:
    store = open_lmdb(directory)
    await fill(store, 20)
    for i in range(300):
        await store.txn([], [Put(f"k{i}", b"v" * 50)])
    await store.close()
    return directory / "data.mdb"


async def test_torn_file_is_refused_before_it_is_mapped(short_dir: Path) -> None:
    """Reading a mapped page that the file does not have would end the process with SIGBUS."""
    path = await some_store(short_dir / "m")
    os.truncate(path, 700_000)
    with pytest.raises(StoreCorrupt, match="torn") as caught:
        open_lmdb(short_dir / "m")
    assert caught.value.remedy is not None
    assert "backup" in caught.value.remedy
    assert "torn" in check_directory(short_dir / "m")[0]


@pytest.mark.parametrize("n_bytes", [1, 100, 4096, 9000])
async def test_garbage_is_refused(short_dir: Path, n_bytes: int) -> None:
    (short_dir / "m").mkdir()
    (short_dir / "m" / "data.mdb").write_bytes(os.urandom(n_bytes))
    with pytest.raises(StoreCorrupt, match="not an LMDB file"):
        open_lmdb(short_dir / "m")
    assert "not an LMDB file" in check_directory(short_dir / "m")[0]


async def open_and_list(directory: Path) -> None:
    store = open_lmdb(directory)
    try:
        await store.list("")
    finally:
        await store.close()


async def test_file_overwritten_in_the_middle_is_found_out(short_dir: Path) -> None:
    path = await some_store(short_dir / "m")
    with path.open("r+b") as file:
        file.seek(2 * 4096)
        file.write(bytes(400 * 4096))
    assert check_directory(short_dir / "m")
    with pytest.raises(StoreCorrupt):
        await open_and_list(short_dir / "m")


async def test_file_without_its_lock_file_opens(short_dir: Path) -> None:
    path = await some_store(short_dir / "m")
    (path.parent / "lock.mdb").unlink()
    store = open_lmdb(short_dir / "m")
    assert (await store.status()).n_keys == 320
    await store.close()


async def test_format_of_another_version_is_refused(short_dir: Path) -> None:
    await some_store(short_dir / "m")
    with lmdb.Environment(str(short_dir / "m"), max_dbs=8) as env:
        state = env.open_db(b"state")
        with env.begin(write=True) as txn:
            txn.put(b"format", (2).to_bytes(8, "big"), db=state)
    with pytest.raises(StoreCorrupt, match="format 2"):
        open_lmdb(short_dir / "m")


async def test_directory_that_cannot_be_made_is_a_typed_error(short_dir: Path) -> None:
    (short_dir / "file").write_text("")
    with pytest.raises(StoreError, match="cannot create"):
        open_lmdb(short_dir / "file" / "m")


async def test_failed_open_gives_the_directory_up(short_dir: Path) -> None:
    path = await some_store(short_dir / "m")
    sound = path.read_bytes()
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(StoreCorrupt):
        open_lmdb(short_dir / "m")
    path.write_bytes(sound)
    await open_lmdb(short_dir / "m").close()


# -- backups ----------------------------------------------------------------------------------------------------------


async def test_backup_of_a_live_store_is_a_store(store: LmdbStore, short_dir: Path) -> None:
    lease = await store.grant(60)
    await store.txn([], [Put("a", b"1"), Put("b", b"2", lease)])
    writing = asyncio.create_task(fill(store, 50, 1000))
    done = await store.backup(short_dir / "copy")
    await writing
    assert done.revision >= 1
    assert done.written_bytes == (short_dir / "copy" / "data.mdb").stat().st_size
    assert list(check_directory(short_dir / "copy")) == []
    copy = open_lmdb(short_dir / "copy")
    try:
        before = {kv.key: kv for kv in (await store.list("")).items if kv.mod_revision <= done.revision}
        assert {kv.key: kv for kv in (await copy.list("")).items} == before
        assert await copy.keep_alive(lease) == 60
    finally:
        await copy.close()


async def test_restored_backup_is_not_mistaken_for_the_original(store: LmdbStore, short_dir: Path) -> None:
    await store.txn([], [Put("a", b"1")])
    await store.backup(short_dir / "copy")
    for i in range(10):
        await store.txn([], [Put("a", b"%d" % i)])
    copy = open_lmdb(short_dir / "copy")
    with pytest.raises(Compacted):  # where a watcher of the original stands
        await anext(aiter(copy.watch("", Revision(12))))
    assert (await copy.txn([], [Put("b", b"")])).revision == 1 + RESTORE_JUMP + 1
    assert await is_sound(copy)
    await copy.close()
    copy = open_lmdb(short_dir / "copy")
    assert (await copy.status()).revision == 1 + RESTORE_JUMP + 1
    await copy.close()


async def test_backup_leaves_other_files_alone(store: LmdbStore, short_dir: Path) -> None:
    (short_dir / "mine").write_text("precious")
    with pytest.raises(InvalidRequest, match="not empty"):
        await store.backup(short_dir)
    assert (short_dir / "mine").read_text() == "precious"


async def test_backup_on_a_full_disk_leaves_nothing(
    store: LmdbStore, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_into(self: map_file.MapFile, directory: Path, txn: object) -> None:
        (directory / "data.mdb").write_bytes(b"half")
        raise map_file.store_error(OSError(28, "No space left on device"), directory / "data.mdb")

    monkeypatch.setattr(map_file.MapFile, "copy_into", copy_into)
    with pytest.raises(StoreFull):
        await store.backup(short_dir / "copy")
    assert list((short_dir / "copy").iterdir()) == []


# -- the rest ---------------------------------------------------------------------------------------------------------


async def test_quiet_watch_gives_progress_marks(store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_store, "HEARTBEAT_S", 0.02)
    await store.txn([], [Put("other", b"")])
    watch = store.watch("mine/", Revision(1))
    async with asyncio.timeout(30), contextlib.aclosing(watch):  # type: ignore[type-var]
        batch = await anext(watch)
    assert (batch.events, batch.revision) == ((), 1)


async def test_idle_watcher_that_falls_behind_is_told(short_dir: Path) -> None:
    """It holds nothing but a position: writers go on, history is bounded, and it learns that it must list again."""
    store = open_lmdb(short_dir / "m", history_revisions=10)
    try:
        watch = store.watch("", Revision(1))
        await store.txn([], [Put("k", b"")])
        assert (await anext(watch)).revision == 1
        for _ in range(100):
            await store.txn([], [Put("k", b"")])
        with pytest.raises(Compacted):
            await anext(watch)
    finally:
        await store.close()


async def test_waiting_transactions_are_compared_in_order(store: LmdbStore) -> None:
    """Of many in one commit exactly one creates the key."""
    results = await asyncio.gather(*(store.txn([Compare("k", None)], [Put("k", b"%d" % i)]) for i in range(100)))
    assert [result.succeeded for result in results].count(True) == 1
    assert (await store.status()).revision == 1


async def test_leases_end_without_being_asked(store: LmdbStore) -> None:
    lease = await store.grant(0.1)
    await store.txn([], [Put("mine", b"", lease)])
    watch = store.watch("mine", Revision(2))
    async with asyncio.timeout(30), contextlib.aclosing(watch):  # type: ignore[type-var]
        async for batch in watch:
            if batch.events:
                assert batch.events[0].kv is None
                break


async def test_unwritable_directory_is_a_typed_error(short_dir: Path) -> None:
    (short_dir / "m").mkdir()
    (short_dir / "m" / "data.mdb").mkdir()
    with pytest.raises(StoreError):
        open_lmdb(short_dir / "m")
