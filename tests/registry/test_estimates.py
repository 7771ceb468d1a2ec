"""Counts and caches of public models, from their configs alone, against what was published.

Each file of tests/fixtures/models holds the facts of one config.json, where its figures were published, and the KV
bytes per token with the calculation. The counts that a hub makes over all tensors are an independent check: they come
from the weights, ours from the shapes that the config implies.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xinf.core.model import ModelFacts
from xinf.registry import kv_bytes_per_sequence, kv_bytes_per_token, read_facts
from xinf.registry.safetensors import Tensor
from xinf.registry.weights import add_up

MODELS = sorted((Path(__file__).parent.parent / "fixtures" / "models").glob("*.json"))
GIB = 1 << 30
# `metadata.total_size` of the repositories' model.safetensors.index.json: sums over the shards by whoever wrote them.
INDEX_BYTES = {
    "meta-llama--Llama-3.1-8B": 16_060_522_496,
    "Qwen--Qwen2.5-7B-Instruct": 15_231_233_024,
    "Qwen--Qwen3-30B-A3B": 61_064_245_248,
    "Qwen--Qwen3-235B-A22B": 470_187_269_120,
    "mistralai--Mixtral-8x7B-v0.1": 93_405_585_408,
    "deepseek-ai--DeepSeek-V2-Lite": 31_412_968_448,
    "openai--gpt-oss-20b": 13_761_264_768,
    "openai--gpt-oss-120b": 65_248_815_744,
    "moonshotai--Kimi-K2-Instruct": 1_029_173_256_720,  # payload of its 61 shards
}


def read(name: str, directory: Path) -> ModelFacts:
    path = next(path for path in MODELS if path.stem == name)
    config = {key: value for key, value in json.loads(path.read_text()).items() if not key.startswith("_")}
    (directory / "config.json").write_text(json.dumps(config))
    return read_facts(directory)


def published(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    assert next(iter(content)) == "_source"
    facts: dict[str, Any] = content["_published"]
    return facts


EXACT = [path for path in MODELS if published(path)["n_parameters"] % 10**8]  # the others are rounded


def test_table_covers_every_kind() -> None:
    assert len(MODELS) >= 25
    text = {path.stem: path.read_text() for path in MODELS}
    for mark in (
        "num_experts",
        "kv_lora_rank",
        '"sliding_window": 4096',
        "mamba",
        '"fp8"',
        '"awq"',
        '"gptq"',
        '"mxfp4"',
    ):
        assert any(mark in content for content in text.values()), mark


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_parameters_are_within_one_percent_of_the_published(path: Path, tmp_path: Path) -> None:
    facts = read(path.stem, tmp_path)
    expected = published(path)
    assert expected["n_parameters_source"]
    assert facts.n_parameters is not None
    assert abs(facts.n_parameters / expected["n_parameters"] - 1) < 0.01, (facts.n_parameters, expected)


@pytest.mark.parametrize("path", EXACT, ids=lambda path: path.stem)
def test_parameters_are_exact_where_somebody_counted_them(path: Path, tmp_path: Path) -> None:
    assert read(path.stem, tmp_path).n_parameters == published(path)["n_parameters"]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_kv_bytes_per_token_are_those_published(path: Path, tmp_path: Path) -> None:
    expected = published(path)
    assert expected["kv_source"]
    assert kv_bytes_per_token(read(path.stem, tmp_path)) == expected["kv_bytes_per_token"]


@pytest.mark.parametrize(("name", "active"), [
    ("mistralai--Mixtral-8x7B-v0.1", 12.88e9),  # paper (arXiv 2401.04088): 13B
    ("Qwen--Qwen3-30B-A3B", 3.353e9),  # model card: 3.3B
    ("Qwen--Qwen3-235B-A22B", 22.19e9),  # model card: 22B
    ("deepseek-ai--DeepSeek-V3", 37.55e9),  # paper: 37B; README_WEIGHTS.md counts the embedding not, 36.7B
    ("openai--gpt-oss-120b", 5.71e9),  # model card: 5.13B without the embedding, of 0.58B
    ("openai--gpt-oss-20b", 4.19e9),  # model card: 3.61B without the embedding, of 0.58B
    ("microsoft--Phi-3.5-MoE-instruct", 6.64e9),  # model card: 6.6B
])  # fmt: skip
def test_active_parameters(name: str, active: float, tmp_path: Path) -> None:
    found = read(name, tmp_path).n_active_parameters
    assert found is not None
    assert abs(found / active - 1) < 0.01, found


@pytest.mark.parametrize("name", INDEX_BYTES)
def test_stored_bytes_are_those_of_the_index(name: str, tmp_path: Path) -> None:
    found = read(name, tmp_path).weight_bytes
    assert found is not None
    # In 16 bits to the byte; packed ones keep a few small tensors in other types.
    tolerance = 0 if read(name, tmp_path).quantization is None else 1e-4
    assert abs(found / INDEX_BYTES[name] - 1) <= tolerance, found


@pytest.mark.parametrize("name", ["Qwen--Qwen2.5-7B-Instruct-AWQ", "Qwen--Qwen2.5-72B-Instruct-GPTQ-Int4"])
def test_stored_bytes_of_four_bits_are_those_of_the_tensors(name: str, tmp_path: Path) -> None:
    """Against every tensor that the tools write for these shapes, added up by the reader of headers."""
    facts = read(name, tmp_path)
    assert facts.quantization is not None
    stored = add_up(packed_tensors(facts), facts.quantization, facts.n_layers)
    assert stored.n_parameters == facts.n_parameters
    assert facts.weight_bytes is not None
    assert abs(facts.weight_bytes / stored.n_bytes - 1) < 1e-3, (facts.weight_bytes, stored.n_bytes)


def packed_tensors(facts: ModelFacts) -> Iterator[Tensor]:
    """Qwen2 in AWQ (eight columns in a word) or GPTQ (eight rows), groups of 128."""
    assert facts.hidden_size
    assert facts.intermediate_size
    assert facts.n_layers
    assert facts.n_heads
    assert facts.n_kv_heads
    assert facts.head_size
    assert facts.vocabulary_size
    assert facts.quantization
    hidden, width = facts.hidden_size, facts.intermediate_size
    queries, keys = facts.n_heads * facts.head_size, facts.n_kv_heads * facts.head_size
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        yield Tensor(name, "F16", (facts.vocabulary_size, hidden))
    yield Tensor("model.norm.weight", "F16", (hidden,))
    linear = {"q": (hidden, queries), "k": (hidden, keys), "v": (hidden, keys), "o": (queries, hidden),
              "gate": (hidden, width), "up": (hidden, width), "down": (width, hidden)}  # fmt: skip
    for number in range(facts.n_layers):
        layer = f"model.layers.{number}"
        yield Tensor(f"{layer}.input_layernorm.weight", "F16", (hidden,))
        yield Tensor(f"{layer}.post_attention_layernorm.weight", "F16", (hidden,))
        for name, (rows, columns) in linear.items():
            is_awq = facts.quantization.method == "awq"
            yield Tensor(f"{layer}.{name}.qweight", "I32", (rows, columns // 8) if is_awq else (rows // 8, columns))
            yield Tensor(f"{layer}.{name}.qzeros", "I32", (rows // 128, columns // 8))
            yield Tensor(f"{layer}.{name}.scales", "F16", (rows // 128, columns))
            if not is_awq:
                yield Tensor(f"{layer}.{name}.g_idx", "I32", (rows,))
            if name in "qkv":
                yield Tensor(f"{layer}.{name}.bias", "F16", (columns,))


def test_windows_and_states_bound_a_long_sequence(tmp_path: Path) -> None:
    mistral = read("mistralai--Mistral-7B-v0.1", tmp_path)
    assert kv_bytes_per_sequence(mistral, 32768) == kv_bytes_per_sequence(mistral, 4096) == 4096 * 131072
    assert kv_bytes_per_sequence(mistral, 32768, step_tokens=2048) == (4096 + 2048) * 131072
    # Gemma 3 report (arXiv 2503.19786): 5 local layers to 1 global one.
    gemma = read("google--gemma-3-1b-it", tmp_path)
    assert sorted((layers.n_layers, layers.window_tokens) for layers in gemma.kv) == [(4, None), (22, 512)]
    # Jamba paper, table 1: 4 GB at 256K tokens; the states of 28 layers are some megabytes beside it.
    jamba = kv_bytes_per_sequence(read("ai21labs--Jamba-v0.1", tmp_path), 256 << 10)
    assert jamba is not None
    assert 4 * GIB < jamba < 4.01 * GIB


def test_states_of_recurrent_layers_are_those_that_vllm_allocates(tmp_path: Path) -> None:
    """Shapes worked out by hand from vLLM's `mamba_utils.py`."""
    state = {}
    for name in ("Qwen--Qwen3-Next-80B-A3B-Instruct", "ibm-granite--granite-4.0-h-small", "LiquidAI--LFM2-1.2B",
                 "nvidia--Nemotron-H-8B-Base-8K"):  # fmt: skip
        (layers,) = [layers for layers in read(name, tmp_path).kv if layers.state_bytes]
        state[name] = (layers.n_layers, layers.state_bytes)
    assert state == {
        "Qwen--Qwen3-Next-80B-A3B-Instruct": (36, (3 * 8192 + 32 * 128 * 128) * 2),
        "ibm-granite--granite-4.0-h-small": (36, (3 * (8192 + 2 * 128) + 128 * 64 * 128) * 2),
        "LiquidAI--LFM2-1.2B": (10, 2 * 2048 * 2),
        "nvidia--Nemotron-H-8B-Base-8K": (24, 3 * (8192 + 2 * 8 * 128) * 2 + 128 * 64 * 128 * 4),
    }


def test_tensor_parallelism_splits_heads_and_repeats_latents(tmp_path: Path) -> None:
    llama = read("meta-llama--Llama-3.1-8B", tmp_path)
    assert kv_bytes_per_token(llama, tensor_parallel_size=4) == 131072 // 4
    assert kv_bytes_per_token(llama, tensor_parallel_size=16) == 131072 // 8  # 8 heads: each is there twice
    assert kv_bytes_per_token(llama, element_bytes=1) == 131072 // 2
    deepseek = read("deepseek-ai--DeepSeek-V3", tmp_path)
    assert kv_bytes_per_token(deepseek, tensor_parallel_size=8) == 70272


@pytest.mark.parametrize(("name", "tokens"), [
    ("meta-llama--Llama-3.1-8B", 131072), ("deepseek-ai--DeepSeek-V3", 163840), ("openai--gpt-oss-20b", 131072),
    ("Qwen--Qwen2.5-7B-Instruct", 32768),
])  # fmt: skip
def test_context_is_what_an_engine_derives(name: str, tokens: int, tmp_path: Path) -> None:
    assert read(name, tmp_path).context_tokens == tokens
