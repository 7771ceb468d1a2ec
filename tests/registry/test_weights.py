"""Sums over tensors, packed and not."""

from __future__ import annotations

import pytest

from xinf.core.device import Dtype
from xinf.core.model import Quantization
from xinf.registry.safetensors import Tensor
from xinf.registry.weights import add_up

AWQ = Quantization(method="awq", weight_dtype=Dtype.INT4, bits=4, group_size=128)
GPTQ3 = Quantization(method="gptq", bits=3, group_size=128)
FP8 = Quantization(method="fp8", weight_dtype=Dtype.FP8_E4M3, bits=8, group_size=128)
MXFP4 = Quantization(method="mxfp4", weight_dtype=Dtype.FP4, bits=4, group_size=32)
NVFP4 = Quantization(method="modelopt", weight_dtype=Dtype.FP4, bits=4, group_size=16)
INT4 = Quantization(method="compressed-tensors", weight_dtype=Dtype.INT4, bits=4, group_size=32)
NF4 = Quantization(method="bitsandbytes", weight_dtype=Dtype.INT4, bits=4, group_size=64)
IN, OUT = 256, 512


@pytest.mark.parametrize(("quantization", "tensors"), [
    (None, [Tensor("l.weight", "BF16", (OUT, IN))]),
    (AWQ, [Tensor("l.qweight", "I32", (IN, OUT // 8)), Tensor("l.qzeros", "I32", (IN // 128, OUT // 8)),
           Tensor("l.scales", "F16", (IN // 128, OUT))]),
    (GPTQ3, [Tensor("l.qweight", "I32", (IN // 32 * 3, OUT)), Tensor("l.qzeros", "I32", (2, OUT // 32 * 3)),
             Tensor("l.scales", "F16", (2, OUT)), Tensor("l.g_idx", "I32", (IN,))]),
    (FP8, [Tensor("l.weight", "F8_E4M3", (OUT, IN)), Tensor("l.weight_scale_inv", "F32", (4, 2))]),
    (MXFP4, [Tensor("experts.gate_up_proj_blocks", "U8", (4, OUT // 4, IN // 32, 16)),
             Tensor("experts.gate_up_proj_scales", "U8", (4, OUT // 4, IN // 32))]),
    (NVFP4, [Tensor("l.weight", "U8", (OUT, IN // 2)), Tensor("l.weight_scale", "F8_E4M3", (OUT, IN // 16)),
             Tensor("l.weight_scale_2", "F32", ()), Tensor("l.input_scale", "F32", ())]),
    (INT4, [Tensor("l.weight_packed", "I32", (OUT, IN // 8)), Tensor("l.weight_scale", "BF16", (OUT, IN // 32)),
            Tensor("l.weight_shape", "I64", (2,))]),
    (NF4, [Tensor("l.weight", "U8", (OUT * IN // 2, 1)), Tensor("l.weight.absmax", "U8", (OUT * IN // 64,)),
           Tensor("l.weight.quant_map", "F32", (16,)), Tensor("l.weight.nested_absmax", "F32", (8,)),
           Tensor("l.weight.quant_state.bitsandbytes__nf4", "U8", (86,))]),
])  # fmt: skip
def test_packed_weights_are_counted_unpacked(quantization: Quantization | None, tensors: list[Tensor]) -> None:
    found = add_up(tensors, quantization, 1)
    assert found.n_parameters == IN * OUT
    assert found.n_bytes == sum(tensor.n_bytes for tensor in tensors)
    assert sum(found.bytes_by_dtype.values()) == found.n_bytes


def test_packed_without_a_word_how_is_not_counted() -> None:
    found = add_up([Tensor("l.qweight", "I32", (8, 8)), Tensor("n.weight", "F16", (8,))], None, 1)
    assert found.n_parameters is None
    assert found.n_bytes == 256 + 16


def test_draft_layers_are_apart() -> None:
    tensors = [
        Tensor("model.layers.0.mlp.up_proj.weight", "BF16", (4, 4)),
        Tensor("model.layers.1.mlp.up_proj.weight", "BF16", (4, 4)),
        Tensor("mtp.layers.0.mlp.up_proj.weight", "BF16", (8, 8)),
        # A tower may have more layers than the language model: they are no drafts.
        Tensor("vision_tower.encoder.layers.30.fc1.weight", "BF16", (2, 2)),
    ]
    found = add_up(tensors, None, 1)
    assert (found.n_parameters, found.n_bytes, found.draft_bytes) == (16 + 4, 40, 32 + 128)
    assert add_up(tensors, None, None).draft_bytes == 128


def test_experts_are_told_from_shared_ones_and_buffers_are_no_parameters() -> None:
    tensors = [
        Tensor("model.layers.0.mlp.experts.3.up_proj.weight", "BF16", (4, 4)),
        Tensor("model.layers.0.mlp.shared_experts.up_proj.weight", "BF16", (2, 2)),
        Tensor("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", (64,)),
        Tensor("embeddings.position_ids", "I64", (1, 514)),
    ]
    found = add_up(tensors, None, 1)
    assert (found.n_parameters, found.n_expert_parameters) == (20, 16)
