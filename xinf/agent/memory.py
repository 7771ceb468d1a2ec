"""The memory of this node's devices, as an engine's start and its measurement need it.

before a start    how much is free ──▶ the share of the accelerator that the engine is told to take
                  the replica's need ──▶ the cache that the engine is told to make on the processor
when it is ready  how much its processes have ──▶ a MeasuredRecord, which the next plan of the same load starts from
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from xinf.agent.process import ProcessId, group_members
from xinf.agent.surroundings import choose_environment
from xinf.core.device import Device, Sample, Vendor
from xinf.core.errors import XinfError
from xinf.core.records import MeasuredRecord, NodeRecord, Phase, ReplicaRecord
from xinf.device import Reading, read_once
from xinf.registry import (
    ModelFacts,
    choose_options,
    context_bytes,
    counted_bytes,
    fingerprint,
    identify_model,
    is_switched,
    kv_token_bytes,
    memory_share,
    read_model,
)

logger = logging.getLogger(__name__)

_DEADLINE_S = 15.0
_OWN_SIZE = ("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override")

ReadFacts = Callable[[str, Mapping[str, str]], ModelFacts]


class StartMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The devices of a start just before it: what is free and used on each, by UUID, and what the engine may take."""

    used_bytes: dict[str, int] = {}
    share: float | None = None  # of each device; None: not known, or not an accelerator


async def read_start_memory(replica: ReplicaRecord, node: NodeRecord, root: Path = Path("/")) -> StartMemory:
    """Look at a replica's accelerators. Takes as long as a driver's answer, at most `_DEADLINE_S`."""
    devices = devices_of(replica, node)
    if not devices:
        return StartMemory()
    samples = [sample for reading in await _read(devices, root) for sample in reading.samples]
    return StartMemory(
        used_bytes={s.uuid: s.memory_used_bytes for s in samples if s.memory_used_bytes is not None},
        share=choose_share(devices, samples, limit_bytes=_limit_bytes(replica, devices)),
    )


def choose_share(
    devices: Sequence[Device], samples: Iterable[Sample], *, limit_bytes: int | None = None
) -> float | None:
    """The share that is free on every one of the devices, `limit_bytes` at most; None if one of them does not say.

    With a limit that is what the engine gets of a device that does not say: others were promised the rest.
    """
    free = {sample.uuid: sample.memory_free_bytes for sample in samples}
    shares: list[float] = []
    for device in devices:
        free_bytes = free.get(device.uuid)
        if free_bytes is None:
            free_bytes = limit_bytes
        if free_bytes is None or not device.memory_bytes:
            return None
        shares.append(
            memory_share(
                device.vendor,
                len(devices),
                free_bytes=free_bytes,
                total_bytes=device.memory_bytes,
                limit_bytes=limit_bytes,
                is_switched=is_switched(device),
            )
        )
    return min(shares, default=None)


def granted_cache_bytes(replica: ReplicaRecord) -> int | None:
    """The cache that a replica on the processor was granted when it was placed, which is what its engine is told.

    None: it is not on the processor, or nobody could plan for it; then its engine sizes its cache itself.
    """
    need = replica.need
    if need is None or need.kv_wanted_bytes is not None or Vendor.CPU not in replica.devices:
        return None
    return need.kv_bytes


async def measure(
    replica: ReplicaRecord,
    process: ProcessId,
    directory: Path,
    *,
    node: NodeRecord,
    start: StartMemory,
    environ: Mapping[str, str],
    read: ReadFacts | None = None,
    root: Path = Path("/"),
) -> MeasuredRecord | None:
    """Measure a replica that has just become ready; None where something of it cannot be told.

    `environ`: of the engine, for where its models are. Raises: EngineStartFailed when its environment is gone.
    """
    device = next(iter(devices_of(replica, node)), None) or _processor(node)
    n_blocks, block_tokens = replica.kv_blocks, replica.block_tokens
    if device is None or replica.spec.engine != "vllm" or n_blocks is None or block_tokens is None:
        return None
    environment = choose_environment(replica, node)
    try:
        facts = await asyncio.to_thread(read or _read_offline, replica.spec.files, environ)
        options = choose_options(replica.spec, device)
    except XinfError as error:
        logger.info("what %s took is not kept: %s", replica.id, error)
        return None
    token_bytes = kv_token_bytes(facts, options)
    identity = identify_model(replica.spec.model, revision=facts.revision, environ=environ)
    # Where layers of several kinds share one pool, its size does not follow from its blocks.
    is_plain = all(layers.window_tokens is None and not layers.state_bytes for layers in facts.kv)
    if token_bytes is None or identity is None or not is_plain:
        return None
    device_bytes = await _used_bytes(replica, process, directory, node=node, start=start, root=root)
    if device_bytes is None:
        return None
    kv_bytes = n_blocks * block_tokens * token_bytes
    fixed, has_peak = fixed_bytes(device_bytes, kv_bytes, device=device, replica=replica, share=start.share)
    began_s = replica.phase_since_s.get(Phase.STARTING)
    return MeasuredRecord(
        fingerprint=fingerprint(identity, replica.spec, engine_version=environment.version, device=device),
        model=replica.spec.model,
        engine=replica.spec.engine,
        engine_version=environment.version,
        dtype=replica.spec.dtype,
        quantization=replica.spec.quantization,
        tensor_parallel_size=replica.spec.tensor_parallel_size,
        arch=device.arch,
        device_bytes=device_bytes,
        kv_bytes=kv_bytes,
        fixed_bytes=fixed,
        has_peak=has_peak,
        kv_blocks=n_blocks,
        block_tokens=block_tokens,
        start_s=None if began_s is None else replica.phase_since_s.get(Phase.READY, began_s) - began_s,
        at_s=time.time(),
    )


def fixed_bytes(
    device_bytes: int, kv_bytes: int, *, device: Device, replica: ReplicaRecord, share: float | None
) -> tuple[int, bool]:
    """What the replica needs beside its pool, and whether the engine's largest step is in it.

    vLLM makes its pool of what its profile left of the share that it was given: the rest of it is weights, graphs and
    the peak, more than what is in use while it rests.
    """
    resting = max(0, device_bytes - kv_bytes)
    is_sized = any(name.removeprefix("--").replace("-", "_") in _OWN_SIZE for name in replica.spec.engine_args)
    if share is None or is_sized or not device.memory_bytes:
        return resting, False
    context = context_bytes(device.vendor, replica.spec.tensor_parallel_size, is_switched=is_switched(device))
    granted = int(counted_bytes(device.vendor, device.memory_bytes) * share) + context
    return max(resting, granted - kv_bytes), True


def devices_of(replica: ReplicaRecord, node: NodeRecord) -> list[Device]:
    """A replica's accelerators."""
    return [
        device for device in node.devices if device.uuid in replica.device_uuids and device.vendor is not Vendor.CPU
    ]


def read_resident_bytes(pids: Iterable[int], proc: Path = Path("/proc")) -> int | None:
    """Memory of processes, with what they share counted once (proportional set size); None if none can be read."""
    sizes = [size for pid in pids if (size := _proportional_bytes(proc / str(pid) / "smaps_rollup")) is not None]
    return sum(sizes) if sizes else None


async def _used_bytes(
    replica: ReplicaRecord,
    process: ProcessId,
    directory: Path,
    *,
    node: NodeRecord,
    start: StartMemory,
    root: Path,
) -> int | None:
    """What the replica's processes have of their fullest device."""
    pids = {member.pid for member in group_members(process, directory)}
    devices = devices_of(replica, node)
    if not devices:
        return await asyncio.to_thread(read_resident_bytes, pids)
    uuids = {device.uuid for device in devices}
    readings = await _read(devices, root)
    by_device: dict[str, int] = {}
    for one in (one for reading in readings for one in reading.processes):
        if one.pid in pids and one.uuid in uuids and one.memory_bytes is not None:
            by_device[one.uuid] = by_device.get(one.uuid, 0) + one.memory_bytes
    if by_device:
        return max(by_device.values())
    # No pid of ours is among them, as in a container: what was added is ours, unless others may fill the same memory.
    if replica.shares or any(device.is_unified for device in devices):
        return None
    grown = [
        sample.memory_used_bytes - start.used_bytes[sample.uuid]
        for sample in (sample for reading in readings for sample in reading.samples)
        if sample.memory_used_bytes is not None and sample.uuid in uuids & start.used_bytes.keys()
    ]
    return max(grown) if grown and max(grown) > 0 else None


async def _read(devices: Iterable[Device], root: Path) -> tuple[Reading, ...]:
    """Read the devices' vendors now; fewer where a driver does not answer in time."""
    return await read_once({device.vendor for device in devices}, deadline_s=_DEADLINE_S, root=root)


def _limit_bytes(replica: ReplicaRecord, devices: Iterable[Device]) -> int | None:
    """What a replica may take of a device that others are on too, as of the host's memory; None: all that is free."""
    is_held = replica.shares or any(device.is_unified for device in devices)
    return replica.need.device_bytes if is_held and replica.need is not None else None


def _processor(node: NodeRecord) -> Device | None:
    return next((device for device in node.devices if device.vendor is Vendor.CPU), None)


def _read_offline(model: str, environ: Mapping[str, str]) -> ModelFacts:
    # In a spec a bare id is one of Hugging Face, whatever `registry.source` says.
    is_whole = Path(model).is_absolute() or "://" in model
    return read_model(model if is_whole else f"hf://{model}", environ=environ, offline=True)


def _proportional_bytes(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), None)
