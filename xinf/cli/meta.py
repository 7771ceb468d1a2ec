"""`xinf meta check | backup | status`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xinf.cli.options import ConfigFile, DataDir, Json, Server
from xinf.cli.session import Session, open_session, run
from xinf.cli.table import print_json
from xinf.core.units import format_bytes

if TYPE_CHECKING:
    from xinf.meta import Backup, StoreStatus

app = typer.Typer(help="The store of an installation.", no_args_is_help=True)


@app.command(epilog="Example: [b]xinf meta status[/b]")
def status(json: Json = False, data_dir: DataDir = None, server: Server = None, config: ConfigFile = None) -> None:
    """Show who owns the store, its revision and its size."""
    found = run(_status(open_session(config, data_dir, server)))
    if json:
        print_json(found)
        return
    print(f"backend   {found.backend}, xinf {found.version}, process {found.pid}")
    print(f"revision  {found.revision}, watch history from {found.oldest_revision}")
    print(f"content   {found.n_keys} keys, {format_bytes(found.used_bytes)} of {format_bytes(found.max_bytes)}")
    print(f"gateway   {found.gateway_url or '-'}")


@app.command(epilog="Example: [b]xinf meta check[/b]")
def check(json: Json = False, data_dir: DataDir = None, server: Server = None, config: ConfigFile = None) -> None:
    """Walk every invariant of the store: of the live one, or of the file if nothing runs."""
    problems = run(_check(open_session(config, data_dir, server)))
    if json:
        print_json({"problems": list(problems)})
    else:
        for problem in problems:
            print(problem)
        print(f"{len(problems)} problems" if problems else "the store is sound")
    if problems:
        raise typer.Exit(1)


@app.command(epilog="Example: [b]xinf meta backup ~/xinf-backup-1[/b]")
def backup(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty directory.")],
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """Copy the store, consistently, while it is in use."""
    target = directory.expanduser().absolute()
    done = run(_backup(open_session(config, data_dir, server), target))
    if json:
        print_json(done)
    else:
        print(f"wrote revision {done.revision} to {target}: {format_bytes(done.written_bytes)}")


async def _status(session: Session) -> StoreStatus:
    async with session.store_or_file() as store:
        return await store.status()


async def _check(session: Session) -> Sequence[str]:
    from xinf.meta import check_directory, read_discovery

    if session.server or read_discovery(session.config.paths) is not None:
        async with session.store() as store:
            return await store.check()
    return check_directory(session.config.paths.meta_dir)


async def _backup(session: Session, directory: Path) -> Backup:
    async with session.store_or_file() as store:
        return await store.backup(directory)
