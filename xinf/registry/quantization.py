"""How a model's weights are packed: `quantization_config`, and what that makes of bytes.

Every tool writes the section its own way. Read: fp8 (block-wise and per tensor), fbgemm_fp8, awq, gptq,
compressed-tensors (llm-compressor), modelopt (FP8 and NVFP4), mxfp4 (gpt-oss), bitsandbytes, hqq and auto-round by
their bits. A method that is not known keeps its name and has no dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xinf.core.device import Dtype
from xinf.core.model import Quantization
from xinf.registry.config import as_count
from xinf.registry.parameters import Parameters

_Section = Mapping[str, Any]
_INTEGERS = {4: Dtype.INT4, 8: Dtype.INT8}
_FLOATS = {4: Dtype.FP4, 8: Dtype.FP8_E4M3}
_BF16_BYTES, _FP32_BYTES = 2, 4
_MXFP4_GROUP, _NVFP4_GROUP = 32, 16
_FP8_BLOCK = 128


def read_quantization(top: Mapping[str, Any], text: Mapping[str, Any] | None = None) -> Quantization | None:
    """Read `quantization_config` of config.json (of old: `compression_config`); None: weights are not packed."""
    section = next(
        (
            found
            for part in (top, text or {})
            for name in ("quantization_config", "compression_config")
            if isinstance(found := part.get(name), dict)
        ),
        None,
    )
    if section is None:
        return None
    method = section.get("quant_method") or section.get("quant_algo")
    if not isinstance(method, str):
        return None
    match method.lower():
        case "fp8" | "fbgemm_fp8":
            return _fp8(method.lower(), section)
        case "awq" | "gptq" | "gptq_marlin" | "awq_marlin" | "auto-round" | "hqq" | "intel/auto-round":
            return _by_bits(method.lower(), section)
        case "compressed-tensors" | "compressed_tensors":
            return _compressed(section)
        case "modelopt" | "modelopt_fp4" | "nvfp4" | "fp8_pb_wo" | "mixed_precision":
            return _modelopt(section)
        case "mxfp4":
            return Quantization(method="mxfp4", weight_dtype=Dtype.FP4, bits=4, group_size=_MXFP4_GROUP)
        case "bitsandbytes":
            return _bitsandbytes(section)
        case _:
            return Quantization(method=method.lower(), bits=as_count(section.get("bits")))


def weight_bytes(parameters: Parameters, quantization: Quantization | None, dtype: str | None) -> int | None:
    """Bytes of the weights as stored, estimated; None for a method whose packing is not known.

    Embedding, head, norms and routers stay in the model's own type; mxfp4 packs experts alone. Scales are counted.
    """
    element = {"float32": 4, "float": 4}.get(dtype or "", 2)
    if quantization is None:
        return parameters.total * element
    bits = quantization.bits
    if bits is None:
        return None
    packed = parameters.experts
    if quantization.method != "mxfp4":
        packed += parameters.attention + parameters.feed_forward
    per_parameter = bits / 8 + _scale_bytes(quantization)
    return int(packed * per_parameter) + (parameters.total - packed) * element


def _scale_bytes(quantization: Quantization) -> float:
    """Bytes of scales and zero points for each packed parameter."""
    group = quantization.group_size
    match quantization.method:
        case "awq" | "gptq" | "auto-round":
            # A scale in 16 bits and a zero point in as many bits as a weight.
            return 0.0 if group is None else (2 + (quantization.bits or 4) / 8) / group
        case "mxfp4" | "modelopt" if group is not None:
            return 1 / group
        case "fp8" if group is not None:
            return _FP32_BYTES / (group * group)
        case _:
            return 0.0 if group is None else _BF16_BYTES / group


def _fp8(method: str, section: _Section) -> Quantization:
    dtype = Dtype.FP8_E5M2 if section.get("fmt") == "e5m2" else Dtype.FP8_E4M3
    block = section.get("weight_block_size")
    group = as_count(block[-1]) if isinstance(block, list) and block else None
    # Activations are scaled on the fly or by numbers found before; both are computed in 8 bits.
    return Quantization(method=method, weight_dtype=dtype, activation_dtype=dtype, bits=8, group_size=group)


def _by_bits(method: str, section: _Section) -> Quantization:
    bits = as_count(section.get("bits")) or as_count(section.get("w_bit"))
    group = as_count(section.get("group_size")) or as_count(section.get("q_group_size"))
    return Quantization(method=method, weight_dtype=_INTEGERS.get(bits or 0), bits=bits, group_size=group)


def _compressed(section: _Section) -> Quantization:
    """The first group of layers stands for all. Source: compressed-tensors 0.12, `quant_args.py`."""
    groups = section.get("config_groups")
    first = (
        next((group for group in groups.values() if isinstance(group, dict)), {}) if isinstance(groups, dict) else {}
    )
    weights, activations = _arguments(first.get("weights")), _arguments(first.get("input_activations"))
    return Quantization(
        method="compressed-tensors",
        weight_dtype=_dtype(weights),
        activation_dtype=_dtype(activations),
        bits=as_count(weights.get("num_bits")),
        group_size=as_count(weights.get("group_size")),
    )


def _arguments(value: object) -> _Section:
    return value if isinstance(value, dict) else {}


def _dtype(arguments: _Section) -> Dtype | None:
    bits = as_count(arguments.get("num_bits")) or 0
    return (_FLOATS if arguments.get("type") == "float" else _INTEGERS).get(bits)


def _modelopt(section: _Section) -> Quantization:
    inner = _arguments(section.get("quantization"))
    named = section.get("quant_algo") or inner.get("quant_algo") or section.get("quant_method")
    algorithm = str(named).upper()
    if "NVFP4" in algorithm or "FP4" in algorithm:
        group = as_count(section.get("group_size")) or as_count(inner.get("group_size")) or _NVFP4_GROUP
        return Quantization(
            method="modelopt", weight_dtype=Dtype.FP4, activation_dtype=Dtype.FP4, bits=4, group_size=group
        )
    if "FP8" in algorithm:
        dtype = Dtype.FP8_E4M3
        block = _FP8_BLOCK if "PB" in algorithm else None
        return Quantization(method="modelopt", weight_dtype=dtype, activation_dtype=dtype, bits=8, group_size=block)
    return Quantization(method="modelopt")


def _bitsandbytes(section: _Section) -> Quantization:
    if section.get("load_in_4bit") is True:
        # NF4 and FP4: a table of 16 values each, widened before they are multiplied; no device computes in them.
        return Quantization(method="bitsandbytes", weight_dtype=Dtype.INT4, bits=4, group_size=64)
    return Quantization(method="bitsandbytes", weight_dtype=Dtype.INT8, bits=8)
