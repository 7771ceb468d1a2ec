"""`quantization_config` as the tools write it."""

from __future__ import annotations

from typing import Any

import pytest

from xinf.core.device import Dtype
from xinf.core.model import Quantization
from xinf.registry.quantization import read_quantization

E4M3 = Dtype.FP8_E4M3


def compressed(weights: dict[str, Any], activations: dict[str, Any] | None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {"quant_method": "compressed-tensors", "format": "x", "config_groups": {"group_0": group}}


@pytest.mark.parametrize(("section", "expected"), [
    (
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        Quantization(method="fp8", weight_dtype=E4M3, activation_dtype=E4M3, bits=8, group_size=128),
    ),
    (
        {"quant_method": "fp8", "activation_scheme": "static"},
        Quantization(method="fp8", weight_dtype=E4M3, activation_dtype=E4M3, bits=8),
    ),
    (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
        Quantization(method="awq", weight_dtype=Dtype.INT4, bits=4, group_size=128),
    ),
    (
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 64},
        Quantization(method="awq", weight_dtype=Dtype.INT4, bits=4, group_size=64),
    ),
    (
        {"quant_method": "gptq", "bits": 8, "group_size": -1},
        Quantization(method="gptq", weight_dtype=Dtype.INT8, bits=8),
    ),
    ({"quant_method": "gptq", "bits": 3, "group_size": 128}, Quantization(method="gptq", bits=3, group_size=128)),
    (
        compressed({"num_bits": 4, "type": "int", "group_size": 32}, None),
        Quantization(method="compressed-tensors", weight_dtype=Dtype.INT4, bits=4, group_size=32),
    ),
    (
        compressed({"num_bits": 8, "type": "int"}, {"num_bits": 8, "type": "int"}),
        Quantization(method="compressed-tensors", weight_dtype=Dtype.INT8, activation_dtype=Dtype.INT8, bits=8),
    ),
    (
        compressed({"num_bits": 8, "type": "float"}, {"num_bits": 8, "type": "float"}),
        Quantization(method="compressed-tensors", weight_dtype=E4M3, activation_dtype=E4M3, bits=8),
    ),
    (
        compressed({"num_bits": 4, "type": "float", "group_size": 16}, {"num_bits": 4, "type": "float"}),
        Quantization(
            method="compressed-tensors", weight_dtype=Dtype.FP4, activation_dtype=Dtype.FP4, bits=4, group_size=16
        ),
    ),
    (
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16},
        Quantization(method="modelopt", weight_dtype=Dtype.FP4, activation_dtype=Dtype.FP4, bits=4, group_size=16),
    ),
    (
        {"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}},
        Quantization(method="modelopt", weight_dtype=E4M3, activation_dtype=E4M3, bits=8),
    ),
    ({"quant_method": "mxfp4"}, Quantization(method="mxfp4", weight_dtype=Dtype.FP4, bits=4, group_size=32)),
    (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        Quantization(method="bitsandbytes", weight_dtype=Dtype.INT4, bits=4, group_size=64),
    ),
    (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        Quantization(method="bitsandbytes", weight_dtype=Dtype.INT8, bits=8),
    ),
    ({"quant_method": "aqlm"}, Quantization(method="aqlm")),
])  # fmt: skip
def test_section_of_each_tool(section: dict[str, Any], expected: Quantization) -> None:
    assert read_quantization({"quantization_config": section}) == expected


@pytest.mark.parametrize("top", [
    {}, {"quantization_config": None}, {"quantization_config": []}, {"quantization_config": {"bits": 4}},
    {"quantization_config": {"quant_method": 4}},
])  # fmt: skip
def test_no_method_is_no_quantization(top: dict[str, Any]) -> None:
    assert read_quantization(top) is None


def test_section_of_the_language_model_is_found() -> None:
    text = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
    found = read_quantization({"text_config": text}, text)
    assert found is not None
    assert found.method == "awq"


def test_hostile_numbers_are_not_said() -> None:
    found = read_quantization({"quantization_config": {"quant_method": "gptq", "bits": "4", "group_size": 1 << 80}})
    assert found == Quantization(method="gptq")
