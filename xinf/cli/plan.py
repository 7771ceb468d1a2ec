"""`xinf plan`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer

from xinf.cli.known import known_of, read_facts_of
from xinf.cli.need import DevicePlan, advice_for, meant_devices, plan_device, read_measured, room_of
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
from xinf.cli.plan_hosts import PlanHost, imagine, read_nodes, read_this_host
from xinf.cli.session import Session, open_session, run
from xinf.cli.table import print_json, print_table
from xinf.cli.verdict import context_note
from xinf.cli.wish import choose_name, make_spec
from xinf.core.device import KIND_OF_VENDOR, Device, Health, Vendor, check_selector, is_selected
from xinf.core.errors import InvalidRequest, NotFound
from xinf.core.model import ModelFacts
from xinf.core.records import EngineSpec, NodeRecord
from xinf.core.units import format_bytes

_COLUMNS = ("DEVICE", "FREE", "WEIGHTS", "KV/REQUEST", "RESERVE", "SUM", "FITS", "CONTEXT", "REQUESTS", "FROM")
_OF_HOST = (
    "its memory is the host's, shared with the processor; an engine alone on it gets for its cache an even part of what"
    " is left, unless it is told another size"
)


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """`xinf plan --json`."""

    model: str
    facts: ModelFacts
    devices: list[DevicePlan]
    advice: dict[str, tuple[str, ...]]  # by kind, with --all by node/kind


def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, directory, or `scripted`.")],
    device: Annotated[
        str,
        typer.Option("--device", metavar="DEVICE", help="Only these: cuda:0, cuda, cpu, a UUID, several with commas."),
    ] = "all",
    max_model_len: MaxModelLen = None,
    dtype: DtypeOption = "auto",
    quantization: Quantization = None,
    tensor_parallel_size: TensorParallelSize = 1,
    max_num_seqs: Annotated[
        int | None, typer.Option("--max-num-seqs", min=1, metavar="N", help="Requests at once (default: the engine's).")
    ] = None,
    engine_arg: EngineArgs = None,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="CARDS", help="Cards that are not here: h100, 8xh200, rtx-5090,2xl4 ..."),
    ] = None,
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
    With --on, a row for each host that is imagined: what each of its cards would hold.
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
    if device not in ("all", "auto"):
        device = check_selector(device)
    is_all = all_ or server is not None or on is not None
    if on is not None and (all_ or device != "all"):
        raise InvalidRequest("--on stands for the devices: leave out --device and --all", param="on")
    planned = run(_plan(session, spec, device, on=on, is_all=is_all, name=model))
    if json:
        print_json(planned)
        return
    print(describe_model(planned.model, planned.facts))
    print()
    print_table(("NODE", *_COLUMNS) if is_all else _COLUMNS, [row(made, with_node=is_all) for made in planned.devices])
    for line in notes(planned):
        print(line)
    if (said := context_note(spec, planned.facts)) is not None:
        print(said)


async def _plan(session: Session, spec: EngineSpec, device: str, *, on: str | None, is_all: bool, name: str) -> Planned:
    hosts = await _read_hosts(session, on=on, is_all=is_all)
    facts = await asyncio.to_thread(read_facts_of, session.config, spec)
    known = known_of(spec, facts)
    measured = {record.fingerprint: record for record in await read_measured(session)}
    shown: list[DevicePlan] = []
    advice: dict[str, tuple[str, ...]] = {}
    for host in hosts:
        made: list[DevicePlan] = []
        for one in _chosen(host.node, spec, device):
            free = host.free_bytes.get(one.uuid)
            made.append(plan_device(spec, known, host.node, one, free_bytes=free, measured=measured))
        shown += made[:1] if host.is_imagined else made  # its cards are equal
        for key, group in _groups(made, with_node=is_all).items():
            if sentences := _advice(spec, facts, group):
                advice[key] = sentences
    if not hosts:
        raise NotFound(
            "no worker is connected", remedy="start one with `xinf worker`, or leave out --all for this host"
        )
    if not shown:
        working = [one.selector for host in hosts for one in host.node.devices if one.health is Health.OK]
        has = ", ".join(dict.fromkeys(working)) or "none"
        raise NotFound(f"there is no device {device} here that works", remedy=f"there are: {has}; see `xinf devices`")
    return Planned(model=name, facts=facts, devices=shown, advice=advice)


async def _read_hosts(session: Session, *, on: str | None, is_all: bool) -> list[PlanHost]:
    if on is not None:
        return imagine(on)
    return await read_nodes(session) if is_all else [await read_this_host(session)]


def _advice(spec: EngineSpec, facts: ModelFacts, group: Sequence[DevicePlan]) -> tuple[str, ...]:
    """What would fit on devices that one replica could be spread over; nothing if it fits, or if nobody can tell."""
    able = [one for one in group if one.refusal is None]
    n_needed = 1 if group[0].device.vendor is Vendor.CPU else spec.tensor_parallel_size
    if not able or sum(one.fit is not None and one.fit.fits for one in able) >= n_needed:
        return ()
    sentences = list(advice_for(spec, facts, able))
    if len(able) < n_needed:
        sentences.insert(0, f"--tensor-parallel-size {n_needed} needs {n_needed} devices, there are {len(able)}")
    if (more := _more_of(spec, facts, able)) is not None:
        sentences.append(more)
    if not sentences and any(one.fit is not None for one in able):
        sentences.append("nothing that is known here makes it fit")
    return tuple(sentences)


def _more_of(spec: EngineSpec, facts: ModelFacts, group: Sequence[DevicePlan]) -> str | None:
    """How many devices like the largest of these would do, if these are too few."""
    from xinf.registry import choose_options, count_needed

    largest = max(group, key=lambda made: made.free_bytes or 0)
    room = room_of(largest)
    if room is None or largest.plan is None:
        return None
    found = count_needed(facts, choose_options(spec, largest.device), room)
    if found is None or found.tensor_parallel_size <= len(group):
        return None
    size = found.tensor_parallel_size
    return (
        f"{size} such devices would do: --tensor-parallel-size {size} needs {format_bytes(found.device_bytes)} of each"
    )


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
    free = "-" if made.free_bytes is None else format_bytes(made.free_bytes) + " shared" * made.device.is_unified
    cells = ["-"] * 8
    if planned is not None:
        sizes = (planned.weights_bytes, planned.kv_bytes, planned.overhead_bytes, planned.device_bytes)
        cells[:4] = [format_bytes(size) for size in sizes]
        cells[7] = "measured" if planned.is_measured else "estimate"
    if fit is not None:
        cells[4] = "yes" if fit.fits and made.refusal is None else "no"
    if fit is not None and made.refusal is None:
        cells[5] = "-" if fit.largest_context_tokens is None else str(fit.largest_context_tokens)
        cells[6] = "-" if fit.concurrency is None else f"{fit.concurrency:.1f}"
    node = (made.node,) if with_node else ()
    return (*node, made.device.selector, free, *cells)


def notes(planned: Planned) -> list[str]:
    """Why a device has no plan or cannot run it, and what would fit."""
    of_note: dict[str, list[str]] = {}
    refused: dict[str, list[str]] = {}
    for made in planned.devices:
        if made.note:
            of_note.setdefault(made.note, []).append(made.device.selector)
        if made.refusal is not None:
            refused.setdefault(made.refusal, []).append(
                f"{made.device.selector} on {made.node}" if made.node else made.device.selector
            )
    if unified := [made.device.selector for made in planned.devices if made.device.is_unified]:
        of_note[_OF_HOST] = unified
    lines = [f"{', '.join(dict.fromkeys(selectors))}: {note}" for note, selectors in of_note.items()]
    lines += [f"{', '.join(where)} cannot run it: {why}" for why, where in refused.items()]
    for kind, advice in planned.advice.items():
        is_new = [all(not note.startswith(sentence) for note in of_note) for sentence in advice]
        lines += [f"{kind}: {sentence}" for sentence, new in zip(advice, is_new, strict=True) if new]
    return ["", *dict.fromkeys(lines)] if lines else []


def _chosen(node: NodeRecord, spec: EngineSpec, selector: str) -> list[Device]:
    if selector in ("all", "auto"):
        meant = _every_kind(node) if selector == "all" else selector
        return [one for _, one in meant_devices(msgspec.structs.replace(spec, device=meant), [node])]
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


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 10**8 else f"{count / 1e6:.1f} M"
