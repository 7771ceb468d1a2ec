"""What a deployment needs of the devices it may get: for `xinf plan`, and for `launch` and `up` before they write.

spec, facts of the model ──▶ DevicePlan for each device that is meant ──▶ MemoryNeed, or a refusal with advice
                               ▲ measured/ of an earlier load
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from xinf.cli.known import Known, find_known
from xinf.cli.session import Session
from xinf.cli.verdict import environment_of
from xinf.core.config import Config
from xinf.core.device import Device, Health, Vendor, is_selected
from xinf.core.errors import InvalidRequest, PlacementFailed, XinfError
from xinf.core.ids import NodeName
from xinf.core.records import DeploymentRecord, EngineSpec, MeasuredRecord, NodeRecord
from xinf.core.units import format_bytes

if TYPE_CHECKING:
    from xinf.registry import MemoryFit, MemoryPlan, ModelFacts

_AUTO = "auto"


class DevicePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One device, and what the model takes of it; `note` says why there is no plan."""

    node: NodeName
    device: Device
    free_bytes: int | None
    plan: MemoryPlan | None = None
    fit: MemoryFit | None = None
    note: str | None = None


def meant_devices(spec: EngineSpec, nodes: Iterable[NodeRecord]) -> list[tuple[NodeRecord, Device]]:
    """The devices that a replica could get, taken or not; `auto` as the scheduler reads it.

    Without an engine environment for it a device counts only if it is named.
    """
    # One that is only hot is what `auto` means all the same, and is free again when it has cooled.
    works = (Health.OK, Health.DEGRADED)
    everything = [(node, device) for node in nodes for device in node.devices if device.health in works]
    whole = [(node, device) for node, device in everything if not _is_split(node, device)]
    if spec.device != _AUTO:
        parts = spec.device.split(",")
        return [(node, device) for node, device in whole if any(is_selected(device, part) for part in parts)]
    able = [(node, device) for node, device in whole if _has_engine(spec, node, device)]
    fast = [(node, device) for node, device in able if device.vendor is not Vendor.CPU]
    return fast or [(node, device) for node, device in whole if device.vendor is Vendor.CPU]


def plan_device(
    spec: EngineSpec,
    facts: ModelFacts,
    node: NodeRecord,
    device: Device,
    *,
    free_bytes: int | None,
    measured: Mapping[str, MeasuredRecord],
) -> DevicePlan:
    """Plan the model on one device, from what an earlier load took there if that is known."""
    from xinf.registry import choose_options, fit_memory, plan_memory

    made = DevicePlan(node=node.name, device=device, free_bytes=free_bytes)
    try:
        options = choose_options(spec, device)
        plan = plan_memory(facts, options, measured=_find_measured(spec, facts, node, device, measured))
    except InvalidRequest as error:
        return msgspec.structs.replace(made, note=str(error))
    made = msgspec.structs.replace(made, plan=plan)
    if free_bytes is None:
        return msgspec.structs.replace(made, note="nobody says what is free on it")
    fit = fit_memory(plan, facts, options, free_bytes=free_bytes, total_bytes=device.memory_bytes)
    return msgspec.structs.replace(made, fit=fit)


def advice_for(spec: EngineSpec, facts: ModelFacts, plans: Sequence[DevicePlan]) -> tuple[str, ...]:
    """What would fit on these devices, of one node and kind."""
    from xinf.registry import Room, advise, choose_options

    rooms = [
        Room(selector=made.device.selector, free_bytes=made.free_bytes, total_bytes=made.device.memory_bytes)
        for made in plans
        if made.free_bytes is not None
    ]
    if not rooms:
        return ()
    try:
        return advise(facts, choose_options(spec, plans[0].device), rooms)
    except InvalidRequest as error:
        return (str(error),)


def add_need(
    wish: DeploymentRecord,
    known: Known,
    nodes: Sequence[NodeRecord],
    measured: Sequence[MeasuredRecord],
    *,
    must_fit: bool,
) -> tuple[DeploymentRecord, str | None]:
    """Add to a wish what each replica needs of a device. Returns it with a sentence for the user, None for nothing.

    Raises: PlacementFailed, if `must_fit`, when no device that is meant is large enough even while it is empty.
    """
    spec, facts = wish.spec, known.facts
    if spec.engine != "vllm":
        return wish, None  # a simulated engine has no weights
    meant = _with_engine(spec, nodes)
    if not meant:
        return wish, None  # whoever places it says why there is no place
    if facts is None:
        return wish, f"memory: not planned, the engine checks it itself: {known.why}"
    by_digest = {record.fingerprint: record for record in measured}
    plans = [
        plan_device(spec, facts, node, device, free_bytes=device.memory_bytes, measured=by_digest)
        for node, device in meant
    ]
    chosen = choose_plan(spec, plans)
    if isinstance(chosen, str):
        return wish, f"memory: not planned, the engine checks it itself: {chosen}"
    if chosen is None:
        refusal = _refusal(wish, facts, plans)
        if must_fit:
            raise refusal
        # Without a need, or nobody would place it: whoever forces it knows better than the plan, or the engine tells.
        return wish, f"memory: {refusal.message}; written all the same, the engine checks it itself"
    return msgspec.structs.replace(wish, need=chosen.need), describe_plan(chosen)


async def read_measured(session: Session) -> list[MeasuredRecord]:
    """What earlier loads took; nothing where there is no store, or none that can be read now."""
    from xinf.meta import Records

    if session.server is None and not session.config.paths.meta_dir.exists():
        return []
    try:
        async with session.store_or_file() as store:
            return [record for record, _ in await Records(store).list(MeasuredRecord)]
    except XinfError:
        return []


def choose_plan(spec: EngineSpec, plans: Sequence[DevicePlan]) -> MemoryPlan | str | None:
    """The least that a device which is large enough needs; None if none is; why, if that cannot be told."""
    fitting: list[MemoryPlan] = []
    for node in {made.node for made in plans}:
        of_node = [made for made in plans if made.node == node]
        for kind in {made.device.vendor for made in of_node}:
            large = [m.plan for m in of_node if m.device.vendor is kind and m.fit is not None and m.fit.fits and m.plan]
            if len(large) >= (1 if kind is Vendor.CPU else spec.tensor_parallel_size):
                fitting += large
    if fitting:
        return min(fitting, key=lambda plan: plan.device_bytes)
    # A device that nothing is known of may be large enough.
    unknown = next((made for made in plans if made.fit is None), None)
    return unknown.note or "unknown" if unknown is not None else None


async def find_known_for(config: Config, spec: EngineSpec, nodes: Sequence[NodeRecord]) -> Known:
    """What is known of a model, if a device that is meant has an engine: otherwise no hub is asked in vain."""
    return await find_known(config, spec) if _with_engine(spec, nodes) else Known()


def describe_plan(plan: MemoryPlan) -> str:
    """One line."""
    how = "measured before" if plan.is_measured else "estimated"
    parts = f"weights {format_bytes(plan.weights_bytes)}, KV of one request {format_bytes(plan.kv_bytes)}"
    each = "" if plan.tensor_parallel_size == 1 else f" on each of {plan.tensor_parallel_size} devices"
    return (
        f"memory: needs {format_bytes(plan.device_bytes)}{each}"
        f" ({parts}, reserve {format_bytes(plan.overhead_bytes)}; {how})"
    )


def _refusal(wish: DeploymentRecord, facts: ModelFacts, plans: Sequence[DevicePlan]) -> PlacementFailed:
    """Why no device could ever do, with what would."""
    largest = max(plans, key=lambda made: made.free_bytes or 0)
    plan = largest.plan
    assert plan is not None
    size = wish.spec.tensor_parallel_size
    same = [m for m in plans if m.node == largest.node and m.device.vendor is largest.device.vendor]
    n_large = sum(made.fit is not None and made.fit.fits for made in same)
    has = format_bytes(largest.free_bytes or 0)
    what = f"{largest.device.selector} on {largest.node} has {has} in all"
    if n_large:
        what = f"{n_large} of its {len(same)} devices on {largest.node} are large enough"
    elif largest.fit is not None and largest.fit.usable_bytes < (largest.free_bytes or 0):
        what += f", of which an engine may take {format_bytes(largest.fit.usable_bytes)}"
    each = "a device" if size == 1 or largest.device.vendor is Vendor.CPU else f"each of {size} devices"
    advice = advice_for(wish.spec, facts, same)
    return PlacementFailed(
        f"cannot place {wish.name}: needs {format_bytes(plan.device_bytes)} on {each}, {what}",
        remedy="; or ".join([*advice, "--force writes it anyway"]),
        needs_bytes=plan.device_bytes,
        largest_bytes=largest.free_bytes,
        device=largest.device.selector,
        node=largest.node,
    )


def _find_measured(
    spec: EngineSpec, facts: ModelFacts, node: NodeRecord, device: Device, measured: Mapping[str, MeasuredRecord]
) -> MeasuredRecord | None:
    from xinf.registry import fingerprint, identify_model

    if not measured:
        return None
    identity = identify_model(spec.model, revision=facts.revision, environ={**os.environ, **spec.env})
    environment = environment_of(node, spec.engine, device)
    if identity is None or environment is None:
        return None
    return measured.get(fingerprint(identity, spec, engine_version=environment.version, device=device))


def _with_engine(spec: EngineSpec, nodes: Iterable[NodeRecord]) -> list[tuple[NodeRecord, Device]]:
    return [(node, device) for node, device in meant_devices(spec, nodes) if _has_engine(spec, node, device)]


def _has_engine(spec: EngineSpec, node: NodeRecord, device: Device) -> bool:
    return environment_of(node, spec.engine, device) is not None


def _is_split(node: NodeRecord, device: Device) -> bool:
    """Whether only the parts of the card can be used."""
    return any(other.parent == device.uuid for other in node.devices) or (
        device.extra.get("mig") == "enabled" and device.parent is None
    )
