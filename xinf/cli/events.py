"""`xinf events`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Annotated

import msgspec
import typer

from xinf.cli.options import ConfigFile, DataDir, Json, Server
from xinf.cli.session import Session, open_session, run
from xinf.cli.table import plain, print_json
from xinf.core.errors import Compacted
from xinf.core.ids import Revision
from xinf.core.records import EVENTS, EventRecord, decode_record


def events(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Of a deployment, a replica, a node or a device (cuda:0, node-a/cuda:0, a UUID); without: all.",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens from now on.")] = False,
    last: Annotated[int, typer.Option("--last", "-n", min=0, metavar="N", help="How many of the last ones.")] = 50,
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """Show what happened to replicas, devices and nodes, the latest at the end.

    With --follow and --json: one JSON object a line.
    """
    session = open_session(config, data_dir, server)
    show = _show_json_line if json else _show_line
    found, revision = run(read_events(session))
    chosen = [event for event in found if name is None or concerns(event, name)]
    chosen = chosen[len(chosen) - min(last, len(chosen)) :]
    if json and not follow:
        print_json(chosen)
        return
    for event in chosen:
        show(event)
    if not chosen and last and not json:
        # The name may be that of something which is gone, and its events with it.
        sys.stderr.write("no events\n" if name is None else f"no events of {name!r}; `xinf events` shows all\n")
    if follow:
        run(_follow(session, revision, lambda event: show(event) if name is None or concerns(event, name) else None))


async def read_events(session: Session) -> tuple[list[EventRecord], Revision]:
    """All events in order of time, and the revision of the store at which there were no others."""
    async with session.store() as store:
        listing = await store.list(EVENTS)
    return [decode_record(kv.value, EventRecord, key=kv.key) for kv in listing.items], listing.revision


def concerns(event: EventRecord, name: str) -> bool:
    """Whether an event is about this node, device, replica, or a replica of this deployment.

    A device is known by its UUID, by its name on any node (`cuda:0`) or on one (`node-a/cuda:0`).
    """
    names = (event.object, event.node, event.deployment, event.device_uuid, f"{event.node}/{event.object}")
    return name in names


def event_line(event: EventRecord) -> str:
    """One event for a person: when, what, to whom, where, why, and how often."""
    at = time.strftime("%m-%d %H:%M:%S", time.localtime(event.at_s))
    where = "" if event.node in (None, event.object) else f" on {event.node}"
    often = f" ({event.count} times)" if event.count > 1 else ""
    return f"{at}  {event.kind:<15}  {event.object}{where}: {event.message}{often}"


def _show_line(event: EventRecord) -> None:
    print(event_line(event), flush=True)


def _show_json_line(event: EventRecord) -> None:
    sys.stdout.write(msgspec.json.encode(plain(event)).decode() + "\n")
    sys.stdout.flush()


async def _follow(session: Session, revision: Revision, show: Callable[[EventRecord], None]) -> None:
    async with session.store() as store:
        while True:
            try:
                async for batch in store.watch(EVENTS, Revision(revision + 1)):
                    for change in batch.events:
                        if change.kv is not None:
                            show(decode_record(change.kv.value, EventRecord, key=change.key))
                    revision = batch.revision
            except Compacted:
                # So much has happened since that its history is gone; go on from now.
                revision = (await store.list(EVENTS)).revision
