"""Verdicts on wishes: what is refused, warned of and said, with the words that a person reads."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.registry.devices import device
from xinf.core.device import Device, Dtype, Support, Vendor
from xinf.core.model import Quantization
from xinf.core.records import EngineEnvironment, EngineSpec
from xinf.registry import ModelFacts, Need, Verdict, judge, judge_spec, need_of, refusal_of, shipped

N, W, NONE, U = Support.NATIVE, Support.WEIGHT_ONLY, Support.NONE, Support.UNKNOWN
VLLM = EngineEnvironment(name="vllm", python="python", engines=("vllm",), device_kinds=(), version="0.32.0")
T4, A100, L4 = (device(Vendor.NVIDIA, arch) for arch in ("sm_75", "sm_80", "sm_89"))
H100, B200, RTX_5090 = (device(Vendor.NVIDIA, arch) for arch in ("sm_90", "sm_100", "sm_120"))
MI210, MI300, RX_7900 = (device(Vendor.AMD, arch) for arch in ("gfx90a", "gfx942", "gfx1100"))
ASCEND = device(Vendor.ASCEND, "910B3")
XEON = device(Vendor.CPU, "x86_64", extra={"isa": "avx2 avx512f avx512_bf16 avx512_vnni amx_tile amx_bf16 amx_int8"})
OLD_PC = device(Vendor.CPU, "x86_64", extra={"isa": "avx2"})
BF16 = ModelFacts(model_type="qwen3", dtype="bfloat16")
FP8 = Quantization(method="fp8", weight_dtype=Dtype.FP8_E4M3, activation_dtype=Dtype.FP8_E4M3, bits=8)
NVFP4 = Quantization(method="modelopt", weight_dtype=Dtype.FP4, activation_dtype=Dtype.FP4, bits=4)
AWQ = Quantization(method="awq", weight_dtype=Dtype.INT4, bits=4, group_size=128)
W8A8 = Quantization(method="compressed-tensors", weight_dtype=Dtype.INT8, activation_dtype=Dtype.INT8, bits=8)
W4A8 = Quantization(method="compressed-tensors", weight_dtype=Dtype.INT4, activation_dtype=Dtype.INT8, bits=4)


def facts(quantization: Quantization | None = None, **fields: Any) -> ModelFacts:
    return ModelFacts(**{"model_type": "qwen3", "dtype": "bfloat16", "quantization": quantization, **fields})


def verdict(where: Device, known: ModelFacts | None = BF16, **fields: Any) -> Verdict:
    return judge_spec(EngineSpec(model="m", **fields), where, VLLM, known)


@pytest.mark.parametrize("where", [A100, L4, H100, B200, RTX_5090, MI210, MI300, RX_7900, XEON])
def test_a_model_in_bf16_runs_natively(where: Device) -> None:
    found = verdict(where)
    assert found.level is N
    assert found.reason.startswith(f"{where.arch} computes in BF16")
    assert found.suggestion is None
    assert found.sources


def test_bf16_by_name_is_refused_on_turing_with_what_to_type() -> None:
    found = verdict(T4, dtype="bfloat16")
    assert found.is_refused
    assert str(found) == "sm_75 has no BF16: use --dtype float16"


def test_bf16_of_the_model_falls_back_on_turing() -> None:
    found = verdict(T4)
    assert (found.level, found.reason) == (N, "sm_75 has no BF16: the engine falls back to FP16")


def test_gemma_falls_back_past_fp16() -> None:
    assert verdict(T4, facts(model_type="gemma3")).reason == "sm_75 has no BF16: the engine falls back to FP32"


def test_gemma_in_fp16_by_name_is_refused() -> None:
    found = verdict(H100, facts(model_type="gemma2"), dtype="half")
    assert found.is_refused
    assert "not stable" in found.reason
    assert found.suggestion is not None
    assert "bfloat16" in found.suggestion


def test_bf16_of_the_model_is_refused_where_the_engine_does_not_fall_back() -> None:
    found = verdict(device(Vendor.ASCEND, "310P3"))
    assert str(found) == "310P3 has no BF16: use --dtype float16"
    assert verdict(device(Vendor.ASCEND, "310P3"), dtype="float16").level is N


def test_a_card_is_excepted_by_name() -> None:
    arc = device(Vendor.INTEL, None, name="Intel(R) Arc(TM) A770 Graphics")
    assert verdict(arc).suggestion == "use --dtype float16"
    assert verdict(arc, dtype="float16").level is N
    assert verdict(device(Vendor.INTEL, None, name="Intel(R) Arc(TM) A750 Graphics")).level is N


@pytest.mark.parametrize(
    ("where", "level"), [(T4, W), (A100, W), (L4, N), (H100, N), (B200, N), (MI300, N), (MI210, NONE)]
)
def test_fp8_weights(where: Device, level: Support) -> None:
    assert verdict(where, facts(FP8)).level is level


def test_fp8_weights_on_ampere_are_said_to_run_weight_only() -> None:
    assert verdict(A100, facts(FP8)).reason == "FP8 E4M3 weights on sm_80 run weight-only"


def test_weights_that_a_device_has_no_unit_for_are_refused_with_those_it_takes() -> None:
    found = verdict(RX_7900, facts(FP8))
    assert str(found) == "gfx1100 has no FP8 E4M3: use a version of the model in BF16 or FP16 or INT8 or INT4"


@pytest.mark.parametrize(
    ("where", "level"), [(A100, W), (H100, W), (B200, N), (RTX_5090, N), (MI210, W), (ASCEND, NONE)]
)
def test_nvfp4_weights(where: Device, level: Support) -> None:
    assert verdict(where, facts(NVFP4)).level is level


@pytest.mark.parametrize("where", [T4, A100, H100, RTX_5090, MI300, XEON, OLD_PC])
def test_awq_is_widened_everywhere(where: Device) -> None:
    found = verdict(where, facts(AWQ))
    assert found.level is W
    assert "awq keeps weights in INT4 and widens them to multiply" in found.reason


def test_a_fallback_is_said_beside_what_is_worse() -> None:
    reason = verdict(T4, facts(AWQ)).reason
    assert "falls back to FP16" in reason
    assert "awq keeps weights in INT4" in reason


@pytest.mark.parametrize(("where", "level"), [(T4, N), (A100, N), (XEON, N), (B200, U), (RTX_5090, U)])
def test_int8_weights_and_activations(where: Device, level: Support) -> None:
    assert verdict(where, facts(W8A8)).level is level


def test_blackwell_and_int8_is_doubted_with_a_suggestion() -> None:
    assert verdict(B200, facts(W8A8)).suggestion == "use a version of the model in FP8"


def test_narrow_weights_with_narrow_activations_run_in_those() -> None:
    found = verdict(H100, facts(W4A8))
    assert (found.level, found.reason) == (N, "sm_90 computes in BF16; sm_90 multiplies in INT8")


def test_a_method_that_the_engine_does_not_have_on_a_platform_is_refused() -> None:
    arc = device(Vendor.INTEL, "bmg_g21")
    assert verdict(arc, facts(NVFP4)).is_refused
    assert verdict(T4, facts(), quantization="mxfp4").is_refused
    assert (
        verdict(device(Vendor.ENFLAME, "S60"), facts(FP8)).suggestion
        == "use a version of the model in GPTQ, AWQ or W8A16"
    )


def test_a_method_that_no_row_knows_is_unknown() -> None:
    found = verdict(H100, facts(Quantization(method="hqq", bits=3)))
    assert found.level is U
    assert "no source says whether vllm 0.32.0 runs hqq on cuda" in found.reason


def test_a_method_by_name_alone_is_judged_by_its_row() -> None:
    assert verdict(A100, None, quantization="fp8").level is W
    assert verdict(H100, None, quantization="gptq_marlin").level is W
    assert verdict(H100, None, quantization="compressed-tensors").level is U


def test_the_models_own_config_beats_the_row_of_its_method() -> None:
    eight_bits = Quantization(method="gptq", weight_dtype=Dtype.INT8, bits=8)
    assert "gptq keeps weights in INT8" in verdict(H100, facts(eight_bits), quantization="gptq_marlin").reason


def test_a_gguf_file_needs_a_plugin() -> None:
    found = judge_spec(EngineSpec(model="/models/a.Q4_K_M.gguf"), H100, VLLM)
    assert found.level is U
    assert "plugin" in found.reason


def test_volta_is_too_old_for_the_engine() -> None:
    found = verdict(device(Vendor.NVIDIA, "sm_70"))
    assert found.is_refused
    assert "compute capability 7.5" in found.reason


@pytest.mark.parametrize(
    ("where", "arguments", "level"),
    [
        (T4, {"kv_cache_dtype": "fp8"}, NONE),
        (A100, {"kv_cache_dtype": "fp8_e5m2"}, U),
        (H100, {"kv_cache_dtype": "fp8"}, N),
        (XEON, {"kv_cache_dtype": "fp8"}, N),
        (OLD_PC, {"kv_cache_dtype": "fp8"}, NONE),
        (XEON, {"enable_lora": True}, N),
        (XEON, {"enable_lora": False}, N),
        (XEON, {"speculative_config": '{"method": "ngram"}'}, U),
        (H100, {"speculative_config": '{"method": "ngram"}', "enable_prefix_caching": True}, N),
        (device(Vendor.KUNLUNXIN, "P800"), {"enable_lora": True}, U),
    ],
)
def test_features_that_are_asked_for(where: Device, arguments: dict[str, Any], level: Support) -> None:
    assert verdict(where, engine_args=arguments).level is level


def test_an_old_processor_keeps_bf16_and_says_so() -> None:
    assert verdict(OLD_PC).reason == "x86_64 keeps BF16 and computes in a wider type"


def test_a_version_outside_of_every_row_is_unknown_not_refused() -> None:
    newer = EngineEnvironment(name="v", python="p", engines=("vllm",), device_kinds=(), version="9.0")
    found = judge_spec(EngineSpec(model="m"), device(Vendor.NVIDIA, "sm_70"), newer, facts(dtype="float16"))
    assert found.level is U
    assert "no source says whether vllm 9.0 runs on sm_70" in found.reason


def test_the_simulated_engine_runs_anywhere() -> None:
    spec = EngineSpec(model="m", engine="sim", dtype="bfloat16", quantization="fp8")
    assert judge_spec(spec, T4, None).level is N


def test_a_model_whose_type_is_not_known_is_not_refused_for_a_guess() -> None:
    assert verdict(device(Vendor.ASCEND, "310P3"), None).reason == "310P3 computes in FP16"
    assert verdict(device(Vendor.INTEL, "dg2", name="Intel(R) Arc(TM) A770 Graphics"), None).level is N
    assert verdict(T4, None).level is N


def test_a_type_that_nobody_knows_is_unknown() -> None:
    assert verdict(H100, dtype="float7").level is U


def test_a_float32_model_is_computed_in_what_the_device_likes_best() -> None:
    assert verdict(H100, facts(dtype="float32")).reason == "sm_90 computes in BF16"
    assert verdict(T4, facts(dtype="float32")).reason == "sm_75 computes in FP16"
    assert need_of(EngineSpec(model="m"), ModelFacts(dtype="float32")).dtype is None
    assert need_of(EngineSpec(model="m", dtype="float32"), ModelFacts(dtype="float32")).dtype is Dtype.FP32


@given(
    vendor=st.sampled_from(Vendor),
    need=st.builds(
        Need,
        dtype=st.sampled_from([Dtype.FP32, Dtype.FP16, Dtype.BF16]),
        is_dtype_free=st.booleans(),
        method=st.sampled_from([None, "hqq"]),
        weights=st.sampled_from([None, *Dtype]),
        activations=st.sampled_from([None, *Dtype]),
        is_widened=st.booleans(),
    ),
)
def test_nothing_is_refused_of_a_device_that_nobody_knows(vendor: Vendor, need: Need) -> None:
    found = judge("vllm", "0.32.0", device(vendor, "never-heard-of-it"), need)
    assert found.level is U
    assert found.reason


def test_a_refusal_always_says_what_to_do() -> None:
    """Every generation against every type and method: whoever is refused gets a reason and a suggestion."""
    methods = [None, *(row.method for row in shipped().quantization)]
    n_refused = 0
    archs = [
        (row.vendor, pattern.replace("*", "").replace("?", "0")) for row in shipped().dtype for pattern in row.arch
    ]
    for vendor, arch in archs:
        where = device(vendor, arch)
        for dtype, method in product(("auto", "float16", "bfloat16"), methods):
            found = judge_spec(EngineSpec(model="m", dtype=dtype, quantization=method), where, VLLM)
            assert found.reason, (where, dtype, method)
            if found.is_refused:
                n_refused += 1
                assert found.suggestion, (where, dtype, method)
    assert n_refused > 50


def test_the_scheduler_is_told_refusals_alone() -> None:
    spec = EngineSpec(model="m", dtype="bfloat16", quantization="fp8")
    assert refusal_of(spec, T4, VLLM) == "sm_75 has no BF16: use --dtype float16"
    assert refusal_of(spec, A100, VLLM) is None
    assert refusal_of(spec, device(Vendor.NVIDIA, "sm_999"), VLLM) is None
