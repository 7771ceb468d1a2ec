"""What a deployment asks of a device: the type it computes in, how its weights are packed, the engine's features.

Read from the specification and, where they are known, the model's facts; what neither says is None.
"""

from __future__ import annotations

import msgspec

from xinf.core.device import Dtype
from xinf.core.model import ModelFacts
from xinf.core.records import EngineSpec
from xinf.registry.compatibility import Compatibility, shipped

AUTO = "auto"
_DTYPE_WORDS = {
    "float32": Dtype.FP32,
    "float": Dtype.FP32,
    "f32": Dtype.FP32,
    "float16": Dtype.FP16,
    "half": Dtype.FP16,
    "f16": Dtype.FP16,
    "bfloat16": Dtype.BF16,
    "float8_e4m3fn": Dtype.FP8_E4M3,
    "float8_e5m2": Dtype.FP8_E5M2,
}
# Features that an engine argument asks for, with what switches it on; vLLM's own defaults ask for nothing.
_FEATURE_OF_ARG = {
    "enable_lora": "lora",
    "enable_prefix_caching": "prefix_caching",
    "enable_chunked_prefill": "chunked_prefill",
    "speculative_config": "speculative_decoding",
}


class Need(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a device and an engine on it must be able to do."""

    dtype: Dtype | None = None  # computed in; None: not known, or what the device likes best
    is_dtype_free: bool = False  # nobody asked for it: the engine may fall back to another
    method: str | None = None  # of quantization, as [[quantization]] calls it; None: weights are not packed
    asked: str | None = None  # the method's name where somebody typed it; None: the model's files name it
    weights: Dtype | None = None  # what they are packed in
    activations: Dtype | None = None  # what they are multiplied in
    is_widened: bool = False  # the method widens weights before they are multiplied, on every device
    features: tuple[str, ...] = ()
    model_type: str | None = None


def parse_dtype(text: str | None) -> Dtype | None:
    """Read a type as configs, engines and people write it; None for one that is no Dtype, and for `auto`."""
    if text is None:
        return None
    word = text.lower().removeprefix("torch.")
    return _DTYPE_WORDS.get(word) or next((dtype for dtype in Dtype if dtype.value == word), None)


def need_of(spec: EngineSpec, facts: ModelFacts | None = None, table: Compatibility | None = None) -> Need:
    """Work out what a specification asks for. `facts`: None where the model's files have not been read."""
    dtype = parse_dtype(spec.dtype)
    is_free = spec.dtype == AUTO
    if is_free:
        dtype = parse_dtype(facts.dtype) if facts is not None else None
        if dtype is Dtype.FP32:
            # vLLM takes what the platform likes best: `_resolve_auto_dtype` in its config/model.py (0.32).
            dtype = None
    packed = _packing(spec, facts, table or shipped())
    return msgspec.structs.replace(
        packed,
        asked=None if spec.quantization is None else spec.quantization.lower(),
        dtype=dtype,
        is_dtype_free=is_free,
        features=_features(spec),
        model_type=None if facts is None else facts.model_type,
    )


def _packing(spec: EngineSpec, facts: ModelFacts | None, table: Compatibility) -> Need:
    """How the weights are packed: the model's own config knows best, the method's row is next."""
    stored = facts.quantization if facts is not None else None
    name = (spec.quantization or "").lower() or (stored.method if stored is not None else None)
    if name is None and spec.model.lower().endswith(".gguf"):
        name = "gguf"
    if name is None:
        return Need()
    row = table.method(name)
    method = row.method if row is not None else name
    is_meant = stored is not None and (spec.quantization is None or _is_same(stored.method, method, table))
    if stored is not None and stored.weight_dtype is not None and is_meant:
        return Need(
            method=method,
            weights=stored.weight_dtype,
            activations=stored.activation_dtype,
            is_widened=stored.activation_dtype is None,
        )
    if row is None:
        return Need(method=method)
    return Need(method=method, weights=row.weights, activations=row.activations, is_widened=row.is_widened)


def _is_same(name: str, method: str, table: Compatibility) -> bool:
    row = table.method(name)
    return (row.method if row is not None else name) == method


def _features(spec: EngineSpec) -> tuple[str, ...]:
    found = [feature for arg, feature in _FEATURE_OF_ARG.items() if spec.engine_args.get(arg, False) not in (False, "")]
    if str(spec.engine_args.get("kv_cache_dtype", "")).startswith("fp8"):
        found.append("fp8_kv_cache")
    return tuple(found)
