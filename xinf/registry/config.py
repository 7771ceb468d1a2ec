"""config.json, read with care: a file that anybody may have written.

Keys have had several names over the years, and models for text and images keep those of the language model one level
down. `ModelConfig` finds a number by any of its names and takes nothing that cannot be meant: negative, absurd or of
the wrong type counts as not said. Source of the names: transformers 5.19, `models/*/configuration_*.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from xinf.core.errors import UnknownModel

MAX_CONFIG_BYTES = 16 << 20  # the largest in use have some 100 KB: lists of modules that are not quantized
MAX_LAYERS = 4096
_MAX_COUNT = 1 << 40
_MAX_FACTOR = 4096
# Where the language model's numbers are in models of several parts, outermost first.
_TEXT_PARTS = ("thinker_config", "text_config", "llm_config", "language_config", "language_model")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_INTERMEDIATE = ("intermediate_size", "n_inner", "ffn_dim", "d_ff")
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_k")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")


class ModelConfig:
    """The numbers of the language model in a config.json; `top` is the file as it is."""

    def __init__(self, top: Mapping[str, Any]) -> None:
        self.top = top
        self.text = _text_part(top)

    def count(self, *names: str) -> int | None:
        """Find a whole number above 0 by the first of its names that has one."""
        return next((found for name in names if (found := as_count(self.text.get(name))) is not None), None)

    def factor(self, name: str) -> float | None:
        """A number above 0 that others are multiplied by."""
        value = self.text.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if 0 < value <= _MAX_FACTOR else None

    def word(self, *names: str) -> str | None:
        return next((value for name in names if isinstance(value := self.text.get(name), str)), None)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.text.get(name)
        return value if isinstance(value, bool) else default

    def words(self, name: str) -> tuple[str, ...]:
        """A list of words; () if there is none."""
        value = self.text.get(name)
        return tuple(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else ()

    def counts(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers from 0; () if there is none."""
        value = self.text.get(name)
        return tuple(value) if isinstance(value, list) and all(type(item) is int for item in value) else ()

    @property
    def model_type(self) -> str:
        """Of the language model: `qwen3`, and `gemma3_text` in a `gemma3`."""
        return self.word("model_type") or ""

    @property
    def architectures(self) -> tuple[str, ...]:
        listed = self.top.get("architectures")
        return tuple(map(str, listed)) if isinstance(listed, list) else ()

    @property
    def n_layers(self) -> int | None:
        """Raises: UnknownModel if there are more than anybody has ever stacked, which would be walked one by one."""
        n_layers = self.count(*_LAYERS)
        if n_layers is None and self.model_type == "nemotron_h":
            # Of late it names the layers and leaves their number out.
            n_layers = len(self.words("layer_types") or self.words("layers_block_type")) or None
        if n_layers is not None and n_layers > MAX_LAYERS:
            raise UnknownModel(
                f"config.json says {n_layers} layers, more than {MAX_LAYERS}",
                remedy="check config.json; it is damaged, or not of a language model",
                param="model",
            )
        return n_layers

    @property
    def n_heads(self) -> int | None:
        return self.count(*_HEADS)

    @property
    def n_kv_heads(self) -> int | None:
        if self.model_type == "falcon" and self.flag("multi_query") and not self.flag("new_decoder_architecture"):
            return 1
        if self.model_type == "gpt_bigcode" and self.flag("multi_query", True):
            return 1
        return self.count("num_key_value_heads", "num_kv_heads", "multi_query_group_num") or self.n_heads

    @property
    def hidden_size(self) -> int | None:
        return self.count(*_HIDDEN)

    @property
    def head_size(self) -> int | None:
        hidden, n_heads = self.hidden_size, self.n_heads
        return self.count("head_dim", "attention_head_dim") or (hidden // n_heads if hidden and n_heads else None)

    @property
    def intermediate_size(self) -> int | None:
        return self.count(*_INTERMEDIATE)

    @property
    def n_experts(self) -> int | None:
        # One "expert" is a dense model: a Granite without experts says 0 or 1.
        found = self.count(*_EXPERTS)
        return found if found is not None and found > 1 else None

    @property
    def n_experts_per_token(self) -> int | None:
        return self.count(*_EXPERTS_PER_TOKEN)

    @property
    def max_positions(self) -> int | None:
        return self.count(*_POSITIONS)

    @property
    def context_tokens(self) -> int | None:
        """The longest context that an engine takes from the config alone.

        Source: vLLM 0.32, `config/model.py`, `_get_and_verify_max_len`: positions are multiplied by the factor of the
        scaling, except for kinds whose `max_position_embeddings` counts it in already; Command-R says it in a key of
        its own. With longrope the default is shorter, and this the most that may be asked for.
        """
        longest = self.count("model_max_length") or self.max_positions
        scaling = self.text.get("rope_scaling") or self.text.get("rope_parameters")
        if longest is None or not isinstance(scaling, dict) or "gemma3" in self.model_type:
            return longest
        kind = scaling.get("rope_type") or scaling.get("type")
        factor = scaling.get("factor")
        if kind not in ("linear", "dynamic") or not isinstance(factor, int | float) or not 1 <= factor <= _MAX_FACTOR:
            return longest
        return int(longest * factor)


def decode_config(content: bytes, name: str) -> ModelConfig:
    """Decode config.json; `name` is for messages. Raises: UnknownModel if it is no JSON object."""
    try:
        return ModelConfig(msgspec.json.decode(content, type=dict[str, Any]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnknownModel(f"{name} cannot be read: {error}", remedy="fetch the model again", param="model") from error


def as_count(value: object) -> int | None:
    """A whole number above 0 that can be meant, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_COUNT else None


def _text_part(top: Mapping[str, Any]) -> Mapping[str, Any]:
    merged = dict(top)
    for part in _inner_parts(top):
        merged.update(part)
    return merged


def _inner_parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for name in _TEXT_PARTS:
        inner = config.get(name)
        if isinstance(inner, dict):
            yield inner
            yield from _inner_parts(inner)
            return
