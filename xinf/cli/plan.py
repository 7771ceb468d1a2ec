"""`xinf plan`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
import typer

from xinf.cli.known import known_of, read_facts_of
from xinf.cli.need import DevicePlan, advice_for, meant_devices, plan_device, read_measured
from xinf.cli.options import (
    ConfigFile,
    DataDir,
    DtypeOption,
    EngineArgs,
    Json,
    MaxModelLen,
    Quantization,
    Server,
    Settings,
    TensorParallelSize,
)
from xinf.cli.session import Session, open_session, run
from xinf.cli.table import print_json, print_table
from xinf.cli.wish import choose_name, make_spec
from xinf.core.device import KIND_OF_VENDOR, Device, Health, check_selector, is_selected
from xinf.core.errors import NotFound
from xinf.core.model import ModelFacts
from xinf.core.records import EngineSpec, NodeRecord, Phase, ReplicaRecord
from xinf.core.units import format_bytes

_COLUMNS = ("DEVICE", "FREE", "WEIGHTS", "KV/REQUEST", "RESERVE", "SUM", "FITS", "CONTEXT", "REQUESTS", "FROM")


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """`xinf plan --json`."""

    model: str
    facts: ModelFacts
    devices: list[DevicePlan]
    advice: dict[str, tuple[str, ...]]  # by kind, with --all by node/kind


class _Host(msgspec.Struct, frozen=True, kw_only=True):
    """A node, and what is free on its devices by UUID."""

    node: NodeRecord
    free_bytes: Mapping[str, int]


def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, directory, or `scripted`.")],
    device: Annotated[
        str, typer.Option("--device", help="Only these: cuda:0, cuda, cpu, a UUID, several with commas.")
    ] = "all",
    max_model_len: MaxModelLen = None,
    dtype: DtypeOption = "auto",
    quantization: Quantization = None,
    tensor_parallel_size: TensorParallelSize = 1,
    max_num_seqs: Annotated[
        int | None, typer.Option("--max-num-seqs", min=1, help="Requests at once (default: the engine's).")
    ] = None,
    engine_arg: EngineArgs = None,
    all_: Annotated[
        bool, typer.Option("--all", "-a", help="The devices of every node, as they were reported.")
    ] = False,
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Say what a model takes of each device and whether that is free, without loading or downloading it.

    KV/REQUEST: of one request of the longest context. RESERVE: activations, graphs, the runtime's own. CONTEXT: the
    longest that fits; REQUESTS: of full length, at once. FROM: an estimate, or what an earlier load really took.
    """
    session = open_session(config, data_dir, server, settings=settings)
    arguments = list(engine_arg or ())
    if max_num_seqs is not None:
        arguments.append(f"max_num_seqs={max_num_seqs}")
    spec = make_spec(
        session.config,
        model=model,
        engine="vllm",
        name=choose_name(None, model),
        served_names=(),
        device="auto",
        dtype=dtype,
        quantization=quantization,
        tensor_parallel_size=tensor_parallel_size,
        max_model_len=max_model_len,
        trust_remote_code=False,
        engine_args=arguments,
        env=(),
    )
    if device != "all":
        check_selector(device)
    is_all = all_ or server is not None
    planned = run(_plan(session, spec, device, is_all=is_all, name=model))
    if json:
        print_json(planned)
        return
    print(describe_model(planned.model, planned.facts))
    print()
    print_table(("NODE", *_COLUMNS) if is_all else _COLUMNS, [row(made, with_node=is_all) for made in planned.devices])
    for line in notes(planned):
        print(line)


async def _plan(session: Session, spec: EngineSpec, device: str, *, is_all: bool, name: str) -> Planned:
    facts = await asyncio.to_thread(read_facts_of, session.config, spec)
    known = known_of(spec, facts)
    hosts = await _read_hosts(session) if is_all else [await _read_this_host(session)]
    measured = {record.fingerprint: record for record in await read_measured(session)}
    made: list[DevicePlan] = []
    for host in hosts:
        for one in _chosen(host.node, spec, device):
            free = host.free_bytes.get(one.uuid)
            made.append(plan_device(spec, known, host.node, one, free_bytes=free, measured=measured))
    if not made:
        has = ", ".join(one.selector for host in hosts for one in host.node.devices) or "none"
        raise NotFound(f"there is no device {device} here that works", remedy=f"there are: {has}; see `xinf devices`")
    advice: dict[str, tuple[str, ...]] = {}
    for key, group in _groups(made, with_node=is_all).items():
        if not any(one.fit is not None and one.fit.fits for one in group):
            advice[key] = advice_for(spec, facts, group)
    return Planned(model=name, facts=facts, devices=made, advice=advice)


def describe_model(name: str, facts: ModelFacts) -> str:
    """One line on the model."""
    parts = []
    if facts.n_parameters is not None:
        parts.append(f"{_billions(facts.n_parameters)} parameters")
        if facts.n_active_parameters is not None:
            parts[-1] += f" ({_billions(facts.n_active_parameters)} active)"
    if facts.weight_bytes is not None:
        parts.append(f"{format_bytes(facts.weight_bytes)} stored")
    parts.append(facts.quantization.method if facts.quantization is not None else facts.dtype or "dtype not said")
    if facts.context_tokens is not None:
        parts.append(f"context {facts.context_tokens}")
    return f"{name}: {', '.join(parts)}"


def row(made: DevicePlan, *, with_node: bool) -> tuple[str, ...]:
    """One device; what is not known is a dash."""
    fit, planned = made.fit, made.plan
    free = "-" if made.free_bytes is None else format_bytes(made.free_bytes)
    cells = ["-"] * 8
    if planned is not None:
        sizes = (planned.weights_bytes, planned.kv_bytes, planned.overhead_bytes, planned.device_bytes)
        cells[:4] = [format_bytes(size) for size in sizes]
        cells[7] = "measured" if planned.is_measured else "estimate"
    if fit is not None:
        cells[4] = "yes" if fit.fits else "no"
        cells[5] = "-" if fit.largest_context_tokens is None else str(fit.largest_context_tokens)
        cells[6] = "-" if fit.concurrency is None else f"{fit.concurrency:.1f}"
    node = (made.node,) if with_node else ()
    return (*node, made.device.selector, free, *cells)


def notes(planned: Planned) -> list[str]:
    """Why a device has no plan, and what would fit."""
    lines = [f"{made.device.selector}: {made.note}" for made in planned.devices if made.note]
    for kind, advice in planned.advice.items():
        lines += [f"{kind}: {sentence}" for sentence in advice]
        if not advice and any(made.fit is not None for made in planned.devices):
            lines.append(f"{kind}: nothing that is known here makes it fit")
    return ["", *dict.fromkeys(lines)] if lines else []


def _chosen(node: NodeRecord, spec: EngineSpec, selector: str) -> list[Device]:
    if selector == "all":
        return [one for _, one in meant_devices(msgspec.structs.replace(spec, device=_every_kind(node)), [node])]
    parts = selector.split(",")
    return [one for one in node.devices if one.health is Health.OK and any(is_selected(one, part) for part in parts)]


def _every_kind(node: NodeRecord) -> str:
    return ",".join(dict.fromkeys(KIND_OF_VENDOR[one.vendor] for one in node.devices))


def _groups(made: Sequence[DevicePlan], *, with_node: bool) -> dict[str, list[DevicePlan]]:
    """Devices that one replica could be spread over."""
    groups: dict[str, list[DevicePlan]] = {}
    for one in made:
        kind = KIND_OF_VENDOR[one.device.vendor]
        groups.setdefault(f"{one.node}/{kind}" if with_node else kind, []).append(one)
    return groups


async def _read_this_host(session: Session) -> _Host:
    """Probe this host: devices, engine environments, and what is free now."""
    from xinf.agent import describe_node
    from xinf.device import read_once

    node = await describe_node(session.config)
    readings = await read_once({one.vendor for one in node.devices})
    samples = (sample for reading in readings for sample in reading.samples)
    free = {sample.uuid: sample.memory_free_bytes for sample in samples if sample.memory_free_bytes is not None}
    return _Host(node=node, free_bytes=free)


async def _read_hosts(session: Session) -> list[_Host]:
    """The nodes of the server. Free is what others and the replicas placed there leave, as far as that is known."""
    from xinf.meta import Records

    async with session.store() as store:
        records = Records(store)
        nodes = [record for record, _ in await records.list(NodeRecord)]
        replicas = [record for record, _ in await records.list(ReplicaRecord)]
    return [_Host(node=node, free_bytes=free_on(node, replicas)) for node in nodes]


def free_on(node: NodeRecord, replicas: Sequence[ReplicaRecord]) -> dict[str, int]:
    """What is left of each device of a node. A replica whose need nobody knows has its devices for itself."""
    free = {one.uuid: one.memory_bytes for one in node.devices if one.memory_bytes is not None}
    for uuid, n_bytes in node.foreign_bytes.items():
        if uuid in free:
            free[uuid] -= n_bytes
    for replica in replicas:
        if replica.node != node.name or replica.phase is Phase.STOPPED:
            continue
        need = replica.need
        for one in node.devices:
            if one.uuid in free and (one.uuid in replica.device_uuids or one.selector in replica.devices):
                is_shared = one.uuid not in replica.device_uuids
                free[one.uuid] = free[one.uuid] - need.device_bytes if need else free[one.uuid] if is_shared else 0
    return {uuid: max(0, n_bytes) for uuid, n_bytes in free.items()}


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 10**8 else f"{count / 1e6:.1f} M"
