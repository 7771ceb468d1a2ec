"""`xinf stop` and `xinf scale`: what is done to deployments that exist."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import typer

from xinf.cli.names import complete_deployments
from xinf.cli.options import ConfigFile, DataDir, DeploymentArgument, Json, Server, Timeout
from xinf.cli.screen import Screen
from xinf.cli.session import Session, open_session, run
from xinf.cli.table import print_json
from xinf.core.errors import InvalidRequest, NotFound
from xinf.core.records import DeploymentRecord
from xinf.core.units import parse_seconds

_STOP_MARGIN_S = 30.0


def stop(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Names of deployments.", autocompletion=complete_deployments),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every deployment.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until its engines are gone.")] = False,
    timeout: Timeout = None,
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """Remove deployments: their engines end what they are doing, then stop."""
    if bool(names) == all_:
        raise typer.BadParameter("give one or more NAMEs, or --all")
    session = open_session(config, data_dir, server)
    timeout_s = parse_seconds(timeout) if timeout else session.config.agent.drain_timeout + _STOP_MARGIN_S
    screen = Screen(typer.get_text_stream("stderr") if json else None)
    try:
        stopped = run(_stop(session, names or [], screen, must_wait=not no_wait, timeout_s=timeout_s))
    finally:
        screen.close()
    if json:
        print_json({"stopped": stopped})


def scale(
    name: DeploymentArgument,
    replicas: Annotated[int, typer.Argument(metavar="N", min=0, help="How many engines.")],
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until they are ready.")] = False,
    timeout: Timeout = None,
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """Change how many engines a deployment has."""
    session = open_session(config, data_dir, server)
    timeout_s = parse_seconds(timeout) if timeout else None
    screen = Screen(typer.get_text_stream("stderr") if json else None)
    try:
        record = run(_scale(session, name, replicas, screen, must_wait=not no_wait, timeout_s=timeout_s))
    finally:
        screen.close()
    if json:
        print_json({"deployment": record})


async def _stop(session: Session, names: list[str], screen: Screen, *, must_wait: bool, timeout_s: float) -> list[str]:
    from xinf.meta import Records
    from xinf.serve import Follower, remove_deployment

    async with session.store() as store:
        records = Records(store)
        present = {record.name: record for record, _ in await records.list(DeploymentRecord)}
        chosen = names or list(present)
        for name in chosen:
            await remove_deployment(records, name)
        for name in chosen if must_wait else ():
            record = present.get(name)  # type: ignore[call-overload]  # a NewType of str
            if record is None:
                continue
            async with Follower(store, record, since_s=time.time()) as follower:
                async for replica in follower.until_gone(timeout_s):
                    screen.status(f"{replica.id} is {replica.phase}")
            screen.line(f"{name} is stopped")
        if not chosen:
            screen.line("nothing is deployed")
        return list(chosen)


async def _scale(
    session: Session, name: str, replicas: int, screen: Screen, *, must_wait: bool, timeout_s: float | None
) -> DeploymentRecord:
    from xinf.meta import Records
    from xinf.scheduler import rules_of
    from xinf.serve import Follower

    if replicas < 0:
        raise InvalidRequest(f"{replicas} replicas cannot be")
    async with session.store() as store:
        records = Records(store)
        since_s = time.time()
        try:
            record, _ = await records.update(
                DeploymentRecord, name, lambda present: msgspec.structs.replace(present, replicas=replicas)
            )
        except NotFound:
            names = ", ".join(record.name for record, _ in await records.list(DeploymentRecord))
            raise NotFound(
                f"there is no deployment {name!r}", remedy=f"these exist: {names}" if names else "none exists"
            ) from None
        screen.line(f"{name} is to have {replicas} replica{'s' * (replicas != 1)}")
        if must_wait:
            rules = rules_of(session.config)
            async with Follower(store, record, since_s=since_s, rules=rules) as follower:
                async for step in follower.until_ready(timeout_s, screen.status):
                    screen.step(step)
            screen.status("")
        return record
