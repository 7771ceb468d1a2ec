"""The facts of a model from the files of a directory."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from tests.registry.checkpoint import Shapes, write_safetensors, write_shards
from xinf.core.errors import InvalidRequest, UnknownModel
from xinf.registry import kv_bytes_per_token, read_facts, read_model, write_scripted_model

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 100, "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip


def layer(number: int, *, hidden: int = 64, keys: int = 32, width: int = 128) -> Shapes:
    name = f"model.layers.{number}"
    return {
        f"{name}.input_layernorm.weight": ("BF16", (hidden,)),
        f"{name}.post_attention_layernorm.weight": ("BF16", (hidden,)),
        f"{name}.self_attn.q_proj.weight": ("BF16", (hidden, hidden)),
        f"{name}.self_attn.k_proj.weight": ("BF16", (keys, hidden)),
        f"{name}.self_attn.v_proj.weight": ("BF16", (keys, hidden)),
        f"{name}.self_attn.o_proj.weight": ("BF16", (hidden, hidden)),
        f"{name}.mlp.gate_proj.weight": ("BF16", (width, hidden)),
        f"{name}.mlp.up_proj.weight": ("BF16", (width, hidden)),
        f"{name}.mlp.down_proj.weight": ("BF16", (hidden, width)),
    }


ENDS: Shapes = {
    "model.embed_tokens.weight": ("BF16", (100, 64)),
    "model.norm.weight": ("BF16", (64,)),
    "lm_head.weight": ("BF16", (100, 64)),
}
WHOLE: Shapes = {**ENDS, **layer(0), **layer(1)}
N_PARAMETERS = sum(math.prod(shape) for _, shape in WHOLE.values())


def make(directory: Path, config: dict[str, Any], **files: object) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in {"config.json": config, **files}.items():
        (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


def test_headers_and_config_count_the_same(tmp_path: Path) -> None:
    make(tmp_path, LLAMA)
    computed = read_model(str(tmp_path))
    assert (computed.n_parameters, computed.is_counted) == (N_PARAMETERS, False)
    write_safetensors(tmp_path / "model.safetensors", WHOLE)
    counted = read_model(str(tmp_path))
    assert (counted.n_parameters, counted.is_counted) == (N_PARAMETERS, True)
    assert counted.weight_bytes == computed.weight_bytes == 2 * N_PARAMETERS
    assert counted.stored_dtypes == {"BF16": 2 * N_PARAMETERS}
    assert counted.draft_bytes is None
    assert (counted.n_layers, counted.n_heads, counted.n_kv_heads, counted.head_size) == (2, 4, 2, 16)
    assert (counted.kind, counted.quantization, counted.revision) == ("text", None, None)


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    make(tmp_path, LLAMA)
    write_shards(tmp_path, {"m-1.safetensors": {**ENDS, **layer(0)}, "m-2.safetensors": layer(1)})
    # What the index does not name is not of the model.
    write_safetensors(tmp_path / "other.safetensors", layer(2))
    assert read_model(str(tmp_path)).n_parameters == N_PARAMETERS


def test_shard_that_is_missing_is_an_unknown_model(tmp_path: Path) -> None:
    make(tmp_path, LLAMA)
    write_shards(tmp_path, {"m-1.safetensors": ENDS, "m-2.safetensors": layer(1)})
    (tmp_path / "m-2.safetensors").unlink()
    with pytest.raises(UnknownModel, match=r"has no m-2\.safetensors"):
        read_model(str(tmp_path))


def test_the_same_weights_in_mistrals_format_count_once(tmp_path: Path) -> None:
    make(tmp_path, LLAMA)
    write_safetensors(tmp_path / "weights.safetensors", WHOLE)
    write_safetensors(tmp_path / "consolidated.safetensors", WHOLE)
    assert read_model(str(tmp_path)).n_parameters == N_PARAMETERS


def test_long_header_is_read_in_two_ranges(tmp_path: Path) -> None:
    many: Shapes = {f"model.layers.0.t{number}": ("BF16", (2,)) for number in range(4000)}
    make(tmp_path, LLAMA)
    write_safetensors(tmp_path / "model.safetensors", many)
    assert read_model(str(tmp_path)).n_parameters == 8000


def test_cut_file_is_an_unknown_model_and_config_alone_is_still_read(tmp_path: Path) -> None:
    make(tmp_path, LLAMA)
    write_safetensors(tmp_path / "model.safetensors", WHOLE)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(UnknownModel, match="damaged"):
        read_model(str(tmp_path))
    assert read_facts(tmp_path).n_layers == 2


@pytest.mark.parametrize("factor", [1e308, 10**400, -1.0, 0])
def test_absurd_factor_of_a_width_counts_as_not_said(factor: float, tmp_path: Path) -> None:
    lfm = {**LLAMA, "model_type": "lfm2", "full_attn_idxs": [0]}
    plain = read_model(str(make(tmp_path, {**lfm, "block_ffn_dim_multiplier": 1.0}))).n_parameters
    assert plain is not None
    assert read_model(str(make(tmp_path, {**lfm, "block_ffn_dim_multiplier": factor}))).n_parameters == plain


def test_headers_and_shards_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, LLAMA)
    write_safetensors(tmp_path / "a.safetensors", WHOLE)
    write_safetensors(tmp_path / "b.safetensors", WHOLE)
    longest = int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little")
    monkeypatch.setattr("xinf.registry.reader._MAX_HEADERS_BYTES", 2 * longest)
    assert read_model(str(tmp_path)).n_parameters == 2 * N_PARAMETERS
    monkeypatch.setattr("xinf.registry.reader._MAX_HEADERS_BYTES", 2 * longest - 1)
    with pytest.raises(UnknownModel, match="has headers of more than"):
        read_model(str(tmp_path))
    monkeypatch.setattr("xinf.registry.reader.MAX_SHARDS", 1)
    with pytest.raises(UnknownModel, match="has 2 files of weights"):
        read_model(str(tmp_path))


def test_directory_inside_that_may_not_be_listed_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, LLAMA)
    (tmp_path / "lost+found").mkdir()
    scan = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path).name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert read_model(str(tmp_path)).n_layers == 2


def test_the_scripted_model_is_counted(tmp_path: Path) -> None:
    directory = write_scripted_model(tmp_path / "scripted")
    facts = read_model(str(directory))
    assert facts.is_counted
    assert facts.n_parameters == read_facts(directory).n_parameters
    assert facts.weight_bytes == 2 * facts.n_parameters
    assert kv_bytes_per_token(facts) == 2 * 2 * 2 * 64 * 2
    assert (facts.has_chat_template, facts.has_vocabulary) == (True, True)
    assert read_model("scripted") == facts


def test_weights_in_another_format_have_their_size_and_a_computed_count(tmp_path: Path) -> None:
    make(tmp_path, LLAMA, **{"pytorch_model-1.bin": "x" * 70, "pytorch_model-2.bin": "x" * 30})
    facts = read_model(str(tmp_path))
    assert (facts.weight_bytes, facts.n_parameters, facts.is_counted) == (100, N_PARAMETERS, False)


@pytest.mark.parametrize("name", ["model.Q4_K_M.gguf", "sub/model.gguf"])
def test_gguf_is_refused_by_name_with_a_remedy(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"GGUF")
    for typed in (str(path), str(tmp_path)):
        with pytest.raises(InvalidRequest, match="GGUF") as caught:
            read_model(typed)
        assert "safetensors" in str(caught.value.remedy)


def test_gguf_beside_safetensors_is_no_matter(tmp_path: Path) -> None:
    make(tmp_path, LLAMA, **{"model.gguf": "GGUF"})
    write_safetensors(tmp_path / "model.safetensors", WHOLE)
    assert read_model(str(tmp_path)).n_parameters == N_PARAMETERS


@pytest.mark.parametrize(("files", "template", "vocabulary"), [
    ({}, None, False),
    ({"tokenizer.json": {}}, False, True),
    ({"tokenizer.json": {}, "tokenizer_config.json": {"chat_template": "{{ messages }}"}}, True, True),
    ({"tokenizer.json": {}, "tokenizer_config.json": {"chat_template": [{"name": "default"}]}}, True, True),
    ({"tokenizer.json": {}, "tokenizer_config.json": {}}, False, True),
    ({"tokenizer.json": {}, "tokenizer_config.json": "{"}, None, True),
    ({"tokenizer.model": "x", "chat_template.jinja": "{{ messages }}"}, True, True),
    ({"tekken.json": {}}, True, True),
])  # fmt: skip
def test_tokenizer_files(files: dict[str, object], template: bool | None, vocabulary: bool, tmp_path: Path) -> None:
    facts = read_model(str(make(tmp_path, LLAMA, **files)))
    assert (facts.has_chat_template, facts.has_vocabulary) == (template, vocabulary)


@pytest.mark.parametrize(("config", "files", "kind"), [
    ({}, {}, "text"),
    ({"architectures": ["Qwen3ForCausalLM"]}, {"modules.json": []}, "embedding"),
    ({"architectures": ["BertModel"], "model_type": "bert"}, {}, "embedding"),
    ({"architectures": ["XLMRobertaForSequenceClassification"], "model_type": "xlm-roberta"}, {}, "other"),
    ({"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}, {}, "vision"),
    ({"architectures": ["WhisperForConditionalGeneration"], "is_encoder_decoder": True}, {}, "other"),
    ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, {}, "text"),
])  # fmt: skip
def test_kind(config: dict[str, object], files: dict[str, object], kind: str, tmp_path: Path) -> None:
    assert read_model(str(make(tmp_path, {**LLAMA, **config}, **files))).kind == kind


def test_language_model_of_a_vision_model(tmp_path: Path) -> None:
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "vision_config": {},
              "text_config": {**LLAMA, "model_type": "gemma3_text", "sliding_window": 16}}  # fmt: skip
    facts = read_model(str(make(tmp_path, config)))
    assert (facts.model_type, facts.n_layers, facts.kind) == ("gemma3", 2, "vision")
    assert [layers.window_tokens for layers in facts.kv] == [16]
    assert facts.n_parameters is None  # its tower is not counted from the config


def test_quantization_beside_the_config_is_found(tmp_path: Path) -> None:
    make(tmp_path, LLAMA, **{"hf_quant_config.json": {"quantization": {"quant_algo": "NVFP4", "group_size": 16}}})
    quantization = read_model(str(tmp_path)).quantization
    assert quantization is not None
    assert (quantization.method, quantization.bits, quantization.group_size) == ("modelopt", 4, 16)


def test_experts_that_idle_are_not_active(tmp_path: Path) -> None:
    config = {**LLAMA, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4,
              "num_experts_per_tok": 1, "num_hidden_layers": 1}  # fmt: skip
    expert: Shapes = {
        f"model.layers.0.block_sparse_moe.experts.{number}.{name}.weight": ("BF16", (128, 64))
        for number in range(4)
        for name in ("w1", "w2", "w3")
    }
    dense = {name: shape for name, shape in layer(0).items() if ".mlp." not in name}
    make(tmp_path, config)
    computed = read_model(str(tmp_path))
    router: Shapes = {"model.layers.0.block_sparse_moe.gate.weight": ("BF16", (4, 64))}
    write_safetensors(tmp_path / "model.safetensors", {**ENDS, **dense, **expert, **router})
    counted = read_model(str(tmp_path))
    assert counted.n_parameters == computed.n_parameters
    assert counted.n_active_parameters == computed.n_active_parameters
    assert counted.n_active_parameters == counted.n_parameters - 3 * 3 * 128 * 64


@pytest.mark.parametrize("changes", [
    {"num_hidden_layers": 10**9}, {"num_hidden_layers": 5000},
])  # fmt: skip
def test_absurd_number_of_layers_is_an_unknown_model(changes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="layers, more than"):
        read_model(str(make(tmp_path, {**LLAMA, **changes})))


@pytest.mark.parametrize("changes", [
    {"num_key_value_heads": -3, "num_attention_heads": True, "head_dim": "64"},
    {"hidden_size": 1 << 70, "vocab_size": 1.5, "num_hidden_layers": None},
    {"layer_types": [1, 2], "sliding_window": [], "rope_scaling": "yarn", "architectures": {"a": 1}},
    {"rope_scaling": {"rope_type": "yarn", "factor": -1}, "max_position_embeddings": 1 << 60},
    {"text_config": {"text_config": {"text_config": {"hidden_size": 0}}}, "num_experts": "many"},
])  # fmt: skip
def test_numbers_that_cannot_be_meant_are_not_said(changes: dict[str, object], tmp_path: Path) -> None:
    facts = read_model(str(make(tmp_path, {**LLAMA, **changes})))
    for value in (facts.n_heads, facts.hidden_size, facts.head_size, facts.max_positions, facts.n_experts):
        assert value is None or value > 0


@pytest.mark.parametrize("extra", [
    {"mamba_d_state": 16}, {"linear_attn_config": {}}, {"rwkv_version": 7}, {"lru_width": 64},
])  # fmt: skip
def test_recurrence_that_is_not_known_gives_no_cache_figure(extra: dict[str, object], tmp_path: Path) -> None:
    facts = read_model(str(make(tmp_path, {**LLAMA, **extra})))
    assert facts.kv == ()
    assert kv_bytes_per_token(facts) is None


def test_empty_directory_and_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"has no config\.json"):
        read_model(str(tmp_path))
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(InvalidRequest, match="is one file"):
        read_model(str(tmp_path / "weights.safetensors"))
    with pytest.raises(UnknownModel, match="there is no directory"):
        read_model(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("changes", "tokens"), [
    ({}, 512),
    ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 2048),
    ({"rope_scaling": {"type": "dynamic", "factor": 2}}, 1024),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}, 512),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 512),
    ({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}, 512),
    ({"rope_scaling": {"rope_type": "linear", "factor": 1e300}}, 512),
    ({"model_max_length": 8192}, 8192),
])  # fmt: skip
def test_context_with_scaled_positions(changes: dict[str, object], tokens: int, tmp_path: Path) -> None:
    facts = read_model(str(make(tmp_path, {**LLAMA, **changes})))
    assert (facts.max_positions, facts.context_tokens) == (512, tokens)
