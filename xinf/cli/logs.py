"""`xinf logs`."""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from xinf.cli.options import ConfigFile, DataDir, EngineArgument, Server
from xinf.cli.ps import read_everything
from xinf.cli.session import Session, open_session, run
from xinf.core.errors import InvalidRequest, NotFound, Unavailable
from xinf.core.records import ReplicaRecord

_POLL_S = 0.2
_BLOCK_BYTES = 1 << 16


def logs(
    name: EngineArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, metavar="N", help="How many of the last lines.")] = 100,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """Show the log of an engine: of the only one of a deployment, or of a replica."""
    session = open_session(config, data_dir, server)
    path = find_log(session, name)
    with path.open("rb") as file:
        for line in deque(file, maxlen=lines):
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        while follow:
            while block := file.read(_BLOCK_BYTES):
                sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
            time.sleep(_POLL_S)


def find_log(session: Session, name: str) -> Path:
    """The log file of a deployment's engine or of a replica, also of one that is gone.

    Raises: NotFound, InvalidRequest when the deployment has several engines, Unavailable when it is on another host.
    """
    left = session.config.paths.replicas_dir / name / "engine.log"
    if "/" not in name and left.is_file():
        return left
    found = run(read_everything(session))
    mine = [r for r in found.replicas if name in (r.id, r.deployment)]
    if not mine and (wished := next((record for record in found.deployments if record.name == name), None)):
        why = "it is scaled to 0" if wished.replicas == 0 else "none has been placed yet"
        raise NotFound(f"{name} has no engine: {why}", remedy=f"see `xinf describe {name}`")
    if not mine:
        names = ", ".join(record.name for record in found.deployments)
        raise NotFound(f"there is no deployment {name!r}", remedy=f"these exist: {names}" if names else "none exists")
    if len(mine) > 1:
        raise InvalidRequest(
            f"{name} has {len(mine)} engines", remedy=f"name one: {', '.join(replica.id for replica in mine)}"
        )
    return _path_of(mine[0])


def _path_of(replica: ReplicaRecord) -> Path:
    if replica.log_path is None:
        raise NotFound(
            f"{replica.id} has not been started: {replica.placement_note or replica.phase}",
            remedy=f"see `xinf describe {replica.id}`",
        )
    path = Path(replica.log_path)
    if not path.is_file():
        raise Unavailable(
            f"{replica.id} runs on node {replica.node}, and its log is there: {path}",
            remedy="read it on that host",
            node=replica.node,
        )
    return path
