"""A trace in the Mooncake format, made up: conversations that grow, on top of one block that all share.

Real traces are at kvcache-ai/Mooncake, FAST25-release/traces; `xinf bench route --trace` takes them as they are. This
one has their shape at an eighth of their lengths, so that simulated engines on two cores can play it.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

BLOCK_TOKENS = 512
_N_SESSIONS = 400
_TURNS = (1, 6)
_PAUSE_MS = (500, 8000)
_DURATION_MS = 120_000


def write_trace(path: Path, seed: int = 0) -> Path:
    """Write the trace, the same for a seed."""
    draw = random.Random(f"trace {seed}")
    lines = []
    n_ids = 1  # 0 is the system prompt
    for _ in range(_N_SESSIONS):
        at_ms = draw.randrange(_DURATION_MS)
        ids = [0]
        for _ in range(draw.randint(*_TURNS)):
            n_more = min(12, int(draw.lognormvariate(0.7, 0.7)) + 1)
            ids = [*ids, *range(n_ids, n_ids + n_more)]
            n_ids += n_more
            line = {
                "timestamp": at_ms,
                "input_length": len(ids) * BLOCK_TOKENS,
                "output_length": min(256, 16 + int(draw.expovariate(1 / 48))),
                "hash_ids": ids,
            }
            lines.append(line)
            at_ms += draw.randint(*_PAUSE_MS)
    lines.sort(key=lambda line: line["timestamp"])  # type: ignore[arg-type,return-value]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
