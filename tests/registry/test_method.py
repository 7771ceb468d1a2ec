"""Names of quantization methods: those that engines have, and what is said of those that they have not."""

from __future__ import annotations

import pytest

from tests.registry.devices import device
from xinf.core.device import Device, Support, Vendor
from xinf.core.errors import InvalidRequest
from xinf.core.records import EngineEnvironment, EngineSpec
from xinf.registry import Verdict, check_method, judge_spec, need_of

H100, ASCEND = device(Vendor.NVIDIA, "sm_90"), device(Vendor.ASCEND, "910B3")


def verdict(where: Device, method: str, version: str | None = "0.32.0") -> Verdict:
    environment = EngineEnvironment(name="v", python="python", engines=("vllm",), device_kinds=(), version=version)
    spec = EngineSpec(model="m", quantization=method, dtype="bfloat16")
    return judge_spec(spec, where, environment)


@pytest.mark.parametrize("name", ["awq", "fp8", "humming", "gguf", "ascend", "compressed_tensors"])
def test_a_name_that_some_version_or_plugin_has_is_taken(name: str) -> None:
    assert check_method("vllm", name) == name


def test_case_does_not_matter() -> None:
    assert check_method("vllm", "AWQ_Marlin") == "awq_marlin"
    assert need_of(EngineSpec(model="m", quantization="FP8")).method == "fp8"


def test_a_name_that_nobody_has_is_refused_with_the_nearest_and_a_way_around() -> None:
    with pytest.raises(InvalidRequest, match="'apw' is no method that vllm is known to have") as refused:
        check_method("vllm", "apw")
    assert refused.value.param == "quantization"
    assert refused.value.remedy == (
        "did you mean awq? What a plugin brings is passed on by --engine-arg quantization=apw"
    )


def test_where_nothing_is_near_all_are_listed() -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_method("vllm", "zork")
    assert str(refused.value.remedy).startswith("use one of awq, auto_awq, fp8, ")
    assert "nvfp4_per_token, mxfp8. What a plugin brings" in str(refused.value.remedy)


def test_an_engine_without_a_list_takes_any() -> None:
    assert check_method("another", "zork") == "zork"


def test_a_name_of_another_tool_is_refused_with_the_engines_own() -> None:
    found = verdict(H100, "nvfp4")
    assert found.is_refused
    assert found.reason == "vllm 0.32.0 has no quantization 'nvfp4'"
    assert str(found.suggestion).startswith("did you mean modelopt_fp4, nvfp4_per_token or ")


def test_what_only_a_plugin_of_another_vendor_has_is_refused() -> None:
    found = verdict(H100, "ascend")
    assert found.is_refused
    assert str(found.suggestion).startswith("leave it out if the model's files name its method. What a plugin brings")
    assert not verdict(ASCEND, "ascend").is_refused


def test_a_plugin_that_the_tables_know_is_only_warned_of() -> None:
    found = verdict(H100, "bitsandbytes")
    assert found.level is Support.UNKNOWN
    assert "plugin" in found.reason


def test_plugins_of_a_vendor_may_have_more_names_than_the_engine() -> None:
    assert verdict(ASCEND, "zork").level is Support.UNKNOWN


def test_a_version_without_a_list_is_not_refused() -> None:
    assert verdict(H100, "zork", "0.99").level is Support.UNKNOWN


def test_the_name_in_the_models_files_is_not_judged_by_the_list() -> None:
    assert need_of(EngineSpec(model="m.gguf")).asked is None


def test_what_is_passed_on_by_hand_is_the_engines_to_judge() -> None:
    spec = EngineSpec(model="m", engine_args={"quantization": "zork"}, dtype="bfloat16")
    assert need_of(spec).method is None
