"""The shipped tables, row by row, and how a wrong table is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.registry.devices import device
from xinf.core.config import configs_dir
from xinf.core.device import Dtype, Support, Vendor
from xinf.core.errors import ConfigError
from xinf.registry import capabilities, read_compatibility, shipped
from xinf.registry.compatibility import FILE, BackendRow, DtypeRow, FeatureRow, IsaRow, MethodsRow, QuantizationRow
from xinf.registry.pattern import is_match

N, W, NONE, U = Support.NATIVE, Support.WEIGHT_ONLY, Support.NONE, Support.UNKNOWN
Row = DtypeRow | IsaRow | QuantizationRow | MethodsRow | BackendRow | FeatureRow
ROWS: list[Row] = [
    *shipped().dtype,
    *shipped().isa,
    *shipped().quantization,
    *shipped().methods,
    *shipped().backend,
    *shipped().feature,
]
# An address of a file, a document, a manual, a commit or a person's own run; or the words that admit there is none.
SOURCE = re.compile(
    r"\.(py|md)|docs|documentation|README|CANN|LLVM|PTX|SYCL|manual|programming guide|instruction set|FEAT_"
    r"|support article|press of \d{4}|llama\.cpp|vllm-\w+ \w{7}|vLLM 0\.\d+|bitsandbytes"
    r"|run by us|general knowledge|nothing firm|no source"
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{type(row).__name__}-{ROWS.index(row)}")
def test_every_row_says_where_it_is_from(row: Row) -> None:
    assert SOURCE.search(row.source), row
    assert len(row.source) > 10
    assert row.source == row.source.strip()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{type(row).__name__}-{ROWS.index(row)}")
def test_no_row_hides_a_guess(row: Row) -> None:
    """Who knows something by general knowledge says of what; who found nothing says nothing but `unknown`."""
    if "nothing firm" in row.source:
        assert isinstance(row, DtypeRow)
        assert {row.level(dtype) for dtype in Dtype} == {U}
    elif isinstance(row, DtypeRow):
        assert {row.level(dtype) for dtype in Dtype} != {U}


@pytest.mark.parametrize("vendor", Vendor)
def test_every_vendor_has_rows(vendor: Vendor) -> None:
    tables = shipped()
    assert any(row.vendor is vendor for row in tables.dtype)
    assert tables.backend_of("vllm", vendor) is not None
    serving = [row for row in tables.feature if row.vendor is vendor and "serve" in row.feature]
    assert any(row.level is N for row in serving)


@pytest.mark.parametrize("row", shipped().feature, ids=lambda row: str(shipped().feature.index(row)))
def test_every_refusal_says_what_to_do_instead(row: FeatureRow) -> None:
    assert row.level is not NONE or row.suggestion


def test_quantization_methods_of_vllm_are_known() -> None:
    """Source: vLLM 0.32.0, QuantizationMethods; without those it calls deprecated, and what it picks by itself."""
    text = """awq auto_awq fp8 fbgemm_fp8 modelopt modelopt_fp4 modelopt_mxfp8 auto_gptq gptq gptq_marlin awq_marlin
        compressed-tensors experts_int8 quark moe_wna16 torchao inc mxfp4 gpt_oss_mxfp4 deepseek_v4_fp8 fp8_per_tensor
        fp8_per_block fp8_per_channel nvfp4_per_token mxfp8"""
    assert [name for name in text.split() if shipped().method(name) is None] == []


# The table of shared facts, from the generations that engines choose kernels by.
EXPECTED = {
    (Vendor.NVIDIA, "sm_70"): (N, N, NONE, NONE, W, NONE, NONE, NONE),
    (Vendor.NVIDIA, "sm_75"): (N, N, NONE, N, N, W, U, W),
    (Vendor.NVIDIA, "sm_86"): (N, N, N, N, N, W, U, W),
    (Vendor.NVIDIA, "sm_89"): (N, N, N, N, N, N, N, W),
    (Vendor.NVIDIA, "sm_90"): (N, N, N, N, W, N, N, W),
    (Vendor.NVIDIA, "sm_100"): (N, N, N, N, W, N, N, N),
    (Vendor.NVIDIA, "sm_120"): (N, N, N, N, W, N, N, N),
    (Vendor.NVIDIA, "sm_121"): (N, N, N, N, W, N, N, N),
    (Vendor.AMD, "gfx90a"): (N, N, N, N, W, NONE, NONE, W),
    (Vendor.AMD, "gfx942"): (N, N, N, N, W, N, N, W),
    (Vendor.AMD, "gfx950"): (N, N, N, N, W, N, N, N),
    (Vendor.AMD, "gfx1100"): (N, N, N, N, N, NONE, NONE, W),
    (Vendor.AMD, "gfx1201"): (N, N, N, N, N, N, N, W),
    (Vendor.ASCEND, "310P3"): (N, N, NONE, N, W, NONE, NONE, NONE),
    (Vendor.ASCEND, "910B3"): (N, N, N, N, N, NONE, NONE, NONE),
    (Vendor.HYGON, "gfx938"): (N, N, N, N, W, N, U, U),
    (Vendor.MTHREADS, "mp_31"): (N, N, N, U, U, N, U, U),
}


@pytest.mark.parametrize(("vendor", "arch"), EXPECTED, ids=lambda each: str(each))
def test_levels_of_a_generation(vendor: Vendor, arch: str) -> None:
    assert tuple(capabilities(device(vendor, arch)).values()) == EXPECTED[vendor, arch]


@pytest.mark.parametrize(
    ("vendor", "name", "generation"),
    [
        (Vendor.MTHREADS, "MTT S5000", "MTT S5000"),
        (Vendor.CAMBRICON, "MLU370-X8", "MLU370"),
        (Vendor.ENFLAME, "S60", "S60"),
        (Vendor.KUNLUNXIN, "P800 OAM", "P800"),
        (Vendor.APPLE, "Apple M3 Pro", "M1 and later"),
        (Vendor.INTEL, "Intel(R) Arc(TM) A770 Graphics", "Xe-HPG (Arc A, Flex)"),
        (Vendor.INTEL, "Intel(R) Arc(TM) Pro B60 Graphics", "Xe2 (Arc B)"),
        (Vendor.INTEL, "Intel(R) Data Center GPU Flex 170", "Xe-HPG (Arc A, Flex)"),
        (Vendor.INTEL, "Intel(R) Data Center GPU Max 1550", "Xe-HPC (Data Center GPU Max)"),
    ],
)
def test_a_device_without_architecture_is_found_by_its_name(vendor: Vendor, name: str, generation: str) -> None:
    row = shipped().row_of(device(vendor, None, name=name))
    assert row is not None
    assert row.generation == generation


def test_an_architecture_that_is_known_beats_a_name_that_looks_like_another() -> None:
    assert shipped().row_of(device(Vendor.ASCEND, "910A", name="910B")) is None
    assert shipped().row_of(device(Vendor.ASCEND, None, name="910B3")) is not None


def test_integrated_graphics_are_not_taken_for_a_card() -> None:
    assert shipped().row_of(device(Vendor.INTEL, None, name="Intel(R) Arc(TM) Graphics")) is None


@given(st.sampled_from(Vendor), st.text(max_size=12), st.text(max_size=12))
def test_an_unknown_architecture_is_unknown_and_never_none(vendor: Vendor, arch: str, name: str) -> None:
    patterns = [pattern for row in shipped().dtype if row.vendor is vendor for pattern in row.arch]
    found = device(vendor, arch, name=name)
    if not any(is_match(pattern, arch or name) for pattern in patterns):
        assert set(capabilities(found).values()) == {U}


@pytest.mark.parametrize(
    ("isa", "changed"),
    [
        ("", {}),
        ("avx2 avx512f", {}),
        ("avx512f avx512_bf16", {Dtype.BF16: N}),
        ("avx512_vnni", {Dtype.INT8: N}),
        ("amx_tile amx_bf16 amx_int8", {Dtype.BF16: N, Dtype.INT8: N, Dtype.FP8_E4M3: W, Dtype.FP4: W}),
        ("avx512_fp16", {Dtype.FP16: N}),
        ("bf16 i8mm", {}),  # Arm's words on x86
    ],
)
def test_flags_of_a_processor_raise_its_levels(isa: str, changed: dict[Dtype, Support]) -> None:
    plain = capabilities(device(Vendor.CPU, "x86_64"))
    assert capabilities(device(Vendor.CPU, "x86_64", extra={"isa": isa})) == plain | changed


def test_arm_has_flags_of_its_own() -> None:
    levels = capabilities(device(Vendor.CPU, "aarch64", extra={"isa": "asimd bf16 i8mm"}))
    assert (levels[Dtype.BF16], levels[Dtype.INT8]) == (N, N)


# ---- wrong tables -------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, str], Path]:
    """The shipped file with one text replaced by another."""
    text = (configs_dir() / FILE).read_text()

    def write(old: str, new: str) -> Path:
        assert old in text
        path = tmp_path / FILE
        path.write_text(text.replace(old, new, 1))
        return path

    return write


VOLTA = 'generation = "Volta"\narch = ["sm_70", "sm_72"]\nfp32 = "native"'


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (VOLTA, VOLTA.replace("native", "fast"), r"\[\[dtype\]\] row 1 \(nvidia Volta\).*'fast'.*fp32"),
        (VOLTA, VOLTA.replace("fp32", "fp33"), r"\[\[dtype\]\] row 1 \(nvidia Volta\).*fp33"),
        (VOLTA, VOLTA.replace('fp32 = "native"', ""), r"row 1 \(nvidia Volta\).*missing.*`fp32`"),
        (VOLTA, VOLTA.replace('["sm_70", "sm_72"]', "[]"), r"row 1 .*'arch' is empty"),
        (VOLTA, VOLTA.replace('"sm_72"', '"sm_75"'), r"Volta and nvidia Turing.*'sm_75' and 'sm_75'"),
        ('arch = ["gfx11*"]', 'arch = ["gfx9*a"]', r"CDNA3 and amd RDNA3: patterns 'gfx94\?' and 'gfx9\*a' may fit"),
        ('vendor = "nvidia"\ngeneration', 'vendor = "nvidea"\ngeneration', r"row 1 \(nvidea Volta\).*'nvidea'.*vendor"),
        ('method = "awq"', 'method = "awq"\nbits = 4', r"\[\[quantization\]\] row 1 \(awq\).*bits"),
        ('aliases = ["auto_awq", ', 'aliases = ["gptq", ', r"'gptq' is there twice"),
        ('feature = ["lora"]', 'feature = ["loras"]', r"field 'feature': 'loras' is not known"),
        ('quantization = ["ascend", ', 'quantization = ["ascent", ', r"field 'quantization': 'ascent'"),
        ('versions = "*"\nvendor = "apple"', 'versions = "0.2"\nvendor = "apple"', r"field 'versions': '0.2'"),
        ('suggestion = "use a newer device, or --device cpu"\n', "", r"field 'suggestion' is missing"),
        ('dtype = ["fp16"]\n', "", r"needs one of quantization, dtype, feature"),
        ('arch = ["sm_75"]\nfeature = ["fp8_', 'feature = ["fp8_', r"say the same of feature fp8_kv_cache"),
        ('engine = "vllm"\nversions = ">=0.32,<0.33"\nnames = [', 'engine = "vllm"\nversions = "0.32"\nnames = [',
         r"\[\[methods\]\] row \(vllm\): field 'versions': '0.32' is no bound"),
        ("\n[[methods]]\n",
         '\n[[methods]]\nengine = "vllm"\nversions = "*"\nnames = ["awq"]\nsource = "-"\n\n[[methods]]\n',
         r"\[\[methods\]\] vllm \* and >=0.32,<0.33 meet"),
        ("\n[[backend]]\n", "\n[[backends]]\n", r"no table \[\[backends\]\]"),
        ('source = "nothing firm found"', 'source = ""', r"L300, L600\): field 'source' is empty"),
        ("\n[[isa]]\n", "\n[[isa]\n", r"unreadable"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused_by_row_and_field(
    written: Callable[[str, str], Path], old: str, new: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        read_compatibility(written(old, new))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml is unreadable"):
        read_compatibility(tmp_path / "gone.toml")
