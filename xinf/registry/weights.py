"""What the tensors of a checkpoint add up to: parameters, bytes by type, and what an engine leaves on disk.

Packed weights are counted unpacked: eight weights of 4 bits in one I32, two in one U8. Scales, zero points and tables
of the packing are bytes but no parameters. Layers beyond the model's own are heads that draft the next tokens (MTP of
DeepSeek V3, Qwen3-Next): they are loaded for speculative decoding alone, and are told apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import msgspec

from xinf.core.model import Quantization
from xinf.registry.safetensors import DTYPE_BITS, Tensor

# Last parts of names of what belongs to the packing. Sources: vLLM 0.32, `model_executor/layers/quantization/*.py`;
# bitsandbytes 0.48, `functional.py`; transformers 5.19, `integrations/mxfp4.py`.
_PACKING = (
    "scales", "qzeros", "g_idx", "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale",
    "input_global_scale", "input_scale", "output_scale", "activation_scale", "q_scale", "k_scale", "v_scale",
    "kv_scale", "prob_scale", "weight_zero_point", "input_zero_point", "weight_shape", "weight_g_idx", "absmax",
    "quant_map", "SCB", "weight_format", "proj_scale", "proj_scale_inv",
)  # fmt: skip
_PACKING_NAMES, _PACKING_ENDS = frozenset(_PACKING), tuple(f"_{name}" for name in _PACKING)
_BUFFERS = frozenset({"inv_freq", "masked_bias", "position_ids"})
_PACKED_NAMES, _PACKED_ENDS = frozenset({"qweight", "weight_packed", "blocks"}), ("_qweight", "_blocks")
_LAYER = re.compile(r"(?:model\.|language_model\.){0,3}layers\.(\d+)\.")
_EXPERTS = "experts."
_SHARED_EXPERTS = "shared_experts."
_WORD_BITS = frozenset({"U8", "I8", "I32", "U32"})


class StoredWeights(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over all tensors that an engine loads."""

    n_parameters: int | None  # None: packed in a way that is not known
    n_expert_parameters: int = 0
    n_bytes: int
    bytes_by_dtype: dict[str, int]
    draft_bytes: int = 0  # of heads that draft; not in the other sums


def add_up(tensors: Iterable[Tensor], quantization: Quantization | None, n_layers: int | None) -> StoredWeights:
    """Add up a checkpoint. `n_layers`: of the model itself; None if the config does not say."""
    by_dtype: Counter[str] = Counter()
    n_parameters, n_expert, draft_bytes, is_known = 0, 0, 0, True
    for tensor in tensors:
        if _is_draft(tensor.name, n_layers):
            draft_bytes += tensor.n_bytes
            continue
        by_dtype[tensor.dtype] += tensor.n_bytes
        count = _parameters(tensor, quantization)
        if count is None:
            is_known = False
            continue
        n_parameters += count
        n_expert += count if _EXPERTS in tensor.name and _SHARED_EXPERTS not in tensor.name else 0
    return StoredWeights(
        n_parameters=n_parameters if is_known else None,
        n_expert_parameters=n_expert,
        n_bytes=by_dtype.total(),
        bytes_by_dtype=dict(by_dtype),
        draft_bytes=draft_bytes,
    )


def _is_draft(name: str, n_layers: int | None) -> bool:
    if name.startswith(("mtp.", "model.mtp.")):
        return True
    match = None if n_layers is None else _LAYER.match(name)
    return match is not None and n_layers is not None and int(match[1]) >= n_layers


def _parameters(tensor: Tensor, quantization: Quantization | None) -> int | None:
    """Weights in one tensor; None if they are packed and nobody says how."""
    last = tensor.name.rpartition(".")[2]
    if last in _BUFFERS:
        return 0
    if quantization is None:
        return None if last in ("qweight", "weight_packed") else tensor.n_elements
    if last in _PACKING_NAMES or last.endswith(_PACKING_ENDS) or ".quant_state." in tensor.name:
        return 0
    is_packed = last in _PACKED_NAMES or last.endswith(_PACKED_ENDS)
    # bitsandbytes and modelopt keep the name of the weight, and two of them in a byte.
    is_packed = is_packed or (last == "weight" and tensor.dtype == "U8" and quantization.bits == 4)
    if not is_packed:
        return tensor.n_elements
    if quantization.bits is None or tensor.dtype not in _WORD_BITS:
        return None
    return tensor.n_elements * DTYPE_BITS[tensor.dtype] // quantization.bits
