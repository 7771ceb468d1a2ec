"""Layers without a KV cache: Mamba, gated delta net, short convolution; their parameters and the state they keep.

A hybrid model has some of them beside attention, in an order that its config lists in one of a dozen ways. Shapes of
states are those that vLLM 0.32 allocates (`model_executor/layers/mamba/mamba_utils.py`), parameters those of
transformers 5.19 (`models/*/modeling_*.py`).
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import msgspec

from xinf.registry.config import ModelConfig

LayerKind = Literal["attention", "mixer", "both", "none"]
_ATTENTION: LayerKind = "attention"
_MIXER: LayerKind = "mixer"
_BOTH: LayerKind = "both"
_NEMOTRON_KINDS: dict[str, LayerKind] = {"M": "mixer", "*": "attention", "-": "none", "E": "none"}
_NEMOTRON_WORDS = {
    "mamba": "M",
    "linear_attention": "M",
    "attention": "*",
    "full_attention": "*",
    "mlp": "-",
    "moe": "E",
}

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_LINEAR_TYPES = ("linear_attention", "mamba", "conv", "recurrent")


class Mixer(Protocol):
    """What stands in a layer for attention."""

    def n_parameters(self, hidden: int) -> int | None: ...

    def state_bytes(self) -> int | None: ...


class Mamba1(msgspec.Struct, frozen=True, kw_only=True):
    """Selective state space as in Jamba: a step size of low rank, norms on its three inputs."""

    inner: int
    state_size: int
    kernel: int
    step_rank: int
    conv_bias: bool
    projection_bias: bool
    has_norms: bool
    element_bytes: int

    def n_parameters(self, hidden: int) -> int:
        projections = hidden * 2 * self.inner + self.inner * hidden
        projections += (2 * self.inner + hidden) if self.projection_bias else 0
        steps = self.inner * (self.step_rank + 2 * self.state_size) + self.step_rank * self.inner + self.inner
        convolution = self.inner * (self.kernel + self.conv_bias)
        norms = self.step_rank + 2 * self.state_size if self.has_norms else 0
        return projections + steps + convolution + self.inner * self.state_size + self.inner + norms

    def state_bytes(self) -> int:
        return self.inner * (self.kernel - 1 + self.state_size) * self.element_bytes


class Mamba2(msgspec.Struct, frozen=True, kw_only=True):
    """State space with scalar decay per head, as in Bamba, Nemotron-H, Granite 4 and Falcon-H1."""

    n_heads: int
    head_size: int
    state_size: int
    n_groups: int
    kernel: int
    conv_bias: bool
    projection_bias: bool
    has_norm: bool
    element_bytes: int
    state_element_bytes: int

    @property
    def _inner(self) -> int:
        return self.n_heads * self.head_size

    @property
    def _convolved(self) -> int:
        return self._inner + 2 * self.n_groups * self.state_size

    def n_parameters(self, hidden: int) -> int:
        width = self._inner + self._convolved + self.n_heads
        projections = hidden * width + self._inner * hidden + ((width + hidden) if self.projection_bias else 0)
        convolution = self._convolved * (self.kernel + self.conv_bias)
        return projections + convolution + 3 * self.n_heads + (self._inner if self.has_norm else 0)

    def state_bytes(self) -> int:
        recurrent = self.n_heads * self.head_size * self.state_size * self.state_element_bytes
        return self._convolved * (self.kernel - 1) * self.element_bytes + recurrent


class DeltaNet(msgspec.Struct, frozen=True, kw_only=True):
    """Gated delta net of Qwen3-Next and Qwen3.5."""

    n_key_heads: int
    n_value_heads: int
    key_size: int
    value_size: int
    kernel: int
    element_bytes: int
    state_element_bytes: int

    @property
    def _convolved(self) -> int:
        return 2 * self.n_key_heads * self.key_size + self.n_value_heads * self.value_size

    def n_parameters(self, hidden: int) -> int:
        values = self.n_value_heads * self.value_size
        # Queries, keys, values and gate; two scalars per head; the convolution has no bias.
        projections = hidden * (self._convolved + values) + hidden * 2 * self.n_value_heads + values * hidden
        return projections + self._convolved * self.kernel + 2 * self.n_value_heads + self.value_size

    def state_bytes(self) -> int:
        recurrent = self.n_value_heads * self.value_size * self.key_size * self.state_element_bytes
        return self._convolved * (self.kernel - 1) * self.element_bytes + recurrent


class ShortConvolution(msgspec.Struct, frozen=True, kw_only=True):
    """Gated convolution of LFM2."""

    width: int
    kernel: int
    has_bias: bool
    element_bytes: int

    def n_parameters(self, hidden: int) -> int:
        biases = (3 * hidden + hidden + hidden) if self.has_bias else 0
        return hidden * 3 * hidden + self.width * self.kernel + hidden * hidden + biases

    def state_bytes(self) -> int:
        return self.width * (self.kernel - 1) * self.element_bytes


def mixer_of(config: ModelConfig) -> Mixer | None:
    """The mixer of a model's recurrent layers; None if it has none that is known here, or lacks a number."""
    match config.model_type:
        case "jamba" | "mamba" | "falcon_mamba":
            return _mamba1(config)
        case "bamba" | "falcon_h1" | "granitemoehybrid" | "nemotron_h":
            return _mamba2(config)
        case "qwen3_next" | "qwen3_5_text" | "qwen3_5_moe_text" | "qwen3_5" | "qwen3_5_moe":
            return _delta_net(config)
        case "lfm2" | "lfm2_moe":
            return _short_convolution(config)
    return None


def mixers(config: ModelConfig) -> tuple[LayerKind, ...]:
    """What each layer of a hybrid model is, in order; () if its config does not say."""
    n_layers = config.n_layers or 0
    kind = config.model_type
    if kind in ("mamba", "falcon_mamba"):
        return tuple(_MIXER for _ in range(n_layers))
    if kind == "falcon_h1":
        return tuple(_BOTH for _ in range(n_layers))
    if kind == "nemotron_h":
        return tuple(_NEMOTRON_KINDS[letter] for letter in layer_letters(config))
    types = config.words("layer_types") or config.words("layers_block_type")
    if types:
        return tuple(_MIXER if name in _LINEAR_TYPES else _ATTENTION for name in types)
    if kind == "jamba":
        period, offset = config.count("attn_layer_period") or 8, config.text.get("attn_layer_offset", 4)
        return tuple(_ATTENTION if number % period == offset else _MIXER for number in range(n_layers))
    if kind.startswith("qwen3"):
        period = config.count("full_attention_interval") or 4
        return tuple(_MIXER if (number + 1) % period else _ATTENTION for number in range(n_layers))
    full = config.counts("attn_layer_indices") or config.counts("full_attn_idxs")
    return tuple(_ATTENTION if number in full else _MIXER for number in range(n_layers)) if full else ()


def attention_only(n_layers: int) -> tuple[LayerKind, ...]:
    """The layers of a model that has no other kind."""
    return (_ATTENTION,) * n_layers


def layer_letters(config: ModelConfig) -> str:
    """The layers of a Nemotron-H, one letter each: M Mamba, * attention, - feed-forward, E experts; "" if it has none.

    Source: transformers 5.19, `configuration_nemotron_h.py`, which took up lists of words later.
    """
    if (pattern := config.word("hybrid_override_pattern")) is not None:
        return pattern if set(pattern) <= set(_NEMOTRON_KINDS) else ""
    types = config.words("layers_block_type") or config.words("layer_types")
    return "".join(_NEMOTRON_WORDS.get(name, "?") for name in types) if set(types) <= set(_NEMOTRON_WORDS) else ""


def _element_bytes(config: ModelConfig) -> int:
    return _BYTES.get(config.word("dtype", "torch_dtype") or "", 2)


def _state_element_bytes(config: ModelConfig) -> int:
    """Of the recurrent state. vLLM takes what the config names, else the model's own type, for Nemotron-H float32."""
    named = config.word("mamba_ssm_cache_dtype", "mamba_ssm_dtype")
    if named in _BYTES:
        return _BYTES[named]
    return 4 if config.model_type == "nemotron_h" else _element_bytes(config)


def _mamba1(config: ModelConfig) -> Mamba1 | None:
    hidden = config.hidden_size
    if hidden is None:
        return None
    inner = config.count("intermediate_size") if config.model_type != "jamba" else None
    inner = inner or hidden * (config.count("mamba_expand", "expand") or 2)
    return Mamba1(
        inner=inner,
        state_size=config.count("mamba_d_state", "state_size") or 16,
        kernel=config.count("mamba_d_conv", "conv_kernel") or 4,
        step_rank=config.count("mamba_dt_rank", "time_step_rank") or math.ceil(hidden / 16),
        conv_bias=config.flag("mamba_conv_bias", config.flag("use_conv_bias", True)),
        projection_bias=config.flag("mamba_proj_bias", config.flag("use_bias")),
        has_norms=config.model_type == "jamba",
        element_bytes=_element_bytes(config),
    )


def _mamba2(config: ModelConfig) -> Mamba2 | None:
    heads = config.count("mamba_n_heads", "mamba_num_heads")
    size = config.count("mamba_d_head", "mamba_head_dim")
    state = config.count("mamba_d_state", "ssm_state_size")
    inner = config.count("mamba_d_ssm") or (config.hidden_size or 0) * (config.count("mamba_expand", "expand") or 2)
    if heads and size is None:
        size = inner // heads
    if heads is None or size is None or state is None:
        return None
    is_falcon = config.model_type == "falcon_h1"
    return Mamba2(
        n_heads=heads,
        head_size=size,
        state_size=state,
        n_groups=config.count("mamba_n_groups", "n_groups") or 1,
        kernel=config.count("mamba_d_conv", "conv_kernel") or 4,
        conv_bias=config.flag("mamba_conv_bias", config.flag("use_conv_bias", True)),
        projection_bias=config.flag("mamba_proj_bias", config.flag("use_bias")),
        has_norm=config.flag("mamba_rms_norm") if is_falcon else True,
        element_bytes=_element_bytes(config),
        state_element_bytes=_state_element_bytes(config),
    )


def _delta_net(config: ModelConfig) -> DeltaNet | None:
    key_heads, value_heads = config.count("linear_num_key_heads"), config.count("linear_num_value_heads")
    key_size, value_size = config.count("linear_key_head_dim"), config.count("linear_value_head_dim")
    if key_heads is None or value_heads is None or key_size is None or value_size is None:
        return None
    return DeltaNet(
        n_key_heads=key_heads,
        n_value_heads=value_heads,
        key_size=key_size,
        value_size=value_size,
        kernel=config.count("linear_conv_kernel_dim") or 4,
        element_bytes=_element_bytes(config),
        state_element_bytes=_state_element_bytes(config),
    )


def _short_convolution(config: ModelConfig) -> ShortConvolution | None:
    hidden = config.hidden_size
    if hidden is None:
        return None
    return ShortConvolution(
        width=hidden,
        kernel=config.count("conv_L_cache") or 3,
        has_bias=config.flag("conv_bias"),
        element_bytes=_element_bytes(config),
    )
