"""`xinf devices`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from xinf.cli.options import ConfigFile, DataDir, Json, Server
from xinf.cli.ps import read_everything
from xinf.cli.session import open_session, run
from xinf.cli.table import print_json, print_table
from xinf.core.device import Device, Health
from xinf.core.units import format_bytes

_COLUMNS = ("DEVICE", "NAME", "ARCH", "MEMORY", "DRIVER", "HEALTH", "UUID")


def devices(
    all_: Annotated[bool, typer.Option("--all", "-a", help="Those of every node, as their workers reported.")] = False,
    json: Json = False,
    data_dir: DataDir = None,
    server: Server = None,
    config: ConfigFile = None,
) -> None:
    """List the devices of this host, whether anything runs or not."""
    if all_ or server:
        nodes = run(read_everything(open_session(config, data_dir, server))).nodes
        if json:
            print_json({node.name: node.devices for node in nodes})
            return
        rows = [(node.name, *device_row(device)) for node in nodes for device in node.devices]
        print_table(("NODE", *_COLUMNS), rows)
        _print_reasons([device for node in nodes for device in node.devices])
        return
    from xinf.device import read_inventory

    found = run(read_inventory())
    if json:
        print_json([{"selector": device.selector, **_fields(device)} for device in found])
        return
    print_table(_COLUMNS, [device_row(device) for device in found])
    _print_reasons(found)


def device_row(device: Device) -> tuple[str, ...]:
    """One device; what is not known is a dash."""
    return (
        device.selector,
        device.name,
        device.arch or "-",
        format_bytes(device.memory_bytes) if device.memory_bytes is not None else "-",
        device.driver or "-",
        device.health,
        device.uuid,
    )


def _print_reasons(found: Sequence[Device]) -> None:
    for device in found:
        if device.health is not Health.OK and device.reason:
            print(f"{device.selector}: {device.reason}")


def _fields(device: Device) -> dict[str, object]:
    return {name: getattr(device, name) for name in device.__struct_fields__}
