"""A process that owns a store and serves it, to be killed: `server_child.py DIRECTORY TARGET [HISTORY_REVISIONS]`.

Says "ready" on standard output when it answers.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from xinf.meta import LmdbStore, MetaServer


async def main(directory: str, target: str, history_revisions: int) -> None:
    store = LmdbStore.open(
        Path(directory), max_bytes=64 << 20, history_revisions=history_revisions, history_age_s=3600.0, no_sync=True
    )
    server = MetaServer(store, gateway_url="http://127.0.0.1:8080")
    await server.start([target])
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 100_000))
