"""The arithmetic of a model's KV cache, from its facts (xinf/core/model.py).

Bytes are those of one device: heads are split by tensor parallelism and are repeated when there are fewer heads than
devices; a latent (MLA) is kept whole on every device.
"""

from __future__ import annotations

import math

from xinf.core.model import KvLayers, ModelFacts


def kv_bytes_per_token(facts: ModelFacts, *, element_bytes: float = 2, tensor_parallel_size: int = 1) -> int | None:
    """Bytes that one more token costs on each device while it is inside every window; None: not known."""
    if not facts.kv:
        return None
    per_layer = ((layers.n_layers, _token_bytes(layers, element_bytes, tensor_parallel_size)) for layers in facts.kv)
    return math.ceil(sum(n_layers * size for n_layers, size in per_layer))


def kv_bytes_per_sequence(
    facts: ModelFacts,
    n_tokens: int,
    *,
    element_bytes: float = 2,
    tensor_parallel_size: int = 1,
    step_tokens: int = 0,
) -> int | None:
    """Bytes of a sequence of `n_tokens` on each device: windows end, states are there from the first token.

    `step_tokens`: the most tokens that the engine computes in one step. A layer with a window holds them besides its
    window until the step is over (vLLM: `SlidingWindowSpec.max_memory_usage_bytes`). None: not known.
    """
    if not facts.kv:
        return None
    total = 0.0
    for layers in facts.kv:
        kept = n_tokens if layers.window_tokens is None else min(n_tokens, layers.window_tokens + step_tokens)
        state = math.ceil(layers.state_bytes / tensor_parallel_size)
        total += layers.n_layers * (kept * _token_bytes(layers, element_bytes, tensor_parallel_size) + state)
    return math.ceil(total)


def _token_bytes(layers: KvLayers, element_bytes: float, tensor_parallel_size: int) -> float:
    """Bytes of one token in one of these layers, on one device."""
    if layers.latent_size is not None:
        return layers.latent_size * element_bytes + layers.index_bytes
    heads = math.ceil(layers.n_kv_heads / tensor_parallel_size)
    values = layers.head_size if layers.value_head_size is None else layers.value_head_size
    return heads * (layers.head_size + values) * element_bytes + layers.index_bytes
