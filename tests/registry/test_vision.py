"""What images take of memory beside the language model: what the config tells, and what engines told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.registry.planned_models import GIB, QWEN_7B, card
from tests.registry.test_reader import LLAMA, make
from xinf.core.model import VisionTower
from xinf.core.records import ArgValue, EngineSpec
from xinf.registry import ModelFacts, choose_options, plan_memory, read_model
from xinf.registry.vision import output_bytes, read_tower, tower_bytes

# Re-typed from public config.json files.
QWEN2_VL = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "hidden_act": "quick_gelu", "mlp_ratio": 4,
            "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip
QWEN25_VL = {"hidden_size": 1280, "hidden_act": "silu", "intermediate_size": 3420, "out_hidden_size": 3584,
             "in_chans": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip
QWEN35 = {"hidden_size": 1024, "hidden_act": "gelu_pytorch_tanh", "intermediate_size": 4096, "in_channels": 3,
          "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
          "deepstack_visual_indexes": []}  # fmt: skip
QWEN36 = QWEN35 | {"hidden_size": 1152, "intermediate_size": 4304}
SIGLIP = {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "patch_size": 14}

# Qwen2.5-VL-7B: the language model is that of the text model.
QWEN_VL = replace(QWEN_7B, kind="vision", vision=read_tower({"vision_config": QWEN25_VL}))


def activation(facts: ModelFacts, *, tensor_parallel_size: int = 1, **arguments: ArgValue) -> int:
    spec = EngineSpec(model="m", tensor_parallel_size=tensor_parallel_size, engine_args=arguments)
    return plan_memory(facts, choose_options(spec, card(24))).activation_bytes


@pytest.mark.parametrize(("part", "tower"), [
    (QWEN2_VL, VisionTower(hidden_size=1280, feed_forward_width=2 * 5120, patch_elements=1176, token_patches=4)),
    (QWEN25_VL, VisionTower(hidden_size=1280, feed_forward_width=3 * 3420, patch_elements=1176, token_patches=4)),
    (QWEN35, VisionTower(hidden_size=1024, feed_forward_width=2 * 4096, patch_elements=1536, token_patches=4)),
    (QWEN35 | {"deepstack_visual_indexes": [5, 11, 17]},
     VisionTower(hidden_size=1024, feed_forward_width=2 * 4096, patch_elements=1536, token_patches=4, n_outputs=4)),
    (SIGLIP, None),
    (QWEN35 | {"patch_size": -1}, None),
    (QWEN35 | {"spatial_merge_size": "2"}, None),
    ({}, None),
    (None, None),
    ([], None),
])  # fmt: skip
def test_tower_is_read_where_images_may_be_of_any_size(part: Any, tower: VisionTower | None, tmp_path: Path) -> None:
    assert read_tower({"vision_config": part}) == tower
    assert read_model(str(make(tmp_path, {**LLAMA, "vision_config": part}))).vision == tower


@pytest.mark.parametrize(("part", "reported_gib", "most"), [
    (QWEN35, 2.17, 1.02),  # Qwen3.5-4B on an L4, vLLM 0.29: "peak activation"
    # Qwen3.6-35B-A3B-NVFP4 on an RTX 5090, 0.19.2: 4.88 GiB of cache, and 6.44 without images. Of 28.85 GiB (0.92)
    # 21.88 are weights; 0.53 remain without images, of which a process has 0.25 or less before any step.
    (QWEN36, 28.85 - 21.88 - 4.88 - 0.25, 1.27),
])  # fmt: skip
def test_tower_is_never_under_what_was_reported(part: dict[str, Any], reported_gib: float, most: float) -> None:
    facts = replace(QWEN_VL, vision=read_tower({"vision_config": part}))
    planned = tower_bytes(facts, tensor_parallel_size=1, element_bytes=2)
    assert 1 <= planned / (reported_gib * GIB) <= most


def test_image_in_the_tower_is_planned_where_the_language_model_needs_less() -> None:
    """Not both: the tower is done when the language model begins."""
    text, image = activation(QWEN_7B), tower_bytes(QWEN_VL, tensor_parallel_size=1, element_bytes=2)
    assert text < 0.7 * GIB < 2 * GIB < image
    assert activation(QWEN_VL) == image
    assert activation(QWEN_VL, tensor_parallel_size=4) < image  # what is split is its feed-forward layers


def test_outputs_of_the_images_stay_while_the_language_model_runs() -> None:
    wide = dict[str, ArgValue](max_num_seqs=2048, max_num_batched_tokens=8192)
    assert activation(QWEN_VL, **wide) == activation(QWEN_7B, **wide) + 16384 * 3584 * 2
    wide["max_num_batched_tokens"] = 32768  # the step's images, however large one may be
    assert activation(QWEN_VL, **wide) == activation(QWEN_7B, **wide) + 32768 * 3584 * 2
    # A tower whose images are all of one size, of which the config does not tell what they take.
    fixed = replace(QWEN_VL, vision=None)
    assert activation(fixed) == activation(QWEN_7B) + 16384 * 3584 * 2


def test_outputs_for_several_layers_are_as_many() -> None:
    deep = replace(QWEN_VL, vision=read_tower({"vision_config": QWEN35 | {"deepstack_visual_indexes": [5, 11, 17]}}))
    assert output_bytes(deep, max_batched_tokens=2048, element_bytes=2) == 16384 * 3584 * 4 * 2


@pytest.mark.parametrize(("arguments", "is_text_only"), [
    ({"language_model_only": True}, True),
    ({"limit_mm_per_prompt": '{"image": 0, "video": 0}'}, True),
    ({"limit-mm-per-prompt.image": 0, "limit-mm-per-prompt.video": 0}, True),
    ({"limit_mm_per_prompt": '{"image": 0}', "limit_mm_per_prompt.video": 0}, True),
    ({"limit_mm_per_prompt": '{"image": 0}'}, False),  # of what is not named there may be any number
    ({"limit_mm_per_prompt": '{"image": 1, "video": 0}'}, False),
    ({"limit_mm_per_prompt": "image=0,video=0"}, False),
    ({"limit_mm_per_prompt": "[]"}, False),
    ({"language_model_only": False}, False),
    ({}, False),
])  # fmt: skip
def test_model_that_takes_no_images_needs_no_more_than_one_for_text(
    arguments: dict[str, ArgValue], is_text_only: bool
) -> None:
    assert (activation(QWEN_VL, **arguments) == activation(QWEN_7B)) == is_text_only
