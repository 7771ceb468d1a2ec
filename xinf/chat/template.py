"""One chat template, compiled: messages in, prompt text out.

Templates are written against what Hugging Face's `apply_chat_template` gives them; the same filters, functions and
whitespace rules are here. Source: transformers 5.19, utils/chat_template_utils.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from xinf.core.errors import EngineError, EngineStartFailed, InvalidRequest

Message = Mapping[str, object]


class _Refused(jinja2.TemplateError):
    """The template called raise_exception: it does not accept these messages."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant wrote, for training; here it is only its contents."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Template:
    """A compiled chat template. `source_name` says where it came from, for error messages."""

    def __init__(
        self, source: str, *, source_name: str, bos_token: str | None = None, eos_token: str | None = None
    ) -> None:
        """Compile. Raises: EngineStartFailed (cause model_unsupported) when it is not a template."""
        self.source_name = source_name
        self._special = {"bos_token": bos_token or "", "eos_token": eos_token or ""}
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise EngineStartFailed(
                f"the chat template of {source_name} is not valid: line {error.lineno}: {error.message}",
                remedy="correct the template, or take the model's files again",
                cause="model_unsupported",
            ) from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Render a conversation. `variables`: further names for the template (chat_template_kwargs).

        Raises: InvalidRequest when the template refuses the messages, EngineError when the template itself fails.
        """
        context = {
            **(variables or {}),
            **self._special,
            "messages": messages,
            "tools": tools or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(context)
        except (_Refused, jinja2.UndefinedError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise InvalidRequest(
                f"the chat template of {self.source_name} does not accept these messages: {error}", param="messages"
            ) from error
        except (jinja2.TemplateError, RecursionError, AttributeError, MemoryError) as error:
            raise EngineError(
                f"the chat template of {self.source_name} failed: {type(error).__name__}: {error}"
            ) from error


def render(
    template: Template,
    messages: Sequence[Message],
    tools: Sequence[Message] | None = None,
    *,
    add_generation_prompt: bool = True,
) -> str:
    """Render a conversation with `template`. Raises: as `Template.render`."""
    return template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """Make the sandbox. One per template: nothing that a template does can reach another."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Not jinja2's own, which escapes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


def _strftime_now(form: str, now: Callable[[], time.struct_time] = time.localtime) -> str:
    return time.strftime(form, now())
