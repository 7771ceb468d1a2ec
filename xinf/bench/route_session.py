"""What a routing workload asks: sessions, whose requests form trees, so that conversations can branch.

    step 0 ─▶ step 1 ─▶ step 2 ─▶ ...          a step is sent when the one it follows was answered; its prompt is
                 └────▶ step 3 ─▶ ...          that one's whole prompt, that one's answer, and its own messages

Like `workload.py`, a session is made from the seed and its number alone, so that none need be kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec


class Message(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One message of a chat. `tool_call_id`: of a tool's result; some gateways insist on it, no template shows it."""

    role: str
    content: str
    tool_call_id: str | None = None


class Step(msgspec.Struct, frozen=True):
    """One request. `follows`: the step it continues, None: the session begins with it. `pause_s`: after that answer."""

    messages: tuple[Message, ...]
    max_tokens: int
    follows: int | None = None
    pause_s: float = 0.0


class RouteSession(msgspec.Struct, frozen=True):
    """Steps in an order in which each comes after the one it follows. `name` goes into `user`; `tools` is JSON."""

    steps: tuple[Step, ...]
    name: str | None = None
    tools: bytes | None = None

    def roots(self) -> list[int]:
        """The steps that the session begins with."""
        return [number for number, step in enumerate(self.steps) if step.follows is None]

    def followers(self, number: int) -> list[int]:
        """The steps that wait for the answer to this one."""
        return [other for other, step in enumerate(self.steps) if step.follows == number]

    def below(self, number: int) -> int:
        """Count the steps that are never sent if this one fails."""
        return sum(1 + self.below(other) for other in self.followers(number))

    def history(self, number: int, answers: Mapping[int, str]) -> list[Message]:
        """Give the messages of a step's prompt; `answers` has those to the steps before it."""
        path: list[int] = []
        at: int | None = number
        while at is not None:
            path.append(at)
            at = self.steps[at].follows
        messages: list[Message] = []
        for step in reversed(path):
            messages += self.steps[step].messages
            if step != number:
                messages.append(Message("assistant", answers[step]))
        return messages


class RouteWorkload(Protocol):
    """Gives session number n, the same each time it is asked. `n_sessions`: None is without end."""

    n_sessions: int | None

    def session(self, number: int) -> RouteSession: ...

    def at_s(self, number: int) -> float | None:
        """When it begins, if the workload itself says so, in seconds from the start."""
