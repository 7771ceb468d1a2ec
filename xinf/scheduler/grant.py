"""The cache that a replica in a host's memory is given beyond the least that it needs, where there is room for more.

    processor    what core/cpu_cache.py gives of what is free
    unified GPU  on a device of its own: an even part of what is left beside its need, one for each GPU that has no
                 engine yet and one for the processor. What all engines are told to share, and whose cache or share of
                 the device somebody chose, gets that and no more.

What is given is held from then on, and the engine is told to keep to it: else vLLM takes nine tenths of a GPU, which
here are the processor's too.
"""

from __future__ import annotations

import msgspec

from xinf.core.cpu_cache import grant_cpu_cache
from xinf.core.records import MemoryNeed


def grant_on_processor(need: MemoryNeed, free_bytes: int) -> MemoryNeed:
    """The need with the cache that is given to it on a processor, where it fits into `free_bytes`."""
    if need.kv_wanted_bytes is None:
        return need
    given = grant_cpu_cache(
        wanted_bytes=need.kv_wanted_bytes,
        sequence_bytes=need.kv_bytes,
        free_bytes=free_bytes - need.weights_bytes - need.overhead_bytes,
    )
    return msgspec.structs.replace(need, kv_bytes=given, kv_wanted_bytes=None)


def grant_on_unified(
    need: MemoryNeed, *, free_bytes: int, usable_bytes: int, n_devices: int, n_idle: int
) -> MemoryNeed:
    """The need on each of `n_devices`, where it fits into what each of them has free and may use.

    `n_idle`: devices of the host without an engine, these among them.
    """
    part = (free_bytes - need.device_bytes) * n_devices // (max(n_idle, n_devices) + 1)
    more = min(part, usable_bytes - need.device_bytes)
    return msgspec.structs.replace(need, kv_bytes=need.kv_bytes + max(0, more))
