"""How large a model's weights are once they are loaded: converted, packed on the way, split over devices.

    stored ──convert──▶ as computed ──pack (fp8, ...)──▶ packed ──split──▶ on one device

Source: vLLM 0.32: config/model.py, `_resolve_auto_dtype`; model_executor/layers/quantization/online; linear.py.
"""

from __future__ import annotations

import math

from xinf.core.model import ModelFacts
from xinf.registry.load import ALIASES, LoadOptions

_PADDED_ROWS = 64  # of the vocabulary: DEFAULT_VOCAB_PADDING_SIZE
# What kernels fill the experts of MXFP4 up to, and bytes of a weight with its share of the scales.
_MXFP4_HIDDEN, _MXFP4_COLUMNS, _MXFP4_BLOCK, _MXFP4_BYTES = 256, 128, 32, 0.5 + 1 / 32
# Bytes of an element in safetensors' words; what is not here is kept as it is stored.
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}
# Methods that pack weights which are stored unpacked, and the bytes of a packed weight with its share of the scales.
PACKED_BYTES = {
    "fp8": 1.0,
    "fp8_per_tensor": 1.0,
    "fp8_per_block": 1.001,
    "fp8_per_channel": 1.001,
    "int8_per_channel_weight_only": 1.001,
    "mxfp8": 1 + 1 / 32,
    "nvfp4_per_token": 0.5 + 1 / 16,
}


def element_bytes(facts: ModelFacts, options: LoadOptions) -> int:
    """Bytes of an activation, and of a weight that is not packed."""
    dtype = options.dtype if options.dtype != "auto" else ALIASES.get(facts.dtype or "", facts.dtype or "")
    if options.dtype == "auto" and dtype == "float32":
        return 2  # engines halve it unless they are told not to
    return _WIDTHS.get(dtype, 2)


def weights_bytes(facts: ModelFacts, options: LoadOptions) -> int | None:
    """Bytes of the weights in one of `tensor_parallel_size` equal shares; None: not known."""
    loaded = _loaded_bytes(facts, options)
    if loaded is None:
        return None
    whole = loaded + _padding_bytes(facts, options) + _experts_padding_bytes(facts, options)
    size = options.tensor_parallel_size
    repeated, heads, own_heads = _repeated_bytes(facts, options)
    repeated, heads = min(repeated, whole), min(heads, whole - min(repeated, whole))
    return math.ceil(repeated + heads * own_heads + (whole - repeated - heads) / size)


def _loaded_bytes(facts: ModelFacts, options: LoadOptions) -> float | None:
    """The whole model as the engine holds it."""
    width = element_bytes(facts, options)
    if facts.quantization is not None:
        # Packed already; scales and what is not packed stay as they are.
        return facts.weight_bytes
    if facts.stored_dtypes:
        loaded = sum(
            n_bytes if name not in _FLOATS else n_bytes / _FLOATS[name] * width
            for name, n_bytes in facts.stored_dtypes.items()
        )
    elif facts.n_parameters is not None:
        loaded = facts.n_parameters * width
    elif facts.weight_bytes is not None:
        loaded = facts.weight_bytes
    else:
        return None
    packed = PACKED_BYTES.get(options.quantization or "")
    if packed is None:
        return float(loaded)
    tables = min(float(loaded), table_bytes(facts, options))
    return tables + (loaded - tables) / width * packed


def table_bytes(facts: ModelFacts, options: LoadOptions) -> int:
    """Bytes of the tables of the vocabulary, which are never packed: one for each end, or one for both."""
    return _n_tables(facts) * (facts.vocabulary_size or 0) * (facts.hidden_size or 0) * element_bytes(facts, options)


def _padding_bytes(facts: ModelFacts, options: LoadOptions) -> int:
    """Rows that the tables are filled up with."""
    rows = -(facts.vocabulary_size or 0) % _PADDED_ROWS
    return _n_tables(facts) * rows * (facts.hidden_size or 0) * element_bytes(facts, options)


def expert_columns(facts: ModelFacts) -> int | None:
    """How wide one expert is, from what the experts that a token does not pass through weigh; None: a dense model."""
    n, active, layers = facts.n_parameters, facts.n_active_parameters, facts.n_layers
    experts, chosen, hidden = facts.n_experts, facts.n_experts_per_token, facts.hidden_size
    if not (n and active and layers and experts and chosen and hidden) or experts <= chosen or n <= active:
        return None
    return round((n - active) / (experts - chosen) / layers / (3 * hidden))


def _experts_padding_bytes(facts: ModelFacts, options: LoadOptions) -> float:
    """What experts in MXFP4 are filled up with, of the whole model: rows to 256, the columns of one device to 128.

    Source: vLLM 0.32, fused_moe/oracle/mxfp4.py, `mxfp4_round_up_hidden_size_and_intermediate_size`.
    """
    columns, hidden, experts = expert_columns(facts), facts.hidden_size, facts.n_experts
    if facts.quantization is None or facts.quantization.method != "mxfp4" or not (columns and hidden and experts):
        return 0.0
    # Biases are among what was counted; a row is whole blocks.
    own = columns // _MXFP4_BLOCK * _MXFP4_BLOCK / options.tensor_parallel_size
    padded = math.ceil(own / _MXFP4_COLUMNS) * _MXFP4_COLUMNS * math.ceil(hidden / _MXFP4_HIDDEN) * _MXFP4_HIDDEN
    more = (padded - own * hidden) * options.tensor_parallel_size
    return 3 * more * experts * (facts.n_layers or 0) * _MXFP4_BYTES


def _n_tables(facts: ModelFacts) -> int:
    """1 where both ends share a table, as far as it shows in what the layers of a dense model leave of the count."""
    hidden, columns, table = facts.hidden_size, facts.intermediate_size, (facts.vocabulary_size or 0)
    is_uniform = not facts.n_experts and not any(layers.state_bytes for layers in facts.kv)
    if not (is_uniform and facts.n_parameters and hidden and columns and table and facts.n_layers):
        return 2
    attention = 2 * hidden * (facts.head_size or 0) * ((facts.n_heads or 0) + (facts.n_kv_heads or 0))
    rest = facts.n_parameters - facts.n_layers * (attention + 3 * hidden * columns)
    return 1 if rest < 1.5 * table * hidden else 2


def _repeated_bytes(facts: ModelFacts, options: LoadOptions) -> tuple[float, float, float]:
    """What is not simply split: bytes that every device has; bytes of all KV heads; the part of these that one has."""
    size, width = options.tensor_parallel_size, element_bytes(facts, options)
    hidden, n_layers = facts.hidden_size or 0, facts.n_layers or 0
    if size == 1:
        return 0.0, 0.0, 1.0
    norms = (2 * n_layers + 1) * hidden
    routers = n_layers * hidden * (facts.n_experts or 0)
    latents = sum(layers.n_layers * hidden * layers.latent_size for layers in facts.kv if layers.latent_size)
    n_heads = facts.n_kv_heads or 0
    if not n_heads or latents:
        return (norms + routers + latents) * width, 0.0, 1 / size
    packed = 1.0 if facts.quantization is not None else PACKED_BYTES.get(options.quantization or "", float(width))
    heads = 2 * n_layers * hidden * n_heads * (facts.head_size or 0) * packed
    return (norms + routers) * width, heads, math.ceil(n_heads / size) / n_heads
