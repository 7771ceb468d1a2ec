"""Asks every vendor that the host seems to have, each in a child process of its own with a deadline.

A library that hangs, crashes or prints nonsense costs its vendor's answer and nothing else: the cards that the PCI bus
shows are then recorded as silent, with what happened as the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from xinf.core.device import Device, Health, Vendor
from xinf.device.offspring import in_words, start_child, with_words
from xinf.device.pci import find_pci_functions, without_driver
from xinf.device.probe import IN_PROCESS, PROBES, find_present
from xinf.device.reading import Inventory
from xinf.device.topology import overlay, read_topology

DEADLINE_S = 15.0  # a first NVML start after boot without persistence mode takes up to about ten seconds


async def read_host(
    *, deadline_s: float = DEADLINE_S, root: Path = Path("/"), environ: Mapping[str, str] | None = None
) -> Inventory:
    """List the host's devices, accelerators first, and their distances.

    Never raises because of a device; takes at most `deadline_s` and a second.
    """
    answers = await asyncio.gather(*(_ask(vendor, deadline_s, root, environ) for vendor in find_present(root)))
    devices = tuple(device for answer in answers for device in answer.devices)
    topology = overlay(read_topology(devices, root), *(answer.topology for answer in answers))
    silent = {vendor: reason for answer in answers for vendor, reason in answer.silent.items()}
    return Inventory(devices=devices, topology=topology, silent=silent)


async def read_inventory(
    *, deadline_s: float = DEADLINE_S, root: Path = Path("/"), environ: Mapping[str, str] | None = None
) -> tuple[Device, ...]:
    """List the host's devices, accelerators first. Never raises because of a device."""
    return (await read_host(deadline_s=deadline_s, root=root, environ=environ)).devices


async def _ask(vendor: Vendor, deadline_s: float, root: Path, environ: Mapping[str, str] | None) -> Inventory:
    if vendor in IN_PROCESS:
        return Inventory(devices=PROBES[vendor].inventory(root))
    try:
        child = await start_child("inventory", vendor=vendor, root=root, environ=environ, deadline_s=deadline_s)
    except OSError as error:
        return _unanswered(vendor, root, f"the probe cannot be started: {error}")
    answer, failure = b"", None
    try:
        async with asyncio.timeout(deadline_s):
            answer = await child.output.readline()
            if status := await child.wait():
                failure = f"the probe ended with {in_words(status)}"
    except ValueError as error:
        failure = f"the probe's answer is unreadable: {error}"
    except TimeoutError:
        failure = f"the driver did not answer within {deadline_s:g} s: look at `dmesg`"
    finally:
        await child.end()
    if failure is not None:
        return _unanswered(vendor, root, with_words(failure, child.last_words))
    try:
        return msgspec.json.decode(answer, type=Inventory)
    except msgspec.MsgspecError as error:
        return _unanswered(vendor, root, f"the probe's answer is unreadable: {error}")


def _unanswered(vendor: Vendor, root: Path, reason: str) -> Inventory:
    functions = find_pci_functions(root, vendor)
    found = (without_driver(function, index, reason, Health.SILENT) for index, function in enumerate(functions))
    return Inventory(devices=tuple(found), silent={vendor: reason})
