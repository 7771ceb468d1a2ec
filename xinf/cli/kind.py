"""Devices that need the same of a model, for people: `NVIDIA L4 (22.5 GiB)`, `cpu`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from xinf.core.device import Device, Vendor
from xinf.core.units import format_bytes

if TYPE_CHECKING:
    from xinf.cli.need import DevicePlan
    from xinf.registry import MemoryPlan


class KindPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes of each device of some kinds."""

    names: tuple[str, ...]
    plan: MemoryPlan


def group_kinds(plans: Iterable[DevicePlan]) -> list[KindPlan]:
    """Put together what needs the same, in the order of the devices; those without a plan are left out."""
    found: dict[tuple[int, int, int, bool], tuple[MemoryPlan, dict[str, None]]] = {}
    for made in plans:
        plan = made.plan
        if plan is None:
            continue
        key = (plan.weights_bytes, plan.kv_bytes, plan.overhead_bytes, plan.is_measured)
        found.setdefault(key, (plan, {}))[1][kind_name(made.device)] = None
    return [KindPlan(names=tuple(names), plan=plan) for plan, names in found.values()]


def kind_name(device: Device) -> str:
    """What a device is, without which one it is."""
    if device.vendor is Vendor.CPU:
        return "cpu"
    return device.name if device.memory_bytes is None else f"{device.name} ({format_bytes(device.memory_bytes)})"
