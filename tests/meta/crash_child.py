"""Writers that are killed: each opens the store, writes as fast as it can, reports every acknowledgement on a pipe.

    crash_child.py DIRECTORY SOCKET_FD

It imports the store once and forks a writer per order: a hundred starts of Python would take longer than the rest. An
order is a seed in 8 bytes with the writing end of a pipe; the answers are the writer's pid in 8 bytes and, when that
writer is gone, the same 8 bytes again. It ends when the socket is closed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
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


def serve(directory: str, control: socket.socket) -> None:
    while True:
        order, fds, _, _ = socket.recv_fds(control, 8, 1)
        if not order:
            return
        pid = os.fork()
        if not pid:
            control.close()
            asyncio.run(main(directory, fds[0], int.from_bytes(order)))
        os.close(fds[0])
        control.sendall(pid.to_bytes(8))
        os.waitpid(pid, 0)
        control.sendall(pid.to_bytes(8))


if __name__ == "__main__":
    serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
