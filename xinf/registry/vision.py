"""What images take of an engine's memory while it profiles itself, before the cache is made.

    tower     the largest image goes through the tower         its own peak, before the language model's
    outputs   what came out is kept while the language model runs at its widest, and then thrown away

Read: vLLM 0.32, v1/worker/gpu_model_runner.py, `profile_run`; multimodal/encoder_budget.py. How large the largest image
may be is in the processor's files, which nobody reads here: of towers that take images of any size it was 16,384 tokens
in nearly all logs (Qwen2-VL to Qwen3.6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xinf.core.model import ModelFacts, VisionTower
from xinf.registry.config import as_count

# A step's images, at least: the largest one, however few tokens a step of the language model has.
_IMAGE_TOKENS = 16384
# Of each patch. Seen: 2.17 GiB of Qwen3.5-4B on an L4 (vLLM 0.29), for which 2.19 are planned; 1.8 GiB of
# Qwen3.6-35B-A3B on an RTX 5090 (0.19: what the cache lacked beside one without images), 2.32 planned.
_HIDDEN_COPIES, _PIXEL_COPIES = 5, 3


def read_tower(config: Mapping[str, Any]) -> VisionTower | None:
    """The tower of a config.json that takes images of any size; None where it does not tell enough, and for the others.

    Those for one size of image have a batch that is bounded by a step's tokens.
    """
    part = config.get("vision_config")
    if not isinstance(part, dict):
        return None
    merged, patch = as_count(part.get("spatial_merge_size")), as_count(part.get("patch_size"))
    # Qwen2-VL's hidden_size is of what comes out.
    hidden = as_count(part.get("embed_dim")) or as_count(part.get("hidden_size"))
    ratio = as_count(part.get("mlp_ratio"))
    columns = as_count(part.get("intermediate_size")) or (hidden * ratio if hidden and ratio else None)
    if merged is None or patch is None or hidden is None or columns is None:
        return None
    channels = as_count(part.get("in_channels")) or as_count(part.get("in_chans")) or 3
    levels = part.get("deepstack_visual_indexes")
    return VisionTower(
        hidden_size=hidden,
        # Gate and up, and their product; else what goes into the activation and what comes out.
        feed_forward_width=(3 if part.get("hidden_act") == "silu" else 2) * columns,
        patch_elements=channels * (as_count(part.get("temporal_patch_size")) or 1) * patch**2,
        token_patches=merged**2,
        n_outputs=1 + (len(levels) if isinstance(levels, list) else 0),
    )


def tower_bytes(facts: ModelFacts, *, tensor_parallel_size: int, element_bytes: float) -> int:
    """The peak of the largest image in the tower; 0 where nothing tells."""
    tower = facts.vision
    if tower is None:
        return 0
    width = _HIDDEN_COPIES * tower.hidden_size + _PIXEL_COPIES * tower.patch_elements
    width += tower.feed_forward_width // tensor_parallel_size
    return int(_IMAGE_TOKENS * tower.token_patches * width * element_bytes)


def output_bytes(facts: ModelFacts, *, max_batched_tokens: int, element_bytes: float) -> int:
    """What the images of a step are for the language model, beside which it is at its widest."""
    n_outputs = 1 if facts.vision is None else facts.vision.n_outputs
    return int(max(max_batched_tokens, _IMAGE_TOKENS) * (facts.hidden_size or 0) * n_outputs * element_bytes)
