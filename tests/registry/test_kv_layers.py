"""Which layers keep what, in the many ways that configs say it."""

from __future__ import annotations

from typing import Any

import pytest

from xinf.core.model import KvLayers, ModelFacts
from xinf.registry.config import ModelConfig
from xinf.registry.facts import kv_bytes_per_sequence, kv_bytes_per_token
from xinf.registry.kv_layers import kv_layers

BASE = {"model_type": "llama", "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2,
        "hidden_size": 512, "max_position_embeddings": 8192}  # fmt: skip


def windows(**changes: Any) -> dict[int | None, int]:
    """Number of layers by window."""
    return {layers.window_tokens: layers.n_layers for layers in kv_layers(ModelConfig({**BASE, **changes}))}


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, {None: 6}),
    ({"sliding_window": None}, {None: 6}),
    ({"sliding_window": 1024}, {1024: 6}),
    ({"sliding_window": 8192}, {None: 6}),  # as long as the context: no window
    ({"model_type": "qwen2", "sliding_window": 1024, "use_sliding_window": False, "max_window_layers": 4}, {None: 6}),
    (
        {"model_type": "qwen2", "sliding_window": 1024, "use_sliding_window": True, "max_window_layers": 4},
        {None: 4, 1024: 2},
    ),
    ({"model_type": "gemma2", "sliding_window": 64}, {64: 3, None: 3}),
    ({"model_type": "gemma3_text", "sliding_window": 64}, {64: 5, None: 1}),
    ({"model_type": "gemma3_text", "sliding_window": 64, "sliding_window_pattern": 3}, {64: 4, None: 2}),
    ({"model_type": "gpt_oss", "sliding_window": 128}, {128: 3, None: 3}),
    ({"sliding_window": 64, "layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 4}, {64: 2, None: 4}),
    ({"model_type": "llama4_text", "attention_chunk_size": 64, "no_rope_layers": [1, 1, 1, 0, 1, 1]}, {64: 5, None: 1}),
])  # fmt: skip
def test_windows(changes: dict[str, Any], expected: dict[int | None, int]) -> None:
    assert windows(**changes) == expected


@pytest.mark.parametrize(("changes", "heads", "size"), [
    ({}, 2, 64),
    ({"head_dim": 128}, 2, 128),
    ({"num_key_value_heads": None}, 8, 64),
    ({"model_type": "falcon", "num_key_value_heads": None, "multi_query": True}, 1, 64),
    ({"model_type": "chatglm", "num_key_value_heads": None, "multi_query_group_num": 2}, 2, 64),
])  # fmt: skip
def test_heads(changes: dict[str, Any], heads: int, size: int) -> None:
    assert kv_layers(ModelConfig({**BASE, **changes})) == (KvLayers(n_layers=6, n_kv_heads=heads, head_size=size),)


def test_values_of_another_size_are_counted_apart() -> None:
    (layers,) = kv_layers(ModelConfig({**BASE, "head_dim": 192, "v_head_dim": 128}))
    assert (layers.head_size, layers.value_head_size) == (192, 128)
    assert kv_bytes_per_token(ModelFacts(kv=(layers,))) == 6 * 2 * (192 + 128) * 2


def test_index_of_sparse_attention_is_kept_on_every_device() -> None:
    """DeepSeek V3.2: 128 keys of 8 bits and one scale of 4 bytes beside the latent, in each layer."""
    config = {**BASE, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "index_head_dim": 128}
    facts = ModelFacts(kv=kv_layers(ModelConfig(config)))
    assert kv_bytes_per_token(facts, tensor_parallel_size=8) == 6 * (576 * 2 + 132)
    assert kv_bytes_per_token(facts, element_bytes=1) == 6 * (576 + 132)


def test_both_in_one_layer_and_neither() -> None:
    falcon = {**BASE, "model_type": "falcon_h1", "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 16}
    (layers,) = kv_layers(ModelConfig(falcon))
    assert (layers.n_layers, layers.n_kv_heads) == (6, 2)
    assert layers.state_bytes == (3 * (32 + 32) + 4 * 8 * 16) * 2
    nemotron = {**BASE, "model_type": "nemotron_h", "hybrid_override_pattern": "M-*-M-", "mamba_num_heads": 4,
                "mamba_head_dim": 8, "ssm_state_size": 16}  # fmt: skip
    assert sum(layers.n_layers for layers in kv_layers(ModelConfig(nemotron))) == 3


@pytest.mark.parametrize("changes", [
    {"num_hidden_layers": None},
    {"num_attention_heads": None, "num_key_value_heads": None},
    {"is_encoder_decoder": True},
    {"model_type": "gemma4_text"},
    {"model_type": "jamba"},  # without the numbers of its Mamba layers there are its defaults: known
    {"model_type": "bamba", "mamba_n_heads": 4},
    {"model_type": "nemotron_h", "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 16,
     "hybrid_override_pattern": "MX"},
    {"kv_lora_rank": 512},
])  # fmt: skip
def test_what_is_not_said_is_not_guessed(changes: dict[str, Any]) -> None:
    found = kv_layers(ModelConfig({**BASE, **changes}))
    assert (found != ()) == (changes.get("model_type") == "jamba")


def test_sequence_is_none_where_nothing_is_known_and_grows_with_tokens_otherwise() -> None:
    assert kv_bytes_per_sequence(ModelFacts(), 10) is None
    assert kv_bytes_per_token(ModelFacts()) is None
    facts = ModelFacts(kv=(KvLayers(n_layers=2, n_kv_heads=1, head_size=4, window_tokens=8),
                           KvLayers(n_layers=1, state_bytes=100)))  # fmt: skip
    assert kv_bytes_per_token(facts) == 32
    assert [kv_bytes_per_sequence(facts, tokens) for tokens in (0, 4, 8, 800)] == [100, 228, 356, 356]
    assert kv_bytes_per_sequence(facts, 800, tensor_parallel_size=4) == 8 * 32 + 25
    assert kv_bytes_per_sequence(facts, 800, step_tokens=4) == 100 + 12 * 32
    assert kv_bytes_per_sequence(facts, 8, element_bytes=0.5) == 100 + 8 * 8
