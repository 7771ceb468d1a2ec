"""Walks every invariant of a store: of an open one from a snapshot, of a file that nobody has open from the outside.

Problems are sentences, each about one key, lease or revision. Memory: one row per key that occurs in the history.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb

from xinf.core.errors import InvalidRequest, NotFound, StoreCorrupt, StoreError
from xinf.meta.bounds import check_key
from xinf.meta.changes import Counters
from xinf.meta.contract import KeyValue
from xinf.meta.layout import (
    FORMAT,
    TABLES,
    decode_entry,
    decode_event,
    decode_history_key,
    decode_ttl,
    decode_u64,
    encode_u64,
)
from xinf.meta.map_file import DATA_FILE, find_problems, inspect_file, translated
from xinf.meta.owner import OwnerLock

if TYPE_CHECKING:
    from lmdb import Transaction, _Database

MAX_PROBLEMS = 100


class _Walk:
    """One walk over one snapshot."""

    def __init__(self, txn: Transaction[bytes], tables: dict[bytes, _Database]) -> None:
        self._txn = txn
        self._tables = tables
        self.problems: list[str] = []
        self._last: dict[bytes, KeyValue | None] = {}  # how the history leaves each key that occurs in it
        self._n_leased = 0

    def report(self, problem: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def walk(self) -> None:
        if self._txn.get(b"format", db=self._tables[b"state"]) != encode_u64(FORMAT):
            self.report("the store does not say that it has the format this version knows")
        counters = Counters(self._txn, self._tables[b"state"])
        if not 1 <= counters.oldest <= counters.revision + 1:
            self.report(f"oldest revision {counters.oldest} is not between 1 and {counters.revision + 1}")
        self._walk_history(counters)
        self._walk_kv(counters)
        self._walk_leases()

    def _walk_history(self, counters: Counters) -> None:
        expected, index_expected = int(counters.oldest), 0
        with self._txn.cursor(db=self._tables[b"history"]) as cursor:
            for row, data in cursor:
                revision, index = decode_history_key(row)
                if index == 0:
                    if revision != expected:
                        self.report(f"history has revision {revision} where {expected} belongs")
                    expected = revision + 1
                elif (revision, index) != (expected - 1, index_expected):
                    self.report(f"history has event {revision}/{index} where {expected - 1}/{index_expected} belongs")
                index_expected = index + 1
                self._walk_event(revision, data)
        if expected != counters.revision + 1:
            self.report(f"history ends at revision {expected - 1}, the store is at {counters.revision}")

    def _walk_event(self, revision: int, data: bytes) -> None:
        stored = decode_event(data)
        kv = decode_entry(stored.key, stored.entry) if stored.entry else None
        name = stored.key.decode("ascii", "replace")
        is_known = stored.key in self._last
        before = self._last.get(stored.key)
        self._last[stored.key] = kv
        if kv is None:
            if is_known and before is None:
                self.report(f"{name}: deleted at revision {revision} while it was absent")
            return
        if kv.mod_revision != revision:
            self.report(f"{name}: event of revision {revision} carries mod revision {kv.mod_revision}")
        if not is_known:
            return
        create, version = (before.create_revision, before.version + 1) if before else (revision, 1)
        if (kv.create_revision, kv.version) != (create, version):
            self.report(
                f"{name}: at revision {revision} created at {kv.create_revision} version {kv.version}, not {create}"
                f" version {version}"
            )

    def _walk_kv(self, counters: Counters) -> None:
        kv_table, lease_keys = self._tables[b"kv"], self._tables[b"lease_keys"]
        with self._txn.cursor(db=kv_table) as cursor:
            for row, data in cursor:
                kv = decode_entry(row, data)
                self._walk_entry(kv, counters)
                if row in self._last:
                    if self._last[row] != kv:
                        self.report(f"{kv.key}: differs from its newest event in history")
                elif kv.mod_revision >= counters.oldest:
                    self.report(f"{kv.key}: its revision {kv.mod_revision} is missing from history")
                if kv.lease is not None:
                    self._n_leased += 1
                    if self._txn.get(encode_u64(kv.lease) + row, db=lease_keys) is None:
                        self.report(f"{kv.key}: not among the keys of its lease {kv.lease}")
        for row, last in self._last.items():
            if last is not None and self._txn.get(row, db=kv_table) is None:
                self.report(f"{last.key}: absent, though written at revision {last.mod_revision} and not deleted since")

    def _walk_entry(self, kv: KeyValue, counters: Counters) -> None:
        try:
            check_key(kv.key)
        except InvalidRequest as error:
            self.report(error.message)
        if not 1 <= kv.create_revision <= kv.mod_revision <= counters.revision:
            self.report(
                f"{kv.key}: created at {kv.create_revision}, written at {kv.mod_revision}, the store is at"
                f" {counters.revision}"
            )
        if kv.version < 1 or (kv.version == 1) != (kv.create_revision == kv.mod_revision):
            self.report(f"{kv.key}: version {kv.version} with create {kv.create_revision} and mod {kv.mod_revision}")

    def _walk_leases(self) -> None:
        leases = set()
        with self._txn.cursor(db=self._tables[b"leases"]) as cursor:
            for row, data in cursor:
                leases.add(row)
                if not decode_ttl(data) > 0:
                    self.report(f"lease {decode_u64(row)} has ttl {decode_ttl(data)} s")
        n_rows = 0
        with self._txn.cursor(db=self._tables[b"lease_keys"]) as cursor:
            for row in cursor.iternext(keys=True, values=False):
                n_rows += 1
                if row[:8] not in leases:
                    self.report(f"key {row[8:]!r} has a row of lease {decode_u64(row[:8])}, which does not exist")
        if n_rows != self._n_leased:
            self.report(f"{n_rows} rows of leased keys, {self._n_leased} keys with a lease")


def check_snapshot(txn: Transaction[bytes], tables: dict[bytes, _Database]) -> Sequence[str]:
    """List what is broken in a snapshot, nothing if it is sound."""
    walk = _Walk(txn, tables)
    try:
        walk.walk()
    except StoreCorrupt as error:
        walk.report(error.message)
    return walk.problems


def check_directory(directory: Path) -> Sequence[str]:
    """List what is broken in a store that no process has open, first its pages, then its contents. Blocks.

    The file is never mapped before LMDB's own verifier, which reads it as bytes, found its pages sound: a damaged file
    cannot end the process. Nothing is written but the owner lock.

    Raises: StoreHeld when a process has it open (ask that one), NotFound when there is no store.
    """
    path = directory / DATA_FILE
    if not path.is_file():
        raise NotFound(f"there is no store in {directory}: {path} does not exist", path=str(path))
    owner = OwnerLock(directory, time.time())
    try:
        try:
            inspect_file(path)
        except StoreCorrupt as error:
            return [error.message]
        problems = find_problems(path)
        return problems[:MAX_PROBLEMS] if problems else _check_contents(directory)
    finally:
        owner.release()


def _check_contents(directory: Path) -> Sequence[str]:
    try:
        with (
            translated(directory / DATA_FILE),
            lmdb.Environment(str(directory), readonly=True, lock=False, max_dbs=len(TABLES), create=False) as env,
        ):
            tables = {name: env.open_db(name, create=False) for name in TABLES}
            with env.begin(buffers=False) as txn:
                return check_snapshot(txn, tables)
    except StoreError as error:
        return [error.message]
