"""What is needed of a device: the same for the commands and for the scheduler, from what an earlier load took."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.registry.planned_models import CPU, GIB, QWEN_7B
from xinf.core.device import Device, Vendor
from xinf.core.errors import InvalidRequest
from xinf.core.records import EngineEnvironment, EngineSpec, MeasuredRecord
from xinf.registry import choose_options, fingerprint, need_on, plan_memory, plan_on

SPEC = EngineSpec(model="org/m", max_model_len=8192)
CARD = Device(vendor=Vendor.NVIDIA, index=0, uuid="GPU-0", name="card", arch="sm_90", memory_bytes=24 * GIB)
LARGE = replace(CARD, memory_bytes=80 * GIB)
VLLM = EngineEnvironment(name="vllm", python="p", engines=("vllm",), device_kinds=(), version="0.32.0")


@pytest.mark.parametrize("device", [CARD, LARGE, CPU])
def test_need_is_the_plan(device: Device) -> None:
    need = need_on(SPEC, QWEN_7B, device, VLLM, identity=None, measured={})
    assert need == plan_memory(QWEN_7B, choose_options(SPEC, device)).need


def test_kinds_of_device_need_different_things() -> None:
    needs = [need_on(SPEC, QWEN_7B, one, VLLM, identity=None, measured={}) for one in (CARD, LARGE, CPU)]
    assert len({need.device_bytes for need in needs if need is not None}) == 3


def test_what_the_same_load_took_is_believed_and_no_other() -> None:
    took = MeasuredRecord(
        fingerprint="", model="org/m", engine="vllm", device_bytes=20 * GIB, kv_bytes=8 * GIB,
        fixed_bytes=12 * GIB, has_peak=True, kv_blocks=1, block_tokens=16,
    )  # fmt: skip
    measured = {fingerprint("org/m@1", SPEC, engine_version="0.32.0", device=CARD): took}
    found = plan_on(SPEC, QWEN_7B, CARD, VLLM, identity="org/m@1", measured=measured)
    assert found.is_measured
    assert found.fixed_bytes == 12 * GIB
    others = (
        plan_on(SPEC, QWEN_7B, CARD, VLLM, identity="org/m@2", measured=measured),
        plan_on(SPEC, QWEN_7B, CARD, VLLM, identity=None, measured=measured),
        plan_on(SPEC, QWEN_7B, CARD, replace(VLLM, version="0.33.0"), identity="org/m@1", measured=measured),
        plan_on(SPEC, QWEN_7B, CARD, None, identity="org/m@1", measured=measured),
        plan_on(SPEC, QWEN_7B, CPU, VLLM, identity="org/m@1", measured=measured),
        plan_on(replace(SPEC, dtype="float32"), QWEN_7B, CARD, VLLM, identity="org/m@1", measured=measured),
    )
    assert not any(plan.is_measured for plan in others)


def test_what_cannot_be_planned_has_no_need_and_a_plan_says_why() -> None:
    odd = replace(SPEC, engine_args={"cpu_offload_gb": 4})
    assert need_on(odd, QWEN_7B, CARD, VLLM, identity=None, measured={}) is None
    with pytest.raises(InvalidRequest, match="cpu_offload_gb"):
        plan_on(odd, QWEN_7B, CARD, VLLM, identity=None, measured={})
