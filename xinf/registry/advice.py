"""What would fit when a model does not: another split, a shorter context, packed weights. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from xinf.core.device import Vendor
from xinf.core.errors import InvalidRequest
from xinf.core.model import ModelFacts
from xinf.core.units import format_bytes
from xinf.registry.load import LoadOptions
from xinf.registry.loaded_weights import weights_bytes
from xinf.registry.memory import MemoryPlan, fit_memory, plan_memory, split_problem

# A context shorter than this is no advice: nobody serves it.
_LEAST_CONTEXT_TOKENS = 256
_FULL_CONTEXT_STEP = 1024
_MOST_OF_A_HOST = 16
_PACKED_PARAMETER_BYTES = 0.5 + 2 / 32  # 4 bits, and a 16-bit scale for each 32 weights


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """One device that could be used: what is free on it, or could be."""

    selector: str
    free_bytes: int
    total_bytes: int | None = None


def advise(
    facts: ModelFacts, options: LoadOptions, rooms: Sequence[Room], *, has_fp8: bool | None = None
) -> tuple[str, ...]:
    """Say what would fit on `rooms`, devices of one kind on one node; nothing if it fits as it is, or if nothing would.

    The first piece of advice changes least of what was asked for. `has_fp8`: whether the devices can run weights that
    are packed to FP8 at the load; None: nobody knows.
    """
    if not rooms or _fits(facts, options, rooms):
        return ()
    found = [
        *_shorter_context(facts, options, rooms),
        *_other_split(facts, options, rooms),
        *_packed(facts, options, rooms, has_fp8=has_fp8),
    ]
    return tuple(found)


def count_needed(facts: ModelFacts, options: LoadOptions, room: Room) -> MemoryPlan | None:
    """The plan over the fewest devices like this one that hold the model; None: more than a host has do not."""
    if options.vendor is Vendor.CPU:
        return None
    for size in range(1, _MOST_OF_A_HOST + 1):
        if split_problem(facts, size) is None:
            split = msgspec.structs.replace(options, tensor_parallel_size=size)
            if (plan := _fits(facts, split, [room] * size)) is not None:
                return plan
    return None


def widest(rooms: Sequence[Room], n_devices: int) -> Room | None:
    """The device that binds when the `n_devices` freest ones are taken; None if there are not so many."""
    if len(rooms) < n_devices:
        return None
    return sorted(rooms, key=lambda room: -room.free_bytes)[n_devices - 1]


def n_devices_of(options: LoadOptions) -> int:
    """How many devices of the host a replica is spread over: a processor is one."""
    return 1 if options.vendor is Vendor.CPU else options.tensor_parallel_size


def _fits(facts: ModelFacts, options: LoadOptions, rooms: Sequence[Room]) -> MemoryPlan | None:
    """The plan if it fits."""
    room = widest(rooms, n_devices_of(options))
    try:
        plan = plan_memory(facts, options)
    except InvalidRequest:
        return None
    if room is None:
        return None
    found = fit_memory(plan, facts, options, free_bytes=room.free_bytes, total_bytes=room.total_bytes)
    return plan if found.fits else None


def _shorter_context(facts: ModelFacts, options: LoadOptions, rooms: Sequence[Room]) -> list[str]:
    room = widest(rooms, n_devices_of(options))
    if room is None or split_problem(facts, options.tensor_parallel_size):
        return []
    plan = plan_memory(facts, options)
    found = fit_memory(plan, facts, options, free_bytes=room.free_bytes, total_bytes=room.total_bytes)
    tokens = found.largest_context_tokens
    if tokens is None or tokens < _LEAST_CONTEXT_TOKENS:
        return []
    if tokens >= _FULL_CONTEXT_STEP:
        tokens -= tokens % _FULL_CONTEXT_STEP
    return [f"--max-model-len {tokens} fits on {room.selector}, where {format_bytes(room.free_bytes)} are free"]


def _other_split(facts: ModelFacts, options: LoadOptions, rooms: Sequence[Room]) -> list[str]:
    if options.vendor is Vendor.CPU:
        return _more_sockets(facts, options, rooms)
    problem: str | None = None
    is_dividable = False
    asked = options.tensor_parallel_size
    # Where there are not as many devices as were asked for, or the model cannot be split so, fewer may do.
    is_possible = asked <= len(rooms) and split_problem(facts, asked) is None
    for size in range(asked + 1, len(rooms) + 1) if is_possible else range(len(rooms), 0, -1):
        if found := split_problem(facts, size):
            problem = problem or found
            continue
        is_dividable = True
        plan = _fits(facts, msgspec.structs.replace(options, tensor_parallel_size=size), rooms)
        if plan is not None:
            each = format_bytes(plan.device_bytes)
            on_each = "" if size == 1 else f" on each of {size} devices"
            return [f"--tensor-parallel-size {size} needs {each}{on_each}, which fits"]
    # Where a split that is possible is too large as well, the one that is not possible was not what stood in the way.
    return [problem] if problem is not None and not is_dividable else []


def _more_sockets(facts: ModelFacts, options: LoadOptions, rooms: Sequence[Room]) -> list[str]:
    """Where each rank of an engine on the processor has one NUMA node, more ranks have more memory."""
    n_nodes = options.sockets.n_nodes if options.sockets is not None else 1
    for size in range(options.tensor_parallel_size + 1, n_nodes + 1):
        plan = _fits(facts, msgspec.structs.replace(options, tensor_parallel_size=size), rooms)
        if plan is not None:
            needs = format_bytes(plan.device_bytes)
            return [f"--tensor-parallel-size {size} needs {needs} on {size} NUMA nodes, which fits"]
    return []


def _packed(facts: ModelFacts, options: LoadOptions, rooms: Sequence[Room], *, has_fp8: bool | None) -> list[str]:
    if facts.quantization is not None or options.quantization is not None:
        return []
    found: list[str] = []
    if options.vendor is not Vendor.CPU and has_fp8 is not False:
        packed = _fits(facts, msgspec.structs.replace(options, quantization="fp8"), rooms)
        if packed is not None:
            condition = "which fits" if has_fp8 else "where the device can do it"
            found.append(f"--quantization fp8 needs {format_bytes(packed.device_bytes)}, {condition}")
    now, count = weights_bytes(facts, options), facts.n_parameters
    if not found and now is not None and count is not None:
        size = round(count * _PACKED_PARAMETER_BYTES / options.tensor_parallel_size)
        smaller = msgspec.structs.replace(
            facts, n_parameters=None, stored_dtypes={"I32": size * options.tensor_parallel_size}
        )
        if size < now and _fits(smaller, options, rooms) is not None:
            found.append(f"a checkpoint of it with 4-bit weights (AWQ, GPTQ) has about {format_bytes(size)} of them")
    return found
