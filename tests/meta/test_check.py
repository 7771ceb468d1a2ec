"""That the check finds each kind of damage: one row changed behind the store's back, one problem found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from tests.meta.backends import open_lmdb
from xinf.core.errors import NotFound
from xinf.core.ids import LeaseId, Revision
from xinf.meta import Delete, KeyValue, Put, check_directory
from xinf.meta.layout import (
    TABLES,
    StoredEvent,
    decode_entry,
    encode_entry,
    encode_event,
    encode_history_key,
    encode_ttl,
    encode_u64,
)

LEASE = LeaseId(77)


class Surgery:
    """The tables of a closed store, to be changed by hand."""

    def __init__(self, txn: lmdb.Transaction, tables: dict[bytes, object]) -> None:
        self._txn = txn
        self._tables = tables

    def put(self, table: bytes, key: bytes, value: bytes) -> None:
        self._txn.put(key, value, db=self._tables[table])  # type: ignore[arg-type]

    def delete(self, table: bytes, key: bytes) -> None:
        assert self._txn.delete(key, db=self._tables[table])  # type: ignore[arg-type]

    def entry(self, key: bytes) -> KeyValue:
        data = self._txn.get(key, db=self._tables[b"kv"])  # type: ignore[arg-type]
        assert isinstance(data, bytes)
        return decode_entry(key, data)


@pytest.fixture
async def directory(short_dir: Path) -> Path:
    """Revisions 1 a, 2 a, 3 b with a lease, 4 c, 5 c deleted."""
    store = open_lmdb(short_dir / "m")
    lease = await store.grant(60)
    await store.txn([], [Put("a", b"1")])
    await store.txn([], [Put("a", b"2")])
    await store.txn([], [Put("b", b"1", lease)])
    await store.txn([], [Put("c", b"1")])
    await store.txn([], [Delete("c")])
    await store.close()
    return short_dir / "m"


def operate(directory: Path, damage: Callable[[Surgery], None]) -> None:
    with lmdb.Environment(str(directory), max_dbs=len(TABLES), map_size=64 << 20) as env:
        tables: dict[bytes, object] = {name: env.open_db(name) for name in TABLES}
        with env.begin(write=True) as txn:
            damage(Surgery(txn, tables))


def entry(key: str, value: bytes, create: int, mod: int, version: int, lease: int | None = None) -> bytes:
    return encode_entry(
        KeyValue(key, value, Revision(create), Revision(mod), version, LeaseId(lease) if lease else None)
    )


def event(key: bytes, row: bytes) -> bytes:
    return encode_event(StoredEvent(0.0, key, row))


DAMAGES: dict[str, tuple[Callable[[Surgery], None], str]] = {
    "value": (lambda s: s.put(b"kv", b"a", entry("a", b"x", 1, 2, 2)), "a: differs from its newest event"),
    "version": (lambda s: s.put(b"kv", b"a", entry("a", b"2", 1, 2, 1)), "a: version 1 with create 1 and mod 2"),
    "revision ahead": (lambda s: s.put(b"kv", b"a", entry("a", b"2", 1, 9, 2)), "a: created at 1, written at 9"),
    "lost key": (lambda s: s.delete(b"kv", b"a"), "a: absent, though written at revision 2"),
    "key from nowhere": (lambda s: s.put(b"kv", b"z", entry("z", b"", 2, 2, 1)), "z: its revision 2 is missing"),
    "bad key": (lambda s: s.put(b"kv", b"z z", entry("z z", b"", 2, 2, 1)), "key 'z z'"),
    "short entry": (lambda s: s.put(b"kv", b"a", b"short"), "entry of key b'a' has 5 bytes"),
    "counter behind": (lambda s: s.put(b"state", b"revision", encode_u64(4)), "history ends at revision 5"),
    "counter ahead": (lambda s: s.put(b"state", b"revision", encode_u64(6)), "history ends at revision 5"),
    "oldest behind": (lambda s: s.delete(b"history", encode_history_key(1, 0)), "history has revision 2 where 1"),
    "oldest beyond": (lambda s: s.put(b"state", b"oldest", encode_u64(9)), "oldest revision 9 is not between"),
    "gap in history": (lambda s: s.delete(b"history", encode_history_key(3, 0)), "history has revision 4 where 3"),
    "stray event": (
        lambda s: s.put(b"history", encode_history_key(2, 7), event(b"a", b"")),
        "history has event 2/7 where 2/1",
    ),
    "event of another revision": (
        lambda s: s.put(b"history", encode_history_key(1, 0), event(b"a", entry("a", b"1", 1, 4, 1))),
        "a: event of revision 1 carries mod revision 4",
    ),
    "version that jumps in history": (
        lambda s: s.put(b"history", encode_history_key(2, 0), event(b"a", entry("a", b"2", 1, 2, 5))),
        "a: at revision 2 created at 1 version 5, not 1 version 2",
    ),
    "deletion of what is absent": (
        lambda s: s.put(b"history", encode_history_key(4, 0), event(b"c", b"")),
        "c: deleted at revision 5 while it was absent",
    ),
    "cut event": (lambda s: s.put(b"history", encode_history_key(1, 0), b"cut"), "an event of the history has 3"),
    "unknown lease": (
        lambda s: s.put(b"kv", b"b", entry("b", b"1", 3, 3, 1, 77)),
        "b: not among the keys of its lease 77",
    ),
    "lost lease": (
        lambda s: s.delete(b"leases", encode_u64(s.entry(b"b").lease or 0)),
        "which does not exist",
    ),
    "stray leased key": (
        lambda s: (s.put(b"leases", encode_u64(LEASE), encode_ttl(1)), s.put(b"lease_keys", encode_u64(LEASE), b""))[0],
        "2 rows of leased keys, 1 keys with a lease",
    ),
    "lease without time": (lambda s: s.put(b"leases", encode_u64(LEASE), encode_ttl(-1)), "lease 77 has ttl -1.0 s"),
    "format": (lambda s: s.delete(b"state", b"format"), "does not say that it has the format"),
}


def test_sound_store_has_no_problems(directory: Path) -> None:
    assert list(check_directory(directory)) == []


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(directory: Path, name: str) -> None:
    damage, expected = DAMAGES[name]
    operate(directory, damage)
    problems = check_directory(directory)
    assert any(expected in problem for problem in problems), problems


async def test_open_store_finds_the_same(directory: Path) -> None:
    operate(directory, DAMAGES["value"][0])
    store = open_lmdb(directory)
    assert [str(problem) for problem in await store.check()] == ["a: differs from its newest event in history"]
    await store.close()


def test_no_store_is_not_found(short_dir: Path) -> None:
    with pytest.raises(NotFound, match="no store"):
        check_directory(short_dir)


def test_check_leaves_the_file_as_it_was(directory: Path) -> None:
    before = (directory / "data.mdb").read_bytes()
    check_directory(directory)
    assert (directory / "data.mdb").read_bytes() == before
