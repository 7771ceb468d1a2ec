"""How many parameters a model has, from its config alone, and what they take on disk when they are packed.

Used where the headers of the weights cannot be had (a config at hand, weights in another format); the headers are exact
and beat it. A family is known by `model_type` and by few traits: biases, norms, experts. What is not in the table, and
anything with a vision tower, is None: no count is better than a wrong one. Checked against published counts in
tests/registry/test_estimates.py.

    embedding | per layer: attention or mixer, feed-forward or experts, norms and routers | head

Biases and norms are counted, because they decide whether a quantized model comes out right. Source: transformers 5.19,
`models/*/modeling_*.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from xinf.registry.config import ModelConfig
from xinf.registry.mixers import LayerKind, Mixer, attention_only, layer_letters, mixer_of, mixers

Norms = Literal["none", "head", "full"]


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters by what quantization does to them, which differs from method to method."""

    embedding: int = 0
    head: int = 0  # 0: the embedding serves as head
    attention: int = 0  # weights of projections, mixers too
    feed_forward: int = 0  # of dense layers and shared experts
    experts: int = 0
    other: int = 0  # norms, biases, routers: never packed
    n_active: int = 0

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.attention + self.feed_forward + self.experts + self.other


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """What sets one family apart from Llama."""

    qkv_bias: bool | None = None  # None: as the config's `attention_bias` says
    output_bias: bool | None = None
    mlp_bias: bool | None = None
    is_gated: bool = True
    n_norms: int = 2  # per layer
    norm_has_bias: bool = False
    final_norm: bool = True
    query_key_norm: Norms = "none"
    is_tied: bool = False  # what the config does not say when it leaves `tie_word_embeddings` out
    query_width: int = 1  # 2: the queries come with a gate
    sinks: bool = False  # one scalar per head
    expert_bias: bool = False
    router_bias: bool = False


_LLAMA = Family()
_QWEN2 = Family(qkv_bias=True, output_bias=False)
_QWEN3 = Family(query_key_norm="head")
_QWEN3_NEXT = Family(query_key_norm="head", query_width=2)
_HYBRID = Family(qkv_bias=False, output_bias=False)
_GEMMA = Family(is_tied=True)
FAMILIES: dict[str, Family] = {
    "bamba": _HYBRID,
    "cohere": Family(n_norms=1, is_tied=True),
    "cohere2": Family(n_norms=1, is_tied=True),
    "deepseek_v2": _LLAMA,
    "deepseek_v3": Family(router_bias=True),
    "exaone4": _QWEN3,
    "falcon_h1": _LLAMA,
    "gemma": _GEMMA,
    "gemma2": Family(n_norms=4, is_tied=True),
    "gemma3_text": Family(n_norms=4, is_tied=True, query_key_norm="head"),
    "glm4": Family(output_bias=False, n_norms=4),
    "glm4_moe": Family(output_bias=False, router_bias=True),
    "gpt_oss": Family(sinks=True, expert_bias=True, router_bias=True),
    "granite": _LLAMA,
    "granitemoe": _LLAMA,
    "granitemoehybrid": _HYBRID,
    "jamba": _HYBRID,
    "kimi_k2": Family(router_bias=True),
    "lfm2": Family(qkv_bias=False, output_bias=False, query_key_norm="head", is_tied=True),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "nemotron_h": Family(qkv_bias=False, output_bias=False, is_gated=False, n_norms=1, router_bias=True),
    "olmo2": Family(query_key_norm="full"),
    "olmo3": Family(query_key_norm="full"),
    "olmoe": Family(query_key_norm="full"),
    "phi3": _LLAMA,
    "phimoe": Family(norm_has_bias=True),
    "qwen2": _QWEN2,
    "qwen2_moe": _QWEN2,
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "qwen3_next": _QWEN3_NEXT,
    "smollm3": _LLAMA,
    "starcoder2": Family(
        qkv_bias=True, output_bias=True, mlp_bias=True, is_gated=False, norm_has_bias=True, is_tied=True
    ),
}
_SHARED_WIDTHS = ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "shared_intermediate_size")
_BERT = frozenset({"bert", "roberta", "xlm-roberta"})


def count_parameters(config: ModelConfig) -> Parameters | None:
    """Count the parameters of a model; None if its family is not known or a number is missing.

    Raises: UnknownModel for an absurd number of layers.
    """
    if config.model_type in _BERT:
        return _count_bert(config)
    family = FAMILIES.get(config.model_type)
    if family is None or "vision_config" in config.top or "audio_config" in config.top:
        return None
    counter = _Counter.of(config, family)
    return None if counter is None else counter.count()


class _Layer(msgspec.Struct, frozen=True, kw_only=True):
    attention: int = 0
    feed_forward: int = 0
    experts: int = 0
    other: int = 0
    n_active: int = 0


class _Counter:
    """Counts one model; the numbers that every layer needs are found once."""

    def __init__(self, config: ModelConfig, family: Family, hidden: int, n_layers: int) -> None:
        self.config = config
        self.family = family
        self.hidden = hidden
        self.n_layers = n_layers
        self.mixer: Mixer | None = mixer_of(config)

    @staticmethod
    def of(config: ModelConfig, family: Family) -> _Counter | None:
        hidden, n_layers = config.hidden_size, config.n_layers
        return None if hidden is None or n_layers is None else _Counter(config, family, hidden, n_layers)

    def count(self) -> Parameters | None:
        vocabulary = self.config.count("vocab_size")
        kinds = self._kinds()
        if vocabulary is None or len(kinds) != self.n_layers:
            return None
        layers = []
        for number, kind in enumerate(kinds):
            layer = self._layer(number, kind)
            if layer is None:
                return None
            layers.append(layer)
        embedding = vocabulary * self.hidden
        tied = self.config.flag("tie_word_embeddings", self.family.is_tied)
        final = self._norm() if self.family.final_norm else 0
        head = 0 if tied else embedding
        head_bias = vocabulary if self.config.flag("lm_head_bias") else 0
        return Parameters(
            embedding=embedding,
            head=head,
            attention=sum(layer.attention for layer in layers),
            feed_forward=sum(layer.feed_forward for layer in layers),
            experts=sum(layer.experts for layer in layers),
            other=sum(layer.other for layer in layers) + final + head_bias,
            n_active=sum(layer.n_active for layer in layers) + embedding + head + final + head_bias,
        )

    def _kinds(self) -> tuple[LayerKind, ...]:
        return attention_only(self.n_layers) if self.mixer is None else mixers(self.config)

    def _norm(self) -> int:
        return self.hidden * (2 if self.family.norm_has_bias else 1)

    def _layer(self, number: int, kind: LayerKind) -> _Layer | None:
        attention, other, active_experts = 0, self.family.n_norms * self._norm(), 0
        if kind in ("attention", "both"):
            parts = self._latent_attention() if self.config.count("kv_lora_rank") else self._attention()
            if parts is None:
                return None
            attention, other = attention + parts[0], other + parts[1]
        if kind in ("mixer", "both"):
            mixed = None if self.mixer is None else self.mixer.n_parameters(self.hidden)
            if mixed is None:
                return None
            attention += mixed
        feed_forward, experts = 0, 0
        if self._has_feed_forward(kind):
            if self._has_experts(number):
                found = self._experts()
                if found is None:
                    return None
                experts, active_experts, feed_forward, router = found
                other += router
            else:
                dense = self._dense()
                if dense is None:
                    return None
                feed_forward, biases = dense
                other += biases
        return _Layer(
            attention=attention,
            feed_forward=feed_forward,
            experts=experts,
            other=other,
            n_active=attention + feed_forward + active_experts + other,
        )

    def _has_feed_forward(self, kind: LayerKind) -> bool:
        # Nemotron-H stacks mixers and feed-forward networks as layers of their own.
        return kind == "none" if self.config.model_type == "nemotron_h" else kind != "none"

    def _has_experts(self, number: int) -> bool:
        config = self.config
        if config.n_experts is None:
            return False
        if config.model_type == "nemotron_h":
            return layer_letters(config)[number] == "E"
        if config.model_type == "jamba":
            period, offset = config.count("expert_layer_period") or 2, config.text.get("expert_layer_offset", 1)
            return bool(number % period == offset)
        if (dense := config.count("first_k_dense_replace")) is not None:
            return number >= dense and number % (config.count("moe_layer_freq") or 1) == 0
        if number in config.counts("mlp_only_layers"):
            return False
        return (number + 1) % (config.count("decoder_sparse_step") or 1) == 0

    def _attention(self) -> tuple[int, int] | None:
        """Weights, and what is never packed."""
        config, family, hidden = self.config, self.family, self.hidden
        heads, kv_heads, size = config.n_heads, config.n_kv_heads, config.head_size
        if heads is None or kv_heads is None or size is None:
            return None
        queries, keys = heads * size, kv_heads * size
        weights = hidden * (queries * family.query_width + 2 * keys) + queries * hidden
        declared = config.flag("attention_bias") or config.flag("use_bias")
        other = 0
        if declared if family.qkv_bias is None else family.qkv_bias:
            other += queries * family.query_width + 2 * keys
        if declared if family.output_bias is None else family.output_bias:
            other += hidden
        norm = family.query_key_norm
        if config.model_type == "cohere" or config.model_type == "glm4_moe":
            norm = ("full" if config.model_type == "cohere" else "head") if config.flag("use_qk_norm") else "none"
        other += {"none": 0, "head": 2 * size, "full": queries + keys}[norm]
        return weights, other + (heads if family.sinks else 0)

    def _latent_attention(self) -> tuple[int, int] | None:
        config, hidden = self.config, self.hidden
        heads, latent, rope = config.n_heads, config.count("kv_lora_rank"), config.count("qk_rope_head_dim")
        nope, values = config.count("qk_nope_head_dim"), config.count("v_head_dim")
        if heads is None or latent is None or rope is None or nope is None or values is None:
            return None
        rank = config.count("q_lora_rank")
        queries = heads * (nope + rope)
        weights = hidden * queries if rank is None else hidden * rank + rank * queries
        weights += hidden * (latent + rope) + latent * heads * (nope + values) + heads * values * hidden
        return weights, latent + (rank or 0)

    def _dense(self) -> tuple[int, int] | None:
        """Weights and biases of a feed-forward network."""
        config, hidden = self.config, self.hidden
        width = _adjusted_width(config)
        # Granite 4 calls the network of its dense models a shared expert.
        width = config.count("shared_intermediate_size") or width if config.model_type == "granitemoehybrid" else width
        if width is None:
            return None
        ways = 2 if self.family.is_gated else 1
        has_bias = config.flag("mlp_bias") if self.family.mlp_bias is None else self.family.mlp_bias
        return hidden * width * (ways + 1), (ways * width + hidden) if has_bias else 0

    def _experts(self) -> tuple[int, int, int, int] | None:
        """Experts, those that one token passes through, shared ones, routers with biases."""
        config, hidden, family = self.config, self.hidden, self.family
        count, chosen = config.n_experts, config.n_experts_per_token
        width = config.count("moe_intermediate_size") or config.intermediate_size
        if count is None or width is None:
            return None
        matrices = 3 if family.is_gated else 2
        # Nemotron's larger models squeeze what goes into the experts.
        latent = config.count("moe_latent_size")
        each = matrices * (latent or hidden) * width
        biases = 2 * width + hidden if family.expert_bias else 0
        shared = config.count(*_SHARED_WIDTHS)
        if shared is None and (n_shared := config.count("n_shared_experts")) is not None:
            shared = n_shared * width
        router = count * hidden + (count if family.router_bias else 0) + count * biases
        router += hidden if config.model_type in ("qwen2_moe", "qwen3_next") else 0  # gate of the shared expert
        always = matrices * hidden * (shared or 0) + (2 * hidden * latent if latent else 0)
        return count * each, min(chosen or count, count) * each, always, router


def _adjusted_width(config: ModelConfig) -> int | None:
    """Width of the feed-forward network. LFM2 shrinks and rounds what its config names."""
    width = config.count("block_ff_dim") if config.model_type == "lfm2" else None
    width = width or config.intermediate_size
    if width is None or config.model_type != "lfm2" or not config.flag("block_auto_adjust_ff_dim", True):
        return width
    width = int((config.factor("block_ffn_dim_multiplier") or 1.0) * int(2 * width / 3))
    multiple = config.count("block_multiple_of") or 256
    return -(-width // multiple) * multiple


def _count_bert(config: ModelConfig) -> Parameters | None:
    """An encoder with absolute positions, types of segment and a pooler. Source: transformers, `modeling_bert.py`."""
    hidden, width, n_layers = config.hidden_size, config.intermediate_size, config.n_layers
    vocabulary, positions = config.count("vocab_size"), config.max_positions
    if hidden is None or width is None or n_layers is None or vocabulary is None or positions is None:
        return None
    embedding = (vocabulary + positions + (config.count("type_vocab_size") or 2)) * hidden
    attention, feed_forward = 4 * hidden * hidden, 2 * hidden * width
    biases = 4 * hidden + width + hidden + 4 * hidden
    pooler = hidden * hidden + hidden
    total = Parameters(
        embedding=embedding,
        attention=n_layers * attention,
        feed_forward=n_layers * feed_forward,
        other=n_layers * biases + 2 * hidden + pooler,
    )
    return msgspec.structs.replace(total, n_active=total.total)


def families() -> Iterator[str]:
    """List every `model_type` that is counted."""
    yield from sorted(FAMILIES.keys() | _BERT)
