"""`xinf cordon`, `xinf uncordon` and `xinf drain`: what is done to nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from xinf.cli.options import ConfigFile, DataDir, Json, Server, Timeout
from xinf.cli.screen import Screen
from xinf.cli.session import Session, open_session, run
from xinf.cli.table import print_json
from xinf.core.errors import Conflict, DeadlineExceeded, NotFound
from xinf.core.ids import NodeName
from xinf.core.records import CORDONS, REPLICAS, CordonRecord, NodeRecord, ReplicaRecord
from xinf.core.units import parse_seconds

if TYPE_CHECKING:
    from xinf.meta import Records

_FOR_EVER_S = 1e9

NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="Name of a node.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; shown with everything that waits for it.")]


def cordon(
    node: NodeArgument,
    reason: Reason = "",
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """Give a node no new replicas. Those that are there stay; it holds until `xinf uncordon`, through restarts too."""
    session = open_session(config, data_dir, server)
    record = run(_close(session, node, reason, is_draining=False))
    if json:
        print_json({"cordon": record})
    else:
        print(f"{node} takes no new replicas")


def uncordon(
    node: NodeArgument,
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """Open a node again that was cordoned or drained."""
    was_closed = run(_open(open_session(config, data_dir, server), node))
    if json:
        print_json({"uncordoned": was_closed})
    else:
        print(f"{node} takes replicas again" if was_closed else f"{node} was open already")


def drain(
    node: NodeArgument,
    reason: Reason = "",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until its replicas are gone.")] = False,
    timeout: Timeout = None,
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """Cordon a node and move its replicas to others. One for which there is no other place serves on where it is."""
    session = open_session(config, data_dir, server)
    timeout_s = parse_seconds(timeout) if timeout else _FOR_EVER_S
    record = run(_close(session, node, reason, is_draining=True))
    screen = Screen(typer.get_text_stream("stderr") if json else None)
    try:
        if no_wait:
            screen.line(f"{node} is being drained: `xinf events {node} --follow` tells")
        else:
            run(_wait_empty(session, node, screen, timeout_s))
    finally:
        screen.close()
    if json:
        print_json({"cordon": record})


async def _close(session: Session, node: str, reason: str, *, is_draining: bool) -> CordonRecord:
    from xinf.meta import Records

    async with session.store() as store:
        records = Records(store)
        await _check_known(records, node)
        present = await records.get(CordonRecord, node)
        if present is not None and not reason:
            reason = present[0].reason  # a cordon that becomes a drain is for the same
        record = CordonRecord(node=NodeName(node), is_draining=is_draining, reason=reason, at_s=time.time())
        await records.put(CordonRecord, node, record)
        return record


async def _open(session: Session, node: str) -> bool:
    from xinf.meta import Records

    async with session.store() as store:
        records = Records(store)
        if await records.delete(CordonRecord, node):
            return True
        await _check_known(records, node)
        return False


async def _check_known(records: Records, node: str) -> None:
    """A node that is away is known by what was placed there. Raises: NotFound naming those that are connected."""
    present = [record.name for record, _ in await records.list(NodeRecord)]
    if node in present or any(replica.node == node for replica, _ in await records.list(ReplicaRecord)):
        return
    remedy = f"these are connected: {', '.join(present)}" if present else "none is connected"
    raise NotFound(f"there is no node {node!r}", remedy=remedy)


async def _wait_empty(session: Session, node: str, screen: Screen, timeout_s: float) -> None:
    """Wait until nothing is left on the node, telling what each replica does meanwhile.

    Raises: DeadlineExceeded naming those that are left; Conflict when somebody has ended the draining.
    """
    from xinf.meta import Mirror

    deadline_s = time.monotonic() + timeout_s
    changed = asyncio.Event()
    async with session.store() as store:
        replicas = Mirror(store, REPLICAS, ReplicaRecord)
        cordons = Mirror(store, CORDONS, CordonRecord)
        told: dict[str, str] = {}
        try:
            for mirror in (replicas, cordons):
                await mirror.start()
                mirror.listen(lambda _: changed.set())
            while now := _left(replicas.items, node):
                shown = {**now, **_waiting(replicas.items, node)}
                for name, text in shown.items():
                    if told.get(name) != text:
                        screen.line(f"{name} {text}")
                told = shown
                _check_draining(cordons.get(node), node, now)
                await _wait(changed, deadline_s, node, now, timeout_s)
        finally:
            await replicas.stop()
            await cordons.stop()
    screen.line(f"{node} is empty")


def _left(items: Mapping[str, tuple[ReplicaRecord, int]], node: str) -> dict[str, str]:
    return {name: _state(record) for name, (record, _) in sorted(items.items()) if record.node == node}


def _waiting(items: Mapping[str, tuple[ReplicaRecord, int]], node: str) -> dict[str, str]:
    """Why those that are to take the place of the node's replicas have none themselves."""
    leaving = {record.deployment for record, _ in items.values() if record.node == node}
    return {
        name: f"has no place yet: {record.placement_note}"
        for name, (record, _) in sorted(items.items())
        if record.node is None and record.placement_note and record.deployment in leaving
    }


def _check_draining(cordon: CordonRecord | None, node: str, left: Mapping[str, str]) -> None:
    """Raises: Conflict when nobody moves what is left any more."""
    if cordon is not None and cordon.is_draining:
        return
    what = "was opened again" if cordon is None else "is only cordoned now"
    raise Conflict(
        f"{node} {what} while it was drained; {', '.join(left)} stay there",
        remedy=f"see `xinf events {node}`, and drain it once more if nobody else needs it",
    )


async def _wait(
    changed: asyncio.Event, deadline_s: float, node: str, left: Mapping[str, str], timeout_s: float
) -> None:
    """Wait until something changes. Raises: DeadlineExceeded."""
    try:
        async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
            await changed.wait()
    except TimeoutError:
        raise DeadlineExceeded(
            f"{', '.join(left)} did not leave {node} within {timeout_s:g} s",
            remedy=f"it goes on: see `xinf events {node}`, or end it with `xinf uncordon {node}`",
        ) from None
    changed.clear()


def _state(replica: ReplicaRecord) -> str:
    return f"is {replica.phase}: {replica.placement_note or 'no reason is known'}"
