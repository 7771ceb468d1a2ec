"""A writer that is killed: opens the store, writes as fast as it can, reports each acknowledged revision on a pipe.

    crash_child.py DIRECTORY FD SEED

Imports only what it needs: it is started a hundred times. One line per acknowledgement: "revision key digest".
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sys
from pathlib import Path

from xinf.meta.contract import Delete, Put
from xinf.meta.lmdb_store import LmdbStore


async def main(directory: str, fd: int, seed: int) -> None:
    rng = random.Random(seed)
    store = LmdbStore.open(Path(directory), max_bytes=64 << 20, history_revisions=300, history_age_s=3600.0)
    os.write(fd, b"open\n")

    async def write(task: int) -> None:
        # Each task has keys of its own, so that what was acknowledged last for a key is what must be there.
        while True:
            key = f"t{task}/{rng.randrange(20)}"
            if rng.random() < 0.2:
                op: Put | Delete = Delete(key)
                digest = "-"
            else:
                value = rng.randbytes(rng.choice((10, 500, 9000)))
                op = Put(key, value)
                digest = hashlib.sha256(value).hexdigest()
            asked = f"? {key} {digest}\n"
            os.write(fd, asked.encode())
            result = await store.txn([], [op])
            os.write(fd, f"! {key} {digest} {result.revision}\n".encode())

    await asyncio.gather(*(write(task) for task in range(4)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
