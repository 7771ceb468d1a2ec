"""A LoRA adapter for the scripted model: real files that vLLM loads, all of its weights zero."""

from __future__ import annotations

import json
import struct
from pathlib import Path

HIDDEN, RANK = 256, 4


def write_adapter(directory: Path) -> Path:
    directory.mkdir()
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "scripted",
        "inference_mode": True,
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    header: dict[str, object] = {}
    offset = 0
    for layer in range(2):
        for part, shape in (("lora_A", (RANK, HIDDEN)), ("lora_B", (HIDDEN, RANK))):
            end = offset + 4 * RANK * HIDDEN
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.{part}.weight"
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (offset, end)}
            offset = end
    encoded = json.dumps(header).encode()
    (directory / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(offset))
    return directory
