"""Every family that is counted from its config, against the modules that transformers builds from the same config.

An oracle that shares nothing with ours: it makes the layers (on torch's meta device, without memory) and counts them.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from xinf.registry.config import ModelConfig
from xinf.registry.kv_layers import kv_layers
from xinf.registry.parameters import count_parameters, families

pytestmark = pytest.mark.engine

SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
         "num_key_value_heads": 2, "vocab_size": 1000}  # fmt: skip
# As the configs of public models differ from the defaults of their family.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {**SMALL, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {**SMALL, "head_dim": 64}),
    ("qwen3", {**SMALL, "head_dim": 64, "tie_word_embeddings": True, "attention_bias": True}),
    ("qwen3_moe", {**SMALL, "num_experts": 8, "mlp_only_layers": [0], "moe_intermediate_size": 64}),
    ("cohere", {**SMALL, "use_qk_norm": True}),
    ("phimoe", {**SMALL, "attention_bias": True, "lm_head_bias": True}),
    ("bamba", {"attn_layer_indices": [9, 18, 27]}),
    ("deepseek_v2", {**SMALL, "first_k_dense_replace": 1, "n_routed_experts": 8, "q_lora_rank": None}),
    ("granitemoehybrid", {**SMALL, "num_local_experts": 0, "num_experts_per_tok": 0, "mamba_n_heads": 8,
                          "layer_types": ["mamba", "attention"] * 2}),
    ("falcon_h1", {**SMALL, "mamba_d_ssm": 256, "mamba_n_heads": 8, "mamba_d_head": 32, "mamba_rms_norm": True}),
    ("nemotron_h", {**SMALL, "hybrid_override_pattern": "M-*-", "moe_latent_size": None}),
    ("nemotron_h", {**SMALL, "layer_types": ["linear_attention", "moe", "full_attention", "moe"], "n_routed_experts": 4,
                    "moe_latent_size": 128}),
    ("glm4_moe", {**SMALL, "use_qk_norm": True, "attention_bias": True, "n_routed_experts": 4}),
    ("gemma3_text", {**SMALL, "head_dim": 64}),
    ("lfm2", {**SMALL, "full_attn_idxs": [1, 3]}),
]  # fmt: skip
# Not in transformers: Kimi K2 brings its own code, which is that of DeepSeek V3. Bamba has no default layers.
DEFAULTS = [name for name in families() if name not in ("kimi_k2", "bamba")]


@pytest.fixture(scope="module")
def counted(engine_python: Path) -> list[tuple[int, dict[str, Any]]]:
    cases = [*[(name, {}) for name in DEFAULTS], *VARIANTS]
    script = Path(__file__).with_name("count_child.py")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(engine_python), "-W", "ignore", str(script), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, env=environ, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[tuple[int, dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_parameters_are_those_of_the_modules(counted: list[tuple[int, dict[str, Any]]]) -> None:
    names = [*DEFAULTS, *[f"{name} {changes}" for name, changes in VARIANTS]]
    wrong = {}
    for name, (expected, config) in zip(names, counted, strict=True):
        found = count_parameters(ModelConfig(config))
        if found is None or found.total != expected:
            wrong[name] = (None if found is None else found.total, expected)
    assert wrong == {}


def test_every_counted_decoder_has_a_cache_figure(counted: list[tuple[int, dict[str, Any]]]) -> None:
    without = [config["model_type"] for _, config in counted if kv_layers(ModelConfig(config)) == ()]
    assert without == []
