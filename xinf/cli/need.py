"""What a deployment needs of the devices it may get: for `xinf plan`, and for `launch` and `up` before they write.

spec, facts of the model ──▶ DevicePlan for each device that is meant ──▶ the wish with the facts in it, or a refusal
                               ▲ measured/ of an earlier load                with advice

The scheduler plans again, from the same facts, for the devices that there are when it looks for a place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from xinf.cli.kind import group_kinds
from xinf.cli.known import Known, find_cached, find_known
from xinf.cli.session import Session
from xinf.cli.verdict import environment_of
from xinf.core.config import Config
from xinf.core.device import PASSING, Device, Health, Support, Vendor, is_selected
from xinf.core.errors import InvalidRequest, PlacementFailed, XinfError
from xinf.core.ids import DeploymentName, NodeName
from xinf.core.model import ModelFacts
from xinf.core.records import DeploymentRecord, EngineSpec, MeasuredRecord, NodeRecord
from xinf.core.units import format_bytes

if TYPE_CHECKING:
    from xinf.meta import Records
    from xinf.registry import MemoryFit, MemoryPlan, Room
    from xinf.scheduler import Refusal, Rules

_AUTO = "auto"
T = TypeVar("T")


class DevicePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One device, and what the model takes of it; `note` says why there is no plan, `refusal` why it could not run."""

    node: NodeName
    device: Device
    free_bytes: int | None
    plan: MemoryPlan | None = None
    fit: MemoryFit | None = None
    note: str | None = None
    refusal: str | None = None


def meant_devices(spec: EngineSpec, nodes: Iterable[NodeRecord]) -> list[tuple[NodeRecord, Device]]:
    """The devices that a replica could get, taken or not; `auto` as the scheduler reads it.

    Without an engine environment for it a device counts only if it is named.
    """
    # One that is only hot is what `auto` means all the same, and is free again when it has cooled.
    works = (Health.OK, *PASSING)
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
    known: Known,
    node: NodeRecord,
    device: Device,
    *,
    free_bytes: int | None,
    measured: Mapping[str, MeasuredRecord],
) -> DevicePlan:
    """Plan a model that is known on one device, from what an earlier load took there if that is known."""
    from xinf.registry import choose_options, fit_memory, plan_on, refusal_of

    facts, environment = known.facts, environment_of(node, spec.engine, device)
    assert facts is not None, "somebody read them"
    refusal = refusal_of(spec, device, environment, facts)
    made = DevicePlan(node=node.name, device=device, free_bytes=free_bytes, refusal=refusal)
    try:
        options = choose_options(spec, device)
        plan = plan_on(spec, facts, device, environment, identity=known.identity, measured=measured)
    except InvalidRequest as error:
        return msgspec.structs.replace(made, note=str(error))
    made = msgspec.structs.replace(made, plan=plan)
    if free_bytes is None:
        return msgspec.structs.replace(made, note="nobody says what is free on it")
    fit = fit_memory(plan, facts, options, free_bytes=free_bytes, total_bytes=device.memory_bytes)
    return msgspec.structs.replace(made, fit=fit)


def advice_for(spec: EngineSpec, facts: ModelFacts, plans: Sequence[DevicePlan]) -> tuple[str, ...]:
    """What would fit on these devices, of one node and kind."""
    from xinf.registry import advise, choose_options, judge_spec

    # Cards of one kind may take different batches: what fits with the greediest one's fits.
    greediest = max(plans, key=lambda made: made.plan.device_bytes if made.plan is not None else -1)
    rooms = [room for made in plans if (room := room_of(made)) is not None]
    if not rooms:
        return ()
    packed = judge_spec(msgspec.structs.replace(spec, quantization="fp8"), greediest.device, None, facts)
    has_fp8 = None if packed.level is Support.UNKNOWN else not packed.is_refused
    try:
        return advise(facts, choose_options(spec, greediest.device), rooms, has_fp8=has_fp8)
    except InvalidRequest as error:
        return (str(error),)


def room_of(made: DevicePlan) -> Room | None:
    """What may be filled of a device; None: nobody says."""
    from xinf.registry import Room

    if made.free_bytes is None:
        return None
    return Room(selector=made.device.selector, free_bytes=made.free_bytes, total_bytes=made.device.memory_bytes)


def add_model(
    wish: DeploymentRecord,
    known: Known,
    nodes: Sequence[NodeRecord],
    measured: Sequence[MeasuredRecord],
    *,
    must_fit: bool,
    rules: Rules | None = None,
) -> tuple[DeploymentRecord, list[str]]:
    """Add to a wish what is known of its model. Returns it with what to tell the user, a line each.

    `rules`: by which the control process places, as far as is known here.

    Raises, if `must_fit`: PlacementFailed when the scheduler could not place it even if all devices were empty,
    InvalidRequest when the model cannot be split over as many devices as it says.
    """
    from xinf.registry import split_problem
    from xinf.scheduler import Placement, could_fit

    spec, facts = wish.spec, known.facts
    if spec.engine != "vllm":
        return wish, []  # a simulated engine has no weights
    told = msgspec.structs.replace(wish, model=facts, model_identity=known.identity)
    meant = with_engine(spec, nodes)
    if not meant:
        return told, []  # whoever places it says why there is no place
    if facts is None:
        return told, [f"memory: not planned, the engine checks it itself: {known.why}"]
    if must_fit and (problem := split_problem(facts, spec.tensor_parallel_size)) is not None:
        raise InvalidRequest(
            f"cannot split {spec.model}: {problem}",
            remedy="choose another --tensor-parallel-size; --force writes it anyway",
            param="tensor_parallel_size",
        )
    plans = plan_devices(spec, known, able_devices(spec, facts, meant) or meant, measured)
    by_digest = {record.fingerprint: record for record in measured}
    found = could_fit(told, {node.name: node for node in nodes}, rules, measured=by_digest)
    large = [made for made in plans if made.fit is not None and made.fit.fits]
    if large and isinstance(found, Placement):
        return told, describe_kinds(large)
    # A device that nothing is known of may be large enough.
    unknown = next((made for made in plans if made.fit is None), None)
    if unknown is not None or isinstance(found, Placement):
        why = unknown.note if unknown is not None else None
        return told, [f"memory: not planned, the engine checks it itself: {why or 'unknown'}"]
    refusal = _refusal(wish, facts, plans, found)
    if must_fit:
        raise refusal
    # Without the facts, or nobody would place it: whoever forces it knows better than the plan, or the engine tells.
    return wish, [f"memory: {refusal.message}; written all the same, the engine checks it itself"]


def able_devices(
    spec: EngineSpec, facts: ModelFacts, devices: Iterable[tuple[NodeRecord, Device]]
) -> list[tuple[NodeRecord, Device]]:
    """Those that can run it as far as anybody knows: the others get none, however much they have free."""
    from xinf.registry import refusal_of

    return [
        (node, device)
        for node, device in devices
        if refusal_of(spec, device, environment_of(node, spec.engine, device), facts) is None
    ]


def plan_devices(
    spec: EngineSpec,
    known: Known,
    devices: Iterable[tuple[NodeRecord, Device]],
    measured: Iterable[MeasuredRecord],
) -> list[DevicePlan]:
    """Plan a model on devices as if nobody were on them."""
    by_digest = {record.fingerprint: record for record in measured}
    return [
        plan_device(spec, known, node, device, free_bytes=device.memory_bytes, measured=by_digest)
        for node, device in devices
    ]


async def read_measured(session: Session) -> list[MeasuredRecord]:
    """What earlier loads took; nothing where there is no store, or none that can be read now."""
    found = await _read_store(session, lambda records: records.list(MeasuredRecord))
    return [record for record, _ in found or ()]


async def read_present(session: Session, name: DeploymentName) -> DeploymentRecord | None:
    """The deployment as it is there; None where there is no such, or no store that can be read now."""
    found = await _read_store(session, lambda records: records.get(DeploymentRecord, name))
    return None if found is None else found[0]


async def find_known_for(config: Config, spec: EngineSpec, nodes: Sequence[NodeRecord]) -> Known:
    """What is known of a model. Where no device that is meant has an engine yet, no hub is asked in vain."""
    return await find_known(config, spec) if with_engine(spec, nodes) else find_cached(config, spec)


def describe_kinds(plans: Sequence[DevicePlan]) -> list[str]:
    """A line; one for each kind of device where they need different things."""
    kinds = group_kinds(plans)
    if len(kinds) == 1:
        return [describe_plan(kinds[0].plan)]
    return [f"{describe_plan(kind.plan)} on {', '.join(kind.names)}" for kind in kinds]


def describe_plan(plan: MemoryPlan) -> str:
    """One line."""
    how = "measured before" if plan.is_measured else "estimated"
    cache = f"KV of one request {format_bytes(plan.kv_bytes)}"
    if plan.cache_bytes is not None:
        cache = f"KV cache {format_bytes(plan.cache_bytes)}"
    parts = f"weights {format_bytes(plan.weights_bytes)}, {cache}"
    each = "" if plan.tensor_parallel_size == 1 else f" on each of {plan.tensor_parallel_size} devices"
    return (
        f"memory: needs {format_bytes(plan.device_bytes)}{each}"
        f" ({parts}, reserve {format_bytes(plan.overhead_bytes)}; {how})"
    )


def _refusal(wish: DeploymentRecord, facts: ModelFacts, plans: Sequence[DevicePlan], found: Refusal) -> PlacementFailed:
    """Why no device could ever do, with what would."""
    from xinf.registry import sockets_of

    largest = max(plans, key=lambda made: made.free_bytes or 0)
    plan = largest.plan
    assert plan is not None
    size = wish.spec.tensor_parallel_size
    same = [m for m in plans if m.node == largest.node and m.device.vendor is largest.device.vendor]
    n_large = sum(made.fit is not None and made.fit.fits for made in same)
    has = format_bytes(largest.free_bytes or 0)
    what = f"{largest.device.selector} on {largest.node} has {has} in all"
    if n_large >= (1 if largest.device.vendor is Vendor.CPU else size):
        what = found.note  # each is large enough, and something else binds
    elif n_large:
        what = f"{n_large} of its {len(same)} devices on {largest.node} are large enough"
    elif largest.fit is not None and largest.fit.usable_bytes < (largest.free_bytes or 0):
        what += f", of which an engine may take {format_bytes(largest.fit.usable_bytes)}"
        if (sockets := sockets_of(largest.device)) is not None:
            what += f" ({sockets.words(size)})"
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


async def _read_store(session: Session, read: Callable[[Records], Awaitable[T]]) -> T | None:
    from xinf.meta import Records

    if session.server is None and not session.config.paths.meta_dir.exists():
        return None
    try:
        async with session.store_or_file() as store:
            return await read(Records(store))
    except XinfError:
        return None


def with_engine(spec: EngineSpec, nodes: Iterable[NodeRecord]) -> list[tuple[NodeRecord, Device]]:
    """Of the devices that are meant those that an engine is there for."""
    return [(node, device) for node, device in meant_devices(spec, nodes) if _has_engine(spec, node, device)]


def _has_engine(spec: EngineSpec, node: NodeRecord, device: Device) -> bool:
    return environment_of(node, spec.engine, device) is not None


def _is_split(node: NodeRecord, device: Device) -> bool:
    """Whether only the parts of the card can be used."""
    return any(other.parent == device.uuid for other in node.devices) or (
        device.extra.get("mig") == "enabled" and device.parent is None
    )
