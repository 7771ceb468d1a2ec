"""Load a model with the real vLLM in this process and say what it takes, as JSON on the last line.

Run with the interpreter of the engine environment:  python weigh.py MODEL KV_BYTES BLOCK_TOKENS
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main(model: str, kv_bytes: int, block_tokens: int) -> None:
    os.environ.update(
        {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1",
         "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    )  # fmt: skip
    from vllm import LLM
    from vllm.model_executor.model_loader import base_loader

    # Kernels may replace the weights that were loaded by packed ones of their own: they are counted before that.
    weights = 0
    finish = base_loader.process_weights_after_loading

    def weigh(model: Any, *others: Any) -> None:
        nonlocal weights
        weights = sum({parameter.data_ptr(): parameter.nbytes for parameter in model.parameters()}.values())
        finish(model, *others)

    base_loader.process_weights_after_loading = weigh
    llm = LLM(model, enforce_eager=True, block_size=block_tokens, kv_cache_memory_bytes=kv_bytes)
    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    config = llm.llm_engine.vllm_config
    told = {
        "weights_bytes": weights,
        "kv_bytes": sum(cache.nbytes for cache in runner.kv_caches),
        "kv_blocks": config.cache_config.num_gpu_blocks,
        "block_tokens": config.cache_config.block_size,
        "max_model_len": config.model_config.max_model_len,
        "dtype": str(config.model_config.dtype),
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
