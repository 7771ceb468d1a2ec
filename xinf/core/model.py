"""What is known of a model before it is loaded: read by xinf/registry, carried by a deployment, planned with by whoever
looks for a place.

    ModelFacts
    ├── Quantization   how the weights are packed; None: stored as they are computed with
    ├── VisionTower    what images go through, where they may be of any size
    └── kv             one KvLayers for each kind of layer: full attention, windowed, latent, recurrent

What nothing says is None, never 0. What follows from it (bytes on a device, what a device must be able to do) is
worked out in xinf/registry.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from xinf.core.device import Dtype

Kind = Literal["text", "vision", "embedding", "other"]


class KvLayers(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Layers of one kind, and what each of them keeps of a sequence.

    n_kv_heads of 0: an encoder, which keeps nothing; a recurrent layer, which has `state_bytes` alone.
    """

    n_layers: int
    n_kv_heads: int = 0
    head_size: int = 0
    value_head_size: int | None = None  # None: as `head_size`
    window_tokens: int | None = None  # None: every token is kept
    latent_size: int | None = None  # MLA: elements per token that stand for keys and values of all heads
    index_bytes: int = 0  # per token, in a type of its own (index of sparse attention); on every device
    state_bytes: int = 0  # per sequence, however long it is


class Quantization(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How weights are packed. `weight_dtype` is None where no Dtype stands for it (2, 3 or 6 bits)."""

    method: str  # as engines call it: fp8, awq, gptq, compressed-tensors, modelopt, mxfp4, bitsandbytes, ...
    weight_dtype: Dtype | None = None
    activation_dtype: Dtype | None = None  # None: that of the model; the weights are widened
    bits: int | None = None
    group_size: int | None = None  # weights that share a scale, along a row; None: per channel, per tensor, by block


class VisionTower(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What images of any size go through, patch by patch."""

    hidden_size: int
    feed_forward_width: int  # elements of a patch between the two halves of a feed-forward layer, all of them
    patch_elements: int  # of a patch as it comes in: colours, frames and pixels
    token_patches: int  # that become one token
    n_outputs: int = 1  # as wide as the language model, of each token: more where its layers are given some too


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What config.json, the headers of the weights and the tokenizer's files say. What they do not say is None."""

    architectures: tuple[str, ...] = ()
    model_type: str | None = None
    max_positions: int | None = None  # tokens that the model was trained for
    context_tokens: int | None = None  # the same with the scaling of positions that the config asks for
    dtype: str | None = None  # of activations and of weights that are not packed, in the config's words: "bfloat16"
    n_layers: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    head_size: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    vocabulary_size: int | None = None
    n_experts: int | None = None  # routed, in each layer that has experts; None: dense
    n_experts_per_token: int | None = None
    n_parameters: int | None = None
    n_active_parameters: int | None = None  # that one token passes through; None where all are
    weight_bytes: int | None = None  # as stored, of what an engine loads
    draft_bytes: int | None = None  # of heads that draft tokens (MTP), stored beside and loaded for speculation alone
    stored_dtypes: dict[str, int] = {}  # bytes by dtype, in safetensors' words: {"BF16": 988_065_536}
    is_counted: bool = False  # parameters and bytes come from the headers; False: computed from the config
    quantization: Quantization | None = None
    kind: Kind = "text"
    vision: VisionTower | None = None
    kv: tuple[KvLayers, ...] = ()  # (): nothing is known of its cache
    has_chat_template: bool | None = None
    has_vocabulary: bool | None = None  # a tokenizer can be built from the files
    revision: str | None = None  # the commit that was read, where the source has commits
