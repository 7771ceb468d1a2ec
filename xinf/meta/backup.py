"""A copy of the live store: one snapshot, compacted, synced, marked as a copy.

The mark makes the store that is later opened from it jump ahead in revisions (layout.py), so that a watcher or a
comparison that remembers the original never takes the copy's history for its own.
"""

from __future__ import annotations

import os
from pathlib import Path

import lmdb

from xinf.core.errors import InvalidRequest, StoreError
from xinf.meta.changes import Counters
from xinf.meta.contract import Backup
from xinf.meta.layout import TABLES, encode_u64
from xinf.meta.map_file import DATA_FILE, MapFile, sync_directory, translated


def write_backup(file: MapFile, directory: Path) -> Backup:
    """Write the copy. Blocks for as long as the disk takes; writers go on meanwhile.

    Raises: InvalidRequest when the directory is not empty, StoreFull, StoreError.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_empty = not any(directory.iterdir())
    except OSError as error:
        raise StoreError(f"cannot create {directory}: {error.strerror}") from error
    if not is_empty:
        raise InvalidRequest(f"{directory} is not empty", remedy="name a new directory", param="directory")
    try:
        with file.read_long() as txn:
            revision = Counters(txn, file.tables[b"state"]).revision
            file.copy_into(directory, txn)
        _mark(directory)
    except BaseException:
        for path in directory.iterdir():  # half a backup is worse than none
            path.unlink()
        raise
    return Backup(revision, (directory / DATA_FILE).stat().st_size)


def _mark(directory: Path) -> None:
    with translated(directory / DATA_FILE):
        map_bytes = (directory / DATA_FILE).stat().st_size + (1 << 20)
        with lmdb.Environment(str(directory), map_size=map_bytes, max_dbs=len(TABLES), lock=False) as env:
            state = env.open_db(b"state", create=False)
            with env.begin(write=True) as txn:
                txn.put(b"restored", encode_u64(1), db=state)
        os.truncate(directory / DATA_FILE, map_bytes)  # map_file.py says why
    with (directory / DATA_FILE).open("rb") as copy:
        os.fsync(copy.fileno())
    sync_directory(directory)
