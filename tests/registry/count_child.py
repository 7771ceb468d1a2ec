"""Run by the engine's interpreter: build models without memory for their weights and print what they have.

    python count_child.py '[["llama", {"attention_bias": true}], ...]'  ->  [[parameters, config], ...] as JSON

Beside the parameters are counted the router's corrections, which transformers keeps in a buffer and checkpoints as a
tensor like any other.
"""

from __future__ import annotations

import json
import sys

import torch
import transformers

_ENCODERS = ("bert", "roberta", "xlm-roberta")


def count(model_type: str, changes: dict[str, object]) -> tuple[int, dict[str, object]]:
    config = transformers.AutoConfig.for_model(model_type, **changes)
    loader = transformers.AutoModel if model_type in _ENCODERS else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = loader.from_config(config)
    own = {id(parameter): parameter.numel() for parameter in model.parameters()}
    corrections = sum(buffer.numel() for name, buffer in model.named_buffers() if "correction_bias" in name)
    return sum(own.values()) + corrections, {**config.to_dict(), "model_type": model_type}


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    print(json.dumps([count(*case) for case in json.loads(sys.argv[1])], default=str))
