"""`xinf key create | ls | rm`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from xinf.cli.options import ConfigFile, DataDir, Json, Server
from xinf.cli.session import Session, open_session, run
from xinf.cli.table import print_json, print_table
from xinf.core.errors import NotFound
from xinf.core.records import KeyRecord
from xinf.core.units import format_seconds, parse_seconds

app = typer.Typer(help="API keys. Once one exists, every request needs one.", no_args_is_help=True)


@app.command(epilog="Example: [b]xinf key create --label laptop --expires 30d[/b]")
def create(
    label: Annotated[str, typer.Option("--label", metavar="TEXT", help="What it is for.")] = "",
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="MODEL", help="Model that it may use; repeatable (default: all)."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME", help="Lifetime: 12h, 30d.", show_default="never")
    ] = None,
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """Make a key and show it, once. Works with and without a running control process."""
    from xinf.serve import make_key

    session = open_session(config, data_dir, server)
    record, secret = make_key(
        now_s=time.time(),
        label=label,
        models=tuple(model or ()),
        lifetime_s=parse_seconds(expires) if expires else None,
    )
    run(_write(session, record))
    if json:
        print_json({"id": record.id, "key": secret, "label": label, "models": record.models,
                    "expires_s": record.expires_s})  # fmt: skip
        return
    print(secret)
    typer.secho(f"key {record.id}; it is not shown again", dim=True, err=True)


@app.command("ls", epilog="Example: [b]xinf key ls --json[/b]")
def list_keys(json: Json = False, data_dir: DataDir = None, server: Server = None, config: ConfigFile = None) -> None:
    """List keys; the keys themselves are not known any more."""
    keys = run(_read(open_session(config, data_dir, server)))
    now_s = time.time()
    if json:
        fields = ("id", "label", "models", "created_s", "expires_s")
        print_json([{name: getattr(key, name) for name in fields} for key in keys])
        return
    if not keys:
        print("there are no keys: the gateway answers on loopback without one")
        return
    rows = [
        (key.id, key.label or "-", ", ".join(key.models) or "all", _age(now_s - key.created_s), _rest(key, now_s))
        for key in keys
    ]
    print_table(("ID", "LABEL", "MODELS", "AGE", "EXPIRES"), rows)


@app.command(epilog="Example: [b]xinf key rm 3f8k2m9p[/b]")
def rm(
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="Ids as `xinf key ls` shows them.")],
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """Remove keys; requests with them fail at once."""
    run(_remove(open_session(config, data_dir, server), ids))
    print(f"removed {', '.join(ids)}")


async def _write(session: Session, record: KeyRecord) -> None:
    from xinf.meta import Records

    async with session.store_or_file() as store:
        await Records(store).create(KeyRecord, record.id, record)


async def _read(session: Session) -> list[KeyRecord]:
    from xinf.meta import Records

    async with session.store_or_file() as store:
        return [record for record, _ in await Records(store).list(KeyRecord)]


async def _remove(session: Session, ids: list[str]) -> None:
    from xinf.meta import Records

    async with session.store_or_file() as store:
        for id_ in ids:
            if not await Records(store).delete(KeyRecord, id_):
                raise NotFound(f"there is no key {id_!r}", remedy="see `xinf key ls`")


def _age(seconds: float) -> str:
    return format_seconds(max(0.0, seconds))


def _rest(key: KeyRecord, now_s: float) -> str:
    if key.expires_s is None:
        return "never"
    return f"in {_age(key.expires_s - now_s)}" if key.expires_s > now_s else "expired"
