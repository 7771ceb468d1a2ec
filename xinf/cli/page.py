"""How the help page of a command reads, at any width.

What is written in the source over several lines is one paragraph: the terminal alone wraps it. An indented line stays
a line. Every option names what it takes (its metavar); a flag takes nothing and says nothing.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_BLANK_LINES = re.compile(r"\n[ \t]*\n")


class Page(TyperCommand):
    """A command with such a page."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = flow(self.help)

    def get_params(self, ctx: Any) -> list[Any]:
        return quiet_flags(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        # Some versions of typer put an argument that must be given in braces, which elsewhere means a choice.
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]


class Pages(TyperGroup):
    """A group of commands with such a page."""

    def get_params(self, ctx: Any) -> list[Any]:
        return quiet_flags(super().get_params(ctx))


def lay_out(app: typer.Typer) -> None:
    """Give every command of an app, and of the apps inside it, such a page."""
    for command in app.registered_commands:
        command.cls = Page
    for group in app.registered_groups:
        group.cls = Pages
        if group.typer_instance is not None:
            lay_out(group.typer_instance)


def flow(text: str | None) -> str | None:
    """Make each paragraph one line; a line that is indented begins a new one."""
    if text is None:
        return None
    return "\n\n".join(
        re.sub(r"\n(?! )", " ", paragraph) for paragraph in _BLANK_LINES.split(inspect.cleandoc(text).strip())
    )


def quiet_flags(parameters: list[Any]) -> list[Any]:
    """Take away the type that is shown beside a flag. Returns the parameters."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters
