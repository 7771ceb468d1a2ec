"""What a chat template does with messages, found by rendering some: the text in front of a content, and whether the
next prompt of a conversation goes on where the answer ended.

    prompt of turn n     ... <|im_start|>user\\nquestion<|im_end|>\\n<|im_start|>assistant\\n
    engine's cache       ... that, and the answer as it was generated
    prompt of turn n+1   ... that, and the answer as the template writes it

Templates that trim answers, drop thoughts from the history or begin an answer with an empty thought write something
else in turn n+1 than what the engine computed; what differs must not be promised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from jinja2 import TemplateError

from xinf.core.errors import XinfError

_log = logging.getLogger(__name__)

# Renders messages; the second argument: whether the header of an answer follows.
Render = Callable[[Sequence[dict[str, Any]], bool], str]

_ROLES = ("system", "developer", "user", "assistant", "tool")
_FIRST, _HERE, _LAST = "xinfmarkf", "xinfmarkh", "xinfmarkl"
_SPACES = " \n "
# What a template raises on a conversation that it does not like.
_REFUSALS = (XinfError, TemplateError, ValueError, TypeError, LookupError, AttributeError)


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """Of one template, without options."""

    headers: dict[bytes, bytes]  # role -> the text right before the content of its messages
    goes_on: bool  # the next prompt has the answer where and as it was generated
    keeps_spaces: bool  # also spaces around it


def find_habits(render: Render) -> Habits:
    """Render a few conversations."""
    user = {"role": "user", "content": _FIRST}
    return Habits(
        headers={role.encode(): header for role in _ROLES if (header := _header(render, role))},
        goes_on=_goes_on(render, user, _HERE),
        keeps_spaces=_goes_on(render, user, _SPACES + _HERE + _SPACES),
    )


def stable_part(text: str, habits: Habits) -> str:
    """Give how much of an answer the next prompt has unchanged."""
    if not habits.goes_on:
        return ""
    if habits.keeps_spaces:
        return text
    return "" if text[:1].isspace() else text.rstrip()


def _header(render: Render, role: str) -> bytes:
    """What stands before a message of `role` whatever came before it; empty when that is nothing, or not known."""
    befores = [[_message("user", _FIRST), _message("assistant", _FIRST)], [_message("user", _FIRST)]]
    if role in ("system", "developer"):
        befores = [[]]
    texts = [text for before in befores if (text := _before_mark(render, [*before, _message(role, _HERE)])) is not None]
    if not texts:
        return b""
    return _common_end(texts).encode("utf-8", "replace")


def _message(role: str, content: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": role, "content": content}
    if role == "tool":
        message["tool_call_id"] = "call_1"
    return message


def _before_mark(render: Render, messages: list[dict[str, Any]]) -> str | None:
    """What stands between the last message's content and the one before; None if it was not rendered so."""
    try:
        text = render([*messages, _message("user", _LAST)] if messages[-1]["role"] != "user" else messages, True)
    except _REFUSALS as error:
        _log.debug("the chat template refuses %s: %s", [m["role"] for m in messages], error)
        return None
    at = text.find(_HERE)
    if at < 0:
        return None
    before = text[:at]
    return before[before.rfind(_FIRST) + len(_FIRST) :] if _FIRST in before else before


def _common_end(texts: list[str]) -> str:
    shortest = min(texts, key=len)
    for start in range(len(shortest)):
        if all(text.endswith(shortest[start:]) for text in texts):
            return shortest[start:]
    return ""


def _goes_on(render: Render, user: dict[str, Any], answer: str) -> bool:
    try:
        prompt = render([user], True)
        later = render([user, _message("assistant", answer), _message("user", _LAST)], True)
    except _REFUSALS as error:
        _log.debug("the chat template refuses the probe: %s", error)
        return False
    return later.startswith(prompt + answer)
