"""How large a KV cache in main memory is to be: the engine makes it so, and a memory plan counts on it."""

from __future__ import annotations

# Of the memory that is free: other replicas and the gateway want some too.
_SHARE = 0.25
# Enough context for this many requests of full length, or for this many tokens, whichever is more.
_FULL_REQUESTS = 8
_MIN_TOKENS = 32768
_MIN_BYTES = 16 << 20


def size_cpu_cache(*, token_bytes: int, sequence_bytes: int, max_model_len: int, free_bytes: int) -> int:
    """Size the cache in bytes: what a few full requests need, within a share of what is free.

    `sequence_bytes`: of one request of full length, with all that must be there beside it; `free_bytes`: without the
    weights. One such request must fit, or vLLM refuses to start: it may take more than the share for that.
    """
    wanted = max(_MIN_TOKENS, _FULL_REQUESTS * max_model_len) * token_bytes
    return max(min(wanted, max(int(free_bytes * _SHARE), sequence_bytes)), _MIN_BYTES)
