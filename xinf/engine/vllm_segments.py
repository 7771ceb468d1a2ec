"""In which order a model's chat template puts the parts of a prompt, found by rendering one with a mark in each part.

The gateway chains hashes over the text of a request; it must walk the parts in the order in which the engine will see
them, or equal chains would not mean equal prefixes. Rendering once here spares it to know any template.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import TemplateError

_log = logging.getLogger(__name__)

# Renders messages with tools, or None; named: variables of the template.
Render = Callable[..., str]

_TOOL, _SYSTEM, _FIRST, _ANSWER, _LAST = ("xinfmark" + letter for letter in "tsfal")


def segment_order(render: Render) -> tuple[str, ...]:
    """Find the order: of "system", "tools", "messages" and, if tools stand right before it, "last_user".

    Empty if the template cannot render a conversation with tools. `render` takes messages and tools.
    """
    turns = [
        {"role": "user", "content": _FIRST},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": _LAST},
    ]
    tool = {"name": _TOOL, "description": "d", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": tool}]
    # Some templates refuse a system message.
    for messages in ([{"role": "system", "content": _SYSTEM}, *turns], turns):
        try:
            text, without = render(messages, tools), render(messages, None)
            order = _order_of(text)
            if order[0] == "system" and _front(text) != _front(without):
                # That there are tools changes what stands in front of all (Llama 3.1: "Environment: ipython"): chunks
                # of the system message would promise what is not there.
                order = ("has_tools", *order)
            return (*order, "thinking") if _thinks_last(render, messages) else order
        except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
            _log.info("the chat template did not render the probe: %s", error)
    return ()


def _thinks_last(render: Render, messages: Sequence[dict[str, Any]]) -> bool:
    """Whether enable_thinking changes only what comes after all messages."""
    thoughts = {"role": "assistant", "content": f"<think>\nxinf\n</think>\n\n{_ANSWER}"}
    history = [thoughts if message["content"] == _ANSWER else message for message in messages]
    one, other = (render(history, None, enable_thinking=value, add_generation_prompt=True) for value in (True, False))
    end = one.find(_LAST) + len(_LAST)
    return one != other and one[:end] == other[:end]


def _front(text: str) -> str:
    """What stands in front of the first content."""
    ends = [at for mark in (_SYSTEM, _FIRST) if (at := text.find(mark)) >= 0]
    return text[: min(ends, default=0)]


def _order_of(text: str) -> tuple[str, ...]:
    tool, system, first, last = (text.find(mark) for mark in (_TOOL, _SYSTEM, _FIRST, _LAST))
    if tool < 0:
        return ("system", "messages")
    if first < tool < last:
        return ("system", "messages", "tools", "last_user")
    if system < tool and system >= 0:
        return ("system", "tools", "messages")
    return ("tools", "messages")
