"""`xinf describe`."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence

import msgspec

from xinf.cli import health, pool
from xinf.cli.caches import cache_text, followed_text, read_caches
from xinf.cli.kind import group_kinds
from xinf.cli.known import Known
from xinf.cli.need import able_devices, plan_devices, read_measured, with_engine
from xinf.cli.options import ConfigFile, DataDir, EngineArgument, Json, Server
from xinf.cli.ps import Everything, read_everything
from xinf.cli.session import open_session, run
from xinf.cli.table import print_json
from xinf.core.errors import NotFound
from xinf.core.records import DeploymentRecord, EngineSpec, MeasuredRecord, MemoryNeed, ReplicaFailure, ReplicaRecord
from xinf.core.units import format_bytes, format_seconds

_LOG_LINES = 15
_NOTE_COLUMNS = 100


class KindNeed(msgspec.Struct, frozen=True, kw_only=True):
    """What each device of some kinds must have: `xinf describe --json`."""

    devices: tuple[str, ...]
    need: MemoryNeed


def describe(
    name: EngineArgument,
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """Show everything known about a deployment or a replica: the wish, where its engines are, timings, failures."""
    session = open_session(config, data_dir, server)
    found = run(read_everything(session))
    deployment, replicas = select(found, name)
    kinds = needs_of(deployment, found, run(read_measured(session))) if deployment is not None else []
    if json:
        print_json({"deployment": deployment, "needs": kinds, "replicas": replicas})
        return
    for line in deployment_lines(deployment, kinds, time.time()) if deployment else ["removed; engines are left"]:
        print(line)
    caches = run(read_caches(session)) if replicas else None
    for replica in replicas:
        print()
        for line in replica_lines(replica, time.time()):
            print(line)
        if caches is not None and (views := caches.views.get(replica.id)):
            print(f"  cache       {cache_text(views)}{followed_text(caches.followed.get(replica.id))}")
        for line in (
            *pool.replica_lines(replica, found.nodes),
            *health.replica_lines(replica, found.nodes, time.time()),
        ):
            print(line)


def select(found: Everything, name: str) -> tuple[DeploymentRecord | None, list[ReplicaRecord]]:
    """The deployment of that name, or the one of the replica of that id. Raises: NotFound naming what exists."""
    owner = next((replica.deployment for replica in found.replicas if replica.id == name), None)
    deployment = next((record for record in found.deployments if record.name in (name, owner)), None)
    replicas = [r for r in found.replicas if r.id == name or (owner is None and r.deployment == name)]
    if deployment is None and not replicas:
        names = ", ".join(record.name for record in found.deployments)
        raise NotFound(f"there is no deployment {name!r}", remedy=f"these exist: {names}" if names else "none exists")
    return deployment, replicas


def needs_of(deployment: DeploymentRecord, found: Everything, measured: Sequence[MeasuredRecord]) -> list[KindNeed]:
    """What a replica would need of the devices that it may get, by kind; nothing where nobody can tell."""
    if deployment.model is None:
        return []
    known = Known(facts=deployment.model, identity=deployment.model_identity)
    nodes = [node for node in found.nodes if deployment.labels.items() <= node.labels.items()]
    devices = able_devices(deployment.spec, deployment.model, with_engine(deployment.spec, nodes))
    kinds = group_kinds(plan_devices(deployment.spec, known, devices, measured))
    return [KindNeed(devices=kind.names, need=kind.plan.need) for kind in kinds]


def deployment_lines(deployment: DeploymentRecord, kinds: Sequence[KindNeed], now_s: float) -> list[str]:
    """The wish, a line each."""
    spec = deployment.spec
    lines = [
        f"{deployment.name}",
        f"  replicas    {deployment.replicas}",
        f"  generation  {deployment.generation}",
        f"  policy      {deployment.policy}",
        f"  placement   {deployment.placement}{', may share devices' * deployment.shares}",
        f"  age         {format_seconds(max(0.0, now_s - deployment.created_s))}",
    ]
    if deployment.owner is not None:
        lines.append(f"  owner       xinf {deployment.owner}, which removes it when it ends")
    if deployment.priority:
        lines.append(f"  priority    {deployment.priority}")
    if deployment.labels:
        lines.append(f"  labels      {' '.join(f'{key}={value}' for key, value in deployment.labels.items())}")
    for number, kind in enumerate(kinds):
        on = f", on {', '.join(kind.devices)}" if len(kinds) > 1 else ""
        lines.append(f"  {'' if number else 'memory':<10}  {need_text(kind.need)}{on}")
    return lines + _spec_lines(spec)


def need_text(need: MemoryNeed) -> str:
    """What each device must have, and of what: `17.9 GiB a device (...), estimated`.

    A cache that is still to be granted is told with what it may become.
    """
    wanted = max(need.kv_wanted_bytes or 0, need.kv_bytes)
    up_to = f" to {format_bytes(wanted)}" if wanted > need.kv_bytes else ""
    of = (
        f"weights {format_bytes(need.weights_bytes)}, KV cache {format_bytes(need.kv_bytes)}{up_to},"
        f" overhead {format_bytes(need.overhead_bytes)}"
    )
    least = " at least" if up_to else ""
    how = "measured" if need.is_measured else "estimated"
    return f"{format_bytes(need.device_bytes)} a device{least} ({of}), {how}"


def replica_lines(replica: ReplicaRecord, now_s: float) -> list[str]:
    """One engine, a line each."""
    from xinf.serve import describe_timings

    lines = [
        f"{replica.id}",
        f"  phase       {replica.phase}{' (to be stopped)' * (replica.target == 'stop')}",
        f"  generation  {replica.generation}",
        f"  node        {replica.node or 'none'}",
        f"  devices     {', '.join(replica.devices) or 'none'}{' (shared)' * replica.shares}",
        *_note_lines(replica.placement_note or "-"),
        f"  restarts    {replica.restarts}",
    ]
    if replica.need is not None:
        lines.append(f"  memory      {need_text(replica.need)}")
    if timings := describe_timings(replica):
        lines.append(f"  timings     {timings}")
    optional = {
        "doing": replica.detail,
        "address": replica.address,
        "pid": replica.pid,
        "log": replica.log_path,
        "context": replica.max_model_len,
        "kv blocks": replica.kv_blocks and f"{replica.kv_blocks} of {replica.block_tokens} tokens",
    }
    lines += [f"  {key:<10}  {value}" for key, value in optional.items() if value]
    if replica.failure is not None:
        lines += _failure_lines(replica.failure, replica.retry_at_s, now_s)
    return lines


def _note_lines(note: str) -> list[str]:
    """Why it is where it is, or is nowhere; as many lines as that takes, a word is never cut."""
    lines = textwrap.wrap(note, _NOTE_COLUMNS, break_long_words=False, break_on_hyphens=False) or ["-"]
    return [f"  placement   {lines[0]}", *(f"              {line}" for line in lines[1:])]


def _spec_lines(spec: EngineSpec) -> list[str]:
    values = {
        "model": spec.model,
        "revision": spec.revision,
        "commit": spec.commit,
        "engine": spec.engine,
        "names": ", ".join(spec.served_names),
        "device": spec.device,
        "dtype": spec.dtype,
        "quantization": spec.quantization,
        "tp size": spec.tensor_parallel_size,
        "context": spec.max_model_len,
        "engine args": " ".join(f"{key}={value}" for key, value in spec.engine_args.items()),
        # Values may be secrets; whoever must see them has --json.
        "environment": " ".join(spec.env),
    }
    return [f"  {key:<11} {value}" for key, value in values.items() if value]


def _failure_lines(failure: ReplicaFailure, retry_at_s: float | None, now_s: float) -> list[str]:
    lines = [
        f"  last failure, {format_seconds(max(0.0, now_s - failure.at_s))} ago: {failure.cause}",
        f"    {failure.message}",
        f"    {failure.remedy}",
    ]
    if retry_at_s is not None:
        lines.append(f"    starts again in {format_seconds(max(0.0, retry_at_s - now_s))}")
    return lines + [f"    | {line}" for line in failure.log_tail[-_LOG_LINES:]]
