"""What templates of different habits do with messages; the templates are written after those of well-known models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from xinf.chat import ChatMl, Template
from xinf.engine.template_habits import Habits, Render, find_habits, stable_part

# Trims contents, as Llama 3 does.
TRIMMING = """\
{%- for m in messages %}
{{- '<|h|>' + m.role + '<|/h|>\\n\\n' + (m.content | trim) + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|h|>assistant<|/h|>\\n\\n' }}{%- endif %}"""

# Begins each answer with an empty thought that the history does not have, as Qwen3 does with enable_thinking false.
EMPTY_THOUGHT = """\
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}{%- endif %}"""

# Knows no system role and wants turns to alternate, as Gemma does; the assistant has another name there.
STRICT = """\
{%- if messages[0].role == 'system' %}{{- raise_exception('no system role') }}{%- endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('turns must alternate') }}{%- endif %}
{{- '<start>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start>model\\n' }}{%- endif %}"""

# Puts the system message into the first user message, as Llama 2 and Mistral do.
MERGING = """\
{%- for m in messages %}
{%- if m.role == 'user' %}
{{- '[INST] ' + (messages[0].content + '\\n\\n' if loop.index0 == 1 and messages[0].role == 'system' else '') }}
{{- m.content + ' [/INST]' }}
{%- elif m.role == 'assistant' %}{{- ' ' + m.content + '</s>' }}{%- endif %}
{%- endfor %}"""


def renderer(template: Template) -> Render:
    def render(messages: Sequence[dict[str, Any]], has_header: bool) -> str:
        return template.render(list(messages), add_generation_prompt=has_header)

    return render


def habits_of(source: str) -> Habits:
    return find_habits(renderer(Template(source, source_name="test")))


def test_chatml_goes_on_from_answers_as_they_are() -> None:
    habits = find_habits(renderer(ChatMl(source_name="test")))
    assert (habits.goes_on, habits.keeps_spaces) == (True, True)
    assert habits.headers[b"user"] == b"<|im_start|>user\n" or habits.headers[b"user"].endswith(b"user\n")
    assert habits.headers[b"assistant"].endswith(b"<|im_start|>assistant\n")
    assert habits.headers[b"system"].endswith(b"<|im_start|>system\n")


def test_template_that_trims_goes_on_from_answers_without_spaces_around() -> None:
    habits = habits_of(TRIMMING)
    assert (habits.goes_on, habits.keeps_spaces) == (True, False)
    assert habits.headers[b"user"].endswith(b"<|h|>user<|/h|>\n\n")


def test_template_that_begins_answers_in_another_way_than_it_writes_them_does_not_go_on() -> None:
    assert not habits_of(EMPTY_THOUGHT).goes_on


def test_roles_that_a_template_refuses_have_no_header() -> None:
    habits = habits_of(STRICT)
    assert b"system" not in habits.headers
    assert habits.headers[b"assistant"].endswith(b"<start>model\n")
    assert habits.goes_on


def test_header_is_only_what_always_stands_there() -> None:
    habits = habits_of(MERGING)
    assert habits.headers[b"user"].endswith(b"[INST] ")
    assert not habits.goes_on  # a space comes between


def test_template_that_fails_has_no_habits() -> None:
    habits = habits_of("{{ raise_exception('never') }}")
    assert habits == Habits(headers={}, goes_on=False, keeps_spaces=False)


@pytest.mark.parametrize(
    ("goes_on", "keeps_spaces", "text", "kept"),
    [
        (True, True, " a \n", " a \n"),
        (True, False, "a b\n", "a b"),
        (True, False, " a", ""),
        (True, False, "", ""),
        (False, False, "a", ""),
        (False, True, "a", ""),
    ],
)
def test_stable_part_is_what_the_next_prompt_has(goes_on: bool, keeps_spaces: bool, text: str, kept: str) -> None:
    assert stable_part(text, Habits(headers={}, goes_on=goes_on, keeps_spaces=keeps_spaces)) == kept
