"""The prompt that the simulated engine makes of a chat, without xinf.chat, which the simulation may not import.

It is the ChatML template of `xinf.chat`; a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from xinf.bench.route_session import Message

_OPEN = "<|im_start|>"
_CLOSE = "<|im_end|>\n"


def render(messages: Sequence[Message], tools: bytes | None) -> bytes:
    """Render a chat up to where the answer begins."""
    parts = [_render_tools(tools)] if tools else []
    parts += [f"{_OPEN}{message.role}\n{message.content}{_CLOSE}" for message in messages]
    parts.append(f"{_OPEN}assistant\n")
    return "".join(parts).encode()


@lru_cache(64)
def _render_tools(tools: bytes) -> str:
    lines = "".join(f"{json.dumps(tool, ensure_ascii=False)}\n" for tool in msgspec.json.decode(tools))
    return f"{_OPEN}system\n# Tools\n{lines}{_CLOSE}"
