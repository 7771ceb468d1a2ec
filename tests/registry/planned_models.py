"""Facts of public models, re-typed from their config.json and file sizes, for tests of memory plans."""

from __future__ import annotations

from xinf.core.device import Device, Vendor
from xinf.registry import KvLayers, ModelFacts, Quantization

GIB = 1 << 30

# Qwen/Qwen2.5-7B-Instruct: four safetensors files of 15,231,233,024 bytes of BF16 in all.
QWEN_7B = ModelFacts(
    architectures=("Qwen2ForCausalLM",),
    context_tokens=32768,
    dtype="bfloat16",
    n_layers=28,
    n_heads=28,
    n_kv_heads=4,
    head_size=128,
    hidden_size=3584,
    intermediate_size=18944,
    vocabulary_size=152064,
    n_parameters=7_615_616_512,
    weight_bytes=15_231_233_024,
    stored_dtypes={"BF16": 15_231_233_024},
    is_counted=True,
    kv=(KvLayers(n_layers=28, n_kv_heads=4, head_size=128),),
)
# mistralai/Mixtral-8x7B-Instruct-v0.1
MIXTRAL = ModelFacts(
    architectures=("MixtralForCausalLM",),
    context_tokens=32768,
    dtype="bfloat16",
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    head_size=128,
    hidden_size=4096,
    intermediate_size=14336,
    vocabulary_size=32000,
    n_experts=8,
    n_experts_per_token=2,
    n_parameters=46_702_792_704,
    n_active_parameters=12_879_925_248,
    weight_bytes=93_405_585_408,
    stored_dtypes={"BF16": 93_405_585_408},
    is_counted=True,
    kv=(KvLayers(n_layers=32, n_kv_heads=8, head_size=128),),
)
# google/gemma-2-9b-it: every other layer sees 4096 tokens.
GEMMA_9B = ModelFacts(
    architectures=("Gemma2ForCausalLM",),
    context_tokens=8192,
    dtype="bfloat16",
    n_layers=42,
    n_heads=16,
    n_kv_heads=8,
    head_size=256,
    hidden_size=3584,
    intermediate_size=14336,
    vocabulary_size=256000,
    n_parameters=9_241_705_984,
    weight_bytes=18_483_411_968,
    stored_dtypes={"BF16": 18_483_411_968},
    is_counted=True,
    kv=(
        KvLayers(n_layers=21, n_kv_heads=8, head_size=256, window_tokens=4096),
        KvLayers(n_layers=21, n_kv_heads=8, head_size=256),
    ),
)
# Qwen/Qwen2.5-7B-Instruct-AWQ
QWEN_7B_AWQ = ModelFacts(
    architectures=("Qwen2ForCausalLM",),
    context_tokens=32768,
    dtype="float16",
    n_layers=28,
    n_heads=28,
    n_kv_heads=4,
    head_size=128,
    hidden_size=3584,
    intermediate_size=18944,
    vocabulary_size=152064,
    n_parameters=7_615_616_512,
    weight_bytes=5_570_949_120,
    stored_dtypes={"I32": 3_364_487_168, "F16": 2_206_461_952},
    is_counted=True,
    quantization=Quantization(method="awq", bits=4, group_size=128),
    kv=(KvLayers(n_layers=28, n_kv_heads=4, head_size=128),),
)
MODELS = (QWEN_7B, MIXTRAL, GEMMA_9B, QWEN_7B_AWQ)


def card(gib: int = 24, index: int = 0, name: str = "card") -> Device:
    """An NVIDIA card of so much memory."""
    return Device(
        vendor=Vendor.NVIDIA, index=index, uuid=f"GPU-{index}", name=name, arch="sm_90", memory_bytes=gib * GIB
    )


CPU = Device(vendor=Vendor.CPU, index=0, uuid="CPU-0", name="cpu", arch="x86_64", memory_bytes=64 * GIB)
