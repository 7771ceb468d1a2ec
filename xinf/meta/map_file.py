"""The LMDB file as this store uses it: opened with care, grown by doubling, its errors called by our names.

    short reads   any thread, microseconds: get, a listing, a page of history
    long reads    one thread each: check, backup
    the writer    one thread

LMDB may only be resized while no transaction is open. `grow` therefore waits for the long reads first, while short ones
go on, and then shuts the gate for the microseconds of the resize: the event loop never waits for a backup.

No writemap: with it a stray write corrupts the file and a full disk is a SIGBUS instead of an error. A file shorter
than its own page count would be a SIGBUS on reading as well, so that is looked at before the file is mapped. LMDB does
not write pages that were freed in the transaction that made them, so a sound file may end early: here it is extended to
the size of the map (sparse, costs nothing), and a shorter one has lost something.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
from lmdb import verify

from xinf.core.errors import StoreCorrupt, StoreError, StoreFull
from xinf.meta.changes import Changes
from xinf.meta.layout import TABLES

if TYPE_CHECKING:
    from lmdb import _Database

DATA_FILE = "data.mdb"
INITIAL_BYTES = 4 << 20
MIN_RESERVE_BYTES = 1 << 20
MAX_READERS = 64
MAGIC = 0xBEEFC0DE

RESTORE = "restore a backup (copy its data.mdb here while nothing runs), or move the directory away to start empty"


class MapFile:
    """An open LMDB environment with its tables. One per process and directory: the caller holds the owner lock."""

    def __init__(self, directory: Path, *, max_bytes: int, no_sync: bool) -> None:
        """Open or create the file. Raises: StoreCorrupt, StoreFull when the disk is, StoreError."""
        self.path = directory / DATA_FILE
        self.max_bytes = max_bytes
        self._reserve_bytes = max(MIN_RESERVE_BYTES, max_bytes // 16)
        self._gate = threading.Condition()
        self._n_short = 0
        self._n_long = 0
        self._is_resizing = False
        in_use_bytes = inspect_file(self.path)
        map_bytes = min(INITIAL_BYTES, max_bytes)
        while map_bytes < in_use_bytes:
            map_bytes *= 2
        self._map_bytes = max(min(map_bytes, max_bytes), in_use_bytes)
        with translated(self.path):
            self._env = lmdb.Environment(
                str(directory),
                map_size=self._map_bytes,
                max_dbs=len(TABLES),
                max_readers=MAX_READERS,
                max_spare_txns=4,
                readahead=False,
                sync=not no_sync,
                metasync=not no_sync,
                mode=0o600,
            )
        self._extend(self._map_bytes)
        self.tables: dict[bytes, _Database] = {}

    def prepare(self, now_s: float) -> None:
        """Make a new file a store and a restored copy one of its own; free the slots of readers that are gone.

        Raises: StoreCorrupt, StoreFull, StoreError.
        """
        with translated(self.path):
            self._env.reader_check()
            with self._env.begin(write=True, buffers=False) as txn:
                for name in TABLES:
                    self.tables[name] = self._env.open_db(name, txn=txn)
                changes = Changes(txn, self.tables, now_s)
                changes.prepare()
                changes.finish()
            sync_directory(self.path.parent)

    @contextmanager
    def read(self) -> Iterator[lmdb.Transaction[bytes]]:
        """A snapshot for a short read: no await, no disk write, no waiting inside."""
        with self._gate:
            self._gate.wait_for(lambda: not self._is_resizing)
            self._n_short += 1
        try:
            with translated(self.path), self._env.begin(buffers=False) as txn:
                yield txn
        finally:
            with self._gate:
                self._n_short -= 1
                self._gate.notify_all()

    @contextmanager
    def read_long(self) -> Iterator[lmdb.Transaction[bytes]]:
        """A snapshot for seconds, outside the event loop. The file cannot grow meanwhile."""
        with self._gate:
            self._gate.wait_for(lambda: not self._is_resizing)
            self._n_long += 1
        try:
            with translated(self.path), self._env.begin(buffers=False) as txn:
                yield txn
        finally:
            with self._gate:
                self._n_long -= 1
                self._gate.notify_all()

    def write(self) -> lmdb.Transaction[bytes]:
        """Begin the write transaction. Only the writer thread; raises lmdb.Error, MapFullError among them."""
        return self._env.begin(write=True, buffers=False)

    def grow(self) -> bool:
        """Double the map up to max_bytes; False when it has that size. Only the writer, with no open transaction."""
        if self._map_bytes >= self.max_bytes:
            return False
        self._map_bytes = min(self._map_bytes * 2, self.max_bytes)
        self._resize(self._map_bytes)
        return True

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Lend what only deletions may use: copying a page on write needs room even to free some."""
        self._resize(self.max_bytes + self._reserve_bytes)
        try:
            yield
        finally:
            self._resize(self._map_bytes)  # LMDB keeps what is in use

    def _resize(self, n_bytes: int) -> None:
        with self._gate:
            self._gate.wait_for(lambda: self._n_long == 0)
            self._is_resizing = True
            self._gate.wait_for(lambda: self._n_short == 0)
            try:
                self._env.set_mapsize(n_bytes)
                self._extend(n_bytes)
            finally:
                self._is_resizing = False
                self._gate.notify_all()

    def _extend(self, n_bytes: int) -> None:
        """Keep the file as long as the map. If that fails, the next opening walks the pages instead of the length."""
        with contextlib.suppress(OSError):
            if self.path.stat().st_size < n_bytes:
                os.truncate(self.path, n_bytes)

    def clear_stale_readers(self) -> int:
        """Free the slots of readers whose process is gone: they would keep old pages alive for ever."""
        with translated(self.path):
            return self._env.reader_check()

    def used_bytes(self, txn: lmdb.Transaction[bytes]) -> int:
        """Size of the live pages of all tables; pages freed by deletions are not counted."""
        n_pages = 2
        page_bytes = 4096
        for table in self.tables.values():
            stat = txn.stat(table)
            n_pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
            page_bytes = stat["psize"]
        return n_pages * page_bytes

    def copy_into(self, directory: Path, txn: lmdb.Transaction[bytes]) -> None:
        """Write a compacted copy of the snapshot `txn` into an empty directory, synced."""
        with translated(directory / DATA_FILE):
            self._env.copy(str(directory), compact=True, txn=txn)

    def close(self) -> None:
        """Wait for the readers and close. Only when the writer has ended."""
        with self._gate:
            self._gate.wait_for(lambda: self._n_short == 0 and self._n_long == 0)
            self._is_resizing = True  # for good: nobody reads a closed environment
        self._env.close()


def inspect_file(path: Path) -> int:
    """Look at the file before it is mapped; return how many of its bytes are in use, 0 when there is none.

    Raises: StoreCorrupt when it is no LMDB file or shorter than the pages it refers to.
    """
    try:
        n_bytes = path.stat().st_size
        if n_bytes == 0:
            return 0
        needed = _needed_bytes(path)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise store_error(error, path) from error
    if needed is None:
        raise StoreCorrupt(f"{path} is not an LMDB file", remedy=RESTORE, path=str(path), file_bytes=n_bytes)
    if n_bytes < needed and (problems := find_problems(path)):
        raise StoreCorrupt(
            f"{path} is torn: it has {n_bytes} of {needed} bytes ({problems[0]})",
            remedy=RESTORE,
            path=str(path),
            file_bytes=n_bytes,
            needed_bytes=needed,
        )
    return needed


def find_problems(path: Path) -> list[str]:
    """Walk every page with LMDB's own verifier, which reads the file as bytes and cannot be ended by a damaged one."""
    try:
        problems: list[str] = verify.verify(str(path), subdir=False)  # type: ignore[no-untyped-call]
    except verify.VerifyError as error:
        return [str(error)]
    return problems


def _needed_bytes(path: Path) -> int | None:
    """How many bytes the newest commit says that the file has; None when its first pages are not LMDB's.

    Source: LMDB 0.9.36, mdb.c, struct MDB_meta behind a page header of 16 bytes on 64-bit machines: magic u32, version
    u32, address, mapsize, two MDB_db of 48 bytes (the first starts with the page size, u32), last_pgno, txnid.
    """
    newest: tuple[int, int] | None = None
    page_bytes = 0
    with path.open("rb") as file:
        for number in (0, 1):
            file.seek(number * page_bytes)
            page = file.read(152)
            if len(page) < 152 or struct.unpack_from("<I", page, 16)[0] != MAGIC:
                return None
            (page_bytes,) = struct.unpack_from("<I", page, 40)
            if page_bytes not in range(256, 65537) or page_bytes & (page_bytes - 1):
                return None
            last_page, txn = struct.unpack_from("<QQ", page, 136)
            newest = max(newest or (0, 0), (txn, last_page))
    return None if newest is None else (newest[1] + 1) * page_bytes


def sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn errors of LMDB and the system into StoreError with their remedy."""
    try:
        yield
    except (lmdb.Error, OSError) as error:
        raise store_error(error, path) from error


def store_error(error: lmdb.Error | OSError, path: Path) -> StoreError:
    """Name an error of LMDB or the system."""
    code = error.code if isinstance(error, lmdb.Error) else (error.errno or 0)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(
            f"no space left on the disk of {path}; nothing was lost", remedy="free space there", path=str(path)
        )
    if isinstance(error, lmdb.MapFullError):
        return StoreFull(f"{path} is full; nothing was lost", remedy="raise store.max_bytes, or delete records")
    corrupt = (
        lmdb.CorruptedError,
        lmdb.PageNotFoundError,
        lmdb.InvalidError,
        lmdb.VersionMismatchError,
        lmdb.BadTxnError,
        lmdb.IncompatibleError,
    )
    if isinstance(error, corrupt):
        return StoreCorrupt(f"{path} is damaged: {error}", remedy=RESTORE, path=str(path))
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(f"cannot open {path}: {error}", remedy="check the owner and mode of the data directory")
    return StoreError(f"{path} failed: {error}", path=str(path))
