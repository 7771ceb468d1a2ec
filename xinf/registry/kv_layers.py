"""Which layers of a model keep what of a sequence, from its config alone.

    full attention    every token                       Llama, Qwen, ...
    windowed          the last N tokens                 Mistral 0.1, Gemma 2 and 3, gpt-oss, Phi-3
    latent (MLA)      one vector for all heads          DeepSeek V2 and V3, Kimi K2
    recurrent         a state of fixed size             Mamba, gated delta net, short convolution
    encoder           nothing                           BERT

A config with marks of a recurrence that is not known here gives (), not the number of plain attention.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from xinf.core.model import KvLayers
from xinf.registry.config import ModelConfig
from xinf.registry.mixers import LayerKind, Mixer, attention_only, mixer_of, mixers

ENCODERS = frozenset({
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "gte", "jina_bert",
    "modernbert", "mpnet", "new", "nomic_bert", "roberta", "xlm-roberta", "xlm-roberta-xl",
})  # fmt: skip
# Names by which unknown recurrences give themselves away.
_MARKS = (
    "mamba", "ssm", "linear_attn", "linear_num", "conv_l_cache", "rwkv", "hybrid", "state_size", "lru_width",
    "recurrent", "hyena",
)  # fmt: skip
_DEFAULT_PATTERN = {"gemma3_text": 6, "gemma3": 6, "cohere2": 4}
_ALTERNATING = ("gemma2", "gpt_oss")
_INDEX_SCALE_BLOCK, _INDEX_SCALE_BYTES = 128, 4


def kv_layers(config: ModelConfig) -> tuple[KvLayers, ...]:
    """List what the layers keep, one record for each kind; () if the config does not say.

    Raises: UnknownModel for an absurd number of layers.
    """
    n_layers = config.n_layers
    if n_layers is None or config.top.get("is_encoder_decoder") is True:
        return ()
    if config.model_type in ENCODERS:
        return (KvLayers(n_layers=n_layers),)
    mixer = mixer_of(config)
    if mixer is None and any(mark in key.lower() for key in config.text for mark in _MARKS):
        return ()
    kinds = attention_only(n_layers) if mixer is None else mixers(config)
    if len(kinds) != n_layers:
        return ()
    found: Counter[KvLayers] = Counter()
    for number, kind in enumerate(kinds):
        layer = _layer(config, mixer, number, kind)
        if layer is None:
            return ()
        found[layer] += 1
    return tuple(
        msgspec.structs.replace(layer, n_layers=count)
        for layer, count in found.items()
        # A layer that is only a feed-forward network keeps nothing.
        if layer.n_kv_heads or layer.latent_size or layer.state_bytes
    )


def _layer(config: ModelConfig, mixer: Mixer | None, number: int, kind: LayerKind) -> KvLayers | None:
    """One layer; None if a number is missing."""
    state_bytes = 0
    if mixer is not None and kind in ("mixer", "both"):
        state = mixer.state_bytes()
        if state is None:
            return None
        state_bytes = state
    if kind in ("mixer", "none"):
        return KvLayers(n_layers=1, state_bytes=state_bytes)
    if (latent := config.count("kv_lora_rank")) is not None:
        rope = config.count("qk_rope_head_dim")
        return (
            None if rope is None else KvLayers(n_layers=1, latent_size=latent + rope, index_bytes=_index_bytes(config))
        )
    heads, size = config.n_kv_heads, config.head_size
    if heads is None or size is None:
        return None
    window = _window(config, number)
    values = config.count("v_head_dim")
    if config.model_type == "gemma4_text":  # wider heads where the whole context is seen: not computed here
        return None
    return KvLayers(
        n_layers=1,
        n_kv_heads=heads,
        head_size=size,
        value_head_size=None if values == size else values,
        window_tokens=window,
        state_bytes=state_bytes,
    )


def _index_bytes(config: ModelConfig) -> int:
    """Keys of the index of sparse attention, in 8 bits with a scale for each 128.

    Source: vLLM 0.32, `DeepseekV32IndexerCache`.
    """
    size = config.count("index_head_dim")
    return 0 if size is None else size + size // _INDEX_SCALE_BLOCK * _INDEX_SCALE_BYTES


def _window(config: ModelConfig, number: int) -> int | None:
    """Tokens that layer `number` sees; None: all of them."""
    if config.model_type.startswith("llama4"):
        chunk, full = config.count("attention_chunk_size"), config.counts("no_rope_layers")
        return chunk if number < len(full) and full[number] else None
    window = config.count("sliding_window")
    if window is None or config.text.get("use_sliding_window") is False:
        return None
    types = config.words("layer_types")
    if types:
        return window if number < len(types) and types[number] == "sliding_attention" else None
    if config.model_type in _ALTERNATING:
        return window if number % 2 == 0 else None
    pattern = config.count("sliding_window_pattern") or _DEFAULT_PATTERN.get(config.model_type)
    if pattern is not None:
        return window if (number + 1) % pattern else None
    if config.text.get("use_sliding_window") is True and config.count("max_window_layers") is not None:
        # Qwen: the first layers see everything.
        return window if number >= (config.count("max_window_layers") or 0) else None
    longest = config.max_positions
    return None if longest is not None and window >= longest else window
