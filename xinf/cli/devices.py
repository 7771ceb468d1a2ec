"""`xinf devices`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec
import typer

from xinf.cli import pool
from xinf.cli.compat import print_compat
from xinf.cli.health import device_lines
from xinf.cli.options import ConfigFile, DataDir, DtypeOption, Engine, Json, Quantization, Server
from xinf.cli.ps import read_everything
from xinf.cli.session import Session, open_session, run
from xinf.cli.table import print_json, print_table
from xinf.core.device import Device, Dtype, Support
from xinf.core.ids import NodeName
from xinf.core.records import NodeRecord
from xinf.core.units import format_bytes

_COLUMNS = ("DEVICE", "NAME", "ARCH", "MEMORY", "DTYPES", "DRIVER", "HEALTH", "UUID")
_MARKS = {Support.NATIVE: "", Support.WEIGHT_ONLY: "*", Support.UNKNOWN: "?"}
_FP8 = (Dtype.FP8_E4M3, Dtype.FP8_E5M2)


def devices(
    all_: Annotated[bool, typer.Option("--all", "-a", help="Those of every node, as their workers reported.")] = False,
    compat: Annotated[
        str | None, typer.Option("--compat", metavar="MODEL", help="Say which of them can run a model, and how.")
    ] = None,
    engine: Engine = "vllm",
    dtype: DtypeOption = "auto",
    quantization: Quantization = None,
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """List the devices of this host, whether anything runs or not, and what they compute in.

    DTYPES: the types its units take; `*` marks those that weights may be stored in and are widened from, `?` those that
    no source says anything of. With --compat: which devices can run a model, from the tables that came with xinf.
    """
    session = open_session(config, data_dir, server)
    is_remote = bool(all_ or server)
    if is_remote:
        nodes = run(read_everything(session)).nodes
    else:
        nodes = (these_devices(session) if compat is None else this_host(session),)
    if compat is not None and (nodes or json):
        print_compat(
            session.config, nodes, model=compat, engine=engine, dtype=dtype, quantization=quantization, json=json
        )
        return
    if json:
        listed = {node.name: [_fields(device) for device in node.devices] for node in nodes}
        print_json(listed if is_remote else listed[nodes[0].name])
        return
    if not nodes:
        print("no worker is connected: start one with `xinf worker`")
        return
    found = [device for node in nodes for device in node.devices]
    if is_remote:
        rows = [(node.name, *device_row(device)) for node in nodes for device in node.devices]
        print_table(("NODE", *_COLUMNS), rows)
    else:
        print_table(_COLUMNS, [device_row(device) for device in found])
    _print_legend(found)
    for line in (*pool.node_lines(nodes), *device_lines(nodes, time.time())):
        print(line)


def this_host(session: Session) -> NodeRecord:
    """What a worker would tell of this host."""
    from xinf.agent import engines_dir, find_environments

    environments = find_environments(engines_dir(session.config.agent))
    return msgspec.structs.replace(these_devices(session), environments=environments)


def these_devices(session: Session) -> NodeRecord:
    """The devices alone of this host: what engines are installed costs a look into each of them."""
    from xinf.agent import list_devices

    return NodeRecord(name=NodeName(""), address="", devices=run(list_devices(session.config)), environments=())


def device_row(device: Device) -> tuple[str, ...]:
    """One device; what is not known is a dash."""
    return (
        device.selector,
        device.name,
        device.arch or "-",
        memory_cell(device),
        dtypes_cell(_levels(device)),
        device.driver or "-",
        device.health,
        device.uuid,
    )


def memory_cell(device: Device) -> str:
    """How much memory it has; `shared`: with the processor."""
    if device.memory_bytes is None:
        return "-"
    shared = " shared" if device.is_unified else ""
    return format_bytes(device.memory_bytes) + shared


def dtypes_cell(levels: Mapping[Dtype, Support]) -> str:
    """`fp32 fp16 int8 int4* fp8?`: what is not there is left out, both FP8 are one where they are alike."""
    if all(level is Support.UNKNOWN for level in levels.values()):
        return "-"
    is_fp8_one = levels[_FP8[0]] is levels[_FP8[1]]
    words = []
    for dtype, level in levels.items():
        if level is Support.NONE or (is_fp8_one and dtype is _FP8[1]):
            continue
        name = "fp8" if is_fp8_one and dtype is _FP8[0] else dtype.value
        words.append(name + _MARKS[level])
    return " ".join(words) or "none"


def _levels(device: Device) -> dict[Dtype, Support]:
    from xinf.registry import capabilities

    return capabilities(device)


def _print_legend(found: Iterable[Device]) -> None:
    cells = " ".join(dtypes_cell(_levels(device)) for device in found)
    told = [text for mark, text in (("*", "* weights only"), ("?", "? no source says")) if mark in cells]
    if told:
        print(f"DTYPES: {', '.join(told)}")


def _fields(device: Device) -> dict[str, object]:
    fields: dict[str, object] = {name: getattr(device, name) for name in device.__struct_fields__}
    capabilities = {dtype.value: level.value for dtype, level in _levels(device).items()}
    return {"selector": device.selector, **fields, "capabilities": capabilities}
