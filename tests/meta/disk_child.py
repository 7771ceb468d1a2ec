"""Children of test_durability.py, run under disk.c: what the store does when one watches its syncs or fails them.

disk_child.py acks DIRECTORY FD N [nosync]     N transactions one by one, "ack\\n" to FD after each
disk_child.py group DIRECTORY FD N             N transactions at once, "ack\\n" to FD after each
disk_child.py fail DIRECTORY PATH ERRNO        write, make the disk fail, write, let it work, write: one line each
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from xinf.core.errors import StoreError
from xinf.meta import LmdbStore, Put


def open_store(directory: str, *, no_sync: bool = False) -> LmdbStore:
    return LmdbStore.open(
        Path(directory), max_bytes=64 << 20, history_revisions=1000, history_age_s=3600.0, no_sync=no_sync
    )


async def acks(directory: str, fd: int, n: int, *, no_sync: bool) -> None:
    store = open_store(directory, no_sync=no_sync)
    os.write(fd, b"open\n")
    for i in range(n):
        await store.txn([], [Put(f"k{i}", b"v")])
        os.write(fd, b"ack\n")
    await store.close()


async def group(directory: str, fd: int, n: int) -> None:
    store = open_store(directory)
    os.write(fd, b"open\n")

    async def one(i: int) -> None:
        await store.txn([], [Put(f"k{i}", b"v")])
        os.write(fd, b"ack\n")

    await asyncio.gather(*(one(i) for i in range(n)))
    await store.close()


async def fail(directory: str, switch: Path, code: str) -> None:
    store = open_store(directory)

    async def attempt(key: str) -> None:
        try:
            await store.txn([], [Put(key, b"v")])
            print(f"{key}: written")
        except StoreError as error:
            print(f"{key}: {error.code}: {error}")

    await attempt("before")
    switch.write_text(code)
    await attempt("during")
    switch.unlink()
    await attempt("after")
    print("keys:", *(kv.key for kv in (await store.list("")).items))
    print("problems:", *(await store.check()))
    await store.close()


def main(mode: str, directory: str, *rest: str) -> None:
    if mode == "acks":
        asyncio.run(acks(directory, int(rest[0]), int(rest[1]), no_sync="nosync" in rest))
    elif mode == "group":
        asyncio.run(group(directory, int(rest[0]), int(rest[1])))
    else:
        asyncio.run(fail(directory, Path(rest[0]), rest[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
