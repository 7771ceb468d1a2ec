"""The tables against the source of the vLLM that is installed, read with `ast`: nothing of it runs here.

This proves that rows which cite a file say what that file says. It cannot prove that the file is right.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.registry.devices import device
from xinf.core.device import Dtype, Support, Vendor
from xinf.registry import Need, capabilities, judge, shipped
from xinf.registry.compatibility import FeatureRow

VERSION = "0.32.0"
QUANTIZATION = "model_executor/layers/quantization"


@pytest.fixture(scope="module")
def vllm(engine_python: str | Path) -> Path:
    """The directory of the installed package."""
    prefix = Path(engine_python).parent.parent
    (found,) = prefix.glob("lib/python3*/site-packages/vllm")
    return found


def parsed(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


def assigned(path: Path, name: str) -> Any:
    """The value of the constant `name`, at the top or in a class."""
    for node in parsed(path):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value  # type: ignore[attr-defined]
    raise AssertionError(f"{path} has no {name}")


@pytest.fixture(scope="module")
def methods(vllm: Path) -> set[str]:
    """vLLM's own methods that the tables know by the same name."""
    literal = assigned(vllm / QUANTIZATION / "__init__.py", "QuantizationMethods").slice
    names = {name.value for name in literal.elts}
    known = {row.method for row in shipped().quantization} & names
    assert len(known) > 12
    return known


def test_the_names_of_methods_are_those_that_vllm_lists(vllm: Path) -> None:
    literal = assigned(vllm / QUANTIZATION / "__init__.py", "QuantizationMethods").slice
    row = shipped().methods_of("vllm", VERSION)
    assert row is not None
    assert list(row.names) == [name.value for name in literal.elts]


def level_of(vendor: Vendor, arch: str, method: str, weights: Dtype | None = None) -> Support | None:
    rows = shipped().features_of("vllm", VERSION, device(vendor, arch))
    fits = [(rank, row) for rank, row in rows if _holds(row, method, weights)]
    return max(fits, key=lambda fit: fit[0])[1].level if fits else None


def _holds(row: FeatureRow, method: str, weights: Dtype | None) -> bool:
    return method in row.quantization and not row.activations and (not row.weights or weights in row.weights)


@pytest.mark.parametrize(
    ("vendor", "arch", "file"), [(Vendor.AMD, "gfx942", "rocm.py"), (Vendor.INTEL, "bmg_g21", "xpu.py")]
)
def test_a_platform_takes_the_methods_that_it_lists(
    vllm: Path, methods: set[str], vendor: Vendor, arch: str, file: str
) -> None:
    listed = set(ast.literal_eval(assigned(vllm / "platforms" / file, "supported_quantization")))
    for method in methods:
        expected = Support.NATIVE if method in listed else Support.NONE
        assert level_of(vendor, arch, method) is expected, method


def test_nvidia_generations_are_those_of_get_min_capability(vllm: Path, methods: set[str]) -> None:
    made = assigned(vllm / QUANTIZATION / "__init__.py", "method_to_config")
    class_of = {key.value: value.id for key, value in zip(made.keys, made.values, strict=True) if key is not None}
    least = dict(_min_capabilities(vllm / QUANTIZATION))
    seen = 0
    # On the fly it is another class than for a checkpoint: no level is right for both.
    assert level_of(Vendor.NVIDIA, "sm_75", "mxfp8") is Support.UNKNOWN
    for method in methods & set(class_of) - {"mxfp8"}:
        needed = least.get(class_of[method])
        if needed is None:
            continue  # of another file, chosen by platform
        seen += 1
        weights = Dtype.FP8_E4M3 if method == "modelopt" else None
        for capability in (75, 80, 86, 89, 90, 100, 120):
            expected = Support.NONE if capability < needed else Support.NATIVE
            assert level_of(Vendor.NVIDIA, f"sm_{capability}", method, weights) is expected, (method, capability)
    assert seen > 10


def _min_capabilities(directory: Path) -> Iterator[tuple[str, int]]:
    """Each class and the constant that its `get_min_capability` returns."""
    classes = [node for path in directory.rglob("*.py") for node in parsed(path) if isinstance(node, ast.ClassDef)]
    for found in classes:
        for method in found.body:
            if isinstance(method, ast.FunctionDef) and method.name == "get_min_capability":
                returned = [part.value for part in method.body if isinstance(part, ast.Return)]
                yield from ((found.name, part.value) for part in returned if isinstance(part, ast.Constant))


def test_models_that_vllm_refuses_in_fp16(vllm: Path) -> None:
    refused = ast.literal_eval(assigned(vllm / "config" / "model.py", "_FLOAT16_NOT_SUPPORTED_MODELS"))
    (row,) = [row for row in shipped().feature if row.dtype == (Dtype.FP16,) and row.models]
    assert set(row.models) == set(refused)


@pytest.mark.parametrize("capability", [70, 75, 80, 86, 89, 90, 100, 120, 121])
def test_nvidia_computes_in_the_types_that_vllm_offers(vllm: Path, capability: int) -> None:
    """Source: platforms/cuda.py, `supported_dtypes` (bf16 from 8.0) and `supports_fp8` (from 8.9)."""
    text = (vllm / "platforms" / "cuda.py").read_text()
    assert "def supports_fp8(cls) -> bool:\n        return cls.has_device_capability(89)" in text
    assert "if self.has_device_capability(80):\n            # Ampere and Hopper or later NVIDIA GPUs." in text
    levels = capabilities(device(Vendor.NVIDIA, f"sm_{capability}"))
    assert (levels[Dtype.BF16] is Support.NATIVE) == (capability >= 80)
    assert (levels[Dtype.FP8_E4M3] is Support.NATIVE) == (capability >= 89)


def test_an_fp8_cache_on_the_processor_needs_what_vllm_asks_for(vllm: Path) -> None:
    text = (vllm / "v1" / "attention" / "backends" / "cpu_attn.py").read_text()
    assert "if fp8_kv and not supports_amx and not supports_avx512:" in text
    need = Need(dtype=Dtype.FP32, features=("fp8_kv_cache",))
    for isa, level in (("avx2", Support.NONE), ("avx512f", Support.NATIVE), ("amx_tile", Support.NATIVE)):
        where = device(Vendor.CPU, "x86_64", extra={"isa": isa})
        assert judge("vllm", VERSION, where, need).level is level


@pytest.mark.parametrize("arch", ["gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201"])
def test_amd_computes_in_fp8_where_vllm_has_kernels_for_it(vllm: Path, arch: str) -> None:
    """Source: kernels/linear/scaled_mm/pytorch.py; and MXFP4 experts are widened on all of these."""
    text = (vllm / "model_executor" / "kernels" / "linear" / "scaled_mm" / "pytorch.py").read_text()
    assert "return on_gfx942() or on_gfx950() or on_gfx12x() or on_gfx1250()" in text
    experts = (vllm / "model_executor/layers/fused_moe/experts/gpt_oss_triton_kernels_moe.py").read_text()
    assert "return on_gfx9() or on_gfx1x()" in experts
    levels = capabilities(device(Vendor.AMD, arch))
    assert (levels[Dtype.FP8_E4M3] is Support.NATIVE) == (arch in ("gfx942", "gfx950", "gfx1201"))
    assert levels[Dtype.FP4] in (Support.NATIVE, Support.WEIGHT_ONLY)
