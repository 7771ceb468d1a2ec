"""What routers ask an engine before they send it requests, answered as engines do.

Which router asks what: sglang-router and smg `/health`, `/server_info` or `/get_server_info`, `/model_info` or
`/get_model_info`, `/v1/models`, and `/get_load` for policies by load; vllm-router `/health`, `/v1/models`, `/version`.
Source: sglang 0.5 (sgl-router/src/core), vLLM 0.32 (entrypoints/openai).
"""

from __future__ import annotations

from typing import Any

import msgspec

from xinf.engine.adapter import Adapter, EngineDescription
from xinf.engine.sim_connection import Probe


def make_probes(adapter: Adapter, engine: EngineDescription) -> dict[bytes, Probe]:
    """Give the answer to each probe by its path."""
    name = engine.served_names[0]
    model = {
        "model_path": engine.model,
        "tokenizer_path": engine.model,
        "served_model_name": name,
        "is_generation": True,
        "preferred_sampling_params": None,
        "weight_version": "default",
    }
    server = {
        **model,
        "model_id": name,
        "version": engine.engine_version,
        "tp_size": 1,
        "dp_size": 1,
        "context_length": engine.max_model_len,
        "max_running_requests": engine.max_running,
        "max_total_num_tokens": engine.kv_blocks * engine.block_tokens,
        "page_size": engine.block_tokens,
        "internal_states": [],
    }

    def health() -> tuple[int, bytes | None]:
        return (200 if adapter.dead_reason() is None else 503), None

    def load() -> tuple[int, bytes | None]:
        now = adapter.load()
        tokens = now.kv_blocks_used * engine.block_tokens
        counts = {"num_reqs": now.running + now.waiting, "num_waiting_reqs": now.waiting, "num_tokens": tokens}
        return 200, msgspec.json.encode([{"dp_rank": 0, **counts}])

    def server_load() -> tuple[int, bytes | None]:
        now = adapter.load()
        return 200, msgspec.json.encode({"server_load": now.running + now.waiting})

    return {
        b"/health": health,
        b"/health_generate": health,
        b"/ping": health,
        b"/version": _fixed({"version": engine.engine_version}),
        b"/model_info": _fixed(model),
        b"/get_model_info": _fixed(model),
        b"/server_info": _fixed(server),
        b"/get_server_info": _fixed(server),
        b"/get_load": load,
        b"/load": server_load,
    }


def _fixed(content: dict[str, Any]) -> Probe:
    body = msgspec.json.encode(content)
    return lambda: (200, body)
