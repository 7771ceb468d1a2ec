"""Which installation a command speaks to: its configuration, its control process, its store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from xinf.core import log
from xinf.core.config import Config, load
from xinf.core.errors import ConfigError, InvalidRequest, Unavailable

if TYPE_CHECKING:
    from xinf.meta import LmdbStore, MetaClient

T = TypeVar("T")
_SERVER = re.compile(r"unix:\S+|\S+:\d+")


class Session(msgspec.Struct, frozen=True):
    """What the common options of a command mean."""

    config: Config
    server: str | None = None

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[MetaClient]:
        """The store, through the control process. Raises: Unavailable naming `xinf serve` and the data directory."""
        from xinf.meta import connect

        client = connect(self.config.paths, self.server)
        try:
            yield client
        finally:
            await client.close()

    @contextlib.asynccontextmanager
    async def store_or_file(self) -> AsyncIterator[MetaClient | LmdbStore]:
        """The store through the control process, or, where none runs, the file itself."""
        from xinf.meta import LmdbStore, read_discovery

        if self.server or read_discovery(self.config.paths) is not None:
            async with self.store() as client:
                yield client
            return
        settings = self.config.store
        store = LmdbStore.open(
            self.config.paths.meta_dir,
            max_bytes=settings.max_bytes,
            history_revisions=settings.history_revisions,
            history_age_s=settings.history_age,
        )
        try:
            yield store
        finally:
            await store.close()


def open_session(
    config_file: Path | None,
    data_dir: Path | None,
    server: str | None = None,
    *,
    settings: Sequence[str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Session:
    """Load the configuration with this command's flags on top. `settings`: those of `--set`, below `flags`.

    Raises: ConfigError, InvalidRequest for a server without a port.
    """
    if server is not None and not _SERVER.fullmatch(server):
        raise InvalidRequest(f"--server {server!r} is not HOST:PORT", remedy="see control.listen there", param="server")
    overrides: dict[str, object] = {}
    for setting in settings or ():
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting!r} is not KEY=VALUE", remedy="write for example gateway.max_waiting=64")
        overrides[key.strip()] = value.strip()
    overrides |= {key: value for key, value in (flags or {}).items() if value is not None}
    if data_dir is not None:
        overrides["data_dir"] = str(data_dir.expanduser().absolute())
    return Session(load(config_file, overrides=overrides), server)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work. Ctrl-C cancels it and raises KeyboardInterrupt."""
    if not logging.getLogger().handlers:
        # A command that only watches says what matters itself; `serve` and `worker` have configured their own.
        log.configure("xinf", level="error")
    return asyncio.run(work)


async def find_gateway(session: Session) -> str:
    """The gateway's URL, as the control process knows it. Raises: Unavailable."""
    async with session.store() as store:
        url = (await store.status()).gateway_url
    if not url:
        raise Unavailable("the control process knows no gateway", remedy="name one with --url")
    return url
