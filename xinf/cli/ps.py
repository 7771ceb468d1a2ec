"""`xinf ps`."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer

from xinf.cli.caches import Views, cache_text, read_caches
from xinf.cli.options import ConfigFile, DataDir, Json, Server
from xinf.cli.session import Session, open_session, run
from xinf.cli.table import print_json, print_table
from xinf.core.records import CordonRecord, DeploymentRecord, NodeRecord, Phase, ReplicaRecord
from xinf.core.units import format_seconds

_DEPLOYMENT_COLUMNS = ("NAME", "MODEL", "ENGINE", "READY", "DEVICE", "PHASE", "RESTARTS", "AGE")
_REPLICA_COLUMNS = ("REPLICA", "NODE", "DEVICE", "PHASE", "CACHE", "GENERATION", "RESTARTS", "PID", "AGE")


class Everything(msgspec.Struct, frozen=True, kw_only=True):
    """All records that `ps` and `describe` show."""

    deployments: tuple[DeploymentRecord, ...]
    replicas: tuple[ReplicaRecord, ...]
    nodes: tuple[NodeRecord, ...]
    cordons: tuple[CordonRecord, ...] = ()


class Listed(Everything, frozen=True, kw_only=True):
    """The same, and what the gateway says: `xinf ps --json`."""

    caches: Views


def ps(
    replicas: Annotated[
        bool, typer.Option("--replicas", "-r", help="One line per engine as well; CACHE: how well it is known.")
    ] = False,
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """List deployments: what is wished for, what is there, and why not."""
    session = open_session(config, data_dir, server)
    found = run(read_everything(session))
    caches = run(read_caches(session)).views if found.replicas and (replicas or json) else {}
    if json:
        known: Views = {replica.id: caches[replica.id] for replica in found.replicas if replica.id in caches}
        print_json(Listed(**msgspec.structs.asdict(found), caches=known))
        return
    now_s = time.time()
    if not found.deployments and not found.replicas:
        print("nothing is deployed: `xinf launch --model MODEL`")
    else:
        print_table(_DEPLOYMENT_COLUMNS, deployment_rows(found, now_s))
    if replicas and found.replicas:
        print()
        rows = [replica_row(replica, cache_text(caches.get(replica.id)), now_s) for replica in found.replicas]
        print_table(_REPLICA_COLUMNS, rows)
    for line in notes(found, now_s):
        print(line)


async def read_everything(session: Session) -> Everything:
    """Read the store."""
    from xinf.meta import Records

    async with session.store() as store:
        records = Records(store)
        return Everything(
            deployments=tuple(record for record, _ in await records.list(DeploymentRecord)),
            replicas=tuple(record for record, _ in await records.list(ReplicaRecord)),
            nodes=tuple(record for record, _ in await records.list(NodeRecord)),
            cordons=tuple(record for record, _ in await records.list(CordonRecord)),
        )


def deployment_rows(found: Everything, now_s: float) -> list[Sequence[str]]:
    """One row per deployment, and one per deleted deployment that still has engines."""
    rows: list[Sequence[str]] = []
    for deployment in found.deployments:
        mine = [replica for replica in found.replicas if replica.deployment == deployment.name]
        rows.append(
            (
                deployment.name,
                deployment.spec.model,
                deployment.spec.engine,
                f"{_count_ready(mine)}/{deployment.replicas}",
                _devices(mine) or deployment.spec.device,
                _phases(mine) if mine or deployment.replicas else "scaled to 0",
                str(sum(replica.restarts for replica in mine)),
                format_seconds(max(0.0, now_s - deployment.created_s)),
            )
        )
    known = {deployment.name for deployment in found.deployments}
    for name in sorted({replica.deployment for replica in found.replicas} - known):
        mine = [replica for replica in found.replicas if replica.deployment == name]
        spec = mine[0].spec
        age = format_seconds(max(0.0, now_s - min(replica.created_s for replica in mine)))
        rows.append((name, spec.model, spec.engine, f"{_count_ready(mine)}/0", _devices(mine), "removed", "0", age))
    return rows


def replica_row(replica: ReplicaRecord, cache: str, now_s: float) -> Sequence[str]:
    """One engine. `cache`: how well it is known."""
    return (
        replica.id,
        replica.node or "-",
        ",".join(replica.devices) or "-",
        replica.phase,
        cache,
        str(replica.generation),
        str(replica.restarts),
        str(replica.pid or "-"),
        format_seconds(max(0.0, now_s - replica.created_s)),
    )


def notes(found: Everything, now_s: float) -> list[str]:
    """What is not as it should be, a line each."""
    lines = []
    waiting: dict[tuple[str, str], list[ReplicaRecord]] = {}
    if not found.nodes:
        lines.append("no worker is connected: start one with `xinf worker`")
    for cordon in found.cordons:
        what = "is being drained" if cordon.is_draining else "takes no new replicas"
        why = f" ({cordon.reason})" if cordon.reason else ""
        lines.append(f"node {cordon.node} {what}{why}: `xinf uncordon {cordon.node}` opens it again")
    for replica in found.replicas:
        failure = replica.failure
        if replica.phase is Phase.FAILED and failure is not None:
            wait_s = max(0.0, (replica.retry_at_s or now_s) - now_s)
            again = f", again in {format_seconds(wait_s)}" if replica.target == "run" else ""
            lines.append(f"{replica.id}: failed ({failure.cause}){again}: {failure.message}; {failure.remedy}")
        elif replica.phase is Phase.PENDING and replica.placement_note and found.nodes:
            waiting.setdefault((replica.deployment, _SIZE.sub("", replica.placement_note)), []).append(replica)
        elif replica.detail is not None and replica.phase in (Phase.STARTING, Phase.LOADING):
            lines.append(f"{replica.id}: {replica.phase}: {replica.detail}")
        elif replica.phase is not Phase.READY and failure is not None:
            lines.append(f"{replica.id}: {replica.phase} after a failure ({failure.cause}): {failure.message}")
        if replica.node is not None and found.nodes and replica.node not in {node.name for node in found.nodes}:
            lines.append(f"{replica.id}: its node {replica.node} is away")
    return lines + [_not_placed(alike) for alike in waiting.values()]


# Memory that others use moves all the time, and what waits is told seldom: the same reason with other sizes is one.
_SIZE = re.compile(r"\d+(\.\d+)? [KMGTP]?i?B\b")


def _not_placed(alike: Sequence[ReplicaRecord]) -> str:
    """One line for all that wait for the same, however many were wished for."""
    first = alike[0]
    more = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
    return f"{first.id}{more}: not placed: {first.placement_note}"


def _count_ready(replicas: Sequence[ReplicaRecord]) -> int:
    return sum(replica.phase is Phase.READY for replica in replicas)


def _devices(replicas: Sequence[ReplicaRecord]) -> str:
    places = Counter(f"{r.node}:{','.join(r.devices)}" for r in replicas if r.node is not None)
    return " ".join(place if count == 1 else f"{place} x{count}" for place, count in sorted(places.items()))


def _phases(replicas: Sequence[ReplicaRecord]) -> str:
    counts = Counter(replica.phase for replica in replicas)
    if not counts:
        return Phase.PENDING
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{counts[phase]} {phase}" for phase in Phase if phase in counts)
