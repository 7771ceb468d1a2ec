"""What the contract suite needs to know of a backend: how to open it, let time pass, end it and start it again."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from xinf.core.clock import FakeClock
from xinf.meta import LmdbStore, MetaClient, MetaServer, Store

MAX_BYTES = 64 << 20


class Backend(Protocol):
    """One store of its own per test."""

    async def open(self, *, history_revisions: int = 100_000, history_age_s: float = 3600.0) -> Store:
        """Open it, again after `close` with what was acknowledged before."""

    async def pass_time(self, seconds: float) -> None:
        """Let the store's clock run; when this returns, what was due has happened."""

    async def close(self) -> None:
        """End store and owner."""


def open_lmdb(directory: Path, clock: FakeClock | None = None, **settings: float) -> LmdbStore:
    """Open with defaults that suit tests. Nothing here loses power, so nothing is synced unless asked for."""
    return LmdbStore.open(
        directory,
        max_bytes=int(settings.get("max_bytes", MAX_BYTES)),
        history_revisions=int(settings.get("history_revisions", 100_000)),
        history_age_s=settings.get("history_age_s", 3600.0),
        no_sync=bool(settings.get("no_sync", True)),
        clock=clock,
    )


class LmdbBackend:
    """LmdbStore itself, on a clock that the test moves."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.store: LmdbStore | None = None

    async def open(self, *, history_revisions: int = 100_000, history_age_s: float = 3600.0) -> Store:
        self.store = open_lmdb(
            self.directory / "meta", self.clock, history_revisions=history_revisions, history_age_s=history_age_s
        )
        return self.store

    async def pass_time(self, seconds: float) -> None:
        assert self.store is not None
        self.clock.advance(seconds)
        await self.store.tick()

    async def close(self) -> None:
        if self.store is not None:
            await self.store.close()
            self.store = None


class ServedBackend(LmdbBackend):
    """The same behind MetaServer on a Unix socket, seen through MetaClient."""

    server: MetaServer | None = None
    client: MetaClient | None = None

    async def open(self, *, history_revisions: int = 100_000, history_age_s: float = 3600.0) -> Store:
        await super().open(history_revisions=history_revisions, history_age_s=history_age_s)
        assert self.store is not None
        self.server = MetaServer(self.store)
        target = f"unix:{self.directory}/control.sock"
        await self.server.start([target])
        self.client = MetaClient(target)
        return self.client

    async def close(self) -> None:
        if self.client is not None:
            await self.client.close()
        if self.server is not None:
            await self.server.stop(0)
        await super().close()
