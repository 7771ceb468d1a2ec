"""The built-in template, rendered directly where a conversation is plain.

Most of what the simulated engine gets is roles with texts, and a run of a template costs more than everything else that
it does for a request. Anything beyond that (tools, parts, tool calls) goes through the template itself; both give the
same text, which a test asserts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from xinf.chat.resolve import CHATML
from xinf.chat.template import Message, Template


class PlainMessage(Protocol):
    """A message that is nothing but a text and whose it is."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


class ChatMl(Template):
    """CHATML, compiled, with a short cut."""

    def __init__(self, *, source_name: str = "chatml") -> None:
        super().__init__(CHATML, source_name=source_name)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        turns = None if tools else _plain_turns(messages)
        if turns is None:
            return super().render(
                messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=variables
            )
        return "".join(turns) + ("<|im_start|>assistant\n" if add_generation_prompt else "")

    def render_plain(self, messages: Sequence[PlainMessage], *, add_generation_prompt: bool = True) -> str:
        """Render messages that are known to be plain."""
        turns = [f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n" for message in messages]
        if add_generation_prompt:
            turns.append("<|im_start|>assistant\n")
        return "".join(turns)


def _plain_turns(messages: Sequence[Message]) -> list[str] | None:
    """Render each message; None when one of them is not plain."""
    turns = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if type(role) is not str or type(content) is not str or message.get("tool_calls"):
            return None
        turns.append(f"<|im_start|>{role}\n{content}<|im_end|>\n")
    return turns
