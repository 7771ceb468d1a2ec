"""What is an event with output, what is an error, and what a server's error says."""

from __future__ import annotations

import pytest

from xinf.bench.answer import decode, error_message


@pytest.mark.parametrize(
    ("event", "has_output"),
    [
        ('{"choices": [{"delta": {"role": "assistant", "content": ""}}]}', False),
        ('{"choices": [{"delta": {"content": null}, "finish_reason": "stop"}]}', False),
        ('{"choices": []}', False),
        ('{"choices": [{"delta": {"content": "a"}}]}', True),
        ('{"choices": [{"delta": {"reasoning_content": "a"}}]}', True),
        ('{"choices": [{"delta": {"reasoning": "a"}}]}', True),
        ('{"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}', True),
        ('{"choices": [{"delta": {"tool_calls": null}}]}', False),
        ('{"choices": [{"delta": {"tool_calls": []}}]}', False),
        ('{"choices": [{"text": ""}, {"text": "a"}]}', True),
    ],
)
def test_output_is_what_was_generated(event: str, has_output: bool) -> None:
    assert decode(event.encode()).has_output is has_output


@pytest.mark.parametrize(
    ("event", "is_error"),
    [('{"error": {"message": "a"}}', True), ('{"error": "a"}', True), ('{"error": null}', False), ("{}", False)],
)
def test_error_may_have_any_shape(event: str, is_error: bool) -> None:
    assert decode(event.encode()).is_error is is_error


@pytest.mark.parametrize("text", ["", "{", "[]", '{"choices": 3}', '{"choices": [{"text": 1}]}', '{"usage": "x"}'])
def test_what_is_no_answer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(text.encode())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": "too long", "code": 1}}', "too long"),
        ('{"error": "too long"}', "too long"),
        ('{"detail": "Not Found"}', "Not Found"),
        ('{"detail": [{"loc": 1}]}', '[{"loc":1}]'),
        ('{"message": "m"}', "m"),
        ("<html>bad gateway</html>\n", "<html>bad gateway</html>"),
        ("", ""),
    ],
)
def test_error_body_gives_the_servers_words(body: str, message: str) -> None:
    assert error_message(body.encode()) == message
