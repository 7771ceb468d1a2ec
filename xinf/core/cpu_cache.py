"""How large a KV cache in main memory is to be.

Whoever places a replica on a processor grants it one by this rule, from what is free there after all claims. An engine
that nobody could plan for sizes its own by the same rule, from what is free when it starts.
"""

from __future__ import annotations

# Of the memory that is free: other replicas and the gateway want some too.
_SHARE = 0.25
# Enough context for this many requests of full length, or for this many tokens, whichever is more.
_FULL_REQUESTS = 8
_MIN_TOKENS = 32768
_MIN_BYTES = 16 << 20


def wanted_cpu_cache(*, token_bytes: int, max_model_len: int) -> int:
    """The cache that a model would like where there is room, in bytes."""
    return max(_MIN_TOKENS, _FULL_REQUESTS * max_model_len) * token_bytes


def size_cpu_cache(*, wanted_bytes: int, sequence_bytes: int, free_bytes: int) -> int:
    """Size the cache in bytes: what is wanted, within a share of what is free.

    `sequence_bytes`: of one request of full length, with all that must be there beside it; `free_bytes`: without the
    weights. One such request must fit, or vLLM refuses to start: it may take more than the share for that.
    """
    return max(min(wanted_bytes, int(free_bytes * _SHARE)), sequence_bytes, _MIN_BYTES)


def grant_cpu_cache(*, wanted_bytes: int, sequence_bytes: int, free_bytes: int) -> int:
    """The same where `free_bytes` are all that may be given away and have room for `sequence_bytes`: never more."""
    sized = size_cpu_cache(wanted_bytes=wanted_bytes, sequence_bytes=sequence_bytes, free_bytes=free_bytes)
    return min(sized, free_bytes)
