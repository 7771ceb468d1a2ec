from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from xinf.chat import CHATML, ChatMl, Template, render
from xinf.core.errors import EngineError, EngineStartFailed, InvalidRequest

USER = {"role": "user", "content": "hi"}


def made(source: str, **special: str) -> Template:
    return Template(source, source_name="test-model", **special)


def test_chatml_renders_a_conversation() -> None:
    messages = [{"role": "system", "content": "be brief"}, USER]
    assert render(made(CHATML), messages) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(made(CHATML), [USER], add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"


def test_chatml_renders_parts_tools_and_tool_calls() -> None:
    parts = [{"type": "text", "text": "look "}, "here ", {"type": "image_url", "image_url": {"url": "x"}}]
    call = {"function": {"name": "f", "arguments": '{"a": "ü"}'}}
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    text = render(made(CHATML), messages, [{"type": "function", "function": {"name": "f"}}])
    assert text.startswith('<|im_start|>system\n# Tools\n{"type": "function", "function": {"name": "f"}}\n<|im_end|>\n')
    assert "<|im_start|>user\nlook here <|image_url|><|im_end|>\n" in text
    assert '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"ü\\"}"}</tool_call>' in text


def test_next_turn_begins_with_the_turn_before() -> None:
    template = made(CHATML)
    first = render(template, [USER])
    later = render(template, [USER, {"role": "assistant", "content": "hello"}, USER])
    assert later.startswith(first + "hello")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}|{{ eos_token }}", "<s>|"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "hi"}]'),
        ("{{ {'b': '<é>'} | tojson(indent=1) }}", '{\n "b": "<é>"\n}'),
        ("{% for m in messages %}{% break %}{% endfor %}ok", "ok"),
        ("{% generation %}x{% endgeneration %}", "x"),
        ("{% if tools is none %}none{% endif %}", "none"),
        ("{{ enable_thinking }}", "False"),
        ("{%- set ns = namespace(n=0) %}{% set ns.n = 3 %}{{ ns.n }}", "3"),
    ],
)
def test_templates_find_what_they_are_written_against(source: str, text: str) -> None:
    template = made(source, bos_token="<s>")
    assert template.render([USER], tools=[], variables={"enable_thinking": False}) == text


def test_strftime_now_gives_the_date() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", made("{{ strftime_now('%Y-%m-%d') }}").render([USER]))


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[5].content }}",
        "{{ messages[0].content + 5 }}",
        "{{ 1 // 0 }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ],
)
def test_messages_that_a_template_cannot_take_are_invalid(source: str) -> None:
    with pytest.raises(InvalidRequest, match="test-model") as caught:
        made(source).render([USER])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ render.__globals__ }}",
        "{{ ('%s'|format).__func__ }}",
    ],
)
def test_sandbox_keeps_templates_in(source: str) -> None:
    messages = [dict(USER)]
    with pytest.raises((EngineError, InvalidRequest)):
        made(source).render(messages)
    assert messages == [USER]


def test_template_cannot_be_replaced_by_variables() -> None:
    text = made("{{ messages | length }}").render([USER], variables={"messages": [USER, USER]})
    assert text == "1"


def test_source_that_is_no_template_says_where() -> None:
    with pytest.raises(EngineStartFailed, match="line 2") as caught:
        made("fine\n{% if %}")
    assert caught.value.fields["cause"] == "model_unsupported"


def test_messages_are_not_changed() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    render(made(CHATML), messages)
    assert messages == [{"role": "user", "content": [{"type": "text", "text": "a"}]}]


PLAIN: list[Any] = [
    [],
    [USER],
    [{"role": "system", "content": ""}, {"role": "", "content": "\n\n <b>&amp;</b> {{ 1 + 1 }} {% if %}\r\n"}],
    [
        {"role": "user", "content": "é\u2028\x00", "name": "n", "tool_calls": []},
        {"role": "assistant", "content": "x\n"},
    ],
]
NOT_PLAIN: list[Any] = [
    [USER, {"role": "user", "content": ["a", {"type": "text", "text": "b"}]}],
    [USER, {"role": "assistant", "content": None}],
    [USER, {"role": "assistant"}],
    [USER, {"content": "no role"}],
    [{"role": 5, "content": "x"}],
    [{"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}],
]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", PLAIN + NOT_PLAIN)
def test_short_cut_gives_the_text_of_the_template(messages: Any, add_generation_prompt: bool) -> None:
    for tools in (None, [], [{"type": "function"}]):
        for variables in (None, {"enable_thinking": True, "messages": [], "message": 1, "tools": [1]}):
            ways: dict[str, Any] = {
                "tools": tools, "add_generation_prompt": add_generation_prompt, "variables": variables,
            }  # fmt: skip
            assert ChatMl().render(messages, **ways) == made(CHATML).render(messages, **ways)


@pytest.mark.parametrize("messages", PLAIN)
def test_plain_messages_are_rendered_as_the_template_does(messages: Any) -> None:
    plain = [SimpleNamespace(**message) for message in messages]
    for add in (True, False):
        expected = made(CHATML).render(messages, add_generation_prompt=add)
        assert ChatMl().render_plain(plain, add_generation_prompt=add) == expected
